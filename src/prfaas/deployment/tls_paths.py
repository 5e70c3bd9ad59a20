"""Paths of certificate files as the deployment file has them: with placeholders for the node that reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PLACEHOLDERS: Final = ("{cluster}", "{node}")

_BRACED = re.compile(r"\{[^{}]*\}|[{}]")


def checked_template(text: str) -> str:
    """The text itself. Raises ValueError if it has a brace that is not part of a placeholder."""
    for found in _BRACED.findall(text):
        if found not in PLACEHOLDERS:
            raise ValueError(f"{found!r} is not a placeholder; known are {' and '.join(PLACEHOLDERS)}")
    return text


def node_path(template: str, file: Path, cluster: str, node: str) -> Path:
    """A node's file. A relative one starts at the deployment file, which must have an absolute path."""
    return file.parent / template.replace("{cluster}", cluster).replace("{node}", node)
