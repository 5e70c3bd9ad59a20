"""What of a cluster's instances has changed since somebody looked. They leave marks; whoever keeps what they say of
themselves takes these away (see `standing`)."""

from __future__ import annotations

from typing import Final


class Marks:
    """Who works, or is reached; how many requests they have; what they are to prefill."""

    __slots__ = ("has_new_load", "has_new_members", "has_new_work")

    def __init__(self) -> None:
        self.has_new_members = self.has_new_load = self.has_new_work = True


#: Of an instance that is in no fleet.
NOWHERE: Final = Marks()
