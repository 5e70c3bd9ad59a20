"""What a run looked like from outside: moments, a second apart at first, and spans of what each request went through.

Laws of this file:
- It changes nothing: a run that is observed gives the figures of one that is not.
- A run without an observer keeps none of this.
- Every span that begins ends, at the latest with the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from prfaas.core.control import events as e
from prfaas.core.control.conversion import Conversion
from prfaas.core.control.link_rates import Pair
from prfaas.core.control.request import Request, RequestState
from prfaas.core.control.view import view
from prfaas.core.topology import Role
from prfaas.sim.simulation import Life, Simulation

#: A longer run is seen less often: a moment takes two milliseconds to take down.
MAX_MOMENTS: Final = 1_000

S = RequestState


class LinkMoment(NamedTuple):
    """`sent_bytes` so far. What the link carries now, and what the scheduler reckons with; None: it does not."""

    sent_bytes: float
    carries_bytes_per_s: float
    expected_bytes_per_s: float | None


class Moment(NamedTuple):
    """`solved_tokens`: the threshold; None if nothing leaves, or if another rule chooses. `now_tokens`: by PrfaaS
    cluster, the length from which on prompts would go there as things are; None if none would. `num_waiting`: prompts
    in a cluster's queue, and at its instances behind the one that is prefilled. `num_prefill` and `num_decode`:
    instances with this duty, by PD cluster."""

    at_s: float
    num_inside: int
    solved_tokens: int | None
    now_tokens: dict[str, int | None]
    num_waiting: dict[str, int]
    num_prefill: dict[str, int]
    num_decode: dict[str, int]
    links: dict[Pair, LinkMoment]


class Doing(StrEnum):
    """What a request is at. Two of them may be at once: a transfer begins with its prefill."""

    WAIT = "wait"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"


class Span(NamedTuple):
    """`at`: a cluster for WAIT, an instance for PREFILL and DECODE, `SOURCE>TARGET` for TRANSFER. `amount`: tokens of
    the prompt or, for DECODE, of the answer; bytes for TRANSFER. `is_whole`: it came to its end and was not stopped."""

    doing: Doing
    request: int
    at: str
    from_s: float
    to_s: float
    amount: float
    is_whole: bool


class _Open(NamedTuple):
    at: str
    from_s: float
    amount: float
    ends_s: float | None = None


def crossing_bytes_per_s(moments: Sequence[Moment], pair: Pair) -> list[float]:
    """Of each moment but the last: the mean until the next one."""
    return [
        (after.links[pair].sent_bytes - before.links[pair].sent_bytes) / (after.at_s - before.at_s)
        for before, after in pairwise(moments)
    ]


class Observer:
    """Of one run. Without `keeps_spans` it takes down moments alone."""

    def __init__(self, *, keeps_spans: bool = False) -> None:
        self.moments: list[Moment] = []
        self.spans: list[Span] = []
        self._keeps_spans = keeps_spans
        self._open: dict[tuple[Doing, int], _Open] = {}
        self._every = 1
        self._num_asked = 0

    def follow(self, simulation: Simulation) -> None:
        """To be called before the first request comes."""
        self._simulation = simulation
        if self._keeps_spans:
            simulation.scheduler.on_step = self._stepped
            simulation.on_prefill = self._prefills

    @property
    def conversions(self) -> list[Conversion]:
        """Those that are over, and the one that was under way at the end."""
        current = self._simulation.scheduler.converter.current
        return [*self._simulation.conversions, *(() if current is None else (current,))]

    @property
    def _now_s(self) -> float:
        return self._simulation.kernel.now_s

    # Moments

    def sample(self) -> None:
        """Asked for every second; takes down what the length of the run allows."""
        if self._num_asked % self._every == 0:
            self.moments.append(self._moment())
            if len(self.moments) >= MAX_MOMENTS:
                self.moments = self.moments[::2]
                self._every *= 2
        self._num_asked += 1

    def end(self) -> None:
        """The run is over. Moments have ended with the last arrival, as the run's samples do."""
        for doing, number in list(self._open):
            self._close(doing, number, is_whole=False)

    def _moment(self) -> Moment:
        simulation, now_s = self._simulation, self._now_s
        scheduler = simulation.scheduler
        seen = view(scheduler, now_s)
        has_threshold = scheduler.policy.offload and scheduler.policy.choose is None
        prfaas = [cluster.name for cluster in scheduler.fleet.topology.clusters_of(Role.PRFAAS)]
        expected = {(link.source, link.target): link.bytes_per_s for link in seen.links}
        waiting = {cluster.name: 0 for cluster in scheduler.fleet.topology.clusters}
        if scheduler.dispatch is not None:
            for name, queue in scheduler.dispatch.queues.items():
                waiting[name] = len(queue)
        num_prefill, num_decode = ({c.name: 0 for c in scheduler.fleet.topology.clusters_of(Role.PD)} for _ in "pd")
        for instance in scheduler.fleet.topology.instances:
            waiting[instance.cluster] += max(0, simulation.engines[instance.name].num_prompts - 1)
            if instance.cluster in num_prefill:
                num_prefill[instance.cluster] += instance.duty.prefills
                num_decode[instance.cluster] += instance.duty.decodes
        return Moment(
            at_s=now_s,
            num_inside=len(simulation.lives),
            solved_tokens=seen.threshold_tokens if has_threshold else None,
            now_tokens={n: seen.clusters[n].threshold_tokens for n in prfaas if has_threshold and seen.moves},
            num_waiting=waiting,
            num_prefill=num_prefill,
            num_decode=num_decode,
            links={
                pair: LinkMoment(link.sent_bytes, link.bytes_per_s, expected.get(pair))
                for pair, link in simulation.links.items()
            },
        )

    # Spans

    def _prefills(self, life: Life, instance: str, ends_s: float) -> None:
        """It begins, and will be done then unless it is stopped."""
        self._close(Doing.WAIT, life.number)
        self._close(Doing.PREFILL, life.number)
        begins = _Open(instance, self._now_s, life.num_computed_tokens, ends_s)
        self._open[Doing.PREFILL, life.number] = begins
        if self._simulation.scheduler.requests[life.request_id].state is not S.PREFILLING:
            # It computes for itself, and decodes as soon as that is done.
            self._open[Doing.DECODE, life.number] = _Open(instance, ends_s, life.arrival.num_output_tokens)
            return
        source, target = self._simulation.pair_of(life)
        if source != target:
            from_s = self._now_s if self._simulation.deployment.is_layer_wise else ends_s
            self._open[Doing.TRANSFER, life.number] = _Open(f"{source}>{target}", from_s, life.kv_bytes)

    def _stepped(self, request_id: str, before: RequestState, event: type, after: RequestState) -> None:
        request, life = self._simulation.scheduler.requests[request_id], self._simulation.lives[request_id]
        if event is e.LandingEnded:
            self._close(Doing.TRANSFER, life.number, is_whole=after is S.LOADING)
        is_other = before is not after or event is e.DecodeFailed
        if is_other:
            # A prefill that stops before its time stops now: its request goes on to something else.
            self._close(Doing.PREFILL, life.number)
            if after is not S.ANSWERING:
                self._close(Doing.DECODE, life.number, is_whole=life.outcome == "ok")
        if is_other or after is S.WAITING:
            self._waits(life, self._waits_at(request))
        if is_other and after is S.LOADING:
            tokens = life.arrival.num_output_tokens
            self._open[Doing.DECODE, life.number] = _Open(request.decode, self._now_s, tokens)

    def _waits_at(self, request: Request) -> str | None:
        """The cluster in which it waits for its prefill; None: it does not."""
        match request.state:
            case S.WAITING:
                return None if request.option is None else request.option.prefill_cluster
            case S.RESERVING | S.PREFILLING:
                return self._cluster_of(request.prefill)
            case S.COMPUTING:
                return self._cluster_of(request.decode)
            case _:
                return None

    def _cluster_of(self, instance: str) -> str | None:
        known = self._simulation.scheduler.fleet.instances.get(instance)
        return None if known is None else known.cluster

    def _waits(self, life: Life, cluster: str | None) -> None:
        waits = self._open.get((Doing.WAIT, life.number))
        if waits is not None and waits.at == cluster:
            return
        self._close(Doing.WAIT, life.number, is_whole=False)
        if cluster is not None:
            self._open[Doing.WAIT, life.number] = _Open(cluster, self._now_s, life.arrival.num_tokens)

    def _close(self, doing: Doing, number: int, *, is_whole: bool = True) -> None:
        begun = self._open.pop((doing, number), None)
        if begun is None:
            return
        to_s = self._now_s if begun.ends_s is None else min(self._now_s, begun.ends_s)
        if begun.ends_s is not None:
            is_whole = to_s >= begun.ends_s
        if to_s >= begun.from_s:
            self.spans.append(Span(doing, number, begun.at, begun.from_s, to_s, begun.amount, is_whole))
