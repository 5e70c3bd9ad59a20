"""Emulated engines beside two real nodes in this process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prfaas.core.cache.hashing import pack_tokens, token_digest
from prfaas.core.model.curve import polynomial
from prfaas.core.wire import params as wire
from prfaas.core.wire.node_api import Reservation
from prfaas.core.wire.params import DecodeParams, PrefillParams, PrefillReport, PrefillStatus
from prfaas.engines.emulated.clock import LoopKernel
from prfaas.engines.emulated.configure import EmulatedInstance
from prfaas.engines.emulated.engine import EmulatedEngine
from prfaas.engines.emulated.kv import PrefixNames
from prfaas.engines.emulated.node_side import Shipment
from prfaas.kvnode.engine_path import EnginePath
from prfaas.kvnode.engine_socket import serve_engines
from prfaas.kvnode.node import KVNode
from prfaas.sim.engine import EngineProfile
from prfaas.testing.node_pair import SMALL_LAYOUT, NodePair, node_pair, wait_until

SECRET = "the secret of this landing alone"


@dataclass
class Rig:
    """`source` prefills, `sink` decodes."""

    pair: NodePair
    source: EmulatedEngine
    sink: EmulatedEngine

    def reserve(self, transfer_id: str, prompt: list[int], skip_tokens: int = 0) -> PrefillParams:
        """As the gateway does."""
        reserved = self.pair.sink.reserve(
            Reservation(
                transfer_id=transfer_id, num_prompt_tokens=len(prompt), token_digest=token_digest(pack_tokens(prompt)),
                claim_secret=SECRET, skip_tokens=skip_tokens, lease_s=30.0,
            )
        )  # fmt: skip
        return PrefillParams(
            version=wire.VERSION, transfer_id=transfer_id, peer="sink", token=reserved.token,
            num_prompt_tokens=len(prompt), skip_tokens=skip_tokens, num_bytes=reserved.num_bytes, deadline_s=30.0,
        )  # fmt: skip

    async def prefill(self, transfer_id: str, prompt: list[int]) -> PrefillReport:
        """Until it has landed, unless it fails."""
        params = self.reserve(transfer_id, prompt)
        report = await self.source.prefill_for_other(prompt, wire.prefill_leg(params)["prfaas"], "")
        if report.status is PrefillStatus.STAGED:
            await asyncio.to_thread(self.pair.wait_state, transfer_id, "landed")
        return report

    async def answer(
        self, prompt: list[int], transfer_id: str | None = None, *, digest_of: list[int] | None = None
    ) -> bytes:
        """The seed of the sink's answer."""
        part = None
        if transfer_id is not None:
            params = DecodeParams(
                version=wire.VERSION, transfer_id=transfer_id, num_prompt_tokens=len(prompt), skip_tokens=0,
                token_digest=token_digest(pack_tokens(digest_of or prompt)), claim_secret=SECRET,
            )  # fmt: skip
            part = wire.decode_leg(params)["prfaas"]
        async with self.sink.answering(prompt, 3, part, "") as answer:
            while not answer.is_done:
                answer.wake.clear()
                await answer.wake.wait()
            return answer.seed


@contextlib.asynccontextmanager
async def rig(directory: Path, prefill_s: float = 0.02) -> AsyncIterator[Rig]:
    """Both nodes and both engines, attached."""
    kernel = LoopKernel(asyncio.get_running_loop())
    profile = EngineProfile(polynomial(prefill_s), 4, 0.001, chunk_tokens=40)
    with node_pair(directory, kind="inproc") as pair, contextlib.ExitStack() as stack:
        engines = []
        for node in (pair.source, pair.sink):
            node.detach("engine", is_worker=True)
            path = stack.enter_context(contextlib.closing(EnginePath(str(directory / node.config.name))))
            stack.callback((await serve_engines(node, path.listener)).close)
            instance = EmulatedInstance(
                node.config.name, "c", "127.0.0.1", 1, str(directory / node.config.name), profile, SMALL_LAYOUT, 1 << 20
            )
            engines.append(EmulatedEngine(instance, kernel))
        keepers = [asyncio.create_task(engine.stay_attached()) for engine in engines]
        await asyncio.to_thread(wait_until, lambda: all(_is_known(node) for node in (pair.source, pair.sink)))
        try:
            yield Rig(pair, *engines)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            # Their threads may wait for the nodes, which this loop serves.
            await asyncio.gather(*(asyncio.to_thread(engine.close) for engine in engines))


def _is_known(node: KVNode) -> bool:
    return any(engine.layout for engine in node.engines.values())


def tokens(num: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(num)]


def test_an_answer_from_a_landing_is_the_answer(tmp_path: Path) -> None:
    """Prompts of all lengths about a block's border."""

    async def main() -> None:
        async with rig(tmp_path) as both:
            for num in (2, 15, 16, 17, 18, 100):
                assert (await both.prefill(f"t{num}", tokens(num, num))).num_bytes > 0
                landed = await both.answer(tokens(num, num), f"t{num}")
                assert both.sink.num_loaded, num
                assert landed == await both.answer(tokens(num, num)), num
            assert both.sink.num_loaded == both.source.num_shipped == 6
            assert both.sink.num_wrong_parts == 0

    asyncio.run(main())


