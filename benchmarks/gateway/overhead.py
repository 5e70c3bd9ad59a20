"""Added latency and lost throughput of the gateway against talking to the engine directly, measured in one run.

`python -m benchmarks.gateway.overhead [--json] [--starts N] [--rounds N] [--seconds S] [--before CHECKOUT]`. Engine,
gateway and client are separate processes. Rounds alternate between direct and through the gateway, so that a machine's
other load hits both alike. One start of a process may be a tenth faster than the next for as long as it lives, so all
are started `--starts` times; medians over all rounds are reported. With `--before`, the gateway of another checkout
takes its turns too.
CPU is what the process in question (engine or gateway) used for a request: other work on the machine hardly changes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.gateway.upstream import EVENTS
from prfaas.testing.footprint import cpu_s
from prfaas.testing.gateway_rig import write_tiny_model

CONNECTIONS = (1, 8, 64)
#: The aim and the ratio are given for this many.
USUAL_CONNECTIONS = 8
#: 500 tokens/s and request: faster than any engine decodes, so that what is measured is not queueing for a full core.
PACE_S = 0.002
#: 100 tokens: the tiny tokenizer makes one of each character.
BODY = json.dumps({"model": "tiny", "prompt": "x" * 100, "stream": True, "max_tokens": EVENTS}).encode()
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)


#: Figures of each round, by path and number of connections.
Results = dict[str, list[dict[str, float]]]


@dataclass
class Round:
    """One round of one path."""

    num_requests: int = 0
    elapsed_s: float = 0.0
    ttfts_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """Percentiles and rate."""
        ordered = sorted(self.ttfts_s)
        return {
            "requests_per_s": self.num_requests / self.elapsed_s,
            "cpu_ms": 1e3 * self.cpu_s / self.num_requests,
            "ttft_ms_p50": 1e3 * ordered[len(ordered) // 2],
            "ttft_ms_p99": 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        }


async def measure(port: int, seconds: float, connections: int = USUAL_CONNECTIONS) -> Round:
    """Closed loop: `connections` clients, each with one request at a time on one connection.

    The client is bare sockets on purpose: it shares the machine's cores with what it measures.
    """
    result = Round()
    began_s = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - began_s < seconds:
            await _one(reader, writer, result)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    result.elapsed_s = time.perf_counter() - began_s
    return result


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, result: Round) -> None:
    sent_s = time.perf_counter()
    writer.write(REQUEST)
    data = await reader.readuntil(b"data: ")
    result.ttfts_s.append(time.perf_counter() - sent_s)
    assert data.startswith(b"HTTP/1.1 200"), data
    num_events = 1
    while not data.endswith(b"0\r\n\r\n"):
        data = await reader.read(65536)
        assert data, "the connection broke"
        num_events += data.count(b"data: ")
    assert num_events == EVENTS + 1, num_events
    result.num_requests += 1


@contextmanager
def process(module: str, *arguments: str, checkout: Path | None = None, is_silent: bool = False) -> Iterator[int]:
    """A Python process that is gone afterwards, by its id; of another `checkout`, if one is named."""
    source = {} if checkout is None else {"PYTHONPATH": str(checkout / "src")}
    argv = [sys.executable, "-m", module, *arguments]
    output = subprocess.DEVNULL if is_silent else None
    running = subprocess.Popen(argv, cwd=checkout, env={**os.environ, **source}, stdout=output, stderr=output)
    try:
        yield running.pid
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


async def _up(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(400):
        try:
            async with session.get(url) as reply:
                if reply.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError(url)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _rounds(paths: dict[str, int], pids: dict[str, int], rounds: int, seconds: float) -> Results:
    results: Results = {f"{name}_{n}": [] for n in CONNECTIONS for name in paths}
    async with aiohttp.ClientSession() as session:
        for port in paths.values():
            await _up(session, f"http://127.0.0.1:{port}/health")
    for port in paths.values():
        await measure(port, 0.5)
    for _ in range(rounds):
        for connections in CONNECTIONS:
            for name, port in paths.items():
                before_s = cpu_s(pids[name])
                measured = await measure(port, seconds, connections)
                measured.cpu_s = cpu_s(pids[name]) - before_s
                results[f"{name}_{connections}"].append(measured.figures())
    return results


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def run(starts: int, rounds: int, seconds: float, before: Path | None = None) -> dict[str, Any]:
    """All figures of one run: without pause between events (both paths saturated), and at a token's pace."""
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    figures: dict[str, Any] = {"machine": machine, "events": EVENTS}
    figures |= {"starts": starts, "rounds": rounds, "seconds": seconds}
    for name, gap_s in (("saturated", 0.0), ("paced", PACE_S)):
        together: Results = {}
        for at in range(starts):
            for path, of in _one_start(gap_s, rounds, seconds, before, swapped=bool(at % 2)).items():
                together.setdefault(path, []).extend(of)
        figures[name] = _compared({path: _medians(of) for path, of in together.items()})
    return figures


