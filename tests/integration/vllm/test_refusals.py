"""Engines that the connector must not run in are refused with one clear sentence."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from prfaas.core.errors import Refused

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, while it is imported
    from prfaas.engines.vllm.layouts import check_supported


def config(**parallel: int) -> Any:
    """The parts of vLLM's configuration that are looked at."""
    return SimpleNamespace(parallel_config=SimpleNamespace(**parallel), speculative_config=None)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "0.33.0rc1+cpu", "dev", ""])
def test_untested_vllm_is_refused(version: str) -> None:
    """The connector interface changes in every minor release."""
    with pytest.raises(Refused, match="is tested with vLLM"):
        check_supported(version, config())


@pytest.mark.parametrize("version", ["0.32.0", "0.32.7", "0.32.1+cpu"])
def test_tested_vllm_is_taken(version: str) -> None:
    """The whole minor release."""
    check_supported(version, config(tensor_parallel_size=1))


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"])
def test_parallel_engines_are_refused(name: str) -> None:
    """Not built yet, and shipping one rank's share would be wrong in silence."""
    with pytest.raises(Refused, match=name):
        check_supported("0.32.0", config(**{name: 2}))


def test_speculative_decoding_is_refused() -> None:
    """Not built yet."""
    speculative = config()
    speculative.speculative_config = object()
    with pytest.raises(Refused, match="speculative"):
        check_supported("0.32.0", speculative)
