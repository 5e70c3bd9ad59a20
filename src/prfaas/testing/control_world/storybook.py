"""What happened in a world, request by request, and the words of a law that was broken."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from dataclasses import fields, is_dataclass
from typing import Final

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.events import EngineSeen, LinkSeen, NodeSeen, Tick
from prfaas.core.control.route import Route

#: Of the deployment's own events a failure shows the newest.
MAX_SHOWN_UPSETS: Final = 12

Entry = tuple[float, str, object]


class LawBroken(AssertionError):
    """`law` is its name, for tests of the laws themselves; `request_id` is whom it concerns, empty for nobody."""

    def __init__(self, law: str, request_id: str, detail: str) -> None:
        super().__init__(f"{law}: {detail}")
        self.law, self.request_id, self.detail = law, request_id, detail


class WorldFailed(AssertionError):
    """A law was broken; the message has the seed and the story."""

    def __init__(self, law: str, message: str) -> None:
        super().__init__(message)
        self.law = law


class Storybook:
    """Entries are kept as objects and become text only if they are shown. `digest` is over all of them, in order."""

    def __init__(self) -> None:
        self._stories: defaultdict[str, list[Entry]] = defaultdict(list)
        self._upsets: deque[Entry] = deque(maxlen=MAX_SHOWN_UPSETS)
        self._hash = hashlib.blake2b(digest_size=16)

    def note(self, now_s: float, request_id: str, kind: str, what: object) -> None:
        """One event, action or fault. Without a request it is of the deployment."""
        entry = (now_s, kind, what)
        if request_id:
            self._stories[request_id].append(entry)
        elif not isinstance(what, Tick | EngineSeen | NodeSeen | LinkSeen):
            self._upsets.append(entry)
        name = what if isinstance(what, str) else type(what).__name__
        where = getattr(what, "instance", "") or getattr(what, "outcome", "")
        self._hash.update(f"{now_s!r} {request_id} {kind} {name} {where}\n".encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def story(self, request_id: str) -> str:
        """Everything that happened to one request, a line each."""
        return _lines(self._stories.get(request_id, []))

    def everything(self) -> str:
        """All stories, for comparing two runs."""
        return "\n".join(f"{name}\n{_lines(story)}" for name, story in self._stories.items())

    def failed(self, seed: int, broken: LawBroken) -> WorldFailed:
        """The message of a failure."""
        story = self.story(broken.request_id) if broken.request_id else "  nobody's"
        text = (
            f"seed {seed}: {broken.law} of {broken.request_id or 'the deployment'}: {broken.detail}\n"
            f"story:\n{story}\nnewest events of the deployment:\n{_lines(list(self._upsets))}"
        )
        return WorldFailed(broken.law, text)


def _lines(story: list[Entry]) -> str:
    return "\n".join(f"  {now_s:10.4f} {kind:<8} {_shown(what)}" for now_s, kind, what in story)


def _shown(what: object) -> str:
    """Without what every line of a story has, and without fields at their defaults."""
    if isinstance(what, str):
        return what
    if isinstance(what, Route):
        return f"{what.kind}({what.reason}) {what.decode} {what.prefill}".rstrip()
    if not is_dataclass(what) or isinstance(what, TokenChain):
        return repr(what)
    told = [
        f"{f.name}={_shown(getattr(what, f.name))}"
        for f in fields(what)
        if f.name not in ("request_id", "chains", "links", "clusters") and getattr(what, f.name) != f.default
    ]
    return f"{type(what).__name__}({', '.join(told)})"
