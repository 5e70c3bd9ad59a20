"""Fixtures on real vLLM engines. Starting a pair takes about half a minute, so a module shares one."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas.testing.site import Site

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make setup` installs it", allow_module_level=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models; PRFAAS_TEST_MODELS keeps it between runs."""
    return Path(os.environ.get("PRFAAS_TEST_MODELS") or tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def qwen(models: Path) -> Iterator[Site]:
    """Qwen3-Next (linear and full attention), prefill in chunks of 512 tokens."""
    with Site("qwen3-next", models=models, prefill_args=("--max-num-batched-tokens", "512")) as site:
        yield site


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Seeded by the test's name, so that a failure repeats."""
    return random.Random(request.node.name)
