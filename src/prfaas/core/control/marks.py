"""What of a cluster's instances has changed since somebody looked. They leave marks; whoever keeps what they say of
themselves takes these away (see `standing`)."""

from __future__ import annotations


class Marks:
    """`has_new_members`: who works, or is reached, is another now. The others say who has changed: instances have other
    requests, and have other prompts to prefill, by their `PrefillWork`."""

    __slots__ = ("has_new_members", "new_load", "new_work")

    def __init__(self) -> None:
        self.has_new_members = True
        self.new_load: set[object] = set()
        self.new_work: set[object] = set()
