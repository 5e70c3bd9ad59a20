"""One run: a load, faults in its middle, and afterwards the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import aiohttp

from prfaas.bench.e2e.client import open_session
from prfaas.bench.e2e.load import Load
from prfaas.bench.e2e.options import DEFAULT_TOKEN_IDS, E2eOptions
from prfaas.bench.e2e.plan import plan_of
from prfaas.bench.e2e.prompts import Bodies, TokenMaterial
from prfaas.chaos.answers import Answers
from prfaas.chaos.clients import ChaosClient, leaves
from prfaas.chaos.faults import Fault
from prfaas.chaos.inject import Happened, Injector
from prfaas.chaos.ledger import Counted, Problem, Verdict, judge
from prfaas.chaos.look import Looker, Silent
from prfaas.chaos.records import Outcome, Record
from prfaas.chaos.recovery import most_in_flight, recovered_s
from prfaas.chaos.site import Site
from prfaas.core.errors import PrfaasError

READY_TIMEOUT_S: Final = 60.0
#: Beyond lease and deadline, which is how long something that a killed gateway left may stay.
GIVEN_BACK_SPARE_S: Final = 15.0
LOOK_EVERY_S: Final = 0.2
#: Stories that a gateway is asked for together.
_TOGETHER: Final = 8


class NotReady(PrfaasError):
    """The deployment does not work before anything was done to it."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds: without faults first, then with them, then until all is well again, at least and at most."""

    before_s: float
    faults_s: float
    after_s: float
    recovery_s: float

    def until(self, ends_s: float) -> Phases:
        """With the faults' phase at least as long as that: a load that is over before them says nothing of them."""
        return replace(self, faults_s=max(self.faults_s, ends_s - self.before_s))

    @property
    def longest_s(self) -> float:
        return self.before_s + self.faults_s + max(self.after_s, self.recovery_s)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`rate_rps` as the file counts, in the time of the engines that are emulated. `leave_share` of the clients give
    up early."""

    seed: int
    faults: tuple[Fault, ...]
    phases: Phases
    rate_rps: float
    leave_share: float = 0.05
    timeout_s: float = 120.0


@dataclass(slots=True)
class Result:
    """Times since the load began. `recovery_s`: from the last fault's end until all was as before, None: it was not
    within the time for it. `given_back_s`: from the last answer until nothing was held. `held`: what was not given
    back."""

    options: RunOptions
    records: list[Record]
    happened: list[Happened]
    verdict: Verdict
    end_of_faults_s: float
    recovery_s: float | None
    given_back_s: float = 0.0
    held: dict[str, float] = field(default_factory=dict)
    damage: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """All, also of what is no single request's."""
        found = list(self.verdict.problems)
        found += [Problem("not given back", f"{what}: {number:g}") for what, number in self.held.items()]
        found += [Problem("damage", f"{what}: {number:g}") for what, number in self.damage.items()]
        if self.recovery_s is None:
            limit_s = self.options.phases.recovery_s
            why = f": {', '.join(self.missing)}" if self.missing else ": more requests are in flight"
            found.append(Problem("not recovered", f"not as before {limit_s:g} s after the last fault{why}"))
        return found

    @property
    def is_fine(self) -> bool:
        return not self.problems

    @property
    def routes(self) -> dict[str, int]:
        """Of completed requests."""
        completed = (record.sent.route for record in self.records if record.outcome is Outcome.COMPLETED)
        return dict(Counter(completed).most_common())

    def ttft_s_max(self, from_s: float, to_s: float) -> float | None:
        """Of completed requests that were due in this time."""
        completed = (record.sent for record in self.records if record.outcome is Outcome.COMPLETED)
        return max((sent.ttft_s for sent in completed if from_s <= sent.arrival_s < to_s), default=None)


