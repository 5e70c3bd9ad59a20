"""What the best choice would have been: some requests are tried on every way that they had.

When such a request is placed, the process is copied (`fork`), once for each way. A copy sends the request that way and
goes on for `HORIZON_S`, with the same requests to come. Then it says what came of it, and is gone. So nothing is
estimated: queues, links and caches are those of the moment, and what the choice did to all others is seen too.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from prfaas.core.control import events as e
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.request import Request, RequestState
from prfaas.core.control.route import Option
from prfaas.sim.simulation import Simulation

#: Longer than most stay in a queue.
HORIZON_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Tried:
    """One way of one request. `ttft_s`: until its own first token, at most the horizon. `waiting_s`: of all requests,
    for their first tokens, within the horizon; who is refused or fails, to its end."""

    way: str
    ttft_s: float
    waiting_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A request's ways; the first is what was decided, with what the scheduler did about it later."""

    tried: tuple[Tried, ...]

    @property
    def regret_s(self) -> float:
        """How much longer all requests waited, in all, than if it had gone the best of its ways."""
        return self.tried[0].waiting_s - min(one.waiting_s for one in self.tried)


def way_of(option: Option) -> str:
    """Kind, and the clusters that prefill and answer."""
    return f"{option.kind} {option.prefill_cluster} {option.decode_cluster}"


class Hindsight:
    """Over one run: every request whose number `is_tried`, if it has several ways."""

    def __init__(self, is_tried: Callable[[int], bool], horizon_s: float = HORIZON_S) -> None:
        self._is_tried = is_tried
        self._horizon_s = horizon_s
        #: By the request's number.
        self.found: dict[int, Judged] = {}
        #: Called in every copy: it must write to nothing that the run itself writes to.
        self.on_copy: Callable[[], object] = lambda: None
        #: Called after each that was tried.
        self.on_judged: Callable[[], object] = lambda: None
        self._is_copy = False

    def follow(self, simulation: Simulation) -> None:
        """From now on. Nothing is tried where a fixed threshold decides: there is one way."""
        dispatch = simulation.scheduler.dispatch
        if dispatch is None:
            return
        chosen = dispatch.chosen

        def choose(request: Request, options: list[Option]) -> Option:
            best = chosen(request, options)
            life = simulation.lives[request.request_id]
            others = [option for option in options if way_of(option) != way_of(best)]
            if self._is_copy or life.number in self.found or not others or not self._is_tried(life.number):
                return best
            return self._tries(simulation, dispatch, request, best, others)

        # The scheduler has no door for this, and needs none: only simulations know what will come.
        setattr(dispatch, "chosen", choose)  # noqa: B010

    def leave(self) -> None:
        """At the run's end, whatever it was: a copy goes no further. It should not come here, so something broke."""
        if self._is_copy:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                traceback.print_exc()
            os._exit(1)

    def _tries(
        self, simulation: Simulation, dispatch: Dispatch, request: Request, best: Option, others: list[Option]
    ) -> Option:
        number = simulation.lives[request.request_id].number
        tried = []
        for option in (best, *others):
            reader, writer = os.pipe()
            copy = os.fork()
            if not copy:
                os.close(reader)
                self._is_copy = True
                self.on_copy()
                _Copy(simulation, request.request_id, way_of(option), writer, self._horizon_s)
                if option is not best:
                    _pin(dispatch, request.request_id, option)
                return option
            os.close(writer)
            with os.fdopen(reader, encoding="utf-8") as told:
                text = told.read()
            os.waitpid(copy, 0)
            if text:
                tried.append(Tried(**json.loads(text)))
        # A copy that broke has said so on standard error; a judgement without it would be wrong.
        if len(tried) == 1 + len(others):
            self.found[number] = Judged(tuple(tried))
        self.on_judged()
        return best


def _pin(dispatch: Dispatch, request_id: str, way: Option) -> None:
    """It goes that way as long as it can, and nowhere else."""
    chosen, is_better = dispatch.chosen, dispatch._is_better

    def choose(request: Request, options: list[Option]) -> Option:
        same = dispatch._same_way(way, options) if request.request_id == request_id else None
        return same or chosen(request, options)

    def moves(other: Option, request: Request, *facts: Any) -> bool:
        return request.request_id != request_id and is_better(other, request, *facts)

    setattr(dispatch, "chosen", choose)  # noqa: B010
    setattr(dispatch, "_is_better", moves)  # noqa: B010


class _Copy:
    """What a copy of the process watches until it has seen enough."""

    def __init__(self, simulation: Simulation, request_id: str, way: str, writer: int, horizon_s: float) -> None:
        self._simulation = simulation
        self._request_id, self._way, self._writer = request_id, way, writer
        self._from_s = simulation.kernel.now_s
        self._arrived_s = simulation.lives[request_id].arrival.at_s
        self._waited_s = 0.0
        self._ttft_s: float | None = None
        self._to_s = self._from_s + horizon_s
        simulation.scheduler.on_step = self._stepped
        simulation.kernel.at(self._to_s, self._tell)

    def _stepped(self, request_id: str, before: RequestState, event: type, after: RequestState) -> None:
        if before is RequestState.ENDED:
            return
        if event is e.AnswerEnded and self._simulation.lives[request_id].began_s is None:
            # Refused, or failed: it waits as long as one can.
            self._waited_s += self._waits_s(request_id, self._to_s)
        if event is not e.AnswerBegan:
            return
        self._waited_s += self._waits_s(request_id, self._simulation.kernel.now_s)
        if request_id == self._request_id:
            self._ttft_s = self._simulation.kernel.now_s - self._arrived_s

    def _waits_s(self, request_id: str, until_s: float) -> float:
        return until_s - max(self._from_s, self._simulation.lives[request_id].arrival.at_s)

    def _tell(self) -> None:
        waiting = [name for name, life in self._simulation.lives.items() if life.began_s is None]
        self._waited_s += math.fsum(self._waits_s(name, self._to_s) for name in waiting)
        ttft_s = self._to_s - self._arrived_s if self._ttft_s is None else self._ttft_s
        told = {"way": self._way, "ttft_s": ttft_s, "waiting_s": self._waited_s}
        os.write(self._writer, json.dumps(told).encode())
        os._exit(0)
