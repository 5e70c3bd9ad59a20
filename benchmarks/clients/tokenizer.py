"""The byte tokenizer that comes with PrfaaS, where other tools look for one without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from prfaas.deployment.load import BYTES_MODEL

NAME: Final = "prfaas/bytes"
_COMMIT: Final = "0" * 40


def hub_cache(directory: Path) -> dict[str, str]:
    """Writes Hugging Face's cache into `directory`, with the tokenizer as `NAME`. Returns the environment that has it
    used. A folder's path would do for guidellm; aiperf 0.13.0 cannot read one in the processes that make prompts of a
    trace."""
    model = directory / "hub" / f"models--{NAME.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(_COMMIT)
    shutil.copytree(BYTES_MODEL, model / "snapshots" / _COMMIT)
    return {"HF_HOME": str(directory), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