class Run:
    """One. Whatever ends it, its faults are undone."""

    def __init__(
        self, site: Site, session: aiohttp.ClientSession, options: RunOptions, answers: Answers | None,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._site, self._options, self._answers = site, options, answers
        self._looker = Looker(site, session)
        self._injector = Injector(site, session, lambda: self._client.clock(), tell)
        plan = plan_of(
            E2eOptions(
                site.gateway_url, deployment=site.file, rate_rps=options.rate_rps, seed=options.seed,
                duration_s=options.phases.longest_s,
            )
        )  # fmt: skip
        numbers = range(1, len(plan.requests) + 1)
        self._client = ChaosClient(
            session, site.gateway_url, options.timeout_s, f"chaos-{options.seed}-{secrets.token_hex(4)}",
            leaves(options.seed, numbers, options.leave_share), lambda: self._injector.gateway_lives,
        )  # fmt: skip
        # New prompts in each run: none of them is cached.
        self._material = TokenMaterial(secrets.randbits(32), DEFAULT_TOKEN_IDS)
        bodies = Bodies("completions", site.deployment.served_model.name, ignore_eos=True, wants_ids=True)
        self._load = Load(self._client, plan, bodies, self._material, seed=options.seed, duration_s=None)
        self._ready_s: float | None = None
        self._missing: list[str] = []

    async def run(self) -> Result:
        """Raises NotReady, CannotHarm, WanUnreachable or NotUp."""
        await self._wait_ready()
        counted_before = sum((await self._looker.counted()).values())
        async with _running(self._load.run()) as load:
            await self._client.begun.wait()
            await self._harm(load)
            end_s = self._client.clock()
            recovered = await self._wait_recovered(load, end_s)
            self._load.stop()
            await load
        records = list(self._client.records.values())
        await self._ask_again(records)
        if self._answers is not None:
            for record in records:
                self._answers.expect(record, self._material)
        asked_s = self._client.clock()
        held = await self._given_back()
        given_back_s = self._client.clock() - asked_s
        counted = await self._counted(counted_before)
        verdict = judge(records, self._injector.happened, self._site.menu, counted)
        recovery_s = None if recovered is None else recovered - end_s
        damage = await self._looker.damage()
        return Result(
            self._options, records, self._injector.happened, verdict, end_s, recovery_s, given_back_s, held, damage,
            self._missing,
        )  # fmt: skip

    async def _wait_ready(self) -> None:
        deadline_s = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while missing := await self._looker.missing():
            if asyncio.get_running_loop().time() > deadline_s:
                raise NotReady(f"not everything works, and nothing was done yet: {', '.join(missing)}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _harm(self, load: asyncio.Task[None]) -> None:
        phases = self._options.phases
        async with _running(self._injector.run(self._options.faults)) as harm:
            await asyncio.wait([load, harm], return_when=asyncio.FIRST_COMPLETED)
            if load.done():
                load.result()  # a defect of ours; or the load was over before the faults were
            await harm
        await asyncio.sleep(max(0.0, phases.before_s + phases.faults_s - self._client.clock()))

    async def _wait_recovered(self, load: asyncio.Task[None], end_s: float) -> float | None:
        phases, clock = self._options.phases, self._client.clock
        first_s = min((fault.at_s for fault in self._options.faults), default=phases.before_s)
        before = most_in_flight(self._load.sent, 0.0, first_s)
        found: float | None = None
        while clock() < end_s + phases.recovery_s or (found is not None and clock() < end_s + phases.after_s):
            asked_s = clock()
            self._missing = await self._looker.missing()
            if self._missing:
                self._ready_s = None
            elif self._ready_s is None:
                self._ready_s = asked_s
            found = recovered_s(self._load.sent, self._ready_s, end_s, clock(), before)
            if (found is not None and clock() >= end_s + phases.after_s) or load.done():
                break
            await asyncio.sleep(LOOK_EVERY_S)
        return found

    async def _ask_again(self, records: Sequence[Record]) -> None:
        """Stories that were not closed, or could not be had."""
        left = [
            record
            for record in records
            if record.outcome is not Outcome.UNREACHED and (record.story is None or not record.story.get("closed"))
        ]
        for place in range(0, len(left), _TOGETHER):
            await asyncio.gather(*(self._client.ask_story(each, 5.0) for each in left[place : place + _TOGETHER]))

    async def _given_back(self) -> dict[str, float]:
        transfer = self._site.deployment.transfer
        loop = asyncio.get_running_loop()
        until_s = loop.time() + transfer.lease + transfer.deadline + GIVEN_BACK_SPARE_S
        while True:
            try:
                held = await self._looker.held()
            except Silent as silent:
                held = {str(silent): math.nan}
            if not held or loop.time() > until_s:
                return held
            await asyncio.sleep(LOOK_EVERY_S)

    async def _counted(self, before: float) -> Counted | None:
        life = self._injector.gateway_lives
        try:
            number = sum((await self._looker.counted()).values())
        except Silent:
            return None
        return Counted(life, round(number - (0.0 if life else before)))


async def run_once(
    site: Site, options: RunOptions, answers: Answers | None, tell: Callable[[str], None] = lambda line: None
) -> Result:
    """See `Run.run`."""
    async with open_session(None) as session:
        return await Run(site, session, options, answers, tell).run()


@contextlib.asynccontextmanager
async def _running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    """As a task, which is over after the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
