"""The Unix socket that engines connect to. Framing is `core.wire.engine`; operations are `KVNode`'s."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from prfaas.core.errors import Refused
from prfaas.core.model.layout import KVLayout
from prfaas.core.transfer.landings import ClaimKey
from prfaas.core.wire.engine import LENGTH, MAX_MESSAGE_BYTES, decode, encode
from prfaas.core.wire.messages import Open
from prfaas.kvnode.node import KVNode

logger = logging.getLogger("prfaas.kvnode")


class EngineConnection:
    """One part of one engine. The first message must be `attach`."""

    def __init__(self, node: KVNode) -> None:
        self.node = node
        self.boot_id: str | None = None
        self.is_worker = False

    def handle(self, message: dict[str, Any]) -> dict[str, object]:
        """Run one operation. Raises Refused; KeyError, TypeError, ValueError on malformed messages."""
        operation = message.get("op")
        if operation == "attach":
            return self._attach(message)
        if self.boot_id is None:
            raise Refused("not_attached", "the first message must be attach")
        if operation == "ping":
            return {}
        node, boot_id = self.node, self.boot_id
        transfer_id = str(message["transfer_id"])
        match operation:
            case "stage_open":
                wire = Open(transfer_id, str(message["token"]), int(message["num_bytes"]), node.plane.fingerprint)
                return node.stage_open(boot_id, wire, str(message["peer"]), float(message["deadline_s"]))
            case "staged":
                node.staged(transfer_id, [(int(start), int(end)) for start, end in message["ranges"]])
            case "stage_close":
                node.stage_close(transfer_id)
            case "claim":
                digest, secret = str(message["token_digest"]), str(message["claim_secret"])
                return node.claim(boot_id, transfer_id, ClaimKey(int(message["num_prompt_tokens"]), digest, secret))
            case "consumed":
                valid = node.consumed(boot_id, transfer_id, int(message["loaded"]), int(message["recomputed"]))
                return {"valid": valid}
            case "declined":
                secret, reason = str(message["claim_secret"]), str(message["reason"])
                node.declined(transfer_id, secret, reason, int(message["recomputed"]))
            case _:
                raise Refused("bad_request", f"unknown operation {operation!r}")
        return {}

    def _attach(self, message: dict[str, Any]) -> dict[str, object]:
        if self.boot_id is not None:
            raise Refused("bad_request", "attached already")
        layout = None if message.get("layout") is None else KVLayout.from_wire(message["layout"])
        boot_id = str(message["boot_id"])
        reply = self.node.attach(str(message["engine_id"]), boot_id, layout)
        self.boot_id, self.is_worker = boot_id, layout is not None
        return reply

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
            message = decode(await reader.readexactly(length))
            reply = _answer(connection, message)
            if "id" in message:
                writer.write(encode({"id": message["id"], **reply}))
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    except ValueError as error:
        logger.warning("engine connection closed: %s", error)
    finally:
        connection.close()
        writer.close()


def _answer(connection: EngineConnection, message: dict[str, Any]) -> dict[str, object]:
    try:
        return {"ok": connection.handle(message)}
    except Refused as error:
        return {"error": {"code": error.code, "message": error.message}}
    except (KeyError, TypeError, ValueError) as error:
        return {"error": {"code": "bad_request", "message": f"{type(error).__name__}: {error}"}}
