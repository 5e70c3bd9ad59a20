"""What a kind of engine understands and answers over HTTP. No engine's library is needed to talk to it.

Laws of this file:
- A dialect is pure: values in, bytes or values out. Whoever calls it does the I/O.
- What an engine answers is read, never trusted: reading raises nothing, whatever the bytes are.
- A dialect knows engines. Why a request falls back, and what clients hear of it, is the gateway's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from prfaas.core.wire.params import DecodeParams, PrefillParams

#: The two inference routes of OpenAI's API.
Route = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests that an engine has by its own count, of all its clients: in its batch, and in its queue."""

    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class PrefillPrompt:
    """A prompt that an engine shall prefill for another one, in the tokens that both make of it."""

    model: str
    token_ids: list[int]
    cache_salt: str = ""


class PrefillFault(StrEnum):
    """Why nothing was sent. `NO_TRANSFER`: the engine answered, and does not speak of a transfer."""

    HTTP_ERROR = "http_error"
    NO_TRANSFER = "no_transfer"
    FAILED = "failed"
    NO_BYTES = "no_bytes"


@dataclass(frozen=True, slots=True)
class PrefillAnswer:
    """What a prefill engine says of the transfer. Without a fault it has staged `num_bytes`."""

    num_bytes: int
    fault: PrefillFault | None = None
    detail: str = ""


class Dialect(Protocol):
    """One kind of engine. Paths start at the engine's base URL.

    A client could steer transfers or ranks with `steering_fields`, at the top of a body or inside one of
    `steering_containers`. `params` are our part of what docs/protocols.md has it told.
    """

    @property
    def paths(self) -> Mapping[Route, str]: ...

    @property
    def prefill_path(self) -> str: ...

    @property
    def health_path(self) -> str: ...

    @property
    def load_path(self) -> str: ...

    @property
    def steering_fields(self) -> frozenset[str]: ...

    @property
    def steering_containers(self) -> frozenset[str]: ...

    def prefill_body(self, prompt: PrefillPrompt, params: PrefillParams) -> bytes:
        """Body of the request that has a prompt prefilled and sent to another cluster."""

    def read_prefill(self, status: int, body: bytes) -> PrefillAnswer:
        """The answer to it."""

    def decode_body(self, body: bytes, params: DecodeParams) -> bytes:
        """A client's own body, which shall be answered from a landing: a JSON object with a field, and without any of
        `steering_fields`."""

    def read_load(self, status: int, body: bytes) -> EngineLoad | None:
        """The answer of `load_path`; None if it does not say."""
