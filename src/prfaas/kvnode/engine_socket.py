"""The Unix socket that engines connect to. Framing is `core.wire.engine`; operations are `KVNode`'s."""

from __future__ import annotations

import asyncio
import logging
import socket

from prfaas.core.errors import Refused
from prfaas.core.transfer.landings import ClaimKey
from prfaas.core.wire.contract import BadMessage, OtherVersion
from prfaas.core.wire.engine import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    AnyRequest,
    Attach,
    Attached,
    Claim,
    Confirmed,
    Consumed,
    Declined,
    Done,
    Ping,
    Reply,
    StageClose,
    Staged,
    StageOpen,
    call_id,
    decode_request,
    refusal,
    reply,
)
from prfaas.core.wire.messages import Open
from prfaas.kvnode.node import KVNode

logger = logging.getLogger("prfaas.kvnode")


class EngineConnection:
    """One part of one engine. The first message must be `attach`."""

    def __init__(self, node: KVNode) -> None:
        self.node = node
        self.boot_id: str | None = None
        self.is_worker = False

    def handle(self, request: AnyRequest) -> Reply:
        """Run one operation. Raises Refused."""
        if isinstance(request, Attach):
            return self._attach(request)
        if self.boot_id is None:
            raise Refused("not_attached", "the first message must be attach")
        node, boot_id = self.node, self.boot_id
        match request:
            case Ping():
                pass
            case StageOpen():
                wire = Open(request.transfer_id, request.token, request.num_bytes, node.plane.fingerprint)
                return node.stage_open(boot_id, wire, request.peer, request.deadline_s)
            case Staged():
                node.staged(request.transfer_id, request.ranges)
            case StageClose():
                node.stage_close(request.transfer_id)
            case Claim():
                key = ClaimKey(request.num_prompt_tokens, request.token_digest, request.claim_secret)
                return node.claim(boot_id, request.transfer_id, key)
            case Consumed():
                valid = node.consumed(boot_id, request.transfer_id, request.loaded, request.recomputed)
                return Confirmed(valid=valid)
            case Declined():
                node.declined(request.transfer_id, request.claim_secret, request.reason, request.recomputed)
        return Done()

    def _attach(self, request: Attach) -> Attached:
        if self.boot_id is not None:
            raise Refused("bad_request", "attached already")
        attached = self.node.attach(request.engine_id, request.boot_id, request.layout)
        self.boot_id, self.is_worker = request.boot_id, request.layout is not None
        return attached

    def close(self) -> None:
        """The connection ended."""
        if self.boot_id is not None:
            self.node.detach(self.boot_id, is_worker=self.is_worker)


async def serve_engines(node: KVNode, listener: socket.socket) -> asyncio.Server:
    """Serve engines at a listening Unix socket; `EnginePath` has made it."""
    return await asyncio.start_unix_server(lambda reader, writer: _serve(node, reader, writer), sock=listener)


async def _serve(node: KVNode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = EngineConnection(node)
    try:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {length} bytes")
            answer = _answer(connection, await reader.readexactly(length))
            if answer is not None:
                writer.write(answer)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    except asyncio.CancelledError:
        # The node ends. Nobody waits for this task, and Python 3.11 logs a cancelled one with a traceback.
        pass
    except ValueError as error:
        logger.warning("engine connection closed: %s", error)
    finally:
        connection.close()
        writer.close()


def _answer(connection: EngineConnection, payload: bytes) -> bytes | None:
    """The framed reply; None to a post. Raises ValueError for what is no message at all."""
    call = call_id(payload)
    try:
        answer = reply(call or 0, connection.handle(decode_request(payload)))
    except Refused as refused:
        answer = _refused(call, refused.code, refused.message)
    except OtherVersion as other:
        answer = _refused(call, "version", str(other))
    except BadMessage as bad:
        answer = _refused(call, "bad_request", str(bad))
    return None if call is None else answer


def _refused(call: int | None, code: str, message: str) -> bytes:
    if call is None:
        logger.warning("an engine's post was refused: %s: %s", code, message)
    return refusal(call or 0, code, message)
