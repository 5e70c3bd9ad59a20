"""Fixtures on real vLLM engines. Starting a pair takes about half a minute, so a module shares one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make setup` installs it", allow_module_level=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models; PRFAAS_TEST_MODELS keeps it between runs."""
    return Path(os.environ.get("PRFAAS_TEST_MODELS") or tmp_path_factory.mktemp("models"))
