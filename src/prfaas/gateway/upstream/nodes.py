"""The gateway's client of KV nodes: one method per message of `core.wire.node_api`."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import aiohttp
import msgspec

from prfaas.core.wire.contract import BadMessage, Message, OtherVersion, check_version, from_json
from prfaas.core.wire.node_api import (
    VERSION,
    VERSION_HEADER,
    ErrorReply,
    LandingRecord,
    LinkReports,
    NodeHealth,
    Renewal,
    Reservation,
    Reserved,
    Until,
)
from prfaas.gateway.upstream.clients import translated

#: Control answers are a few hundred bytes; a node that takes longer does not work.
CONTROL_TIMEOUT_S: Final = 5.0

_HEADERS: Final = {"content-type": "application/json", VERSION_HEADER: str(VERSION)}

T = TypeVar("T", bound=Message)


class NodeRefused(Exception):
    """A KV node answered with an error, or with what its contract does not know (`bad_answer`, `version`)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code


class Nodes:
    """Every method raises UpstreamDown if no answer comes, and NodeRefused."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def health(self, node_url: str, timeout_s: float = CONTROL_TIMEOUT_S) -> NodeHealth:
        return await self._call(NodeHealth, "GET", f"{node_url}/health", timeout_s)

    async def links(self, node_url: str, *, after: int | None, wait_s: float) -> LinkReports:
        """A long poll for a change of a verdict after change number `after`."""
        url = f"{node_url}/v1/links?after={'' if after is None else after}&wait_s={wait_s:g}"
        return await self._call(LinkReports, "GET", url, wait_s + CONTROL_TIMEOUT_S)

    async def reserve(self, node_url: str, reservation: Reservation) -> Reserved:
        return await self._call(Reserved, "POST", f"{node_url}/v1/landings", CONTROL_TIMEOUT_S, reservation)

    async def record(self, node_url: str, transfer_id: str, *, until: Until, wait_s: float) -> LandingRecord:
        """A long poll of `wait_s`."""
        url = f"{node_url}/v1/landings/{transfer_id}?wait_s={wait_s:.3f}&until={until.value}"
        return await self._call(LandingRecord, "GET", url, wait_s + CONTROL_TIMEOUT_S)

    async def renew(self, node_url: str, transfer_id: str, lease_s: float) -> LandingRecord:
        url = f"{node_url}/v1/landings/{transfer_id}/renew"
        return await self._call(LandingRecord, "POST", url, CONTROL_TIMEOUT_S, Renewal(lease_s=lease_s))

    async def drop(self, node_url: str, transfer_id: str) -> LandingRecord:
        return await self._call(LandingRecord, "DELETE", f"{node_url}/v1/landings/{transfer_id}", CONTROL_TIMEOUT_S)

    async def _call(self, kind: type[T], method: str, url: str, timeout_s: float, sent: Message | None = None) -> T:
        data = None if sent is None else msgspec.json.encode(sent)
        async with (
            translated(url),
            asyncio.timeout(timeout_s),
            self._session.request(method, url, data=data, headers=_HEADERS, allow_redirects=False) as reply,
        ):
            body = await reply.read()
        return read_answer(kind, reply.status, reply.headers.get(VERSION_HEADER), body)


def read_answer(kind: type[T], status: int, version: str | None, body: bytes) -> T:
    """A node's answer. Raises NodeRefused for an error, and for what the contract does not know."""
    try:
        check_version("KV node's control", VERSION, int(version) if version and version.isdigit() else version)
        if status < 300:
            return from_json(kind, body)
        error = from_json(ErrorReply, body).error
    except OtherVersion as other:
        raise NodeRefused(status, "version", str(other)) from None
    except BadMessage as bad:
        raise NodeRefused(status, "bad_answer", str(bad)) from None
    raise NodeRefused(status, error.code, error.message)
