"""KVCache sizes from config.json: every kind of attention by hand, the zoo, the paper's figures, refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import prfaas
from prfaas.core.errors import PrfaasError
from prfaas.core.model.cache_size import CacheGroup, CacheSize
from prfaas.core.model.hf_config import KNOWN_MODEL_TYPES, BadModelConfig, UnknownArchitecture, cache_size_of
from prfaas.core.model.layout import KVGroupKind

ZOO = Path(prfaas.__file__).parent / "profiles" / "models"
PAGE = Path(__file__).parents[3] / "docs" / "models.md"
FULL, SLIDING, STATE = KVGroupKind.FULL_ATTENTION, KVGroupKind.SLIDING_WINDOW, KVGroupKind.LINEAR_STATE
Config = Mapping[str, object]

LLAMA = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "num_attention_heads": 128,
    "v_head_dim": 128,
}
KIMI = {
    "model_type": "kimi_linear",
    "dtype": "bfloat16",
    "num_hidden_layers": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "linear_attn_config": {
        "full_attn_layers": [4],
        "kda_layers": [1, 2, 3],
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
}
QWEN_NEXT = {
    "model_type": "qwen3_next",
    "dtype": "bfloat16",
    "num_hidden_layers": 48,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
GEMMA3 = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "head_dim": 128, "sliding_window": 4096}
RING = {
    "model_type": "bailing_hybrid",
    "dtype": "bfloat16",
    "num_hidden_layers": 16,
    "layer_group_size": 8,
    "num_attention_heads": 64,
    "head_dim": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
MINIMAX_01 = {
    "model_type": "minimax_text_01",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 80,
    "attn_type_list": ([0] * 7 + [1]) * 10,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
BAMBA = {
    "model_type": "bamba",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 32,
    "attn_layer_indices": [9, 18, 27],
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
GRANITE = {
    **BAMBA,
    "model_type": "granitemoehybrid",
    "num_hidden_layers": 40,
    "layer_types": (["mamba"] * 9 + ["attention"]) * 4,
    "mamba_d_head": 64,
}
FALCON_H1 = {**BAMBA, "model_type": "falcon_h1", "num_hidden_layers": 36, "mamba_d_ssm": 3072, "mamba_n_heads": 24}
NEMOTRON = {
    "model_type": "nemotron_h",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 8,
    "hybrid_override_pattern": "M-M*-EM-",
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
}

#: Config, then each group: kind, name, layers, bytes per token, window, state bytes; all computed by hand.
CASES: dict[str, tuple[Config, list[tuple[KVGroupKind, str, int, int, int, int]]]] = {
    "GQA": (LLAMA, [(FULL, "GQA", 32, 2 * 8 * 128 * 2, 0, 0)]),
    "MHA": (
        {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
        [(FULL, "MHA", 32, 2 * 32 * 128 * 2, 0, 0)],
    ),
    "MQA": ({**LLAMA, "num_key_value_heads": 1}, [(FULL, "MQA", 32, 2 * 128 * 2, 0, 0)]),
    "MLA": (DEEPSEEK, [(FULL, "MLA", 61, 576 * 2, 0, 0)]),
    "SWA everywhere": (MISTRAL, [(SLIDING, "SWA", 32, 4096, 4096, 0)]),
    "SWA switched off": (
        {**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096},
        [(FULL, "GQA", 32, 4096, 0, 0)],
    ),
    "SWA by period and defaults": (
        # Layers 6, 12, 18, 24 and 30 are full; 4 heads of 256 are the class's defaults.
        GEMMA3,
        [(FULL, "GQA", 5, 4096, 0, 0), (SLIDING, "SWA", 29, 4096, 1024, 0)],
    ),
    "SWA by list": (GPT_OSS, [(FULL, "GQA", 18, 2048, 0, 0), (SLIDING, "SWA", 18, 2048, 128, 0)]),
    "KDA": (
        KIMI,
        [(FULL, "MLA", 1, 1152, 0, 0), (STATE, "KDA", 3, 0, 0, 32 * 128 * 128 * 4 + 3 * 3 * 4096 * 2)],
    ),
    "Gated DeltaNet": (
        QWEN_NEXT,
        [
            (FULL, "GQA", 12, 2 * 2 * 256 * 2, 0, 0),
            (STATE, "GatedDeltaNet", 36, 0, 0, 32 * 128 * 128 * 4 + 3 * 8192 * 2),
        ],
    ),
    "Lightning": (
        RING,
        [(FULL, "MLA", 2, 1152, 0, 0), (STATE, "Lightning", 14, 0, 0, 64 * 128 * 128 * 4)],
    ),
    "Lightning with GQA": (
        MINIMAX_01,
        [(FULL, "GQA", 10, 4096, 0, 0), (STATE, "Lightning", 70, 0, 0, 64 * 128 * 128 * 4)],
    ),
    "Ling-3, which has the model_type of Ling-2.5": (
        {**RING, "short_conv_kernel_size": 4},
        [(FULL, "MLA", 2, 1152, 0, 0), (STATE, "KDA", 14, 0, 0, 64 * 128 * 128 * 4 + 3 * 3 * 8192 * 2)],
    ),
    "Mamba2": (
        BAMBA,
        [
            (FULL, "GQA", 3, 4096, 0, 0),
            (STATE, "Mamba2", 29, 0, 0, 128 * 64 * 128 * 4 + 3 * (8192 + 2 * 128) * 2),
        ],
    ),
    "Mamba2 by list": (
        GRANITE,
        [
            (FULL, "GQA", 4, 4096, 0, 0),
            (STATE, "Mamba2", 36, 0, 0, 128 * 64 * 128 * 4 + 3 * (8192 + 2 * 128) * 2),
        ],
    ),
    "Mamba2 beside attention": (
        FALCON_H1,
        [
            (FULL, "GQA", 36, 4096, 0, 0),
            (STATE, "Mamba2", 36, 0, 0, 3072 * 128 * 4 + 3 * (3072 + 2 * 128) * 2),
        ],
    ),
    "Mamba2 by pattern": (
        NEMOTRON,
        [
            (FULL, "GQA", 1, 1024, 0, 0),
            (STATE, "Mamba2", 3, 0, 0, 64 * 64 * 128 * 4 + 3 * (4096 + 2 * 8 * 128) * 2),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_by_hand(name: str) -> None:
    """Every kind of attention has the groups and bytes that its formula gives."""
    config, expected = CASES[name]
    groups = cache_size_of(config).groups
    assert expected == [
        (group.kind, group.name, group.num_layers, group.bytes_per_token, group.window_tokens, group.state_bytes)
        for group in groups
    ]
    assert all(group.detail for group in groups)


#: Which layers are whose, by hand: of each group in the order of CASES, first and last layer.
LAYERS = {
    "SWA by period and defaults": [(5, 29), (0, 33)],
    "SWA by list": [(1, 35), (0, 34)],
    "KDA": [(3, 3), (0, 2)],
    "Gated DeltaNet": [(3, 47), (0, 46)],
    "Lightning": [(7, 15), (0, 14)],
    "Lightning with GQA": [(7, 79), (0, 78)],
    "Mamba2": [(9, 27), (0, 31)],
    "Mamba2 by list": [(9, 39), (0, 38)],
    "Mamba2 beside attention": [(0, 35), (0, 35)],
    "Mamba2 by pattern": [(3, 3), (0, 6)],
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_group_names_its_layers(name: str) -> None:
    """In order, each once, and no layer twice unless it keeps two caches."""
    groups = cache_size_of(CASES[name][0]).groups
    assert [(group.layers[0], group.layers[-1]) for group in groups] == LAYERS[name]
    assert all(list(group.layers) == sorted(set(group.layers)) for group in groups)
    layers = [layer for group in groups for layer in group.layers]
    assert len(set(layers)) == len(layers) or name == "Mamba2 beside attention"


def test_bytes_at_a_length() -> None:
    """Full attention grows for ever, a window up to its width, state not at all."""
    gpt_oss = cache_size_of(GPT_OSS)
    assert 0 == gpt_oss.bytes_at(0)
    assert 2 * 18 * 2048 * 100 == gpt_oss.bytes_at(100)
    assert 18 * 2048 * (1000 + 128) == gpt_oss.bytes_at(1000)
    kimi = cache_size_of(KIMI)
    assert 3 * 2_170_880 == kimi.bytes_at(0)
    assert 3 * 2_170_880 + 1152 * 2.5 == kimi.bytes_at(2.5)


def test_details_can_be_checked() -> None:
    """The detail line is the product behind the number."""
    assert ["2 × 8 heads × 128 × 2 B (bfloat16)"] == [group.detail for group in cache_size_of(LLAMA).groups]
    assert [
        "(512 + 64) × 2 B (bfloat16), one copy for all heads",
        "32 heads × 128 × 128 × 4 B (float32) + convolution 3 × 12288 × 2 B (bfloat16)",
    ] == [group.detail for group in cache_size_of(KIMI).groups]


def test_number_formats() -> None:
    """cache_dtype is for attention, state_dtype for recurrent state; convolutions stay in the model's format."""
    attention, state = cache_size_of(KIMI, cache_dtype="fp8", state_dtype="bfloat16").groups
    assert 576 == attention.bytes_per_token
    assert 32 * 128 * 128 * 2 + 3 * 3 * 4096 * 2 == state.state_bytes
    asked = cache_size_of({**QWEN_NEXT, "mamba_ssm_dtype": "bfloat16"}).groups[1]
    assert 32 * 128 * 128 * 2 + 3 * 8192 * 2 == asked.state_bytes


