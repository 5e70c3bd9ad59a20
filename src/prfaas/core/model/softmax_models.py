"""Models whose layers all keep keys and values: which layers slide, and how many bytes a token takes.

Where a field is missing, its default is the one of the model's class in transformers 5.19, and only where published
configs rely on it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from prfaas.core.model.attention_kinds import Layers, latent, softmax
from prfaas.core.model.cache_size import CacheGroup
from prfaas.core.model.config_fields import Dtypes, Fields

#: Reads the groups of one model from its fields.
Reader = Callable[[Fields, Dtypes], list[CacheGroup]]


class Windows(StrEnum):
    """How a model chooses its sliding-window layers when there is no `layer_types` list.

    `NEVER`: it has none. `EVERY`: all layers, if `sliding_window` is set. `SWITCHED`: only if `use_sliding_window` is
    true. `PERIODIC`: all but each p-th layer, with p = `sliding_window_pattern`.
    """

    NEVER = "never"
    EVERY = "every"
    SWITCHED = "switched"
    PERIODIC = "periodic"


@dataclass(frozen=True, slots=True)
class Rules:
    """What one family of models takes for granted.

    `own_head_dim`: the head dimension is a field of its own; else hidden_size / num_attention_heads may stand in.
    `grouped`: `num_key_value_heads` is required; else its absence means one per attention head. `defaults` fill fields
    that published configs of the family leave out.
    """

    windows: Windows = Windows.NEVER
    own_head_dim: bool = False
    grouped: bool = False
    defaults: Mapping[str, int] = field(default_factory=dict)


class Heads(NamedTuple):
    """Shape of one layer's keys and values."""

    num_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def name(self) -> str:
        if self.kv_heads == 1 < self.num_heads:
            return "MQA"
        return "MHA" if self.kv_heads == self.num_heads else "GQA"


def read_heads(fields: Fields, rules: Rules, prefix: str = "") -> Heads:
    """Head counts and dimensions, from fields that may carry a `prefix` (MiMo's "swa_")."""
    num_heads = fields.positive(f"{prefix}num_attention_heads")
    kv_heads = fields.positive(f"{prefix}num_key_value_heads", None if rules.grouped else num_heads)
    if num_heads % kv_heads:
        raise fields.wrong(f"{prefix}num_key_value_heads", f"is {kv_heads}, which does not divide {num_heads} heads")
    if fields.has(f"{prefix}head_dim") or rules.own_head_dim:
        key_dim = fields.positive(f"{prefix}head_dim")
    else:
        width = fields.positive("hidden_size")
        if width % num_heads:
            raise fields.wrong("head_dim", f"is missing, and hidden_size {width} is no multiple of {num_heads} heads")
        key_dim = width // num_heads
    return Heads(num_heads, kv_heads, key_dim, fields.positive(f"{prefix}v_head_dim", key_dim))


def layers_where(kinds: Iterable[object], wanted: Container[object]) -> Layers:
    """Indices of the layers whose kind is one of `wanted`."""
    return tuple(layer for layer, kind in enumerate(kinds) if kind in wanted)


def full_attention(fields: Fields, dtypes: Dtypes, rules: Rules, layers: Layers) -> list[CacheGroup]:
    """One group of full-attention layers; none if there are none."""
    if not layers:
        return []
    heads = read_heads(fields, rules)
    return [softmax(heads.name, layers, *heads[1:], dtypes.attention())]


def mla(fields: Fields, dtypes: Dtypes, layers: Layers) -> list[CacheGroup]:
    """One group of MLA layers; none if there are none."""
    if not layers:
        return []
    rank, rotary = fields.positive("kv_lora_rank"), fields.positive("qk_rope_head_dim")
    return [latent(layers, rank, rotary, dtypes.attention())]


