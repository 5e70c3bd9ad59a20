"""Ports for what is started on this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from prfaas.launch import addresses


def test_ports_are_below_those_of_connections() -> None:
    """A connection that somebody opens takes none of them."""
    first_of_connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = addresses.free_ports(50)
    row = addresses.free_ports_in_a_row(9)
    assert len(set(ports)) == 50
    assert max(*ports, row + 8) < first_of_connections


def test_a_port_that_is_taken_is_not_given() -> None:
    """Nor a row with one in it."""
    first = addresses.free_ports_in_a_row(4)
    with socket.create_server(("127.0.0.1", first + 1)):
        found = addresses._free_rows(3, range(first, first + 4), 1)
        assert sorted(found) == [first, first + 2, first + 3]
        with pytest.raises(OSError, match="no 1 times 2 free ports"):
            addresses._free_rows(1, range(first, first + 2, 2), 2)


def test_two_that_ask_at_the_same_time_get_others() -> None:
    """Before either listens. That two of a thousand rows are one is chance; that three are is none."""
    rows = {addresses.free_ports_in_a_row(9) for _ in range(3)}
    assert len(rows) > 1