@pytest.mark.parametrize("argument", ["cache_dtype", "state_dtype"])
def test_an_unknown_dtype_is_refused(argument: str) -> None:
    """A number format without a known size is an error that lists the known ones."""
    with pytest.raises(BadModelConfig, match=f"{argument}.*bfloat16"):
        cache_size_of(KIMI, **{argument: "int3"})


def test_unequal_value_heads() -> None:
    """Keys and values may have different dimensions."""
    (group,) = cache_size_of({**LLAMA, "head_dim": 192, "v_head_dim": 128}).groups
    assert 8 * (192 + 128) * 2 == group.bytes_per_token
    assert "8 heads × (192 + 128) × 2 B (bfloat16)" == group.detail


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_an_unknown_model_type_is_refused_with_a_hint() -> None:
    """Neither guessed nor silent: the nearest name and all known ones are in the text."""
    with pytest.raises(UnknownArchitecture, match=r"'qwen3_mo' .* Did you mean qwen3_moe.*kimi_linear"):
        cache_size_of({**LLAMA, "model_type": "qwen3_mo"})
    assert issubclass(UnknownArchitecture, PrfaasError)
    assert issubclass(BadModelConfig, PrfaasError)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "model_type is missing"),
        ({"model_type": 7}, "model_type must be a string"),
        ({"model_type": "gemma3"}, "gemma3: field text_config is missing"),
        ({"model_type": "gemma3", "text_config": []}, "text_config must be an object"),
        ({"model_type": "gemma3", "text_config": {}}, "text_config.model_type is missing"),
        ({**LLAMA, "num_hidden_layers": None}, "model_type llama: field num_hidden_layers is missing"),
        ({**LLAMA, "num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10000"),
        ({**LLAMA, "num_attention_heads": "32"}, "num_attention_heads must be a whole number .* got '32'"),
        ({**LLAMA, "num_key_value_heads": -8}, "num_key_value_heads must be"),
        ({**LLAMA, "num_key_value_heads": 8.0}, "num_key_value_heads must be"),
        ({**LLAMA, "num_key_value_heads": 5}, "num_key_value_heads is 5, which does not divide 32 heads"),
        ({**LLAMA, "hidden_size": 4097}, "hidden_size 4097 is no multiple of 32 heads"),
        ({**LLAMA, "torch_dtype": None}, "dtype .or torch_dtype. is missing"),
        ({**LLAMA, "torch_dtype": "auto"}, "torch_dtype must be one of"),
        ({**LLAMA, "sliding_window": 4096}, "sliding_window is set, which this model_type is not known to use"),
        ({**LLAMA, "layer_types": ["sliding_attention"] * 32}, "layer_types holds sliding_attention"),
        ({**MISTRAL, "num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True}, "layer_types is missing, though"),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": 1}, "use_sliding_window must be true or false"),
        ({**GPT_OSS, "num_hidden_layers": 35}, "layer_types has 36 entries for 35 layers"),
        ({**GPT_OSS, "layer_types": "full_attention"}, "layer_types must be a list"),
        ({**GPT_OSS, "layer_types": [["x"]] * 36}, "layer_types holds"),
        ({**GPT_OSS, "head_dim": None, "hidden_size": 2880}, "head_dim is missing"),
        ({**DEEPSEEK, "kv_lora_rank": None}, "kv_lora_rank is missing"),
        ({**KIMI, "linear_attn_config": None}, "linear_attn_config is missing"),
        ({**KIMI, "num_hidden_layers": 5}, "must name each layer from 1 to 5 once"),
        ({**KIMI, "num_hidden_layers": 3}, "linear_attn_config.full_attn_layers holds 4"),
        ({**QWEN_NEXT, "full_attention_interval": None}, "full_attention_interval is missing"),
        ({**QWEN_NEXT, "layer_types": ["full_attention", "mamba"] * 24}, "layer_types holds 'mamba'"),
        ({**RING, "num_hidden_layers": 20}, "layer_group_size is 8, of which 20 layers are no multiple"),
        ({**MINIMAX_01, "attn_type_list": [2] * 80}, "attn_type_list holds 2"),
        ({**MINIMAX_01, "model_type": "minimax_m2"}, "attn_type_list holds 0"),
        ({**LLAMA, "model_type": "minimax_m2", "head_dim": 128, "sliding_window": 64}, "sliding_window is set"),
        ({**BAMBA, "attn_layer_indices": [32]}, "attn_layer_indices holds 32, not a layer from 0 to 31"),
        ({**BAMBA, "attn_layer_indices": [9, 9]}, "attn_layer_indices names a layer twice"),
        ({**BAMBA, "mamba_n_heads": 100}, "mamba_d_head times mamba_n_heads 100 must be the mixer's width, 8192"),
        ({**NEMOTRON, "hybrid_override_pattern": "M?"}, "hybrid_override_pattern must be a string of"),
        ({**NEMOTRON, "num_hidden_layers": 9}, "hybrid_override_pattern has 8 characters"),
        ({**NEMOTRON, "num_hidden_layers": 2, "hybrid_override_pattern": "-E"}, "no layer keeps a cache"),
    ],
)
def test_nonsense_is_refused_by_name(config: Config, text: str) -> None:
    """A field that is missing or makes no sense is named, with its model_type."""
    with pytest.raises(BadModelConfig, match=text):
        cache_size_of(config)