def sliding_layers(fields: Fields, rules: Rules) -> list[bool]:
    """For each layer whether it slides."""
    num_layers = fields.num_layers()
    if rules.windows is Windows.SWITCHED and not fields.flag("use_sliding_window"):
        return [False] * num_layers
    if fields.has("layer_types"):
        kinds = fields.per_layer("layer_types", ("full_attention", "sliding_attention"), num_layers)
        sliding = [kind == "sliding_attention" for kind in kinds]
        if any(sliding) and rules.windows is Windows.NEVER:
            raise fields.wrong("layer_types", "holds sliding_attention, which this model_type is not known to have")
        return sliding
    if rules.windows is Windows.SWITCHED:
        raise fields.wrong("layer_types", "is missing, though use_sliding_window is true")
    has_window = fields.has("sliding_window")
    if rules.windows is Windows.PERIODIC and has_window:
        period = fields.positive("sliding_window_pattern")
        return [(layer + 1) % period > 0 for layer in range(num_layers)]
    if rules.windows is Windows.NEVER and has_window:
        # vLLM would let every layer slide, transformers ignores the field: no size is right for both.
        raise fields.wrong("sliding_window", "is set, which this model_type is not known to use")
    return [has_window] * num_layers


def softmax_reader(rules: Rules) -> Reader:
    """A reader of models whose full and sliding layers have heads of one shape."""

    def read(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
        fields = fields.with_defaults(rules.defaults)
        sliding = sliding_layers(fields, rules)
        groups = full_attention(fields, dtypes, rules, layers_where(sliding, (False,)))
        if any(sliding):
            heads, window = read_heads(fields, rules), fields.positive("sliding_window")
            groups.append(softmax("SWA", layers_where(sliding, (True,)), *heads[1:], dtypes.attention(), window))
        return groups

    return read


def read_mla(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """DeepSeek-V2, -V3 and Kimi-K2: every layer is MLA."""
    return mla(fields, dtypes, tuple(range(fields.num_layers())))


def read_mimo(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """MiMo-V2: sliding layers (1 in `hybrid_layer_pattern`) have head counts and dimensions of their own."""
    pattern = fields.per_layer("hybrid_layer_pattern", (0, 1), fields.num_layers())
    sliding = layers_where(pattern, (1,))
    groups = full_attention(fields, dtypes, GROUPED, layers_where(pattern, (0,)))
    if sliding:
        heads = read_heads(fields, GROUPED, "swa_")
        # Published in two spellings, of which vLLM reads this one.
        window = fields.positive("sliding_window_size")
        if fields.positive("sliding_window", window) != window:
            raise fields.wrong("sliding_window", f"differs from sliding_window_size, {window}")
        groups.append(softmax("SWA", sliding, *heads[1:], dtypes.attention(), window))
    return groups


#: Grouped heads with a dimension of their own: what most models since 2024 publish in full.
GROUPED = Rules(own_head_dim=True, grouped=True)

_ALTERNATING = Rules(Windows.PERIODIC, own_head_dim=True, grouped=True, defaults={"sliding_window_pattern": 2})
_EVERY_FOURTH = Rules(Windows.PERIODIC, defaults={"sliding_window_pattern": 4})
# The small Gemma 3 models publish only what differs from these.
_GEMMA3 = Rules(
    Windows.PERIODIC,
    own_head_dim=True,
    grouped=True,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
)

_RULES: dict[tuple[str, ...], Rules] = {
    ("llama", "granite", "granitemoe", "olmo2"): Rules(),
    ("bailing_moe", "ernie4_5_moe"): Rules(grouped=True),
    ("ernie4_5", "gemma", "glm4", "glm4_moe", "seed_oss"): GROUPED,
    ("mistral", "mixtral", "starcoder2"): Rules(Windows.EVERY, grouped=True),
    ("phi3",): Rules(Windows.EVERY),
    ("qwen2", "qwen2_moe", "smollm3"): Rules(Windows.SWITCHED, grouped=True),
    ("qwen3", "qwen3_moe"): Rules(Windows.SWITCHED, own_head_dim=True, grouped=True),
    ("gemma2", "gpt_oss"): _ALTERNATING,
    ("gemma3_text",): _GEMMA3,
    ("cohere2", "olmo3"): _EVERY_FOURTH,
    ("exaone4",): Rules(Windows.PERIODIC, grouped=True),
}

SOFTMAX_READERS: dict[str, Reader] = {
    **{name: softmax_reader(rules) for names, rules in _RULES.items() for name in names},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2"), read_mla),
    **dict.fromkeys(("mimo_v2", "mimo_v2_flash"), read_mimo),
}
