"""Who is let in, and who makes room."""

from __future__ import annotations

import asyncio
import logging

import pytest

from prfaas.deployment.model import Gateway
from prfaas.gateway.front.doorkeeper import Closing, Doorkeeper
from prfaas.gateway.front.limits import MAX_CONNECTIONS, FrontLimits, front_limits
from prfaas.testing.gateway_rig import until


class Guest:
    """A connection that notes what is done to it."""

    def __init__(self, address: str = "10.0.0.1") -> None:
        self.address = address
        self.has_left = False
        self.num_looks = 0

    def leave(self) -> None:
        self.has_left = True

    def look(self, now_s: float) -> None:
        self.num_looks += 1


def door(max_connections: int = 2, of_address: int | None = None) -> tuple[Doorkeeper, list[Closing]]:
    """And what it has told."""
    told: list[Closing] = []
    limits = FrontLimits(1024, 1.0, 10.0, 100.0, 1.0, 0.02, max_connections, of_address)
    return Doorkeeper(limits, told.append), told


def test_the_one_that_has_been_idle_longest_makes_room() -> None:
    """Not the oldest one: it is at work."""
    keeper, told = door(3)
    busy, idle, idle_since = Guest(), Guest(), Guest()
    for guest in (busy, idle_since, idle):
        assert keeper.admit(guest) is None
        keeper.becomes_idle(guest)
    keeper.becomes_busy(busy)
    assert keeper.admit(Guest()) is None
    assert (busy.has_left, idle_since.has_left, idle.has_left) == (False, True, False)
    assert (len(keeper), told) == (3, [Closing.MADE_ROOM])


def test_where_all_are_at_work_nobody_is_let_in(caplog: pytest.LogCaptureFixture) -> None:
    """The log says it once, however many come; a place that becomes free is given away."""
    keeper, told = door(1)
    busy = Guest()
    assert keeper.admit(busy) is None
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            assert keeper.admit(Guest()) == "all 1 connections are in use"
    assert told == [Closing.FULL] * 100
    assert len(caplog.records) == 1
    keeper.forget(busy)
    assert keeper.admit(Guest()) is None


def test_an_address_has_a_bound_of_its_own() -> None:
    """Others do not feel it, and whoever leaves gives a place back."""
    keeper, told = door(10, of_address=1)
    first = Guest("10.0.0.1")
    assert keeper.admit(first) is None
    assert keeper.admit(Guest("10.0.0.1")) == "10.0.0.1 has 1 connections already"
    assert keeper.admit(Guest("10.0.0.2")) is None
    keeper.forget(first)
    assert keeper.admit(Guest("10.0.0.1")) is None
    assert told == [Closing.ADDRESS_FULL]


def test_who_was_not_admitted_is_not_forgotten_twice() -> None:
    """Its end gives no place of another one away."""
    keeper, _ = door(1, of_address=1)
    assert keeper.admit(Guest()) is None
    stranger = Guest()
    assert keeper.admit(stranger) is not None
    keeper.becomes_idle(stranger)
    keeper.forget(stranger)
    assert keeper.admit(Guest()) is not None
    assert len(keeper) == 1


def test_every_connection_is_looked_at() -> None:
    """Again and again."""

    async def main() -> None:
        keeper, _ = door()
        guest = Guest()
        keeper.admit(guest)
        watching = asyncio.create_task(keeper.watch())
        await until(lambda: guest.num_looks >= 3, 60.0)
        watching.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("num_descriptors", "asked", "most"),
    [
        (1024, None, 512),  # half: the rest may not do for every engine at once
        (65_536, None, 65_536 - 256 - 2048),
        (1 << 20, None, MAX_CONNECTIONS),
        (65_536, 100, 100),
        (1024, 5000, 512),
    ],
)
def test_connections_leave_descriptors_for_engines(num_descriptors: int, asked: int | None, most: int) -> None:
    """Whatever the file asks for."""
    gateway = Gateway.model_validate({"front": {"max_connections": asked}})
    assert front_limits(gateway, num_descriptors).max_connections == most
