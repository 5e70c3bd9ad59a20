"""What a link is expected to carry: falls at once, rises slowly, forgets what is old."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.control import events as e
from prfaas.core.control.link_rates import DOUBLES_S, STALE_S, LinkRates
from prfaas.core.topology import Cluster, Link, Role, Topology

PAIR = ("west", "pd")
GIVEN = 1e10


def rates(given: float | None = GIVEN) -> LinkRates:
    clusters = (Cluster("west", Role.PRFAAS), Cluster("pd", Role.PD))
    found = LinkRates()
    found.apply(Topology(clusters, (), (Link("west", "pd", given),)))
    return found


def said(capacity: float | None, queued: int | None = 1, source: str = "west-0", **more: Any) -> e.LinkSeen:
    return e.LinkSeen(source, "pd-0", more.pop("verdict", "pressed"), capacity, queued, **more)


def test_what_the_file_says_holds_until_something_else_is_seen() -> None:
    """Without a word of it there is no limit."""
    assert rates().bytes_per_s(PAIR, 0.0) == GIVEN
    assert rates(None).bytes_per_s(PAIR, 0.0) == math.inf
    assert rates().bytes_per_s(("pd", "west"), 0.0) == math.inf


def test_it_falls_at_once_and_says_so() -> None:
    """By a tenth or more."""
    links = rates()
    assert links.saw(PAIR, said(1e9), 10.0)
    assert links.bytes_per_s(PAIR, 10.0) == 1e9
    assert not links.saw(PAIR, said(0.95e9), 10.0), "less than a tenth is no news"


def test_a_sender_that_has_sent_all_it_has_says_nothing_of_the_link() -> None:
    """A long round trip beside other traffic, or on a busy host: a prefill makes 0.4 MB/s, and the link is not that slow."""
    links = rates()
    assert not links.saw(PAIR, said(None, 346_612, delivered_bytes_per_s=4e5, unsent_bytes=0), 0.0)
    assert links.bytes_per_s(PAIR, 0.0) == GIVEN
    assert links.saw(PAIR, said(None, 346_612, delivered_bytes_per_s=4e5, unsent_bytes=1), 1.0), "now it holds it up"
    late = said(None, 346_612, source="west-1", delivered_bytes_per_s=4e5, unsent_bytes=0, arrives_bytes_per_s=1e5)
    assert links.saw(PAIR, late, STALE_S + 2.0), "what does not arrive is held up too, whoever holds it"


def test_it_is_back_within_seven_seconds_of_the_last_bad_word() -> None:
    """Doubling, so that a link that only seems to recover has cost little; and it never rises above what is seen."""
    links = rates()
    links.saw(PAIR, said(1e9), 0.0)
    links.saw(PAIR, said(1e9), STALE_S)
    assert links.bytes_per_s(PAIR, STALE_S + 1) == 1e9, "it is still seen to carry no more"
    times_s = [STALE_S * 2 + index * 0.1 for index in range(1, 100)]
    back_s = next(at_s for at_s in times_s if links.bytes_per_s(PAIR, at_s) == GIVEN)
    assert DOUBLES_S < back_s - 2 * STALE_S < 7.0


def test_a_better_word_lets_it_rise_to_that_and_slowly() -> None:
    """It doubles, and stops at what is seen."""
    links = rates()
    links.saw(PAIR, said(1e9), 0.0)
    links.saw(PAIR, said(8e9), 1.0)
    assert links.bytes_per_s(PAIR, 1.0 + DOUBLES_S) == pytest.approx(2e9)
    links.saw(PAIR, said(8e9), 5.0)
    assert links.bytes_per_s(PAIR, 9.0) == pytest.approx(8e9)


def test_senders_that_queue_share_the_link() -> None:
    """Each sees its part; one that has nothing to send knows nothing."""
    links = rates()
    links.saw(PAIR, said(9e9, queued=0, source="west-2"), 0.0)
    assert links.bytes_per_s(PAIR, 0.0) == GIVEN
    links.saw(PAIR, said(2e9), 1.0)
    links.saw(PAIR, said(1e9, source="west-1"), 1.0)
    assert links.bytes_per_s(PAIR, 1.0) == pytest.approx(2e9)
    links.saw(PAIR, said(1e9), 2.0)
    links.saw(PAIR, said(0.5e9, source="west-1"), 2.0)
    assert links.bytes_per_s(PAIR, 2.0) == pytest.approx(1.5e9)


def test_a_sender_that_is_lost_is_not_heard() -> None:
    """What it said last says nothing of now."""
    links = rates()
    links.saw(PAIR, said(1e9), 0.0)
    links.lost("west-0")
    assert links.bytes_per_s(PAIR, 30.0) == GIVEN


def test_a_link_that_carried_nothing_is_tried_again() -> None:
    """Or nobody would find out that it carries something."""
    links = rates()
    links.saw(PAIR, said(0.0), 0.0)
    assert links.bytes_per_s(PAIR, 0.0) == 0.0
    assert links.bytes_per_s(PAIR, STALE_S + 1) > 0
    assert links.bytes_per_s(PAIR, STALE_S + 40) == GIVEN


def test_unknown_capacity_changes_nothing() -> None:
    """Nor does a link that is not there."""
    links = rates()
    assert not links.saw(PAIR, said(None), 0.0)
    assert not links.saw(("other", "pd"), said(1.0), 0.0)
    assert links.bytes_per_s(PAIR, 0.0) == GIVEN


def test_ten_senders_that_fill_a_link_do_not_make_it_small() -> None:
    """Each sees a tenth. The first that is held up speaks while the others have said that they deliver as much."""
    links = rates()
    for index in range(10):
        links.saw(PAIR, said(None, source=f"west-{index}", verdict="clear", delivered_bytes_per_s=GIVEN / 10), 0.0)
    for index in range(10):
        links.saw(PAIR, said(GIVEN / 10, source=f"west-{index}", delivered_bytes_per_s=GIVEN / 10), 1.0)
        assert links.bytes_per_s(PAIR, 1.0) == pytest.approx(GIVEN)


def test_a_sender_that_is_not_held_up_says_nothing_of_the_link() -> None:
    """Its bytes are still to be computed: it is the prefill that is slow."""
    links = rates()
    assert not links.saw(PAIR, said(1e8, queued=10**9, verdict="clear", delivered_bytes_per_s=1e8), 0.0)
    assert links.bytes_per_s(PAIR, 0.0) == GIVEN


def test_who_is_congested_delivers_what_the_link_carries() -> None:
    """Its estimate of the capacity is of better days. One whose bytes are still to be computed is not held up."""
    for unsent, expected in ((0, GIVEN), (None, 1e9), (5, 1e8)):
        links = rates()
        seen = said(1e9, verdict="congested", delivered_bytes_per_s=1e8, unsent_bytes=unsent)
        links.saw(PAIR, seen, 10.0)
        assert links.bytes_per_s(PAIR, 10.0) == expected, unsent


def falls(links: LinkRates, now_s: float) -> None:
    links.saw(PAIR, said(1e8), now_s)
    links.saw(PAIR, said(1e8, queued=0), now_s)


def test_hopes_that_turn_out_wrong_come_more_and_more_slowly() -> None:
    """A link that stays slow is tried after twice the time, and again; one that has proved itself is as any other."""
    links, now_s, times = rates(), 10.0, []
    falls(links, now_s)
    for _ in range(5):
        began_s = now_s
        while links.bytes_per_s(PAIR, now_s) < 2e8:
            now_s += 0.1
        times.append(now_s - began_s)
        falls(links, now_s)
    assert times == [pytest.approx(seconds, abs=0.2) for seconds in (2.0, 4.0, 8.0, 8.0, 8.0)]
    links.saw(PAIR, said(None, queued=0, verdict="clear", delivered_bytes_per_s=5e8), now_s)
    assert links.bytes_per_s(PAIR, now_s) == 5e8, "that much crosses"
    assert links.bytes_per_s(PAIR, now_s + DOUBLES_S) == pytest.approx(1e9)


word = st.tuples(
    st.sampled_from(("west-0", "west-1", "west-2")),
    st.sampled_from(("pd-0", "pd-1")),
    st.sampled_from(("clear", "pressed")),
    st.sampled_from((None, 1e8, 3e8)),
    st.sampled_from((None, 0, 5)),
    st.sampled_from((None, 0.0, 2e8)),
)


@given(st.lists(st.one_of(word, st.sampled_from(("west-0", "west-1"))), max_size=30))
def test_sums_that_are_kept_are_those_of_all_words(words: list[Any]) -> None:
    """None of them is old here: the link carries what is delivered together, or what could be by those held up."""
    said_last: dict[tuple[str, str], e.LinkSeen] = {}
    links, now_s = rates(), 10.0
    for entry in words:
        now_s += STALE_S / 100
        if isinstance(entry, str):
            links.lost(entry)
            said_last = {names: seen for names, seen in said_last.items() if names[0] != entry}
            continue
        source, target, verdict, capacity, queued, delivered = entry
        seen = said_last[source, target] = e.LinkSeen(source, target, verdict, capacity, queued, delivered)
        before = links.bytes_per_s(PAIR, now_s)
        links.saw(PAIR, seen, now_s)
        held_up = [w for w in said_last.values() if w.verdict != "clear" and w.queued_bytes]
        could = [w.capacity_bytes_per_s for w in held_up if w.capacity_bytes_per_s is not None]
        crosses = [w.delivered_bytes_per_s for w in said_last.values() if w.delivered_bytes_per_s is not None]
        if held_up and (could or crosses):
            expected = min(before, max(sum(could), sum(crosses)))
            # More may cross than a link that had fallen was believed to carry.
            assert links.bytes_per_s(PAIR, now_s) in (pytest.approx(expected), pytest.approx(sum(crosses)))
        else:
            assert links.bytes_per_s(PAIR, now_s) >= before


def test_a_link_that_nobody_asked_for_in_days_is_what_the_file_says() -> None:
    """However often it would have doubled."""
    links = rates()
    links.saw(PAIR, said(1e8), 10.0)
    assert links.bytes_per_s(PAIR, 10.0 + 30 * 86_400.0) == GIVEN


def test_what_queues_is_of_all_senders() -> None:
    """Of those that are held up, and not too long ago."""
    links = rates()
    links.saw(PAIR, said(1e8, queued=5, source="west-0"), 10.0)
    links.saw(PAIR, said(1e8, queued=7, source="west-1"), 12.0)
    links.saw(PAIR, said(1e8, queued=9, source="west-2", verdict="clear"), 12.0)
    assert links.queued_bytes(PAIR, 12.0) == 12
    assert links.queued_bytes(PAIR, 16.0) == 7
    assert links.queued_bytes(("pd", "west"), 12.0) == 0


def test_what_arrives_goes_before_what_was_delivered() -> None:
    """A proxy acknowledges what it holds back, and a socket takes it: only the receiver's word counts."""
    links = rates()
    seen = said(1e9, 5, delivered_bytes_per_s=9e8, unsent_bytes=7, arrives_bytes_per_s=1e8, left_bytes={"t": 4})
    assert links.saw(PAIR, seen, 10.0)
    assert links.bytes_per_s(PAIR, 10.0) == 1e8
    assert links.left_bytes(PAIR, 10.0) == {"t": 4}
    assert links.left_bytes(PAIR, 10.0 + STALE_S + 1) == {} == links.left_bytes(("pd", "west"), 10.0)
    assert links.is_slow(PAIR) and links.some_are_slow
    links.saw(PAIR, said(None, 0, verdict="clear", delivered_bytes_per_s=0.0), 11.0)
    assert links.bytes_per_s(PAIR, 11.0) < 2e8, "what was said before is forgotten, not counted twice"
