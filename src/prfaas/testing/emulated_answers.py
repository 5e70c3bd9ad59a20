"""What emulated engines must answer, computed apart from them: an answer is a function of its prompt as long as no byte
of KVCache is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from prfaas.bench.e2e.options import E2eOptions
from prfaas.bench.e2e.plan import plan_of
from prfaas.bench.e2e.prompts import Bodies, TokenMaterial, Turn, prompt_piece
from prfaas.deployment.load import read_deployment, resolve_model_dir
from prfaas.engines.emulated.answers import answer_tokens, seed_of
from prfaas.engines.emulated.configure import emulated_of
from prfaas.engines.emulated.kv import KVBytes
from prfaas.engines.emulated.texts import Texts


class ExpectedAnswers:
    """Of the engines of a deployment file."""

    def __init__(self, file: Path) -> None:
        deployment, document = read_deployment(file)
        model_dir = resolve_model_dir(deployment, file)
        emulated = emulated_of(deployment, document, model_dir, file.parent, ())
        self._kv = KVBytes(emulated.instances[0].layout)
        self._texts = Texts(emulated.model_dir)

    def to(self, prompt: list[int] | str, num_tokens: int) -> str:
        """The text of the answer to a prompt of `/v1/completions`, token ids or text, of so many tokens."""
        token_ids = self._texts.tokens(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt
        seed = seed_of(self._kv.names(token_ids).whole, ())
        return self._texts.text(answer_tokens(seed, num_tokens, self._texts.alphabet))


def prompts_sent(options: E2eOptions, prompt_seed: int) -> Iterator[list[int]]:
    """The prompts of a run of `prfaas bench e2e` with these options, in the order of its requests' numbers."""
    plan, material = plan_of(options), TokenMaterial(prompt_seed, options.token_ids)
    bodies = Bodies("completions", "any", ignore_eos=True, wants_ids=False)
    for planned in plan.requests:
        piece = prompt_piece(material, planned.number, planned.input_tokens, planned.blocks, plan.block_tokens)
        yield orjson.loads(bodies.body([Turn(piece)], planned.output_tokens))["prompt"]
