"""Layers leave while later ones are computed: prefill and transfer hide each other."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.overlap.layerwise import measure

pytestmark = pytest.mark.vllm


def test_prefill_and_transfer_overlap(models: Path, record_property: Callable[[str, object], None]) -> None:
    """On a link where the transfer takes as long as the prefill, both take under 0.75 of one after the other."""
    rounds, _, _ = measure(models, rounds=3, prompt_tokens=8000)
    ratio = statistics.median(result.ratio for result in rounds)
    record_property("ratio", ratio)
    assert ratio < 0.75, rounds
