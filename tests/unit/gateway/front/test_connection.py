"""Clients that take nothing of what is written to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from prfaas.gateway.front.connection import FrontConnection
from prfaas.gateway.front.doorkeeper import Closing, Doorkeeper
from prfaas.gateway.front.limits import FrontLimits

LIMITS = FrontLimits(1024, 5.0, 300.0, 100.0, 5.0, 10.0, 10, None)


class Transport(asyncio.Transport):
    """Whose client takes what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.unwritten = 0
        self.is_aborted = self.is_closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", 1234) if name in ("peername", "sockname") else default

    def get_write_buffer_size(self) -> int:
        return self.unwritten

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.unwritten += len(data)

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Never called."""


def look(unwritten: list[tuple[float, int]], *, is_closing: bool = False) -> tuple[bool, list[Closing]]:
    """Whether the connection was cut off in the end, and what was told, when so much was left at these times."""

    async def main() -> tuple[bool, list[Closing]]:
        told: list[Closing] = []
        doorkeeper = Doorkeeper(LIMITS, told.append)
        connection = FrontConnection(
            doorkeeper, uvicorn.Config(application, ws="none", lifespan="off"), ServerState(), {}
        )
        transport = Transport()
        connection.connection_made(transport)
        connection.data_received(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        transport.is_closed = is_closing
        for at_s, transport.unwritten in unwritten:
            connection.look(connection._since_s + at_s)
        return transport.is_aborted, told

    return asyncio.run(main())


@pytest.mark.parametrize("is_closing", [False, True])
def test_a_client_that_takes_nothing_is_cut_off(is_closing: bool) -> None:
    """Also while the connection closes, which it would do for ever; and although an engine writes more."""
    assert look([(0, 500), (5, 500), (9, 900), (11, 900)], is_closing=is_closing) == (True, [Closing.WRITE_TIMEOUT])


def test_who_makes_room_is_not_waited_for() -> None:
    """To close is to wait for what is unwritten."""

    async def main() -> tuple[bool, bool]:
        doorkeeper = Doorkeeper(LIMITS, lambda closing: None)
        config = uvicorn.Config(application, ws="none", lifespan="off")
        found = []
        for unwritten in (0, 1):
            connection, transport = FrontConnection(doorkeeper, config, ServerState(), {}), Transport()
            connection.connection_made(transport)
            transport.unwritten = unwritten
            connection.leave()
            found.append(transport.is_aborted)
        return found[0], found[1]

    assert asyncio.run(main()) == (False, True)


def test_a_slow_client_is_not_cut_off() -> None:
    """It takes a little now and then."""
    assert look([(0, 500), (9, 499), (18, 498), (27, 600), (28, 0), (60, 0)]) == (False, [])


def test_time_counts_anew_after_all_was_taken() -> None:
    """Two short stops are no long one."""
    assert look([(0, 500), (9, 0), (10, 500), (19, 500)]) == (False, [])
