"""Request traces in the Mooncake format: one JSON object a line, with timestamp (ms), input_length, output_length and
hash_ids, the chained hashes of the prompt's blocks. Equal ids mean equal prefixes up to the end of that block."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prfaas.core.errors import PrfaasError

#: Tokens per hash id in the traces that Mooncake published.
MOONCAKE_BLOCK_TOKENS: Final = 512

#: Longest prompt that a trace may name: beyond every model of today, below where sums of squares lose digits.
MAX_LENGTH_TOKENS: Final = 1 << 27


class TraceError(PrfaasError):
    """A line that is not a request; the text begins with its number."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request of a trace. `uncached_tokens`: what a cache that never forgets would leave to compute, at least 1,
    because the last token's logits are always needed."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    uncached_tokens: int
    hash_ids: tuple[int, ...]


def read_trace(lines: Iterable[bytes | str], *, block_tokens: int = MOONCAKE_BLOCK_TOKENS) -> list[TracedRequest]:
    """The requests of a trace, by time; of equal times in its order. Raises TraceError on the first line that is not
    one (an empty one is not), and if there is none."""
    requests = [_request(number, line, block_tokens) for number, line in enumerate(lines, start=1)]
    if not requests:
        raise TraceError(1, "the trace is empty; it needs one JSON object a line")
    seen: set[int] = set()
    found = []
    for request in sorted(requests, key=lambda request: request.arrival_s):
        ids = request.hash_ids
        hit = next((index for index, hash_id in enumerate(ids) if hash_id not in seen), len(ids))
        uncached_tokens = max(1, request.input_tokens - hit * block_tokens)
        found.append(
            TracedRequest(request.arrival_s, request.input_tokens, request.output_tokens, uncached_tokens, ids)
        )
        seen.update(ids)
    return found


def _request(number: int, line: bytes | str, block_tokens: int) -> TracedRequest:
    if not line.strip():
        raise TraceError(number, "empty; remove it")
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        # Its own line number is that within this line: always 1.
        raise TraceError(number, f"not JSON ({error.msg}, at character {error.pos + 1}); is it cut off?") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(number, f"not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise TraceError(number, f"expected an object with timestamp and input_length, got {type(raw).__name__}")
    input_tokens = _count(number, raw, "input_length", 1)
    hash_ids = _hash_ids(number, raw)
    if hash_ids and len(hash_ids) not in (input_tokens // block_tokens, -(-input_tokens // block_tokens)):
        text = f"{len(hash_ids)} hash_ids do not fit {input_tokens} tokens in blocks of {block_tokens}"
        raise TraceError(number, f"{text}; is block_tokens right?")
    arrival_s = _count(number, raw, "timestamp", 0, 1 << 53) / 1e3
    return TracedRequest(arrival_s, input_tokens, _count(number, raw, "output_length", 0), input_tokens, hash_ids)


def _count(number: int, raw: dict[str, object], key: str, minimum: int, maximum: int = MAX_LENGTH_TOKENS) -> int:
    value = raw.get(key)
    if value is None:
        raise TraceError(number, f"{key} is missing")
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_whole:
        raise TraceError(number, f"{key} must be a whole number, got {value!r:.40}")
    if not minimum <= value <= maximum:
        raise TraceError(number, f"{key} must be {minimum} to {maximum}, got {value!r:.40}")
    return int(value)


def _hash_ids(number: int, raw: dict[str, object]) -> tuple[int, ...]:
    value = raw.get("hash_ids", [])
    # Types themselves are compared: a bool is an int too.
    if not isinstance(value, list) or not {int}.issuperset(map(type, value)):
        raise TraceError(number, "hash_ids must be a list of whole numbers")
    return tuple(value)
