"""What of a changed deployment file a running process cannot take over. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from prfaas.deployment.model import Deployment

#: Two names: a section of the file and a field of it.
Setting = tuple[str, str]


def keep_settings(before: Deployment, after: Deployment, fixed: Sequence[Setting]) -> tuple[Deployment, list[str]]:
    """`after` with the `fixed` settings of `before`, and the names of those that differed."""
    changed = [
        (section, name) for section, name in fixed if _value(before, section, name) != _value(after, section, name)
    ]
    for section, name in changed:
        part: BaseModel = getattr(after, section)
        kept = part.model_copy(update={name: _value(before, section, name)})
        after = after.model_copy(update={section: kept})
    return after, [f"{section}.{name}" for section, name in changed]


def _value(deployment: Deployment, section: str, name: str) -> object:
    return getattr(getattr(deployment, section), name)
