"""What people write of a link, and what they are told."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.wan.blocks import BLOCK_BYTES, Bytes, Pool
from prfaas.wan.client import settings_of, shown
from prfaas.wan.network import Meter
from prfaas.wan.settings import BadSetting, LinkSettings, as_values, changed


def test_settings_are_read_as_people_write_them() -> None:
    """What is not named stays; what is told can be read back."""
    before = LinkSettings(1e6, rtt=0.01)
    after = changed(
        before, {"bandwidth": "10Gbps", "rtt": "20ms", "jitter": 0.002, "stalls_per_s": "0.1", "cut": "silent"}
    )
    assert after == LinkSettings(1.25e9, 0.02, 0.002, before.queue, 0.1, cut="silent")
    assert changed(LinkSettings(), as_values(after)) == after
    assert changed(after, {"cut": None, "bandwidth": None}) == LinkSettings(None, 0.02, 0.002, before.queue, 0.1)
    assert changed(before, {}) == before


def test_every_mistake_is_told() -> None:
    """With what could be written instead."""
    wrong = {"bandwith": 1, "bandwidth": "fast", "rtt": "20", "jitter": "1h", "stalls_per_mb": -1, "cut": "yes"}
    with pytest.raises(BadSetting) as told:
        changed(LinkSettings(), wrong)
    text = str(told.value)
    assert text.count("\n") == 5
    for expected in (
        "bandwith: there is no such setting",
        "100Gbps",
        "more than 10 s",
        "jitter",
        "stalls per MB",
        "reset",
    ):
        assert expected in text
    with pytest.raises(BadSetting, match="to cut the link"):
        changed(LinkSettings(), {"bandwidth": "0bps"})


@given(
    st.dictionaries(
        st.text(max_size=12), st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.lists(st.none())
    )
)
def test_any_values_are_read_or_refused(values: dict[str, object]) -> None:
    """Nothing else is raised, whatever JSON holds."""
    for name in ("bandwidth", "rtt", "stalls_per_s", "cut"):
        for value in values.values():
            try:
                changed(LinkSettings(), {name: value})
            except BadSetting as refused:
                assert name in str(refused)


def test_the_command_line_s_settings() -> None:
    """`none` heals and lifts."""
    assert settings_of(["bandwidth=10Gbps", "cut=none"]) == {"bandwidth": "10Gbps", "cut": None}
    for texts in (["bandwidth"], ["=1"], ["cut=reset", "cut=none"]):
        with pytest.raises(BadSetting):
            settings_of(texts)
    figures = {"connections": 4, "bytes_per_s": 1.25e6, "queue_bytes": 0, "carried_bytes": 10**9}
    line = shown(
        {"from": "a", "to": "b", **as_values(LinkSettings(1.25e9, 0.02, 0.001, 0.05, 0.1, cut="reset")), **figures}
    )
    assert line.startswith(
        "a to b: 10000Mbps rtt 20 ms jitter 1 ms stalls_per_s 0.1 CUT (reset) | now 10.0 Mbps, 4 conn"
    )


def test_a_meter_shows_the_last_second() -> None:
    """And zero when nothing has moved for so long."""
    meter = Meter(0.0)
    rates = [meter.look(tick * 1000, tick / 10) for tick in range(1, 40)]
    assert rates[-1] == pytest.approx(10_000)
    assert [meter.look(39_000, 4 + tick / 10) for tick in range(20)][-1] == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2 * BLOCK_BYTES)), max_size=40))
def test_bytes_come_out_as_they_went_in(operations: list[tuple[bool, int]]) -> None:
    """Through any number of blocks, which are all given back."""
    pool, expected, number = Pool(), deque[bytes](), 0
    queue = Bytes(pool)
    for is_write, count in operations:
        if is_write:
            view = queue.space(count)
            number += 1
            data = bytes([number % 256]) * len(view)
            view[:] = data
            queue.wrote(len(view))
            expected.append(data)
        else:
            whole = b"".join(expected)
            got = bytes(queue.front(count))
            assert whole.startswith(got)
            assert got or not whole or not count
            if got:
                queue.drop(len(got))
            expected = deque([whole[len(got) :]])
        assert len(queue) == sum(map(len, expected))
    queue.clear()
    assert len(queue) == 0
