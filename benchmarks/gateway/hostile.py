"""What other clients feel while one client attacks the gateway: `python -m benchmarks.gateway.hostile
[--before CHECKOUT] [--seconds 20] [--only NAME]`.

Engine, gateway and attacker are separate processes on one machine. While an attack goes on, an honest client asks for
`/live` every 10 ms on a connection that it keeps, and for a short completion five times a second on a new one each.
Five seconds after the attack the requests are counted that the engine still works on and nobody waits for. Each attack
meets a gateway of its own, which was just started; with `--before`, that of another checkout takes a turn too.

Prints a Markdown table. Memory is the gateway's own anonymous pages, looked at every 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop
import yaml
from aiohttp import web

from benchmarks.gateway.overhead import _up, process
from benchmarks.gateway.tokenize_stall import KIB, MAX_MODEL_TOKENS, MIB, TOOL, write_model
from prfaas.gateway.front.limits import raise_descriptor_limit
from prfaas.launch.addresses import free_ports
from prfaas.simulator.results import percentile
from prfaas.testing.fake_kvnode import FakeKVNode
from prfaas.testing.fake_server import FakeServer
from prfaas.testing.footprint import heap_bytes

HOST: Final = "127.0.0.1"
#: A request with this limit is never answered, as by an engine that works for long.
FOR_EVER: Final = 999
LIVE_EVERY_S: Final = 0.01
ASK_EVERY_S: Final = 0.2
#: Longer than this counts as not answered.
HONEST_TIMEOUT_S: Final = 30.0
CALM_S: Final = 5.0


class Engine(FakeServer):
    """Answers at once, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.num_working = 0

    def routes(self) -> list[web.RouteDef]:
        """As much of vLLM's as a gateway needs."""
        paths = ("/v1/completions", "/v1/chat/completions")
        return [web.get("/health", self._health), *(web.post(path, self._generate) for path in paths)]

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _generate(self, request: web.Request) -> web.Response:
        self.num_working += 1
        try:
            raw = await request.read()
            if b'"max_tokens":%d' % FOR_EVER in raw:
                await asyncio.sleep(3600)
            choice = {"index": 0, "text": "x", "finish_reason": "length"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            return web.json_response(
                {"id": "x", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice],
                 "usage": usage}
            )  # fmt: skip
        finally:
            self.num_working -= 1


@dataclass
class Felt:
    """By honest clients, and by the gateway."""

    live_s: list[float] = field(default_factory=list)
    num_answered: int = 0
    failures: list[str] = field(default_factory=list)
    heap_bytes: int = 0
    num_orphans: int = 0


# Attacks: coroutines of a process of its own, which is ended when its time is over


def _body(**more: Any) -> bytes:
    return json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 2, **more}, separators=(",", ":")).encode()


def _request(body: bytes, path: str = "/v1/completions") -> bytes:
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (path.encode(), len(body)) + body


def _begun_body() -> bytes:
    return _request(b"{" + b" " * 99)[:-99]


async def _again_and_again(port: int, data: bytes, num: int, pause_s: float = 0.0) -> None:
    """`num` connections, each of which sends it, waits for an answer or its end, and begins anew after a pause."""

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(data)
                await writer.drain()
                await reader.read(1)
                writer.close()
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(one() for _ in range(num)))


async def words(port: int) -> None:
    """Four times 8 MiB of one word at a time."""
    await _again_and_again(port, _request(_body(prompt="a" * (8 * MIB - KIB))), 4)


async def tools(port: int) -> None:
    """Twice 8 MiB of the smallest tools at a time."""
    num = (8 * MIB - KIB) // len(json.dumps(TOOL, separators=(",", ":")) + ",")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "tools": [TOOL] * num, "max_tokens": 2}
    await _again_and_again(port, _request(json.dumps(body, separators=(",", ":")).encode(), "/v1/chat/completions"), 2)


