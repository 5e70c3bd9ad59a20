"""Whether every request is accounted for exactly once, and whether anything failed that may not. Pure.

Laws of this file:
- accepted = completed + refused + cancelled + failed, by the client's view; the gateway's story of each says the same.
- A request may fail only if it was in flight in a gateway that was killed; or on a decode engine that was killed after
  the answer had begun; or while no decode engine worked (docs/gateway.md).
- 503 is given only while no decode engine works; 429 may be given at any time.
- An answer, and whatever came of one, is what the prompt's must be, where that is known.
- The gateway has counted as many requests as it tells stories of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prfaas.chaos.faults import GATEWAY, Kind, Menu
from prfaas.chaos.inject import Happened
from prfaas.chaos.records import Outcome, Record

#: The gateway learns of an engine's end or return from its probes, once a second, and from what fails.
PROBES_S: Final = 3.0
#: Between what happened and when this process has seen it.
SEEN_S: Final = 0.5
#: The gateway's outcomes that go with the client's. Who leaves in the last moment may have been answered.
_TOLD: Final[Mapping[Outcome, frozenset[str]]] = {
    Outcome.COMPLETED: frozenset({"ok"}),
    Outcome.REFUSED: frozenset({"unavailable"}),
    Outcome.CANCELLED: frozenset({"cancelled", "ok", "error", "unavailable"}),
    Outcome.FAILED: frozenset({"error", "timeout"}),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`kind` in a word or two, for tables."""

    kind: str
    text: str


@dataclass(slots=True)
class Verdict:
    """`excused`: why requests failed that may fail, with their numbers."""

    sent: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    checked_answers: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Sent, but for those that reached nobody."""
        return self.sent - self.outcomes[Outcome.UNREACHED]


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests that the gateway of life `life` has counted as ended since the run, or that life, began."""

    life: int
    number: int


class Windows:
    """When what was away, of the faults that happened."""

    def __init__(self, happened: Sequence[Happened], menu: Menu) -> None:
        self._menu = menu
        self._happened = happened

    def gateway_killed(self, from_s: float, to_s: float) -> bool:
        """In this time, or it was not back yet."""
        return any(
            one.fault.kind is Kind.KILL
            and one.fault.target == GATEWAY
            and one.began_s <= to_s + SEEN_S
            and from_s <= one.until_s + SEEN_S
            for one in self._happened
        )

    def engine_killed(self, instance: str | None, from_s: float, to_s: float) -> bool:
        """At some moment of this time."""
        return any(
            one.fault.kind is Kind.KILL
            and instance in self._menu.engines.get(one.fault.target, ())
            and from_s - SEEN_S <= one.began_s <= to_s + SEEN_S
            for one in self._happened
        )

    def num_decoders_killed(self, from_s: float, to_s: float) -> int:
        """Kills of processes that decode, in this time."""
        decoders = set(self._menu.decoders)
        return sum(
            one.fault.kind is Kind.KILL
            and bool(decoders & set(self._menu.engines.get(one.fault.target, ())))
            and from_s - SEEN_S <= one.began_s <= to_s + SEEN_S
            for one in self._happened
        )

    def no_decoder(self, from_s: float, to_s: float) -> bool:
        """At some moment of this time none worked, or the gateway did not know better yet."""
        edges = [one.began_s for one in self._happened]
        return any(self._none_at(at_s) for at_s in (from_s, *edges) if from_s - PROBES_S <= at_s <= to_s + SEEN_S)

    def _none_at(self, at_s: float) -> bool:
        away = {
            instance
            for one in self._happened
            if one.fault.kind in (Kind.KILL, Kind.STOP) and one.began_s <= at_s <= one.until_s + PROBES_S
            for instance in self._menu.engines.get(one.fault.target, ())
        }
        return set(self._menu.decoders) <= away


def judge(
    records: Sequence[Record], happened: Sequence[Happened], menu: Menu, counted: Counted | None = None
) -> Verdict:
    """`counted` of the last gateway; None, if it cannot be asked."""
    verdict, windows = Verdict(sent=len(records)), Windows(happened, menu)
    seen = Counter(record.sent.request_id for record in records)
    for name, times in seen.items():
        if times > 1:
            verdict.problems.append(Problem("sent twice", f"request {name} was sent {times} times under one id"))
    for record in records:
        if not record.is_over:
            verdict.problems.append(Problem("never ended", record.name()))
            continue
        verdict.outcomes[record.outcome] += 1
        verdict.problems += _of_request(record, windows, verdict)
    if counted is not None:
        verdict.problems += _of_counts(records, counted)
    return verdict


