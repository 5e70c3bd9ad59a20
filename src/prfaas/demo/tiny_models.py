"""Tiny models with random weights, made from their configs: no hub, no download, a few seconds.

`python -m prfaas.demo.tiny_models DIR [--model qwen3-next]` makes DIR/qwen3-next. Weights come from a fixed seed,
so two machines with the same torch make the same model. A byte is a token, so a prompt's length is easy to choose.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

#: 256 bytes, three specials, and room to a round number.
VOCAB_TOKENS: Final = 320
SPECIALS: Final = {"<bos>": 256, "<eos>": 257, "<pad>": 258}
MODELS: Final = ("qwen3-next", "gemma3")
SEED: Final = 20_260_415

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_model(kind: str, directory: Path) -> Path:
    """Make `directory/kind` unless it is there; appears whole or not at all. Raises ValueError for an unknown kind."""
    if kind not in MODELS:
        raise ValueError(f"unknown model {kind!r}; there are {', '.join(MODELS)}")
    target = directory / kind
    if (target / "config.json").is_file():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=directory))
    try:
        _save_weights(kind, unfinished)
        _save_tokenizer(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _common() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_TOKENS,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "bos_token_id": SPECIALS["<bos>"],
        "eos_token_id": SPECIALS["<eos>"],
        "pad_token_id": SPECIALS["<pad>"],
    }


def _untrained(kind: str) -> Any:
    import transformers

    if kind == "qwen3-next":
        config = transformers.Qwen3NextConfig(
            **_common(),
            num_hidden_layers=8,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
            intermediate_size=128,
            partial_rotary_factor=0.25,
        )
        return transformers.Qwen3NextForCausalLM(config)
    config = transformers.Gemma3TextConfig(
        **_common(), num_hidden_layers=6, intermediate_size=256, sliding_window=128, query_pre_attn_scalar=64
    )
    return transformers.Gemma3ForCausalLM(config)


def _save_weights(kind: str, directory: Path) -> None:
    import torch

    torch.manual_seed(SEED)
    model = _untrained(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                continue
            # Wide enough that prompts matter to the answer, narrow enough that nothing saturates: an answer that
            # never varies would prove nothing. Gemma multiplies embeddings by sqrt(hidden) itself.
            parameter.normal_(0.0, _spread(kind, name))
    model.to(torch.bfloat16).save_pretrained(directory)


def _spread(kind: str, name: str) -> float:
    if "embed" in name:
        return 0.5 if kind == "qwen3-next" else 0.05
    return 0.08


def _save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, **SPECIALS}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tiny random-weight models.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", choices=MODELS, action="append")
    arguments = parser.parse_args()
    for kind in arguments.model or MODELS:
        sys.stdout.write(f"{make_model(kind, arguments.directory)}\n")


if __name__ == "__main__":
    main()