async def values(port: int) -> None:
    """Eight bodies of 8 MiB of empty objects, on which the engine works for ever."""
    filler = [{}] * ((8 * MIB - KIB) // 3)
    await _again_and_again(port, _request(_body(max_tokens=FOR_EVER, x=filler)), 8)


async def headers(port: int) -> None:
    """300 MiB of one header, and when the connection is cut off, again."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /live HTTP/1.1\r\nx: ")
            for _ in range(300):
                writer.write(b"y" * MIB)
                await writer.drain()
            writer.close()


async def idle(port: int) -> None:
    """10,000 connections that say nothing; those that are closed come again."""
    await _again_and_again(port, b"", 10_000, pause_s=1.0)


async def bodies(port: int) -> None:
    """1,200 bodies of which one byte comes, more than requests may be in flight."""
    await _again_and_again(port, _begun_body(), 1200, pause_s=1.0)


async def pipelined(port: int) -> None:
    """1,030 requests on which the engine works for ever, another one behind each, and then all hang up; again."""
    data = _request(_body(max_tokens=FOR_EVER)) + _request(_body())
    while True:
        writers = []
        for _ in range(1030):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.write(data)
                writers.append(writer)
        await asyncio.sleep(1.0)
        for writer in writers:
            writer.close()
        await asyncio.sleep(2.0)


ATTACKS: Final[dict[str, Callable[[int], Awaitable[None]]]] = {
    attack.__name__: attack for attack in (words, tools, values, headers, idle, bodies, pipelined)
}


# What others feel


async def _watch_live(session: aiohttp.ClientSession, url: str, felt: Felt) -> None:
    while True:
        began_s = time.perf_counter()
        try:
            async with session.get(f"{url}/live") as reply:
                await reply.read()
        except (aiohttp.ClientError, OSError) as error:
            felt.failures.append(f"/live: {type(error).__name__}")
        felt.live_s.append(time.perf_counter() - began_s)
        await asyncio.sleep(LIVE_EVERY_S)


async def _ask(session: aiohttp.ClientSession, url: str, felt: Felt) -> None:
    try:
        headers = {"content-type": "application/json"}
        async with session.post(f"{url}/v1/completions", data=_body(), headers=headers) as reply:
            await reply.read()
        if reply.status == 200:
            felt.num_answered += 1
        else:
            felt.failures.append(str(reply.status))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        felt.failures.append(type(error).__name__)


async def _ask_on(session: aiohttp.ClientSession, url: str, felt: Felt) -> None:
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(_ask(session, url, felt))
            await asyncio.sleep(ASK_EVERY_S)


async def _watch_heap(pid: int, felt: Felt) -> None:
    while True:
        felt.heap_bytes = max(felt.heap_bytes, heap_bytes(pid))
        await asyncio.sleep(0.05)


async def _feel(port: int, pid: int, attack: str | None, seconds: float, engine: Engine) -> Felt:
    felt, url = Felt(), f"http://{HOST}:{port}"
    timeout = aiohttp.ClientTimeout(total=HONEST_TIMEOUT_S)
    kept = aiohttp.ClientSession(timeout=timeout)
    new = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True, limit=0))
    async with kept, new:
        await _up(kept, f"{url}/health")
        watching = [
            asyncio.create_task(work)
            for work in (_watch_live(kept, url, felt), _ask_on(new, url, felt), _watch_heap(pid, felt))
        ]
        if attack is None:
            await asyncio.sleep(seconds)
        else:
            with process("benchmarks.gateway.hostile", "--attack", attack, str(port)):
                await asyncio.sleep(seconds)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await asyncio.sleep(CALM_S)
        felt.num_orphans = engine.num_working
    return felt


async def _against(attack: str | None, seconds: float, model_dir: Path, checkout: Path | None) -> Felt:
    """A gateway that is started for it."""
    (port,) = free_ports(1)
    async with Engine() as engine, FakeKVNode("pd-0") as node:
        endpoint = {"engine": engine.url, "kvnode": node.url, "lanes": "pd-0:1"}
        document = {
            "model": {"name": "tiny", "path": str(model_dir), "max_model_tokens": MAX_MODEL_TOKENS},
            "clusters": {"pd": {"role": "pd", "endpoints": [endpoint]}},
            "policy": {"kind": "homogeneous"},
            "gateway": {"port": port},
        }
        file = model_dir / "deployment.yaml"
        file.write_text(yaml.safe_dump(document), encoding="utf-8")
        with ExitStack() as stack:
            with _usual_descriptors():
                # Its log has a line for each request of an attack.
                pid = stack.enter_context(process("prfaas", "gateway", str(file), checkout=checkout, is_silent=True))
            return await _feel(port, pid, attack, seconds, engine)


@contextlib.contextmanager
def _usual_descriptors() -> Iterator[None]:
    """What is started meanwhile may have as many open descriptors as most systems allow to begin with."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _row(attack: str | None, which: str, felt: Felt) -> str:
    ordered = sorted(felt.live_s)
    p99_s = percentile(ordered, 99) or 0.0
    kinds = ", ".join(f"{felt.failures.count(kind)} × {kind}" for kind in sorted(set(felt.failures))) or "0"
    cells = [
        attack or "nothing", which, f"{statistics.median(ordered) * 1e3:.1f}", f"{p99_s * 1e3:.0f}",
        f"{ordered[-1] * 1e3:.0f}", str(felt.num_answered), kinds, f"{felt.heap_bytes / MIB:.0f}",
        str(felt.num_orphans),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of which the gateway takes a turn too")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each attack")
    parser.add_argument("--only", choices=ATTACKS, action="append")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("port", nargs="?", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        raise_descriptor_limit()
        uvloop.run(ATTACKS[options.attack](options.port))
        return
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f}\n")
    print("| attack | gateway | `/live`, ms: p50 | p99 | longest | answered | not answered | heap, MiB | orphans |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for attack in (None, *(options.only or ATTACKS)):
            for which, checkout in (("before", options.before), ("now", None)):
                if which == "before" and checkout is None:
                    continue
                felt = asyncio.run(_against(attack, options.seconds, Path(folder), checkout))
                print(_row(attack, which, felt), flush=True)


if __name__ == "__main__":
    main()
