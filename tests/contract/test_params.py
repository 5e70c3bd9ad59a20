"""`kv_transfer_params` at the fake engine: what it takes and refuses is what the connector does in vLLM, which
tests/integration/vllm/test_exactness.py asks the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from prfaas.core.wire.contract import from_values, to_values
from prfaas.core.wire.node_api import Reservation
from prfaas.core.wire.params import (
    VERSION,
    DecodeParams,
    PrefillParams,
    PrefillStatus,
    decode_leg,
    prefill_leg,
    read_report,
)
from prfaas.testing.fake_engine import FakeEngine
from prfaas.testing.fake_kvnode import FakeKVNode
from tests.contract.nodes import DIGEST, SECRET, reservation

Ask = Callable[[FakeEngine, dict[str, Any]], Awaitable[Any]]


def drive(scenario: Callable[[FakeKVNode, FakeEngine, FakeEngine, Ask], Awaitable[None]]) -> None:
    """A node, a prefill engine that ships to it, a decode engine beside it, and a way to ask engines."""

    async def main() -> None:
        async with (
            asyncio.timeout(60),
            FakeKVNode("pd-0") as node,
            FakeEngine(nodes={"pd-0": node}) as prefill,
            FakeEngine(node=node) as decode,
            aiohttp.ClientSession() as session,
        ):

            async def ask(engine: FakeEngine, params: dict[str, Any]) -> Any:
                body = {"model": "m", "prompt": "p", "max_tokens": 1, "kv_transfer_params": params}
                async with session.post(f"{engine.url}/v1/completions", json=body) as reply:
                    assert reply.status == 200
                    return await reply.json()

            await scenario(node, prefill, decode, ask)

    asyncio.run(main())


def legs(node: FakeKVNode) -> tuple[PrefillParams, DecodeParams]:
    """Of a landing that this reserves."""
    assert node.node is not None
    reserved = node.node.reserve(from_values(Reservation, reservation("a")))
    common: dict[str, Any] = {"version": VERSION, "transfer_id": "a", "num_prompt_tokens": 100, "skip_tokens": 0}
    prefill = PrefillParams(**common, peer="pd-0", token=reserved.token, num_bytes=reserved.num_bytes, deadline_s=5.0)
    return prefill, DecodeParams(**common, token_digest=DIGEST, claim_secret=SECRET)


def test_both_legs_move_a_prompt() -> None:
    """Staged, landed, loaded."""

    async def scenario(node: FakeKVNode, prefill: FakeEngine, decode: FakeEngine, ask: Ask) -> None:
        first, second = legs(node)
        report = read_report(await ask(prefill, prefill_leg(first)))
        assert report is not None
        assert (report.status, report.num_bytes, report.error) == (PrefillStatus.STAGED, 99 * 64, None)
        await ask(decode, decode_leg(second))
        record = node.landings["a"].record()
        assert (record.state, record.tokens_loaded, record.tokens_recomputed) == ("consumed", 99, 1)

    drive(scenario)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": VERSION + 1, "new": 1}, f"version {VERSION + 1}, this process version {VERSION}"),
        ({"version": 1}, "upgrade the older one"),
        ({"unknown": 1}, "unknown field `unknown`"),
        ({"num_prompt_tokens": "100"}, "`$.num_prompt_tokens`"),
        ({"skip_tokens": None}, "`$.skip_tokens`"),
    ],
    ids=str,
)
def test_what_breaks_the_contract_moves_nothing_and_says_why(change: dict[str, Any], words: str) -> None:
    """On the prefill leg in the response, on the decode leg in the landing's record; the prompt is answered."""

    async def scenario(node: FakeKVNode, prefill: FakeEngine, decode: FakeEngine, ask: Ask) -> None:
        first, second = legs(node)
        params = prefill_leg(first)
        report = read_report(await ask(prefill, {**params, "prfaas": {**to_values(first), **change}}))
        assert report is not None
        assert (report.status, report.num_bytes) == (PrefillStatus.FAILED, 0)
        assert words in (report.error or "")
        assert node.landings["a"].state == "reserved"
        await ask(prefill, params)
        await ask(decode, {**decode_leg(second), "prfaas": {**to_values(second), **change}})
        record = node.landings["a"].record()
        assert (record.state, record.tokens_loaded) == ("aborted", 0)
        assert words in (record.reason or "")

    drive(scenario)
