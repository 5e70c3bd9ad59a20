"""A shared link against the closed forms of a fluid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.sim.kernel import Kernel
from prfaas.sim.link import SharedLink


class Road:
    """A link of 100 bytes/s, and when each transfer was over."""

    def __init__(self, bytes_per_s: float = 100.0) -> None:
        self.kernel = Kernel()
        self.link = SharedLink(self.kernel, bytes_per_s)
        self.over_s: dict[str, float] = {}

    def send(self, name: str, num_bytes: float, *, at_s: float = 0.0, grows_s: float = 0.0) -> None:
        self.kernel.at(at_s, self._send, name, num_bytes, grows_s)

    def _send(self, name: str, num_bytes: float, grows_s: float) -> None:
        now_s = self.kernel.now_s
        self.link.send(num_bytes, now_s, now_s + grows_s, lambda: self.over_s.update({name: self.kernel.now_s}))

    def run(self) -> dict[str, float]:
        self.kernel.run(1e9)
        assert self.link.num_transfers == 0
        return self.over_s


def test_one_transfer_has_the_link() -> None:
    """Bytes by rate."""
    road = Road()
    road.send("a", 250)
    assert road.run() == {"a": pytest.approx(2.5)}


@pytest.mark.parametrize("num", [1, 2, 7])
def test_equal_transfers_end_together(num: int) -> None:
    """Processor sharing: all of them in the time of all their bytes."""
    road = Road()
    for index in range(num):
        road.send(f"t{index}", 100)
    assert road.run() == {f"t{index}": pytest.approx(num) for index in range(num)}


def test_one_that_comes_later_takes_half() -> None:
    """a sends 100 of its 200 alone, b comes, both have 50 bytes/s: a ends at 3, and b's last 100 have the link."""
    road = Road()
    road.send("a", 200)
    road.send("b", 200, at_s=1.0)
    assert road.run() == {"a": pytest.approx(3.0), "b": pytest.approx(4.0)}


def test_a_growing_transfer_ends_with_its_prefill_when_the_link_is_faster() -> None:
    """Layer by layer: the last byte is final when the prefill ends, and leaves at once."""
    road = Road()
    road.send("a", 100, grows_s=5.0)
    assert road.run() == {"a": pytest.approx(5.0, rel=1e-6)}


def test_a_growing_transfer_ends_with_its_bytes_when_the_link_is_slower() -> None:
    """The same as one that is there at once."""
    road = Road()
    road.send("a", 1000, grows_s=5.0)
    assert road.run() == {"a": pytest.approx(10.0)}


def test_what_a_growing_transfer_cannot_use_goes_to_the_others() -> None:
    """Max-min: it makes 20 bytes/s, so the other has 80; then it has all."""
    road = Road()
    road.send("slow", 200, grows_s=10.0)
    road.send("big", 1000)
    assert road.run() == {"slow": pytest.approx(10.0, rel=1e-6), "big": pytest.approx(12.0, rel=1e-6)}


def test_a_backlog_is_caught_up() -> None:
    """10 s of 20 bytes/s behind a neighbour that leaves it 50 from the start: no backlog; behind a cut link: a backlog
    of 100 at 5 s, gone after 100 / (100 - 20) s."""
    road = Road()
    road.send("a", 400, grows_s=20.0)
    road.kernel.at(0.0, road.link.set_rate, 0.0)
    road.kernel.at(5.0, road.link.set_rate, 100.0)
    road.kernel.run(5.0 + 100 / 80 + 0.01)
    assert road.link.rate_bytes_per_s == pytest.approx(20.0)
    assert road.run() == {"a": pytest.approx(20.0, rel=1e-6)}


def test_a_stopped_transfer_leaves_its_share_to_the_others() -> None:
    """And is never over."""
    road = Road()
    road.send("a", 200)
    stopped = road.link.send(200, 0.0, 0.0, lambda: pytest.fail("it was stopped"))
    road.kernel.at(1.0, road.link.stop, stopped)
    road.kernel.at(1.5, road.link.stop, stopped)
    assert road.run() == {"a": pytest.approx(2.5)}
    assert road.link.sent_bytes == pytest.approx(250)


_TRANSFERS = st.lists(
    st.tuples(st.floats(1, 1e4), st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=8
)  # bytes, begins at, grows for
_RATES = st.lists(st.tuples(st.floats(0, 30), st.floats(10, 500)), max_size=4)


@given(_TRANSFERS, _RATES)
def test_bytes_are_conserved_and_no_transfer_is_early(
    transfers: list[tuple[float, float, float]], rates: list[tuple[float, float]]
) -> None:
    """Every byte crosses once, never faster than the link, and none before it is final."""
    road = Road()
    for index, (num_bytes, at_s, grows_s) in enumerate(transfers):
        road.send(f"t{index}", num_bytes, at_s=at_s, grows_s=grows_s)
    for at_s, rate in rates:
        road.kernel.at(at_s, road.link.set_rate, rate)
    over_s = road.run()
    assert len(over_s) == len(transfers)
    assert road.link.sent_bytes == pytest.approx(sum(num for num, _, _ in transfers), abs=0.1)
    fastest = max([100.0, *(rate for _, rate in rates)])
    for index, (num_bytes, at_s, grows_s) in enumerate(transfers):
        least_s = max(grows_s, num_bytes / fastest)
        assert over_s[f"t{index}"] >= at_s + least_s - 1e-3
    work_s = max(at_s + grows_s for _, at_s, grows_s in transfers) + sum(n for n, _, _ in transfers) / min(
        [100.0, *(rate for _, rate in rates)]
    )
    assert max(over_s.values()) <= work_s + 1e-3, "the link is never idle while there is something to send"
