"""One emulated engine: the simulator's, at the pace of the clock, with a prefix cache and a KV node beside it.

Laws of this file:
- What takes time on an accelerator takes the profile's time, whatever this process costs. Copying and checking KVCache
  takes what it takes here.
- KVCache leaves while it is computed: the prompt in chunks, each chunk layer by layer.
- Whatever goes wrong with a landing, the prompt is computed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from prfaas.core.cache.engine_cache import EngineCache
from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens
from prfaas.core.errors import PrfaasError
from prfaas.core.wire.contract import BadMessage
from prfaas.core.wire.engine import VERSION, Attach
from prfaas.core.wire.params import DecodeParams, PrefillParams, PrefillReport, PrefillStatus, read_leg, text_of
from prfaas.engines.emulated.answers import seed_of
from prfaas.engines.emulated.clock import LoopKernel
from prfaas.engines.emulated.configure import EmulatedInstance
from prfaas.engines.emulated.kv import KVBytes, PrefixNames
from prfaas.engines.emulated.node_side import NodeSide, NotLoaded, Shipment
from prfaas.engines.node_client import NodeClient
from prfaas.sim.engine import Engine, Prefill
from prfaas.sim.engine import Sequence as Decoding

logger = logging.getLogger("prfaas.emulated")

ATTACH_INTERVAL_S: Final = 1.0
#: Layers that are done within so short a time leave together: every post to the node costs both about 0.1 ms.
SHIP_INTERVAL_S: Final = 0.005
MAX_ERROR_CHARS: Final = 2000

P = ParamSpec("P")
R = TypeVar("R")


class Answer:
    """One answer on its way. `wake` is set whenever there may be something new; who waits clears it."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.num_cached_tokens = 0
        self.wake = asyncio.Event()
        self.seed = b""
        self.sequence = Decoding(num_tokens, self.wake.set, self.wake.set)

    @property
    def is_done(self) -> bool:
        return self.sequence.is_over