def test_mimo_windows_must_agree() -> None:
    """Two spellings of one window with different values are an error, not a choice."""
    config = {**zoo("mimo-v2-flash"), "sliding_window": 4096}
    with pytest.raises(BadModelConfig, match="sliding_window differs from sliding_window_size, 128"):
        cache_size_of(config)


@pytest.mark.parametrize(
    "fields",
    [
        (FULL, "x", (), 1, 0, 0),
        (FULL, "x", (7,), 0, 0, 0),
        (FULL, "x", (7,), -1, 0, 0),
        (FULL, "x", (7,), 1, 5, 0),
        (SLIDING, "x", (7,), 1, 0, 0),
        (STATE, "x", (7,), 1, 0, 1),
        (STATE, "x", (7,), 0, 0, 0),
    ],
)
def test_a_group_checks_itself(fields: tuple[KVGroupKind, str, tuple[int, ...], int, int, int]) -> None:
    """A group holds what its kind needs and nothing else."""
    with pytest.raises(ValueError):
        CacheGroup(*fields, detail="")


def test_lengths_are_not_negative() -> None:
    """Neither a negative length nor NaN has a size, and a model has at least one group."""
    for length in (-1, math.nan):
        with pytest.raises(ValueError):
            cache_size_of(LLAMA).bytes_at(length)
    with pytest.raises(ValueError):
        CacheSize("x", ())


