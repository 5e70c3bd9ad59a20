"""Layouts, images and fingerprints."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout

FULL = KVGroup(KVGroupKind.FULL_ATTENTION, (3,), 16, 1600, 0, 0, "bf16")
WINDOW = KVGroup(KVGroupKind.SLIDING_WINDOW, (1, 2), 16, 1600, 0, 40, "bf16")
STATE = KVGroup(KVGroupKind.LINEAR_STATE, (0,), 0, 0, 777, 0, "f32")
LAYOUT = KVLayout("m", (STATE, WINDOW, FULL), 16, 16, 1000)


@pytest.mark.parametrize(
    ("num_tokens", "full_pages", "window_pages"),
    [
        (2, 1, 1),
        (16, 1, 1),
        (17, 1, 1),
        (18, 2, 2),
        (33, 2, 2),
        (40, 3, 3),
        (55, 4, 4),
        (56, 4, 3),
        (57, 4, 3),
        (1000, 63, 3),
    ],
)
def test_pages_at_every_border(num_tokens: int, full_pages: int, window_pages: int) -> None:
    """N - 1 tokens in whole pages; a window of 40 keeps what the next token still sees, from a block's start."""
    regions = LAYOUT.image(num_tokens).by_layer
    assert regions[3].end - regions[3].start == full_pages * 1600
    assert regions[1].end - regions[1].start == window_pages * 1600
    assert regions[0].end - regions[0].start == 777


@given(st.integers(2, 1000), st.integers(0, 61))
def test_regions_tile_the_image_in_model_order(num_tokens: int, skip_pages: int) -> None:
    """No gap, no overlap, nothing below what is skipped, and the window covers what decode will read."""
    skip = skip_pages * 16
    if skip >= num_tokens:
        with pytest.raises(ValueError):
            LAYOUT.image(num_tokens, skip)
        return
    image = LAYOUT.image(num_tokens, skip)
    position = 0
    for region, layer in zip(image.regions, range(4), strict=True):
        assert (region.start, region.layer) == (position, layer)
        position = region.end
        if region.layer != 0:
            assert region.first_token >= min(skip, num_tokens - 1)
            assert region.end_token == num_tokens - 1
    assert position == image.num_bytes
    window = image.by_layer[1]
    assert window.first_token <= max(skip, num_tokens - 40, 0) or window.first_token == num_tokens - 1


@pytest.mark.parametrize(("num_tokens", "skip"), [(1, 0), (0, 0), (1001, 0), (20, 8), (20, -16), (16, 16)])
def test_impossible_images(num_tokens: int, skip: int) -> None:
    """Nothing to move, too long, or a skip that is no block's border."""
    with pytest.raises(ValueError):
        LAYOUT.image(num_tokens, skip)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "other"},
        {"align_tokens": 32},
        {"groups": (STATE, WINDOW, dataclasses.replace(FULL, page_bytes=1616))},
        {"groups": (STATE, WINDOW, dataclasses.replace(FULL, detail="amx"))},
        {"groups": (STATE, dataclasses.replace(WINDOW, window_tokens=41), FULL)},
        {"groups": (dataclasses.replace(STATE, state_bytes=778), WINDOW, FULL)},
    ],
)
def test_fingerprint_covers_what_must_agree(changed: dict[str, Any]) -> None:
    """A difference that would make an image unreadable changes it."""
    assert dataclasses.replace(LAYOUT, **changed).fingerprint != LAYOUT.fingerprint


def test_fingerprint_ignores_what_may_differ() -> None:
    """Context length is each engine's own."""
    assert dataclasses.replace(LAYOUT, max_model_tokens=5).fingerprint == LAYOUT.fingerprint
