"""When answers that are being given will have made room."""

from __future__ import annotations

import pytest

from prfaas.core.control.answers import Answers


def of(*began_s: float, cluster: str = "pd") -> Answers:
    found = Answers()
    for number, at_s in enumerate(began_s):
        found.begins(f"r{number}", cluster, at_s)
    return found


@pytest.mark.parametrize(
    ("number", "expected_s"),
    [(1, 7.0), (1.5, 9.0), (2, 9.0), (3, 9.5), (4, 17.0), (6, 19.5), (7, 27.0), (0, 0.0), (-3, 0.0)],
)
def test_each_end_makes_room_for_one(number: float, expected_s: float) -> None:
    """Three began at 0, 2 and 2.5 s and last for 10; at 3 s the first ends in 7. Who follows it lasts as long."""
    assert of(0.0, 2.0, 2.5).left_s("pd", number, 10.0, 3.0) == pytest.approx(expected_s)


def test_what_has_ended_is_forgotten() -> None:
    """Once or twice; nothing is left of it, and of nothing nothing is said."""
    found = of(0.0, 2.0)
    found.ends("r0")
    found.ends("r0")
    assert found.left_s("pd", 1, 10.0, 3.0) == pytest.approx(9.0)
    found.ends("r1")
    assert (len(found), found.left_s("pd", 1, 10.0, 3.0)) == (0, 0.0)


def test_a_second_attempt_counts_once() -> None:
    """From its own beginning, in the cluster where it is."""
    found = of(0.0)
    found.begins("r0", "other", 5.0)
    assert (len(found), found.left_s("pd", 1, 10.0, 6.0)) == (1, 0.0)
    assert found.left_s("other", 1, 10.0, 6.0) == pytest.approx(9.0)
