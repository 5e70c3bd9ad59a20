"""What a gateway records of its requests: lengths, times, prefixes; and nothing of what they said."""

from __future__ import annotations

import json

import pytest

from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens
from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.planning.trace import read_trace
from prfaas.observe import recording
from prfaas.observe.recording import Recording


def chain_of(tokens: list[int], block_tokens: int) -> dict[int, TokenChain]:
    return {block_tokens: chain_tokens(pack_tokens(tokens), block_tokens, "prfaas")}


def live(
    found: Recording, name: str, tokens: list[int], at_s: float, *, block_tokens: int = 512, output: int | None = 7
) -> None:
    """One request from its arrival to its end."""
    found.note(at_s, e.RequestArrived(name, f"t{name}", len(tokens)), ())
    found.note(at_s, e.PromptCounted(name, len(tokens), chain_of(tokens, block_tokens)), ())
    found.note(at_s + 1, e.AnswerEnded(name, "ok", 200, None, output), [a.Close(name)])


def lines(found: Recording) -> list[str]:
    return [json.dumps(one.line(found.began_s or 0.0)) for one in found.requests]


@pytest.mark.parametrize("block_tokens", [16, 256, 512, 544, 1_000])
def test_equal_prefixes_have_equal_ids(block_tokens: int) -> None:
    """Whatever the engines' blocks are; the trace says how long a prompt was and what of it had come before."""
    found = Recording(b"key")
    first = list(range(5_000))
    live(found, "a", first, 100.0, block_tokens=block_tokens)
    live(found, "b", [*first[:3_000], *range(7_000, 9_000)], 102.5, block_tokens=block_tokens)
    (size,) = {one.block_tokens for one in found.requests}
    assert size >= 512
    assert size % block_tokens == 0
    traced = read_trace(lines(found), block_tokens=size)
    assert [(one.arrival_s, one.input_tokens, one.output_tokens) for one in traced] == [
        (0.0, 5_000, 7),
        (2.5, 5_000, 7),
    ]
    assert traced[1].uncached_tokens == 5_000 - 3_000 // size * size


def test_ids_say_nothing_beyond_one_life() -> None:
    """Another life has other ids for the same prompt, and no id is a part of a block's name."""
    tokens = list(range(2_000))
    one, other = Recording(b"one"), Recording(b"two")
    for found in (one, other):
        live(found, "a", tokens, 1.0)
    assert not set(one.requests[0].ids) & set(other.requests[0].ids)
    assert one.life != other.life
    names = {int.from_bytes(name[:8], "big") >> 12 for name in chain_of(tokens, 512)[512].hashes}
    assert not names & set(one.requests[0].ids)


def test_who_was_not_answered_or_not_counted_is_left_out() -> None:
    """And counted; an answer that says no usage is kept."""
    found = Recording()
    live(found, "a", list(range(600)), 1.0, output=None)
    found.note(2.0, e.RequestArrived("b", "tb", 10), ())
    found.note(3.0, e.AnswerEnded("b", "unavailable", 503), [a.Close("b")])
    found.note(4.0, e.RequestArrived("c", "tc", 10), ())
    found.note(4.0, e.PromptUncountable("c", "tools"), ())
    found.note(5.0, e.AnswerEnded("c", "ok", 200, None, 3), [a.Close("c")])
    assert (found.num_recorded, found.num_left_out, found.num_without_usage) == (1, 2, 1)
    assert json.loads(lines(found)[0])["output_length"] == 0
    assert not found._open, "nothing is left of them"


def test_only_the_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number of requests, and by number of ids."""
    monkeypatch.setattr(recording, "MAX_REQUESTS", 5)
    found = Recording()
    for number in range(8):
        live(found, f"r{number}", list(range(1_100)), float(number))
    assert [one.number for one in found.requests] == [4, 5, 6, 7, 8]
    assert [one.number for one in found.after(6, 100)] == [7, 8]
    assert [one.number for one in found.after(0, 2)] == [4, 5]
    monkeypatch.setattr(recording, "MAX_IDS", 5)
    live(found, "last", list(range(1_100)), 9.0)
    assert sum(len(one.ids) for one in found.requests) <= 5
