"""Added latency and lost throughput of the gateway against talking to the engine directly, measured in one run.

`python -m benchmarks.gateway.overhead [--json] [--rounds N] [--seconds S]`. Engine, gateway and client are separate
processes. Rounds alternate between direct and through the gateway, so that a machine's other load hits both alike;
medians over rounds are reported.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.gateway.upstream import EVENTS
from prfaas.testing.gateway_rig import write_tiny_model

CONNECTIONS = 8
BODY = json.dumps({"model": "tiny", "prompt": "x" * 400, "stream": True, "max_tokens": EVENTS}).encode()


@dataclass
class Round:
    """One round of one path."""

    num_requests: int = 0
    elapsed_s: float = 0.0
    ttfts_s: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Percentiles and rate."""
        ordered = sorted(self.ttfts_s)
        return {
            "requests_per_s": self.num_requests / self.elapsed_s,
            "ttft_ms_p50": 1e3 * ordered[len(ordered) // 2],
            "ttft_ms_p99": 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        }


async def measure(session: aiohttp.ClientSession, url: str, seconds: float, connections: int = CONNECTIONS) -> Round:
    """Closed loop: `connections` clients, each with one request at a time."""
    result = Round()
    began_s = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - began_s < seconds:
            sent_s = time.perf_counter()
            async with session.post(url, data=BODY, headers={"content-type": "application/json"}) as reply:
                assert reply.status == 200, await reply.text()
                data = await reply.content.readany()
                result.ttfts_s.append(time.perf_counter() - sent_s)
                num_events = data.count(b"\n\n")
                async for chunk in reply.content.iter_any():
                    num_events += chunk.count(b"\n\n")
            assert num_events == EVENTS + 1, num_events
            result.num_requests += 1

    await asyncio.gather(*(client() for _ in range(connections)))
    result.elapsed_s = time.perf_counter() - began_s
    return result


@contextmanager
def process(module: str, *arguments: str) -> Iterator[None]:
    """A Python process that is gone afterwards."""
    running = subprocess.Popen([sys.executable, "-m", module, *arguments])
    try:
        yield
    finally:
        running.terminate()
        running.wait(10)


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


async def _rounds(upstream_port: int, gateway_port: int, rounds: int, seconds: float) -> dict[str, Any]:
    paths = {"direct": upstream_port, "gateway": gateway_port}
    urls = {name: f"http://127.0.0.1:{port}/v1/completions" for name, port in paths.items()}
    results: dict[str, list[dict[str, float]]] = {f"{name}_{n}": [] for n in (1, CONNECTIONS) for name in paths}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for port in paths.values():
            await _up(session, f"http://127.0.0.1:{port}/health")
        for url in urls.values():
            await measure(session, url, 0.5)
        for _ in range(rounds):
            for connections in (1, CONNECTIONS):
                for name, url in urls.items():
                    measured = await measure(session, url, seconds, connections)
                    results[f"{name}_{connections}"].append(measured.figures())
    return {name: _medians(of) for name, of in results.items()}


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def run(rounds: int, seconds: float) -> dict[str, Any]:
    """All figures of one run."""
    with tempfile.TemporaryDirectory() as model_dir:
        write_tiny_model(Path(model_dir))
        upstream, gateway = _free_port(), _free_port()
        with (
            process("benchmarks.gateway.upstream", str(upstream)),
            process("benchmarks.gateway.front", str(gateway), str(upstream), model_dir),
        ):
            medians = asyncio.run(_rounds(upstream, gateway, rounds, seconds))
    added = {
        f"added_ttft_ms_{p}_{n}": medians[f"gateway_{n}"][f"ttft_ms_{p}"] - medians[f"direct_{n}"][f"ttft_ms_{p}"]
        for n in (1, CONNECTIONS)
        for p in ("p50", "p99")
    }
    ratio = medians[f"gateway_{CONNECTIONS}"]["requests_per_s"] / medians[f"direct_{CONNECTIONS}"]["requests_per_s"]
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    return {"machine": machine, "events": EVENTS, "rounds": rounds, "seconds": seconds, **medians, **added,
            "requests_per_s_ratio": ratio}  # fmt: skip


def _table(figures: dict[str, Any]) -> str:
    lines = ["| path | connections | requests/s | TTFT p50 ms | TTFT p99 ms |", "|---|---|---|---|---|"]
    for n in (1, CONNECTIONS):
        for name in ("direct", "gateway"):
            row = figures[f"{name}_{n}"]
            lines.append(
                f"| {name} | {n} | {row['requests_per_s']:.0f} | {row['ttft_ms_p50']:.2f} | {row['ttft_ms_p99']:.2f} |"
            )
    for n in (1, CONNECTIONS):
        lines.append(
            f"added TTFT at {n} connections: p50 {figures[f'added_ttft_ms_p50_{n}']:.2f} ms, "
            f"p99 {figures[f'added_ttft_ms_p99_{n}']:.2f} ms"
        )
    lines.append(f"requests/s through the gateway / direct: {figures['requests_per_s_ratio']:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    figures = run(options.rounds, options.seconds)
    print(json.dumps(figures) if options.json else _table(figures))


if __name__ == "__main__":
    main()
