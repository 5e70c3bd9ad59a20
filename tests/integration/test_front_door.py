"""What a client's connection may cost the gateway before there is a request, and who feels it: nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from prfaas.testing.gateway_rig import MODEL, Rig, gateway_rig, until, write_tiny_model

#: A guard against hangs.
HANG_S = 120.0
PROMPT = json.dumps({"model": MODEL, "prompt": "short", "max_tokens": 3}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(PROMPT) + PROMPT
#: Long enough for an honest client on a busy machine, where a test does not wait for it.
PATIENT = {"head_timeout": "100s", "body_grace": "100s", "write_timeout": "100s"}


class Connection:
    """A client without manners."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Raises OSError when the gateway has closed."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next one, which has a length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """To the end of the connection, which the gateway closes or resets."""
        found = b""
        try:
            while piece := await self.reader.read(65536):
                found += piece
        except ConnectionError:
            pass
        return found

    def hang_up(self) -> None:
        self.writer.close()


@asynccontextmanager
async def connected(rig: Rig) -> AsyncIterator[Connection]:
    """Closed at the end."""
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def drive(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]], **gateway: Any) -> None:
    """Run a scenario; at its end an honest client is served, and nothing is left."""
    write_tiny_model(tmp_path)

    async def main() -> None:
        async with asyncio.timeout(HANG_S), gateway_rig(tmp_path, gateway=gateway) as rig:
            await scenario(rig)
            reply, _ = await rig.complete(prompt="short")
            assert reply.status == 200
            await until(lambda: rig.service.num_inflight == len(rig.service.reading_ids) == 0, HANG_S)
            assert await rig.metric("prfaas_inflight_bytes") == 0

    asyncio.run(main())


async def closed(rig: Rig, reason: str) -> float:
    return await rig.metric(f'prfaas_client_connections_closed_total{{reason="{reason}"}}')


# Heads


@pytest.mark.parametrize(
    "begin",
    [HEAD + b"x-endless: ", b"GET /", b"GET / HTTP/1.1\r\n", HEAD, b"A"],
    ids=["a value", "a URL", "headers", "headers of a body", "a method"],
)
def test_a_head_that_does_not_end_is_cut_off_at_its_limit(tmp_path: Path, begin: bytes) -> None:
    """After as many bytes as a head may have, and what was under way by then."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            num_sent = 0
            try:
                await client.send(begin)
                while num_sent < 100 << 20:
                    await client.send(b"x: y\r\n" * 1000 if begin.endswith(b"\r\n") else b"x" * 6000)
                    num_sent += 6000
            except OSError:
                pass
            assert num_sent < 32 << 20, "sockets between the two hold some megabytes"
        assert await closed(rig, "head_too_large") == 1

    drive(tmp_path, scenario, front=PATIENT)


def test_a_head_that_is_too_large_is_told_so(tmp_path: Path) -> None:
    """In OpenAI's shape."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            await client.send(b"GET /live HTTP/1.1\r\nx: " + b"y" * 2000 + b"\r\n\r\n")
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (431, "close")
            assert json.loads(body)["error"]["code"] == "head_too_large"
            assert await client.rest() == b""
        async with connected(rig) as client:
            await client.send(b"GET /live HTTP/1.1\r\nx: " + b"y" * 900 + b"\r\n\r\n")
            assert (await client.answer())[0] == 200

    drive(tmp_path, scenario, front={**PATIENT, "max_head": "1KiB"})


def test_a_head_in_single_bytes_is_a_head(tmp_path: Path) -> None:
    """And so is one that comes behind an empty line; one of bare line feeds is refused at once."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            for byte in b"\r\n" + WHOLE:
                await client.send(bytes([byte]))
            assert (await client.answer())[0] == 200
            await client.send(b"\r\n" + WHOLE)
            assert (await client.answer())[0] == 200
        async with connected(rig) as client:
            await client.send(b"GET /live HTTP/1.1\nhost: x\n\n")
            assert (await client.answer())[0] == 400

    drive(tmp_path, scenario, front=PATIENT)


def test_what_is_no_http_is_refused_at_once(tmp_path: Path) -> None:
    """A TLS client at a plain port must not wait for a timeout."""

    async def scenario(rig: Rig) -> None:
        for garbage in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\0" * 100,
            b"GET\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            async with connected(rig) as client:
                await client.send(garbage)
                status, _, body = await client.answer()
                assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")
                assert await client.rest() == b""

    drive(tmp_path, scenario, front=PATIENT)


def test_slow_heads_and_silent_connections_are_closed(tmp_path: Path) -> None:
    """A head is told why."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as silent, connected(rig) as slow:
            await slow.send(b"GET /live HTTP/1.1\r\nx: ")
            status, _, body = await slow.answer()
            assert (status, json.loads(body)["error"]["type"]) == (408, "timeout_error")
            assert await slow.rest() == await silent.rest() == b""
        assert await closed(rig, "head_timeout") == 2

    drive(tmp_path, scenario, front={**PATIENT, "head_timeout": "300ms"})


