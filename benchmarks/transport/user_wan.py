"""How fast and how exact `prfaas wan` is on this machine.

    python -m benchmarks.transport.user_wan [--seconds 5]

The relay runs in a process of its own, as in service; senders and the receiver in two more. No root. About a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import uvloop

from benchmarks.transport.peers import machine
from prfaas.deployment.fronts import EmulatedLink, Front
from prfaas.testing.deployed import free_ports
from prfaas.testing.footprint import cpu_s
from prfaas.transport.tcp_info import tcp_info
from prfaas.wan.network import Network
from prfaas.wan.settings import LinkSettings

HOST = "127.0.0.1"
LANES = 8
MB = 1e6
PINGS = 200


@dataclass(frozen=True)
class Case:
    """A link: MB/s (0: no limit) and its round trip."""

    mb_per_s: float
    rtt_ms: float


async def relay(case: Case, front: int, target: int) -> None:
    """Until killed."""
    network = Network(asyncio.get_running_loop())
    rate = case.mb_per_s * MB or 1.0
    link = EmulatedLink("a", "b", rate, case.rtt_ms / 1e3, (Front("b-0", (HOST, front), (HOST, target)),))
    network.follow([link])
    if not case.mb_per_s:
        network.link("a", "b").change(replace(LinkSettings(rtt=case.rtt_ms / 1e3), bandwidth=None))
    await asyncio.Event().wait()


def receive(port: int) -> None:
    """Count what every connection brings; a connection that begins with `p` gets each byte back, one with `?` the
    counts."""
    counts: dict[int, int] = {}

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(1 << 20)
        kind = sock.recv(1)
        if kind == b"?":
            sock.sendall((" ".join(map(str, counts.values())) + "\n").encode())
            sock.close()
            return
        number = sock.fileno()
        if kind == b"s":
            counts[number] = 0
        while count := sock.recv_into(buffer):
            if kind == b"p":
                sock.sendall(buffer[:count])
            elif kind == b"s":
                counts[number] += count

    with socket.create_server((HOST, port), backlog=64) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()


def received(port: int) -> list[int]:
    """By connection."""
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(b"?")
        return [int(word) for word in sock.makefile().read().split()]


@contextmanager
def running(case: Case) -> Iterator[tuple[int, int, int]]:
    """Ports of front and receiver, and the relay's process id."""
    front, target = free_ports(2)
    ends = [["receive", str(target)], ["relay", str(case.mb_per_s), str(case.rtt_ms), str(front), str(target)]]
    processes = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.transport.user_wan", "--role", *end]) for end in ends
    ]
    try:
        for port in (target, front):
            until_listening(port)
        yield front, target, processes[1].pid
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until_listening(port: int) -> None:
    for _ in range(400):
        try:
            socket.create_connection((HOST, port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nobody listens at {port}")


def pinged_ms(port: int, num: int = PINGS) -> list[float]:
    """Round trips of a byte."""
    with socket.create_connection((HOST, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"p")
        times = []
        for _ in range(num):
            started_s = time.perf_counter()
            sock.sendall(b"x")
            sock.recv(1)
            times.append((time.perf_counter() - started_s) * 1e3)
            time.sleep(0.002)
    return times


def send_for_ever(port: int, lanes: list[socket.socket]) -> None:
    sock = socket.create_connection((HOST, port))
    lanes.append(sock)
    data = bytes(1 << 20)
    try:
        sock.sendall(b"s")
        while True:
            sock.sendall(data)
    except OSError:
        return


def loaded(case: Case, seconds: int) -> None:
    """Lanes that always have something to send: rate of each second, CPU, shares, what is acknowledged too early."""
    with running(case) as (front, target, pid):
        lanes: list[socket.socket] = []
        for _ in range(LANES):
            threading.Thread(target=send_for_ever, args=(front, lanes), daemon=True).start()
        time.sleep(1.5)
        begun, cpu_before_s = received(target), cpu_s(pid)
        rates, before, at_s = [], sum(begun), time.perf_counter()
        swallowed = []
        for _ in range(seconds):
            time.sleep(1)
            info = [found for lane in lanes if (found := tcp_info(lane)) is not None]
            counts, now_s = received(target), time.perf_counter()
            rates.append((sum(counts) - before) / (now_s - at_s) / MB)
            swallowed.append(sum(found.bytes_acked for found in info) - sum(counts))
            before, at_s = sum(counts), now_s
        used_s = cpu_s(pid) - cpu_before_s
        each = [after - was for was, after in zip(begun, received(target), strict=True)]
        for lane in lanes:
            lane.close()
    moved_gb = sum(each) / 1e9
    limit = f"{case.mb_per_s:g} MB/s" if case.mb_per_s else "no limit"
    in_pipe = case.mb_per_s * case.rtt_ms / 2e3
    print(
        f"{limit}, {case.rtt_ms:g} ms: {statistics.mean(rates):.2f} MB/s (seconds from {min(rates):.2f} to"
        f" {max(rates):.2f}), {used_s / moved_gb:.2f} CPU s/GB, shares from {min(each) / statistics.mean(each):.3f} to"
        f" {max(each) / statistics.mean(each):.3f}, acknowledged and not delivered"
        f" {statistics.mean(swallowed) / MB:.2f} MB, of which {in_pipe:.2f} are on the way"
    )


def idle(rtt_ms: float) -> None:
    """What the relay adds to the round trip of a byte, beside what it was asked for."""
    with running(Case(100, rtt_ms)) as (front, target, _):
        direct, through = pinged_ms(target), pinged_ms(front)
    added = sorted(ms - rtt_ms - statistics.median(direct) for ms in through)
    print(
        f"idle, {rtt_ms:g} ms: round trip {statistics.median(added):+.2f} ms more than asked for (90%:"
        f" {added[int(len(added) * 0.9)]:+.2f}, least {added[0]:+.2f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.role:
        case ["receive", port]:
            receive(int(port))
        case ["relay", rate, rtt, front, target]:
            uvloop.run(relay(Case(float(rate), float(rtt)), int(front), int(target)))
        case _:
            print(machine())
            for rtt_ms in (0, 20, 80):
                idle(rtt_ms)
            for case in (Case(10, 20), Case(100, 20), Case(100, 80), Case(300, 20), Case(0, 0), Case(0, 20)):
                loaded(case, options.seconds)


if __name__ == "__main__":
    main()
