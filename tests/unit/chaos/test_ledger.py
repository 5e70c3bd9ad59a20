"""The ledger finds what is lost, doubled, wrong or failed without a reason, and excuses what may fail."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prfaas.bench.e2e.sent import CANCELLED, ERROR, OK, UNAVAILABLE, Sent
from prfaas.chaos.faults import Fault, Kind, Menu
from prfaas.chaos.inject import Happened
from prfaas.chaos.ledger import Counted, Verdict, judge
from prfaas.chaos.records import Outcome, Record

MENU = Menu(
    engines={"engines-west": ("west-0",), "engine-a": ("a",), "engine-b": ("b",)},
    nodes=("kvnode-a",),
    has_gateway=True,
    clusters={"west": ("west-0",), "east": ("a", "b")},
    decoders=("a", "b"),
    links=(("west", "east"),),
)
ANSWER = [5, 6, 7, 8]


def record(number: int = 1, sent_s: float = 10.0, over_s: float = 12.0, **story: Any) -> Record:
    """One that was answered as it must be, decoded by a."""
    sent = Sent(number, sent_s, 100, len(ANSWER), sent_s=sent_s, first_token_s=sent_s + 1, end_s=over_s, over_s=over_s,
                output_tokens=len(ANSWER), status=200, outcome=OK, request_id=f"r-{number}")  # fmt: skip
    told = {"outcome": "ok", "decode_instance": "a", "ttft_s": 1.0, "closed": True, **story}
    return Record(sent, list(ANSWER), list(ANSWER), told, 0)


def broken(failure: str = "error_event", *, num_tokens: int = 2, life: int | None = 0, **more: Any) -> Record:
    """One that failed after its answer had begun."""
    found = record(**more)
    found.sent.outcome, found.sent.failure, found.sent.detail = ERROR, failure, "it broke"
    found.token_ids = found.token_ids[:num_tokens]
    if found.story is not None:
        found.story["outcome"] = "error"
    if life is None:
        found.story, found.life = None, None
    return found


def refused(status: int = 503) -> Record:
    found = record()
    found.sent.outcome, found.sent.status, found.token_ids = UNAVAILABLE, status, []
    assert found.story is not None
    found.story |= {"outcome": "unavailable", "decode_instance": None, "ttft_s": None}
    return found


def done(kind: Kind, target: str, began_s: float, ended_s: float) -> Happened:
    return Happened(Fault(kind, target, began_s, ended_s - began_s), began_s, ended_s)


def kinds(verdict: Verdict) -> list[str]:
    return [problem.kind for problem in verdict.problems]


def test_a_whole_ledger_has_no_problem() -> None:
    """Each outcome is counted once, and they come to what was accepted."""
    left = record(2)
    left.sent.outcome, left.token_ids = CANCELLED, ANSWER[:1]
    assert left.story is not None
    left.story["outcome"] = "cancelled"
    busy = refused(429)
    busy.sent.number, busy.sent.request_id = 3, "r-3"
    verdict = judge([record(1), left, busy], [], MENU, Counted(0, 3))
    assert kinds(verdict) == []
    assert verdict.outcomes == {Outcome.COMPLETED: 1, Outcome.CANCELLED: 1, Outcome.REFUSED: 1}
    assert verdict.accepted == sum(verdict.outcomes.values()) == 3
    assert verdict.checked_answers == 1


def test_a_lost_request_is_found() -> None:
    """Never ended; or answered, and the gateway knows nothing of it; or it still goes on there."""
    lost = record()
    lost.sent.over_s = math.nan
    assert kinds(judge([lost], [], MENU)) == ["never ended"]
    unknown = record()
    unknown.story = unknown.life = None
    assert kinds(judge([unknown], [], MENU, Counted(0, 1))) == ["no story", "counted otherwise"]
    assert kinds(judge([record(outcome=None)], [], MENU)) == ["never ended"]
    killed = [done(Kind.KILL, "gateway", 20.0, 25.0)]
    assert kinds(judge([record(outcome=None)], killed, MENU)) == []  # nobody can tell the rest any more


def test_a_doubled_request_is_found() -> None:
    """The gateway has counted one more than were sent; or one id was sent twice."""
    assert kinds(judge([record(1), record(2)], [], MENU, Counted(0, 3))) == ["counted otherwise"]
    assert kinds(judge([record(1), record(2)], [], MENU, Counted(0, 1))) == ["counted otherwise"]
    assert kinds(judge([record(1), record(1)], [], MENU)) == ["sent twice"]


def test_a_wrong_answer_is_found_also_of_one_that_broke_off() -> None:
    """A wrong token, a token too few or too many."""
    wrong = record()
    wrong.token_ids[2] += 1
    verdict = judge([wrong], [], MENU)
    assert kinds(verdict) == ["wrong answer"]
    assert "token 2 of 4" in verdict.problems[0].text
    short = record()
    short.token_ids.pop()
    assert kinds(judge([short], [], MENU)) == ["wrong answer"]
    doubled = record()
    doubled.token_ids.append(5)
    assert kinds(judge([doubled], [], MENU)) == ["wrong answer"]
    fewer = record()
    fewer.sent.output_tokens = 3
    assert kinds(judge([fewer], [], MENU)) == ["wrong length"]
    cut = broken()
    cut.token_ids[0] = 99
    assert kinds(judge([cut], [done(Kind.KILL, "engine-a", 11.5, 15.0)], MENU)) == ["wrong answer"]


def test_the_gateway_must_say_the_same() -> None:
    """What the client has whole, it has not as an error."""
    assert kinds(judge([record(outcome="error")], [], MENU)) == ["other outcome"]


@pytest.mark.parametrize(
    ("happened", "fine"),
    [
        ([done(Kind.KILL, "gateway", 11.5, 15.0)], True),
        ([done(Kind.KILL, "gateway", 20.0, 25.0)], False),
        ([done(Kind.STOP, "gateway", 11.5, 15.0)], False),
        ([done(Kind.KILL, "engine-a", 11.5, 15.0)], False),
        ([], False),
    ],
)
def test_a_broken_connection_is_excused_by_a_killed_gateway_alone(happened: list[Happened], fine: bool) -> None:
    """That had the request. Its story is gone with it."""
    verdict = judge([broken("disconnected", life=None)], happened, MENU, Counted(1, 0))
    assert (kinds(verdict) == []) is fine
    assert verdict.outcomes == {Outcome.FAILED: 1}
    assert sum(verdict.excused.values()) == fine


@pytest.mark.parametrize(
    ("happened", "fine"),
    [
        ([done(Kind.KILL, "engine-a", 11.5, 15.0)], True),
        ([done(Kind.KILL, "engine-a", 20.0, 25.0)], False),
        ([done(Kind.KILL, "engine-b", 11.5, 15.0)], False),
        ([done(Kind.KILL, "engines-west", 11.5, 15.0)], False),
        ([done(Kind.KILL, "kvnode-a", 11.5, 15.0)], False),
        ([done(Kind.STOP, "engine-a", 11.5, 15.0)], False),
        ([done(Kind.CUT, "west east", 11.5, 15.0), done(Kind.FILL, "engine-a", 11.0, 12.0)], False),
    ],
)
def test_an_answer_that_breaks_off_is_excused_by_its_own_killed_engine(happened: list[Happened], fine: bool) -> None:
    """Prefill engines, nodes, links and disks may cost time only."""
    verdict = judge([broken()], happened, MENU)
    assert (kinds(verdict) == []) is fine
    if fine:
        assert verdict.excused == {"on a killed decode engine after the answer began": 1}


def test_before_its_answer_began_a_request_outlives_its_engine() -> None:
    """While another one works; not, if both were killed meanwhile."""
    failed = broken("http_502", num_tokens=0, ttft_s=None)
    one = done(Kind.KILL, "engine-a", 10.5, 11.0)
    assert kinds(judge([failed], [one], MENU)) == ["failed"]
    assert kinds(judge([failed], [one, done(Kind.KILL, "engine-b", 11.8, 20.0)], MENU)) == []


def test_503_is_for_when_no_decode_engine_works() -> None:
    """429 may be at any time."""
    both = [done(Kind.KILL, "engine-a", 8.0, 15.0), done(Kind.STOP, "engine-b", 9.0, 15.0)]
    assert kinds(judge([refused()], both, MENU)) == []
    assert kinds(judge([refused()], both[:1], MENU)) == ["refused"]
    assert kinds(judge([refused(429)], [], MENU)) == []


def test_who_finds_nobody_was_not_accepted() -> None:
    """Excused only while the gateway is away."""
    nobody = broken("connect", num_tokens=0, life=None)
    away = judge([nobody], [done(Kind.KILL, "gateway", 9.0, 15.0)], MENU, Counted(1, 0))
    assert (kinds(away), away.accepted, away.outcomes) == ([], 0, {Outcome.UNREACHED: 1})
    assert kinds(judge([nobody], [], MENU)) == ["failed"]


def test_of_two_gateways_the_last_one_is_counted() -> None:
    """What the first told is judged one by one, and is not among the counts of the second."""
    first, second = record(1, 1.0, 2.0), record(2, 20.0, 21.0)
    second.life = 1
    killed = [done(Kind.KILL, "gateway", 5.0, 8.0)]
    assert kinds(judge([first, second], killed, MENU, Counted(1, 1))) == []
    assert kinds(judge([first, second], killed, MENU, Counted(1, 2))) == ["counted otherwise"]