VALID = [config for config, _ in CASES.values()]
NAMES = sorted({str(name) for config in VALID for name in config} | {"head_dim", "v_head_dim", "layer_types"})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(1, 64)
    | st.floats()
    | st.sampled_from(["bfloat16", "M*-E", "auto"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)


@given(
    st.sampled_from(VALID),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    st.none() | st.sampled_from(KNOWN_MODEL_TYPES),
    st.lists(st.floats(0, 1e7) | st.integers(0, 10**7), min_size=2, max_size=6),
)
def test_any_json_gives_a_size_or_one_of_two_errors(
    valid: Config, changes: dict[str, object], model_type: str | None, lengths: list[float]
) -> None:
    """Whatever a config says, it is refused with one of two errors or has a finite size that never shrinks."""
    config = {**valid, **changes, "model_type": model_type or valid["model_type"]}
    if "text_config" in valid and model_type is None:
        config["text_config"] = {**valid["text_config"], **changes, "model_type": valid["text_config"]["model_type"]}  # type: ignore[dict-item,index]
    try:
        size = cache_size_of(config)
    except (BadModelConfig, UnknownArchitecture):
        return
    sizes = [size.bytes_at(length) for length in sorted(lengths)]
    assert 0 <= sizes[0]
    assert sizes == sorted(sizes)
    assert math.isfinite(sizes[-1])


# --- The zoo and the paper --------------------------------------------------------------------------------------------

#: Bytes per token at great length, and bytes that do not depend on it (windows full); by hand from each config.
ZOO_SIZES = {
    "kimi-linear-48b": (7 * 1152, 20 * 2_170_880),
    "mimo-v2-flash": (9 * 2560, 39 * 5120 * 128),
    "qwen3.5-397b": (15 * 2048, 45 * 4_268_032),
    "ring-2.5-1t": (10 * 1152, 70 * 4_194_304),
    "minimax-m2.5": (62 * 4096, 0),
    "qwen3-235b": (94 * 2048, 0),
}

#: Table 3 of the paper: Φ_kv in Gbit/s on 8×H200 at 1K, 8K, 32K and 128K tokens.
TABLE_3 = {
    "kimi-linear-48b": (1.19, 2.29, 3.87, 4.88),
    "mimo-v2-flash": (0.82, 2.85, 4.66, 4.71),
    "qwen3.5-397b": (4.13, 6.28, 8.25, 7.47),
    "ring-2.5-1t": (7.27, 4.47, 2.59, 1.46),
    "minimax-m2.5": (4.94, 32.87, 59.93, 47.82),
    "qwen3-235b": (4.12, 22.42, 33.35, 21.50),
}


def zoo(name: str) -> dict[str, object]:
    config = yaml.safe_load((ZOO / f"{name}.yaml").read_text(encoding="utf-8"))["hf_config"]
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("name", ZOO_SIZES)
def test_zoo(name: str) -> None:
    """Each model of the zoo says where its config is from and has the size computed by hand."""
    entry = yaml.safe_load((ZOO / f"{name}.yaml").read_text(encoding="utf-8"))
    assert name == entry["model"]
    assert "config.json" in entry["source"]
    per_token, constant = ZOO_SIZES[name]
    size = cache_size_of(entry["hf_config"])
    assert per_token * 1_000_000 + constant == size.bytes_at(1_000_000)


@pytest.mark.parametrize("name", TABLE_3)
def test_table_3_implies_sensible_prefill_times(name: str) -> None:
    """Eq. 1 turned round, T_prefill = S_kv / Φ_kv, grows with the length: a third of a second at 1K, 1.7 to 10 s at 128K."""
    size = cache_size_of(zoo(name))
    seconds = [
        size.bytes_at(length) * 8 / (gbps * 1e9)
        for length, gbps in zip((1000, 8000, 32_000, 128_000), TABLE_3[name], strict=True)
    ]
    assert seconds == sorted(seconds)
    assert 0.3 < seconds[0] < 0.5
    assert 1.7 < seconds[-1] < 10


def test_ring_saves_36_times() -> None:
    """Ring-2.5-1T's cache grows 35.6 times slower than the same 80 layers would as GQA with 8 heads of 192 + 128.

    The paper says ≈36 (MLA ≈4.5 times ≈8) and not against what. 8 key/value heads with the dimensions that its MLA
    layers unfold to give 2560 / 576 = 4.44 per layer, times 8. With 128 + 128 it would be 3.56 and 28.4. State is
    constant, so this is the limit for long prompts: at 128,000 tokens the saving is 29.7.
    """
    ring = cache_size_of(zoo("ring-2.5-1t"))
    gqa = {**LLAMA, "num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 192, "v_head_dim": 128}
    dense = cache_size_of(gqa)

    def growth(size: CacheSize) -> float:
        return size.bytes_at(2_000_000) - size.bytes_at(1_000_000)

    assert 36 == round(growth(dense) / growth(ring))
    assert pytest.approx(29.65, abs=0.01) == dense.bytes_at(128_000) / ring.bytes_at(128_000)
    usual = cache_size_of({**gqa, "head_dim": 128})
    assert pytest.approx(28.44, abs=0.01) == growth(usual) / growth(ring)


@pytest.mark.parametrize(("thousands", "mebibytes"), [(1, 190.8), (8, 308.9), (32, 701.3), (128, 2316.3)])
def test_table_5_is_a_kimi_linear_of_60_layers(thousands: int, mebibytes: float) -> None:
    """15 MLA and 45 KDA layers of 64 heads come within 4% of the internal 1T model's S_kv, convolutions left out."""
    numbers = range(1, 61)
    config = {
        **KIMI,
        "num_hidden_layers": 60,
        "linear_attn_config": {
            "full_attn_layers": [number for number in numbers if number % 4 == 0],
            "kda_layers": [number for number in numbers if number % 4],
            "num_heads": 64,
            "head_dim": 128,
            "short_conv_kernel_size": 1,
        },
    }
    assert pytest.approx(mebibytes * 2**20, rel=0.04) == cache_size_of(config).bytes_at(1024 * thousands)


# --- docs/models.md ---------------------------------------------------------------------------------------------------


def test_every_model_type_is_documented() -> None:
    """The page lists what is known, no more and no less."""
    cells = [
        line.split("|")[2].strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count("|") == 4
    ]
    named = [name.strip("` ") for cell in cells if cell.startswith("`") for name in cell.split(",")]
    assert list(KNOWN_MODEL_TYPES) == sorted(named)


@pytest.mark.parametrize("name", ZOO_SIZES)
def test_the_documented_sizes_are_the_computed_ones(name: str) -> None:
    """The page's MiB at 1,000, 32,000 and 128,000 tokens are what the config gives."""
    size = cache_size_of(zoo(name))
    numbers = [f"{size.bytes_at(length) / 2**20:,.1f}" for length in (1000, 32_000, 128_000)]
    assert f"| {' | '.join(numbers)} |" in next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")
    )