class EmulatedEngine:
    """Counters are since its start."""

    def __init__(self, instance: EmulatedInstance, kernel: LoopKernel) -> None:
        self.instance = instance
        self.kernel = kernel
        self.num_answered = self.num_wrong_parts = self.num_loaded = self.num_shipped = self.num_not_loaded = 0
        self.num_prompt_tokens = self.num_cached_tokens = self.num_output_tokens = 0
        layout = instance.layout
        self._kv = KVBytes(layout)
        self._engine = Engine(kernel, instance.profile)
        self._cache = EngineCache(max(1, instance.cache_tokens // layout.block_tokens))
        self._cache.observe_boot("now")
        self._cache.observe_kinds(layout.group_kinds)
        #: Blocks that were loaded with other bytes than they must have, and what was wrong.
        self._wrong: dict[bytes, list[str]] = {}
        greeting = Attach(version=VERSION, engine_id=instance.name, boot_id=secrets.token_hex(8), layout=layout)
        self._node = NodeSide(NodeClient(instance.socket_path, greeting), self._kv)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"prfaas-{instance.name}")

    @property
    def num_running(self) -> int:
        """In the batch, and the prompt that is being prefilled."""
        return self._engine.num_decoding + (1 if self._engine.num_prompts else 0)

    @property
    def num_waiting(self) -> int:
        return self._engine.num_sequences + self._engine.num_prompts - self.num_running

    @property
    def cache_usage(self) -> float:
        """Share of the prefix cache that is full."""
        return len(self._cache) * self.instance.layout.block_tokens / self.instance.cache_tokens

    async def stay_attached(self) -> None:
        """A node that starts later, or again, learns of us."""
        is_told = False
        while True:
            try:
                await self._at_node(self._node.ping)
                is_told = False
            except PrfaasError as error:
                if not is_told:
                    logger.warning("%s: KV node: %s; trying again every %g s", self.instance.name, error,
                                   ATTACH_INTERVAL_S)  # fmt: skip
                is_told = True
            await asyncio.sleep(ATTACH_INTERVAL_S)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._node.close()

    async def _at_node(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def _chain(self, token_ids: Sequence[int], names: PrefixNames, salt: str) -> TokenChain:
        """In the cache; a tenant's blocks have names of their own."""
        if not salt:
            return names.chain
        return chain_tokens(pack_tokens(token_ids), self.instance.layout.block_tokens, self.instance.layout.model, salt)

    # Answers

    @contextlib.asynccontextmanager
    async def answering(
        self, token_ids: list[int], num_tokens: int, part: Mapping[str, Any] | None, salt: str
    ) -> AsyncIterator[Answer]:
        """Begin to answer. `part` is ours of the request's parameters, None for a fresh one. Whoever leaves early has
        the engine give it up."""
        answer, names = Answer(num_tokens), self._kv.names(token_ids)
        chain = self._chain(token_ids, names, salt)
        prefill: Prefill | None = None
        self.num_prompt_tokens += len(token_ids)
        try:
            wrong = None if part is None else await self._loaded(part, names, chain)
            self.kernel.catch_up()
            if wrong is None:
                prefill = self._computed_here(answer, names, chain)
                self._engine.prefill(prefill)
            else:
                self._take(answer, names, chain, wrong)
                self._engine.decode(answer.sequence)
            yield answer
        finally:
            self.kernel.catch_up()
            if prefill is not None and not prefill.is_over:
                self._engine.drop_prefill(prefill)
            elif answer.seed:
                self.num_output_tokens += self._engine.num_tokens_of(answer.sequence)
                self.num_answered += answer.is_done
                self._engine.drop_sequence(answer.sequence)

    def num_tokens_now(self, answer: Answer) -> int:
        """How many tokens of it there are."""
        self.kernel.catch_up()
        return self._engine.num_tokens_of(answer.sequence)

    def look_after_s(self, num_tokens: int) -> float:
        """So many more tokens may be there after this time, or later. While prompts are prefilled steps last longer,
        but nobody knows for how many of them."""
        return max(num_tokens * self._engine.decode_step_s, self._engine.step_s)

    def _computed_here(self, answer: Answer, names: PrefixNames, chain: TokenChain) -> Prefill:
        def num_tokens() -> int:
            answer.num_cached_tokens = self._cache.match(chain).reusable_prefix_tokens
            return max(1, chain.num_tokens - answer.num_cached_tokens)

        def done() -> None:
            self.num_cached_tokens += answer.num_cached_tokens
            reused = chain.hashes[: answer.num_cached_tokens // chain.block_tokens]
            self._computed(chain, len(reused))
            answer.seed = seed_of(names.whole, self._wrong_of(reused))
            self._engine.decode(answer.sequence)

        return Prefill(num_tokens, lambda ends_s: None, done)

    def _computed(self, chain: TokenChain, num_reused: int) -> None:
        self._cache.ran_locally(chain)
        for name in chain.hashes[num_reused:]:
            self._wrong.pop(name, None)

    def _wrong_of(self, names: Sequence[bytes]) -> list[str]:
        return [told for name in names for told in self._wrong.get(name, ())] if self._wrong else []

    async def _loaded(
        self, part: Mapping[str, Any], names: PrefixNames, chain: TokenChain
    ) -> dict[int, list[str]] | None:
        """What is wrong with the landing; None if there is none that can be used."""
        held = self._cache.match(chain).skippable_tokens
        try:
            params = read_leg(part, DecodeParams)
            wrong = await self._at_node(self._node.load, params, names, held)
        except (BadMessage, NotLoaded) as error:
            self.num_not_loaded += 1
            logger.warning("%s: transfer %s is not loaded: %s", self.instance.name, text_of(dict(part), "transfer_id"),
                           error)  # fmt: skip
            return None
        self.num_loaded += 1
        return wrong

    def _take(self, answer: Answer, names: PrefixNames, chain: TokenChain, wrong: dict[int, list[str]]) -> None:
        """A landing is in our memory, and in our cache."""
        for page, told in wrong.items():
            self.num_wrong_parts += len(told)
            logger.error("%s: loaded wrong bytes: %s", self.instance.name, "; ".join(told[:3]))
            if 0 <= page < len(chain.hashes):
                self._wrong[chain.hashes[page]] = told
        self._cache.landed(chain)
        whole = [text for told in wrong.values() for text in told]
        answer.seed = seed_of(names.whole, {*whole, *self._wrong_of(chain.hashes)})

    # Prefill for others

    async def prefill_for_other(self, token_ids: list[int], part: Mapping[str, Any], salt: str) -> PrefillReport:
        """Compute all tokens but the last, and ship them as they are computed."""
        transfer_id = text_of(dict(part), "transfer_id")
        try:
            params = read_leg(part, PrefillParams)
            names = self._kv.names(token_ids)
            shipment = await self._opened(params, names)
        except (BadMessage, PrfaasError, ValueError) as error:
            return self._failed(transfer_id, error)
        try:
            await self._prefilled(shipment, self._chain(token_ids[:-1], shipment.names, salt))
        except (PrfaasError, OSError, ValueError, LookupError) as error:
            return self._failed(transfer_id, error)
        finally:
            self._close_stage(shipment)
        self.num_shipped += 1
        return PrefillReport(
            transfer_id=transfer_id, status=PrefillStatus.STAGED, num_bytes=shipment.opened.num_bytes, error=None
        )

    async def _opened(self, params: PrefillParams, names: PrefixNames) -> Shipment:
        """Whoever asked may leave while the node is asked: what it then opens is closed."""
        opening = self._thread.submit(self._node.open, params, names)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_opened)
            raise

    def _close_opened(self, opening: Future[Shipment]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._close_stage(opening.result())

    def _close_stage(self, shipment: Shipment) -> None:
        with contextlib.suppress(RuntimeError):  # the engine ends: its node frees the staging
            self._thread.submit(self._node.close_stage, shipment)

    def _failed(self, transfer_id: str, error: Exception) -> PrefillReport:
        text = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
        logger.warning("%s: transfer %s is not shipped: %s", self.instance.name, transfer_id, text)
        return PrefillReport(transfer_id=transfer_id, status=PrefillStatus.FAILED, num_bytes=0, error=text)

    async def _prefilled(self, shipment: Shipment, chain: TokenChain) -> None:
        num_all, loop = chain.num_tokens, asyncio.get_running_loop()
        started: asyncio.Future[tuple[float, float, int]] = loop.create_future()

        def num_tokens() -> int:
            # The last of these tokens must be computed, as in an engine: without it there is no state to ship.
            num_cached = self._cache.match(chain).reusable_prefix_tokens
            self.num_prompt_tokens += num_all
            self.num_cached_tokens += num_cached
            cached.append(num_cached)
            return max(1, num_all - num_cached)

        def on_start(ends_s: float) -> None:
            if not started.done():
                started.set_result((self.kernel.now_s, ends_s, cached[-1]))

        cached: list[int] = []
        prefill = Prefill(num_tokens, on_start, lambda: self._computed(chain, 0))
        self.kernel.catch_up()
        self._engine.prefill(prefill)
        try:
            begins_s, ends_s, num_cached = await started
            units = list(self._units(shipment, num_cached, num_all))
            await self._ship_while_computed(shipment, units, begins_s, ends_s)
        finally:
            self.kernel.catch_up()
            self._engine.drop_prefill(prefill)

    def _units(self, shipment: Shipment, num_cached: int, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Layers in the order in which they are done, each with the token up to which it then is."""
        chunk = self.instance.profile.chunk_tokens
        num_chunks = max(1, math.ceil((num_tokens - num_cached) / chunk))
        for number in range(1, num_chunks + 1):
            end_token = min(num_tokens, num_cached + number * chunk)
            for region in shipment.shipping.image.regions:
                yield region.layer, end_token

    async def _ship_while_computed(
        self, shipment: Shipment, units: list[tuple[int, int]], begins_s: float, ends_s: float
    ) -> None:
        each_s = (ends_s - begins_s) / len(units)
        num_shipped = 0
        while num_shipped < len(units):
            due_s = max(self.kernel.clock_s + SHIP_INTERVAL_S, begins_s + (num_shipped + 1) * each_s)
            await asyncio.sleep(min(due_s, ends_s) - self.kernel.clock_s)
            passed_s = self.kernel.clock_s - begins_s
            num_done = len(units) if passed_s >= ends_s - begins_s else int(passed_s / each_s)
            if num_done > num_shipped:
                await self._at_node(self._node.ship, shipment, units[num_shipped:num_done])
                num_shipped = num_done