def test_a_connection_between_two_requests_lives_longer_than_one_before_its_first(tmp_path: Path) -> None:
    """But not for ever."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            await client.send(b"GET /live HTTP/1.1\r\n\r\n")
            await client.answer()
            await asyncio.sleep(1.0)
            await client.send(b"GET /live HTTP/1.1\r\n\r\n")
            await client.answer()
            assert await client.rest() == b""

    drive(tmp_path, scenario, front={**PATIENT, "head_timeout": "300ms", "idle_timeout": "3s"})


# Bodies


def test_slow_bodies_take_no_place(tmp_path: Path) -> None:
    """Where two requests may be served at a time, twenty that send nothing keep nobody out."""

    async def scenario(rig: Rig) -> None:
        slow = [await rig_connection(rig) for _ in range(20)]
        for client in slow:
            await client.send(HEAD + b"content-length: 100\r\n\r\n{")
        await until(lambda: len(rig.service.reading_ids) == 20, HANG_S)
        for _ in range(5):
            reply, _ = await rig.complete(prompt="short")
            assert reply.status == 200
        for client in slow:
            client.hang_up()

    drive(tmp_path, scenario, front=PATIENT, max_inflight_requests=2)


async def rig_connection(rig: Rig) -> Connection:
    host, port = rig.url.removeprefix("http://").split(":")
    return Connection(*await asyncio.open_connection(host, int(port)))


def test_a_body_that_comes_too_slowly_is_given_up(tmp_path: Path) -> None:
    """A body that comes in pieces, but fast enough, is not."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            await client.send(HEAD + b"content-length: 100\r\n\r\n{")
            assert (await client.answer())[0] == 408
            assert await client.rest() == b""
        assert await closed(rig, "body_too_slow") == 1
        async with connected(rig) as client:
            await client.send(HEAD + b"content-length: %d\r\n\r\n" % (len(PROMPT) + 20_000))
            for _ in range(10):
                await client.send(b" " * 2000)
                await asyncio.sleep(0.06)
            await client.send(PROMPT)
            assert (await client.answer())[0] == 200

    drive(tmp_path, scenario, front={**PATIENT, "body_grace": "300ms", "min_body_rate": "1KiB"})


@pytest.mark.parametrize(
    "endless",
    [b"1\r\n{\r\n0\r\nx: ", b"1\r\n{\r\n0\r\n", b"1;x=", b"0" * 9],
    ids=["trailer", "trailers", "extension", "size"],
)
def test_what_is_around_the_pieces_of_a_body_is_bounded(tmp_path: Path, endless: bytes) -> None:
    """Not only the body."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            num_sent = 0
            try:
                await client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + endless)
                while num_sent < 100 << 20:
                    await client.send(b"x: y\r\n" * 1000 if endless.endswith(b"\r\n") else b"0" * 6000)
                    num_sent += 6000
            except OSError:
                pass
            assert num_sent < 32 << 20

    drive(tmp_path, scenario, front=PATIENT)


def test_bodies_together_are_bounded_in_bytes(tmp_path: Path) -> None:
    """More is 429 with Retry-After, until there is room again."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        filler = "x" * 700_000
        asking = asyncio.create_task(rig.complete(prompt="short", extra=filler))
        await until(lambda: bool(rig.decoders[0].seen), HANG_S)
        reply, answer = await rig.complete(prompt="short", extra=filler)
        assert (reply.status, answer["error"]["code"], reply.headers["retry-after"]) == (429, "overloaded", "1")
        rig.decoders[0].release.set()
        assert (await asking)[0].status == 200
        assert (await rig.complete(prompt="short", extra=filler))[0].status == 200

    drive(tmp_path, scenario, front=PATIENT, max_inflight_bytes="1MiB")


def test_a_request_that_goes_on_keeps_its_bytes_alone(tmp_path: Path) -> None:
    """Values of small objects take up to thirty times as much memory, for as long as the engine works."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        asking = [
            asyncio.create_task(rig.complete(prompt=prompt)) for prompt in ("short", "a prompt that is sent away")
        ]
        await until(lambda: len(rig.decoders[0].seen) == 2, HANG_S)
        requests = [live.request for live in rig.app.driver._live.values()]
        assert [request._parsed for request in requests] == [None, None]
        rig.decoders[0].release.set()
        for one in asking:
            assert (await one)[0].status == 200

    drive(tmp_path, scenario, front=PATIENT)


# Several requests


def test_a_request_behind_one_that_goes_on_is_not_served(tmp_path: Path) -> None:
    """The connection ends with the first answer, which says so."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            await client.send(WHOLE + WHOLE + WHOLE)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""
        assert len(rig.decoders[0].seen) == 1

    drive(tmp_path, scenario, front=PATIENT)


@pytest.mark.parametrize("behind", [b"", WHOLE, b"GET /live HTTP/1.1\r\n", b"x" * 1_000_000])
def test_whoever_hangs_up_is_noticed_whatever_it_sent_behind(tmp_path: Path, behind: bytes) -> None:
    """The engine is told."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        async with connected(rig) as client:
            await client.send(WHOLE)
            await until(lambda: bool(rig.decoders[0].seen), HANG_S)
            await client.send(behind)
        await until(lambda: rig.service.num_inflight == 0, HANG_S)
        await until(lambda: rig.decoders[0].seen[0].is_cut_by_client, HANG_S)
        rig.decoders[0].faults.decode = "none"

    drive(tmp_path, scenario, front=PATIENT)


def test_a_client_that_ends_its_half_gets_what_is_ready(tmp_path: Path) -> None:
    """As `nc -N` does. One whose answer takes longer counts as gone: most who end their half have left."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            await client.send(b"GET /live HTTP/1.1\r\n\r\n")
            client.writer.write_eof()
            assert (await client.answer())[0] == 200
            assert await client.rest() == b""
        rig.decoders[0].faults.decode = "stall"
        async with connected(rig) as client:
            await client.send(WHOLE)
            client.writer.write_eof()
            assert await client.rest() == b""
            await until(lambda: rig.service.num_inflight == 0, HANG_S)
        rig.decoders[0].faults.decode = "none"

    drive(tmp_path, scenario, front=PATIENT)


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_passed_over(tmp_path: Path, protocol: str) -> None:
    """Java's client offers HTTP/2 with every request; its body is a body all the same."""

    async def scenario(rig: Rig) -> None:
        offer = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\n"
        async with connected(rig) as client:
            for _ in range(2):
                await client.send(HEAD + offer.encode() + b"content-length: %d\r\n\r\n" % len(PROMPT) + PROMPT)
                assert (await client.answer())[0] == 200

    drive(tmp_path, scenario, front=PATIENT)


@pytest.mark.parametrize("cut", [0, 5, 40, len(HEAD) - 2, len(HEAD) + 10, len(WHOLE)])
def test_a_request_behind_a_body_that_was_refused_is_a_request(tmp_path: Path, cut: int) -> None:
    """As an honest client sends it that has read its refusal before it has sent its body. Wherever reads are cut."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            refused = HEAD.replace(b"application/json", b"text/plain") + b"content-length: 100000\r\n\r\n"
            await client.send(refused + b"x" * 50_000)
            assert (await client.answer())[0] == 415
            next_one = WHOLE.replace(b"host: gateway", b"x-request-id: mine")
            await client.send(b"x" * 50_000 + next_one[:cut])
            await asyncio.sleep(0.05)
            await client.send(next_one[cut:])
            status, headers, _ = await client.answer()
            assert (status, headers["x-request-id"]) == (200, "mine")

    drive(tmp_path, scenario, front=PATIENT)


def test_a_request_behind_chunks_that_were_refused_ends_the_connection(tmp_path: Path) -> None:
    """Where they end only the parser knows, and it has read on by then. Nothing is answered that was not read whole."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            refused = HEAD.replace(b"application/json", b"text/plain") + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
            await client.send(refused)
            assert (await client.answer())[0] == 415
            await client.send(b"0\r\n\r\n" + WHOLE)
            assert await client.rest() == b""
        assert rig.decoders[0].seen == []

    drive(tmp_path, scenario, front=PATIENT)


def test_a_body_that_was_refused_keeps_no_place(tmp_path: Path) -> None:
    """Its connection has a grace to send the rest, however much has come."""

    async def scenario(rig: Rig) -> None:
        refused = HEAD.replace(b"application/json", b"text/plain") + b"content-length: 1000000\r\n\r\n"
        async with connected(rig) as client:
            await client.send(refused + b"x" * 999_999)
            assert (await client.answer())[0] == 415
            assert await client.rest() == b""

    drive(tmp_path, scenario, front={**PATIENT, "body_grace": "300ms"})


def test_a_request_that_expects_a_100_ends_its_connection(tmp_path: Path) -> None:
    """After a refusal nobody can tell whether the body comes."""

    async def scenario(rig: Rig) -> None:
        expecting = HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(PROMPT)
        async with connected(rig) as client:
            await client.send(expecting)
            assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(PROMPT)
            assert (await client.answer())[0] == 200
            assert await client.rest() == b""
        async with connected(rig) as client:
            await client.send(expecting.replace(b"application/json", b"text/plain"))
            assert (await client.answer())[0] == 415
            assert await client.rest() == b""

    drive(tmp_path, scenario, front=PATIENT)


def test_connect_is_answered_and_nothing_behind_it_is_a_request(tmp_path: Path) -> None:
    """The gateway is nobody's proxy."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as client:
            await client.send(b"CONNECT somewhere:443 HTTP/1.1\r\n\r\n" + WHOLE)
            answer = await client.rest()
            assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
            assert answer.count(b"HTTP/1.1 ") == 1
        assert rig.decoders[0].seen == []

    drive(tmp_path, scenario, front=PATIENT)


# Connections


def test_idle_connections_make_room(tmp_path: Path) -> None:
    """A hundred that do nothing keep nobody out, and a stream that goes on is left alone."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        async with connected(rig) as busy:
            await busy.send(WHOLE)
            await until(lambda: bool(rig.decoders[0].seen), HANG_S)
            idle = [await rig_connection(rig) for _ in range(100)]
            assert await rig.metric("prfaas_client_connections") <= 10
            assert await closed(rig, "made_room") >= 90
            rig.decoders[0].release.set()
            assert (await busy.answer())[0] == 200
            for client in idle:
                client.hang_up()

    drive(tmp_path, scenario, front={**PATIENT, "max_connections": 10})


def test_a_connection_too_many_is_refused_while_all_are_at_work(tmp_path: Path) -> None:
    """With 503, and a place is given away when there is one."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as first, connected(rig) as second:
            for client in (first, second):
                await client.send(HEAD + b"content-length: 100\r\n\r\n{")
            await until(lambda: len(rig.service.reading_ids) == 2, HANG_S)
            async with connected(rig) as third:
                assert (await third.rest()).startswith(b"HTTP/1.1 503 ")
        await until(lambda: not rig.service.reading_ids, HANG_S)
        assert await closed(rig, "full") == 1

    drive(tmp_path, scenario, front={**PATIENT, "max_connections": 2})


def test_one_address_cannot_have_all(tmp_path: Path) -> None:
    """Where the gateway is told so."""

    async def scenario(rig: Rig) -> None:
        async with connected(rig) as first:
            await first.send(b"GET /live HTTP/1.1\r\n\r\n")
            assert (await first.answer())[0] == 200
            async with connected(rig) as second:
                assert b"has 1 connections already" in await second.rest()
            # The only connection that this test may have.
            await first.send(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b'closed_total{reason="address_full"} 1.0' in (await first.answer())[2]

    async def alone(rig: Rig) -> None:
        await rig.session.close()
        await scenario(rig)

    write_tiny_model(tmp_path)

    async def main() -> None:
        front = {**PATIENT, "max_connections_of_address": 1}
        async with asyncio.timeout(HANG_S), gateway_rig(tmp_path, gateway={"front": front}) as rig:
            await alone(rig)

    asyncio.run(main())
