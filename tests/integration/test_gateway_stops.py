"""A gateway that is told to stop: what goes on is finished, or told that it ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from prfaas.testing.gateway_rig import MODEL, Rig, gateway_rig, until, write_tiny_model

#: A guard against hangs.
HANG_S = 120.0


def drive(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]], **gateway: Any) -> None:
    """Run a scenario."""
    write_tiny_model(tmp_path)

    async def main() -> None:
        async with asyncio.timeout(HANG_S), gateway_rig(tmp_path, gateway=gateway) as rig:
            await scenario(rig)

    asyncio.run(main())


def events_of(stream: bytes) -> list[Any]:
    """Of a whole stream, but for its last one."""
    *events, done, rest = stream.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]


async def begun(rig: Rig, **body: Any) -> asyncio.Task[tuple[aiohttp.ClientResponse, bytes]]:
    """A stream of which something has come."""
    asking = asyncio.create_task(rig.stream(prompt="short", **body))
    await until(lambda: bool(rig.decoders[0].seen), HANG_S)
    return asking


async def refused(rig: Rig) -> None:
    """Wait until nobody is let in any more."""
    while True:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{rig.url}/live"):
                await asyncio.sleep(0.02)
        except aiohttp.ClientConnectorError:
            return


def test_a_stream_that_ends_in_time_is_whole(tmp_path: Path) -> None:
    """Nothing new is taken meanwhile."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.event_gap_s = 0.2
        asking = await begun(rig, max_tokens=10)
        rig.server.should_exit = True
        await until(lambda: rig.app.is_stopping, HANG_S)
        await refused(rig)
        reply, stream = await asking
        assert (reply.status, len(events_of(stream))) == (200, 10)

    drive(tmp_path, scenario, stop_grace="100s")


def test_a_stream_that_does_not_end_in_time_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With an error event, and in the log."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.event_gap_s = 0.2
        asking = await begun(rig, max_tokens=1000)
        rig.server.should_exit = True
        _, stream = await asking
        assert events_of(stream)[-1]["error"]["code"] == "stopping"
        await until(lambda: rig.decoders[0].seen[0].is_cut_by_client, HANG_S)

    with caplog.at_level("INFO"):
        drive(tmp_path, scenario, stop_grace="1s")
    assert any("outcome=error status=200" in record.getMessage() for record in caplog.records)
    assert not any(record.exc_info for record in caplog.records)


def test_an_answer_that_has_not_begun_is_refused(tmp_path: Path) -> None:
    """With 503 and Retry-After: another gateway may serve it."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        asking = asyncio.create_task(rig.complete(prompt="short"))
        await until(lambda: bool(rig.decoders[0].seen), HANG_S)
        rig.server.should_exit = True
        reply, answer = await asking
        assert (reply.status, answer["error"]["code"], reply.headers["retry-after"]) == (503, "stopping", "1")

    drive(tmp_path, scenario, stop_grace="1s")


def test_a_second_ctrl_c_tells_streams_at_once(tmp_path: Path) -> None:
    """Also then they do not just stop."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.event_gap_s = 0.2
        asking = await begun(rig, max_tokens=1000)
        rig.server.should_exit = True
        await until(lambda: rig.app.is_stopping, HANG_S)
        rig.server.force_exit = True
        _, stream = await asking
        assert events_of(stream)[-1]["error"]["code"] == "stopping"

    drive(tmp_path, scenario, stop_grace="1000s")


def test_a_client_that_takes_nothing_does_not_keep_the_gateway(tmp_path: Path) -> None:
    """Its answers are thrown away."""

    async def scenario(rig: Rig) -> None:
        host, port = rig.url.removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))

            async def ask_on() -> None:
                while True:
                    await loop.sock_sendall(sock, b"GET /metrics HTTP/1.1\r\n\r\n")
                    await asyncio.sleep(0.002)

            asking = asyncio.create_task(ask_on())
            await asyncio.wait([asking], timeout=3.0)
            rig.server.should_exit = True
            async with asyncio.timeout(HANG_S / 2):
                await rig.serving
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    drive(tmp_path, scenario, stop_grace="1s")


def test_notice_is_given_before_anybody_is_refused(tmp_path: Path) -> None:
    """/ready says no while requests are served; their connections end with them, so that clients go elsewhere."""

    async def scenario(rig: Rig) -> None:
        rig.server.should_exit = True
        await until(lambda: rig.app.is_stopping, HANG_S)
        async with rig.session.get(f"{rig.url}/ready") as ready:
            assert (ready.status, await ready.json()) == (503, {"status": "stopping"})
        async with rig.session.get(f"{rig.url}/live") as live:
            assert live.status == 200
        body = {"model": MODEL, "prompt": "short"}
        async with rig.session.post(f"{rig.url}/v1/completions", json=body) as reply:
            assert (reply.status, reply.headers["connection"]) == (200, "close")
        rig.server.force_exit = True

    drive(tmp_path, scenario, stop_notice="100s")