def _of_request(record: Record, windows: Windows, verdict: Verdict) -> list[Problem]:
    found = []
    if record.outcome in (Outcome.FAILED, Outcome.UNREACHED):
        excuse = _excuse(record, windows)
        if excuse is None:
            found.append(Problem("failed", record.name()))
        else:
            verdict.excused[excuse] += 1
    if record.outcome is Outcome.REFUSED and record.sent.status != 429 and not _had_no_decoder(record, windows):
        found.append(Problem("refused", f"{record.name()}: a decode engine worked"))
    found += _of_answer(record, verdict)
    found += _of_story(record, windows)
    return found


def _excuse(record: Record, windows: Windows) -> str | None:
    sent = record.sent
    if windows.gateway_killed(sent.sent_s, sent.over_s):
        if record.outcome is Outcome.UNREACHED:
            return "no gateway listened"
        if sent.failure in ("disconnected", "cut"):
            return "in flight in a killed gateway"
    if record.outcome is Outcome.UNREACHED or record.story is None:
        return None
    instance = record.story.get("decode_instance")
    has_begun = record.story.get("ttft_s") is not None
    if has_begun and windows.engine_killed(instance, sent.sent_s, sent.over_s):
        return "on a killed decode engine after the answer began"
    if sent.failure in ("http_502", "error_event") and not has_begun:
        if _had_no_decoder(record, windows):
            return "no decode engine worked"
        if windows.num_decoders_killed(sent.sent_s, sent.over_s) > 1:
            return "two decode engines were killed before the answer began"
    return None


def _had_no_decoder(record: Record, windows: Windows) -> bool:
    return windows.no_decoder(record.sent.sent_s, record.sent.over_s)


def _of_answer(record: Record, verdict: Verdict) -> list[Problem]:
    sent, expected = record.sent, record.expected
    is_whole = record.outcome is Outcome.COMPLETED
    if is_whole and sent.output_tokens != sent.max_tokens:
        return [Problem("wrong length", f"{record.name()}: {sent.output_tokens} of {sent.max_tokens} tokens")]
    if expected is None:
        return []
    verdict.checked_answers += is_whole
    came = record.token_ids
    if came != expected[: len(came)] or (is_whole and len(came) != len(expected)):
        place = next((n for n, pair in enumerate(zip(came, expected, strict=False)) if pair[0] != pair[1]), len(came))
        return [Problem("wrong answer", f"{record.name()}: token {place} of {len(came)} is not what it must be")]
    return []


def _of_story(record: Record, windows: Windows) -> list[Problem]:
    outcome, sent = record.outcome, record.sent
    if outcome is Outcome.UNREACHED:
        return []
    if record.story is None:
        # A life that is over took its stories along; who is turned away, or leaves before he is read, has none.
        left_none = outcome is Outcome.CANCELLED or sent.status == 429
        if left_none or windows.gateway_killed(sent.sent_s, float("inf")):
            return []
        return [Problem("no story", f"{record.name()}: the gateway knows nothing of it")]
    if record.story.get("outcome") is None:
        if windows.gateway_killed(sent.sent_s, float("inf")):
            return []  # it was told too early, and there is nobody any more who could tell the rest
        return [Problem("never ended", f"{record.name()}: by the gateway's story it still goes on")]
    if record.told not in _TOLD[outcome]:
        if outcome is Outcome.FAILED and windows.gateway_killed(sent.sent_s, sent.over_s):
            return []
        return [Problem("other outcome", f"{record.name()}: by the gateway's story it is {record.told}")]
    return []


def _of_counts(records: Sequence[Record], counted: Counted) -> list[Problem]:
    known = sum(record.life == counted.life for record in records)
    # These are counted, and have no story, if they came so far.
    maybe = sum(
        record.story is None and (record.outcome is Outcome.CANCELLED or record.sent.status == 429)
        for record in records
    )
    if known <= counted.number <= known + maybe:
        return []
    text = f"the gateway has counted {counted.number} ended requests, and tells of {known} that were sent"
    return [Problem("counted otherwise", f"{text} ({maybe} more may have been turned away)")]
