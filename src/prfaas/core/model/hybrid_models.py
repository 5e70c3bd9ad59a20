"""Models that mix full attention with layers of recurrent state: which layer is which, and the shape of its state."""

from __future__ import annotations

from prfaas.core.model.attention_kinds import Layers, gated_delta_net, kda, lightning, mamba2
from prfaas.core.model.cache_size import CacheGroup
from prfaas.core.model.config_fields import MAX_LAYERS, Dtypes, Fields
from prfaas.core.model.softmax_models import (
    GROUPED,
    Reader,
    Rules,
    full_attention,
    layers_where,
    mla,
    softmax_reader,
)


def read_kimi_linear(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Kimi Linear: KDA and MLA, each named by a list of layer numbers that start at 1."""
    linear = fields.section("linear_attn_config")
    num_layers = fields.num_layers()
    kda_layers = linear.layer_numbers("kda_layers", num_layers)
    full_layers = linear.layer_numbers("full_attn_layers", num_layers)
    if sorted(kda_layers + full_layers) != list(range(1, num_layers + 1)):
        raise linear.wrong("kda_layers", f"and full_attn_layers must name each layer from 1 to {num_layers} once")
    groups = mla(fields, dtypes, _from_zero(full_layers))
    if kda_layers:
        heads, head_dim = linear.positive("num_heads"), linear.positive("head_dim")
        kernel = linear.positive("short_conv_kernel_size")
        groups.append(kda(_from_zero(kda_layers), heads, head_dim, kernel, dtypes.state(), dtypes.model()))
    return groups


def read_qwen_next(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Qwen3-Next and Qwen3.5: Gated DeltaNet, and full attention in each `full_attention_interval`-th layer."""
    num_layers = fields.num_layers()
    if fields.has("layer_types"):
        types = fields.per_layer("layer_types", ("linear_attention", "full_attention"), num_layers)
        full = layers_where(types, ("full_attention",))
    else:
        full = _each(fields.positive("full_attention_interval"), num_layers)
    groups = full_attention(fields, dtypes, GROUPED, full)
    if len(full) < num_layers:
        groups.append(
            gated_delta_net(
                _others(full, num_layers),
                fields.positive("linear_num_key_heads"),
                fields.positive("linear_num_value_heads"),
                fields.positive("linear_key_head_dim"),
                fields.positive("linear_value_head_dim"),
                fields.positive("linear_conv_kernel_dim"),
                dtypes.state(),
                dtypes.model(),
            )
        )
    return groups


def read_bailing_hybrid(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Ling-2.5 and Ring-2.5: Lightning, and MLA in each `layer_group_size`-th layer. Ling-3 has KDA for Lightning."""
    num_layers, period = fields.num_layers(), fields.positive("layer_group_size")
    if num_layers % period:
        # The last, incomplete group is full attention in vLLM's Ling-3, linear in its Ling-2.5 and in SGLang.
        raise fields.wrong("layer_group_size", f"is {period}, of which {num_layers} layers are no multiple")
    full = _each(period, num_layers)
    groups = mla(fields, dtypes, full)
    if len(full) < num_layers:
        linear = _others(full, num_layers)
        heads, head_dim = fields.positive("num_attention_heads"), fields.positive("head_dim")
        # Both generations say model_type bailing_hybrid; only Ling-3 has a convolution.
        if fields.has("short_conv_kernel_size"):
            kernel = fields.positive("short_conv_kernel_size")
            groups.append(kda(linear, heads, head_dim, kernel, dtypes.state(), dtypes.model()))
        else:
            groups.append(lightning(linear, heads, head_dim, dtypes.state()))
    return groups


def read_minimax(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """MiniMax-Text-01 and -M1: `attn_type_list` with 0 for Lightning and 1 for full attention."""
    types = fields.per_layer("attn_type_list", (0, 1), fields.num_layers())
    groups = full_attention(fields, dtypes, GROUPED, layers_where(types, (1,)))
    if linear := layers_where(types, (0,)):
        heads, head_dim = fields.positive("num_attention_heads"), fields.positive("head_dim")
        groups.append(lightning(linear, heads, head_dim, dtypes.state()))
    return groups


def read_minimax_m2(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """MiniMax-M2 and -M2.5: full attention only; the list that its predecessor needed is all ones."""
    if fields.has("attn_type_list"):
        fields.per_layer("attn_type_list", (1,), fields.num_layers())
    return softmax_reader(GROUPED)(fields, dtypes)


def read_bamba(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Bamba: Mamba2, and full attention in the layers of `attn_layer_indices`, which start at 0."""
    num_layers = fields.num_layers()
    indices = fields.layer_numbers("attn_layer_indices", num_layers, first=0)
    if len(set(indices)) != len(indices):
        raise fields.wrong("attn_layer_indices", "names a layer twice")
    full = tuple(sorted(indices))
    groups = full_attention(fields, dtypes, Rules(grouped=True), full)
    return groups + _mamba(fields, dtypes, _others(full, num_layers))


def read_granite_hybrid(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Granite 4.0 hybrid: `layer_types` of "mamba" and "attention", or transformers 5's names for them."""
    attention = ("attention", "full_attention")
    types = fields.per_layer("layer_types", ("mamba", "linear_attention", *attention), fields.num_layers())
    full = layers_where(types, attention)
    return full_attention(fields, dtypes, Rules(), full) + _mamba(fields, dtypes, _others(full, len(types)))


def read_falcon_h1(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Falcon-H1: attention heads and Mamba2 heads side by side in every layer."""
    layers = tuple(range(fields.num_layers()))
    return full_attention(fields, dtypes, Rules(grouped=True), layers) + _mamba(fields, dtypes, layers)


def read_nemotron_h(fields: Fields, dtypes: Dtypes) -> list[CacheGroup]:
    """Nemotron-H: `hybrid_override_pattern` with M for Mamba2, * for attention, - and E for layers without a cache."""
    pattern = fields.required("hybrid_override_pattern")
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= MAX_LAYERS or set(pattern) - set("M*-E"):
        raise fields.wrong("hybrid_override_pattern", f"must be a string of M, *, - and E, got {pattern!r:.80}")
    if fields.positive("num_hidden_layers", len(pattern)) != len(pattern):
        raise fields.wrong("hybrid_override_pattern", f"has {len(pattern)} characters, not num_hidden_layers")
    groups = full_attention(fields, dtypes, GROUPED, layers_where(pattern, ("*",)))
    if linear := layers_where(pattern, ("M",)):
        groups.append(
            mamba2(
                linear,
                fields.positive("mamba_num_heads"),
                fields.positive("mamba_head_dim"),
                fields.positive("ssm_state_size"),
                fields.positive("n_groups"),
                fields.positive("conv_kernel"),
                dtypes.state(),
                dtypes.model(),
            )
        )
    return groups


def _each(period: int, num_layers: int) -> Layers:
    """Each `period`-th layer, counted from 1."""
    return tuple(range(period - 1, num_layers, period))


def _others(layers: Layers, num_layers: int) -> Layers:
    """All layers but these."""
    return layers_where(range(num_layers), frozenset(range(num_layers)).difference(layers))


def _from_zero(numbers: list[int]) -> Layers:
    """Indices of layers whose numbers start at 1."""
    return tuple(sorted(number - 1 for number in numbers))


def _mamba(fields: Fields, dtypes: Dtypes, layers: Layers) -> list[CacheGroup]:
    if not layers:
        return []
    heads = fields.positive("mamba_n_heads")
    if fields.has("mamba_d_ssm"):
        width = fields.positive("mamba_d_ssm")
    else:
        width = fields.positive("mamba_expand") * fields.positive("hidden_size")
    # "auto" is a published value and means what the other two fields say.
    head_dim = width // heads if fields.values.get("mamba_d_head") == "auto" else fields.positive("mamba_d_head")
    if head_dim * heads != width:
        raise fields.wrong("mamba_d_head", f"times mamba_n_heads {heads} must be the mixer's width, {width}")
    state_size, groups = fields.positive("mamba_d_state"), fields.positive("mamba_n_groups")
    kernel = fields.positive("mamba_d_conv")
    return [mamba2(layers, heads, head_dim, state_size, groups, kernel, dtypes.state(), dtypes.model())]


HYBRID_READERS: dict[str, Reader] = {
    "kimi_linear": read_kimi_linear,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), read_qwen_next),
    "bailing_hybrid": read_bailing_hybrid,
    **dict.fromkeys(("minimax_text_01", "minimax_m1"), read_minimax),
    "minimax_m2": read_minimax_m2,
    "bamba": read_bamba,
    "granitemoehybrid": read_granite_hybrid,
    "falcon_h1": read_falcon_h1,
    "nemotron_h": read_nemotron_h,
}
