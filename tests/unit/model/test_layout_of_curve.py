"""Layouts of models of which only sizes are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from prfaas.core.model.curve import polynomial, saturating
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.model.layout_of_config import layout_of_config
from prfaas.core.model.layout_of_curve import layout_of_curve
from prfaas.profiles.load import load_model, shipped_models


def test_the_papers_model_has_the_papers_sizes(tmp_path: Path) -> None:
    """Within 1.5% of Table 5 at every row: the curve bends a little, the layout does not."""
    model = load_model("internal-1t-hybrid", tmp_path)
    layout = layout_of_curve(model.name, model.kv_bytes, block_tokens=128, max_model_tokens=131_072)
    for num_tokens in (1_000, 8_000, 32_000, 128_000):
        found = layout.image(num_tokens).num_bytes
        assert found == pytest.approx(model.kv_bytes.at(num_tokens), rel=0.015), num_tokens
    assert set(layout.group_kinds) == {KVGroupKind.FULL_ATTENTION, KVGroupKind.LINEAR_STATE}


def test_a_model_without_state_has_attention_alone() -> None:
    """In every layer."""
    layout = layout_of_curve("m", polynomial(0.0, 1600.0), block_tokens=16, max_model_tokens=1000)
    assert layout.group_kinds == (KVGroupKind.FULL_ATTENTION,)
    assert layout.image(641).num_bytes == 640 * 1600


def test_a_cache_that_does_not_grow_is_refused() -> None:
    """There would be nothing to send."""
    with pytest.raises(ValueError, match="does not grow"):
        layout_of_curve("m", saturating(0.0, 10.0), block_tokens=16, max_model_tokens=1000)


@pytest.mark.parametrize("name", shipped_models())
def test_every_shipped_model_has_a_layout_of_its_size(name: str, tmp_path: Path) -> None:
    """From its config, where there is one, or from its curve; at a length that fills its blocks but for the one token
    that decode computes."""
    model = load_model(name, tmp_path)
    if model.hf_config is None:
        layout = layout_of_curve(name, model.kv_bytes, block_tokens=128, max_model_tokens=131_072)
    else:
        layout = layout_of_config(model.hf_config, block_tokens=128, max_model_tokens=131_072)
    found = layout.image(65_537).num_bytes
    assert found == pytest.approx(model.kv_bytes.at(65_536), rel=0.015)
