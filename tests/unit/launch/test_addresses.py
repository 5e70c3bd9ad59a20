"""Ports for a deployment on this machine, named before anybody binds them."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import subprocess
import sys
from pathlib import Path

from prfaas.launch.addresses import free_ports, free_ports_in_a_row

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_named_ports_are_not_those_of_outgoing_connections() -> None:
    """Whoever connects to somebody between the naming and the binding takes none of them."""
    ports = free_ports(40)
    first = free_ports_in_a_row(5)
    # A machine may be told otherwise; then nothing can be promised.
    lowest = max(30_000, int(RANGE.read_text().split()[0]) if RANGE.exists() else 0)
    assert max(*ports, first + 4) < lowest


def test_no_port_is_named_twice() -> None:
    """Two deployments of one process share none."""
    first, second = free_ports(30), free_ports(30)
    assert len({*first, *second}) == 60


def test_a_port_that_somebody_listens_on_is_not_named() -> None:
    """It is passed over."""
    (port,) = free_ports(1)
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # then somebody else listens on it
            taken.bind(("127.0.0.1", port + 1))
            taken.listen()
        assert port + 1 not in free_ports(3)


def test_a_port_that_somebody_will_listen_on_is_not_named() -> None:
    """vLLM binds its port, loads its model, and listens then. Whoever is given the port meanwhile makes it wait for
    ever."""
    (port,) = free_ports(1)
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            bound.bind(("127.0.0.1", port + 1))
        assert port + 1 not in free_ports(3)


def test_processes_that_ask_at_the_same_time_get_other_ports() -> None:
    """Before anybody listens, and however many they ask for: each names ports of blocks of its own."""
    code = "from prfaas.launch.addresses import free_ports; print(*free_ports(600), flush=True); input()"
    askers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    named = [asker.stdout.readline().split() for asker in askers if asker.stdout is not None]
    for asker in askers:
        asker.communicate("\n")
    ports = [port for each in named for port in each]
    assert len(ports) == len(set(ports)) == 1800


def test_a_forked_process_gets_other_ports() -> None:
    """It does not go on where its parent is."""
    (before,) = free_ports(1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(free_ports, (40,))
    assert before + 1 not in theirs
    assert not {*theirs} & {*free_ports(40)}


def test_ports_in_a_row_are_free() -> None:
    """All of them at once."""
    first = free_ports_in_a_row(9)
    holders = [socket.create_server(("127.0.0.1", first + index)) for index in range(9)]
    assert free_ports_in_a_row(9) != first
    for holder in holders:
        holder.close()


def test_two_that_ask_at_the_same_time_get_other_rows() -> None:
    """Before either listens. That two of a thousand rows are one is chance; that three are is none."""
    rows = {free_ports_in_a_row(9) for _ in range(3)}
    assert len(rows) > 1