def _one_start(gap_s: float, rounds: int, seconds: float, before: Path | None, *, swapped: bool) -> Results:
    """Of processes that are started for it. `swapped`: the two gateways take their turns in the other order."""
    with tempfile.TemporaryDirectory() as model_dir, ExitStack() as stack:
        write_tiny_model(Path(model_dir))
        paths = {"direct": _free_port()}
        engine = process("benchmarks.gateway.upstream", str(paths["direct"]), str(gap_s))
        pids = {"direct": stack.enter_context(engine)}
        start = partial(_start, stack, model_dir, paths["direct"])
        gateways: list[tuple[str, Path | None]] = [("gateway", None)]
        if before is not None:
            gateways.insert(int(swapped), ("before", before))
        for name, checkout in gateways:
            paths[name] = _free_port()
            pids[name] = start(paths[name], checkout)
        return uvloop.run(_rounds(paths, pids, rounds, seconds))


def _start(stack: ExitStack, model_dir: str, upstream: int, port: int, checkout: Path | None) -> int:
    front = process("benchmarks.gateway.front", str(port), str(upstream), model_dir, checkout=checkout)
    return stack.enter_context(front)


def _compared(medians: dict[str, Any]) -> dict[str, Any]:
    for name in ("gateway", "before"):
        for n in CONNECTIONS:
            direct, through = medians[f"direct_{n}"], medians.get(f"{name}_{n}")
            if through is not None:
                added = {key: through[key] - direct[key] for key in ("ttft_ms_p50", "ttft_ms_p99")}
                medians[f"added_{name}_{n}"] = added
    return medians


def _table(figures: dict[str, Any]) -> str:
    lines = [
        "| events | connections | path | requests/s | CPU ms | TTFT p50 ms | p99 ms | added p50 ms | added p99 ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for pace in ("saturated", "paced"):
        of = figures[pace]
        for n in CONNECTIONS:
            for name in ("direct", "before", "gateway"):
                row, added = of.get(f"{name}_{n}"), of.get(f"added_{name}_{n}")
                if row is None:
                    continue
                cells = [
                    f"{row['requests_per_s']:.0f}",
                    f"{row['cpu_ms']:.2f}",
                    f"{row['ttft_ms_p50']:.2f}",
                    f"{row['ttft_ms_p99']:.2f}",
                ]
                cells += [f"{added[k]:.2f}" if added else "" for k in ("ttft_ms_p50", "ttft_ms_p99")]
                lines.append(f"| {pace} | {n} | {name} | " + " | ".join(cells) + " |")
    of = figures["saturated"]
    rates = {name: of[f"{name}_{USUAL_CONNECTIONS}"]["requests_per_s"] for name in ("gateway", "direct")}
    return "\n".join(
        [*lines, f"requests/s through the gateway / direct, saturated: {rates['gateway'] / rates['direct']:.2f}"]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--before", type=Path, help="a checkout whose gateway is measured beside this one's")
    options = parser.parse_args()
    figures = run(options.starts, options.rounds, options.seconds, options.before)
    print(json.dumps(figures) if options.json else _table(figures))


if __name__ == "__main__":
    main()