def test_a_wrong_byte_shows_as_a_wrong_token_for_as_long_as_it_is_cached(tmp_path: Path) -> None:
    """One bit of a landed page is flipped: this answer is wrong, and so is the next one that uses the block."""

    async def main() -> None:
        async with rig(tmp_path) as both:
            prompt = tokens(100)
            right = both.sink
            await both.prefill("t", prompt)
            extent = both.pair.sink.landing("t").extent
            memory = both.pair.sink.plane.memory(extent)
            attention = SMALL_LAYOUT.image(100).by_layer[2]
            memory[attention.start + 20] ^= 1
            wrong = await both.answer(prompt, "t")
            assert right.num_wrong_parts == 1
            follow_up = [*prompt, *tokens(50, 2)]
            # Not from the state, which a landing has for its own end alone: the follow-up is computed anew.
            after = await both.answer(follow_up)
            async with rig(tmp_path / "other") as fresh:
                assert wrong != await fresh.answer(prompt)
                assert after == await fresh.answer(follow_up)

    (tmp_path / "other").mkdir()
    asyncio.run(main())


def test_another_prompt_than_the_landings_is_computed_here(tmp_path: Path) -> None:
    """The engine compares the digest of its own tokens; the landing is given back, and the answer is right."""

    async def main() -> None:
        async with rig(tmp_path) as both:
            prompt, other = tokens(60), tokens(60, 2)
            await both.prefill("t", prompt)
            assert await both.answer(other, "t", digest_of=prompt) == await both.answer(other)
            assert (both.sink.num_loaded, both.sink.num_not_loaded) == (0, 1)
            await asyncio.to_thread(both.pair.wait_state, "t", "aborted", "declined")

    asyncio.run(main())


def test_kvcache_leaves_while_the_prompt_is_computed(tmp_path: Path) -> None:
    """Half of a prefill's time has staged something, and not all."""

    async def main() -> None:
        async with rig(tmp_path, prefill_s=1.0) as both:
            prefill = asyncio.create_task(both.prefill("t", tokens(400)))
            seen = set[int]()
            while not prefill.done():
                await asyncio.sleep(0.02)
                with contextlib.suppress(KeyError):
                    seen.add(both.pair.sink.landing("t").verified.size)
            total = (await prefill).num_bytes
            assert any(0 < received < total for received in seen)

    asyncio.run(main())


def test_a_client_that_leaves_frees_the_engine(tmp_path: Path) -> None:
    """While the prompt is computed, and while the answer is; the next one is not kept waiting."""

    async def main() -> None:
        async with rig(tmp_path, prefill_s=3600.0) as both:
            for _ in range(2):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(both.answer(tokens(50)), 0.05)
            assert (both.sink.num_running, both.sink.num_waiting) == (0, 0)
            params = both.reserve("t", tokens(50))
            part = wire.prefill_leg(params)["prfaas"]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(both.source.prefill_for_other(tokens(50), part, ""), 0.2)
            assert both.source.num_running == 0

    asyncio.run(main())


def test_a_client_that_leaves_while_the_node_is_asked_leaves_nothing_staged(tmp_path: Path) -> None:
    """The node opens the staging for somebody who has left; it is closed at once, not at the engine's end."""

    async def main() -> None:
        async with rig(tmp_path) as both:
            extents = both.pair.source.plane.ledgers.extents
            asked, may_open, node = threading.Event(), threading.Event(), both.source._node
            opens = node.open

            def slowly(params: PrefillParams, names: PrefixNames) -> Shipment:
                asked.set()
                may_open.wait(60.0)
                return opens(params, names)

            node.open = slowly  # type: ignore[method-assign]
            part = wire.prefill_leg(both.reserve("t", tokens(50)))["prfaas"]
            prefill = asyncio.create_task(both.source.prefill_for_other(tokens(50), part, ""))
            await asyncio.to_thread(asked.wait, 60.0)
            prefill.cancel()
            await asyncio.gather(prefill, return_exceptions=True)
            may_open.set()
            # In the engine's one thread: after what it does for those who left.
            await both.source._at_node(lambda: None)
            await both.source._at_node(lambda: None)
            await asyncio.to_thread(wait_until, lambda: extents.free_bytes == extents.capacity)

    asyncio.run(main())


@pytest.mark.parametrize("change", [{"num_prompt_tokens": 49}, {"num_bytes": 5}, {"peer": "nobody"}, {"version": 1}])
def test_what_cannot_be_shipped_is_said(tmp_path: Path, change: dict[str, object]) -> None:
    """With the reason, and nothing is computed."""

    async def main() -> None:
        async with rig(tmp_path) as both:
            params = both.reserve("t", tokens(50))
            part = {**wire.prefill_leg(params)["prfaas"], **change}
            report = await both.source.prefill_for_other(tokens(50), part, "")
            assert report.status is PrefillStatus.FAILED
            assert report.error
            assert both.source.num_running == 0

    asyncio.run(main())


def test_a_stream_does_not_wait_as_if_a_prompt_were_prefilled_for_ever(tmp_path: Path) -> None:
    """Steps with a chunk in them take 10 s here. When the prompt is done they take 1 ms, and a stream must notice."""

    async def main() -> None:
        async with rig(tmp_path, prefill_s=100.0) as both:
            engine = both.sink
            assert engine.look_after_s(32) == pytest.approx(0.032)
            async with engine.answering(tokens(400), 3, None, ""):
                step_s = engine._engine.step_s
                assert step_s > 1.0
                assert engine.look_after_s(32) == step_s
            assert engine.look_after_s(32) == pytest.approx(0.032)

    asyncio.run(main())
