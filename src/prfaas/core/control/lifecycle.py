"""What each event does to one request. Fallback, retry, lease, proof and release stand here, once.

Laws of this file:
- What fails before decode's first byte runs locally as a fresh request. A request has one such second chance in
  decode; a transfer that fails before decode was asked does not use it up.
- What fails after the first byte ends the answer; nothing is ever answered twice.
- A landing that was asked for is settled or dropped exactly once, also when the client goes away.
- Decode is sent to a landing only when it has landed; a transfer that moved nothing is a failure (`zero_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.health import Health, blames
from prfaas.core.control.instance import Instance
from prfaas.core.control.options import cheapest, told
from prfaas.core.control.placer import reason_of
from prfaas.core.control.request import LandingPhase, Request, RequestState
from prfaas.core.control.route import Option, Route, RouteKind
from prfaas.core.control.router import RequestFacts, RoutePolicy, decide, least_busy
from prfaas.core.control.timers import TimerKind, Timers
from prfaas.core.record import record

#: A landing is renewed thrice within its lease, so that one lost renewal does not end it.
RENEWALS_PER_LEASE: Final = 3
#: In a full deployment answers begin later than was expected when they were let in: half of them by a twelfth, one in a
#: hundred by a half (docs/benchmarks/scheduler.md). So much is left for that.
LATER_THAN_EXPECTED: Final = 1.25
#: Nobody can say what is in a minute.
MAX_RETRY_AFTER_S: Final = 60

S = RequestState
P = LandingPhase


@record
class TransferTerms:
    """A transfer must land within `deadline_s`; its landing lives `lease_s` after each renewal."""

    deadline_s: float
    lease_s: float


class Lifecycle:
    """Handlers by event. Each changes one request and the fleet, and appends to `out` what is to be done."""

    def __init__(self, fleet: Fleet, policy: RoutePolicy, terms: TransferTerms) -> None:
        self.fleet = fleet
        self.policy = policy
        self.terms = terms
        self.timers = Timers()
        self.health = Health(fleet)
        self.out: list[a.Action] = []
        self.dispatch: Dispatch | None = None
        self.now_s = 0.0
        self._handlers: dict[type, Callable[[Request, Any, float], None]] = {
            e.PromptCounted: self._counted,
            e.PromptUncountable: self._uncountable,
            e.TurnCame: self._turn_came,
            e.LandingReserved: self._reserved,
            e.ReserveFailed: self._reserve_failed,
            e.PrefillEnded: self._prefill_ended,
            e.LandingEnded: self._landing_ended,
            e.DeadlinePassed: self._deadline_passed,
            e.LeaseRenewed: self._lease_renewed,
            e.AnswerBegan: self._answer_began,
            e.DecodeFailed: self._decode_failed,
            e.AnswerEnded: self._answer_ended,
            e.RequestAbandoned: self._abandoned,
            e.LandingSettled: self._settled,
            e.LandingDropped: self._dropped,
        }

    def apply(self, request: Request, event: e.RequestEvent, now_s: float) -> None:
        """One event of a request that has arrived."""
        self._handlers[type(event)](request, event, now_s)

    def arrived(self, request: Request, now_s: float) -> None:
        """Count first, unless the prompt surely stays where it is whatever its tokens are."""
        facts = request.arrived
        request.obstacle = facts.obstacle
        may_be_sure = self.dispatch is None and facts.obstacle is None and facts.fits
        below = facts.max_prompt_tokens <= self.policy.threshold_tokens
        if may_be_sure and below and not self.fleet.prefills_in_pd:
            request.counts_late = True
            self._route(request, facts.max_prompt_tokens, now_s)
        elif facts.obstacle is not None:
            self._route(request, None, now_s)
        else:
            request.is_counting = True
            sizes = self.fleet.block_sizes if self.dispatch is None else self.fleet.all_block_sizes
            self.out.append(a.CountPrompt(request.request_id, sizes))

    def due(self, request: Request, kind: TimerKind, due_s: float, now_s: float) -> e.DeadlinePassed | None:
        """A timer of this request has come up; returns the event that it means, if that changes the request."""
        if kind is TimerKind.DEADLINE and request.deadline_s == due_s:
            return e.DeadlinePassed(request.request_id, self.terms.deadline_s)
        if kind is TimerKind.RENEW and request.renew_s == due_s:
            request.renew_s = None
            self.out.append(a.RenewLease(request.request_id, request.landing_at, self.terms.lease_s))
        return None

    # Counting and routing

    def _counted(self, request: Request, event: e.PromptCounted, now_s: float) -> None:
        request.is_counting = False
        request.num_prompt_tokens, request.chains = event.num_tokens, event.chains
        if request.state is S.COUNTING:
            self._route(request, event.num_tokens, now_s)
        elif request.answered_by is not None:
            known = request.answered_by.match(request.chains)
            uncached = event.num_tokens - known.reusable_prefix_tokens
            self.out.append(a.NoteUncached(request.request_id, uncached))
            _ran_locally(request, request.answered_by)

    def _uncountable(self, request: Request, event: e.PromptUncountable, now_s: float) -> None:
        request.is_counting, request.obstacle = False, event.obstacle
        if request.state is S.COUNTING:
            self._route(request, None, now_s)

    def _route(self, request: Request, num_tokens: int | None, now_s: float) -> None:
        may_choose = request.num_prompt_tokens is not None and request.num_prompt_tokens > 1
        if self.dispatch is not None and may_choose and request.obstacle is None:
            option = self._place(request, self.dispatch, now_s)
            if option is not None:
                self.dispatch.arrived(option, now_s)
                return
        self._decided(request, num_tokens, now_s)

    def _decided(self, request: Request, num_tokens: int | None, now_s: float) -> None:
        """By the threshold that the policy has."""
        decoders = self.fleet.decode_candidates(request.chains)
        route = decide(RequestFacts(num_tokens, request.obstacle), self.policy, decoders, self.fleet.reach)
        request.route = route
        if route.kind is RouteKind.NONE:
            self._refuse(request, a.RefusalCode.NO_HEALTHY_ENGINE, "", None)
        elif route.prefill:
            self._reserve(request, route, now_s)
        else:
            self._decode(request, route.decode)

    def _place(self, request: Request, dispatch: Dispatch, now_s: float) -> Option | None:
        """Let it go the cheapest way, in a cluster's queue or at a decode instance; None if it has no way."""
        options = dispatch.options(request, now_s)
        if not options:
            return None
        bound_s = self._bound_s(request, now_s)
        in_time = options if bound_s == math.inf else [option for option in options if option.finish_s <= bound_s]
        option = dispatch.chosen(request, in_time) if in_time else cheapest(options)
        request.route = Route(option.kind, reason_of(option), option.decode, "", option.num_uncached_tokens,
                              options=told(options, option))  # fmt: skip
        if not in_time:
            late_s = min(option.finish_s for option in options) - bound_s
            detail = f"the answer is expected to begin {late_s:.1f} s later than it may"
            retry_after_s = min(max(1, math.ceil(late_s)), MAX_RETRY_AFTER_S)
            self._refuse(request, a.RefusalCode.TOO_BUSY, detail, None, retry_after_s)
        elif option.kind is RouteKind.LOCAL:
            self._decode(request, option.decode)
        else:
            request.state = S.WAITING
            dispatch.wait(request, option)
        return option

    def _bound_s(self, request: Request, now_s: float) -> float:
        """Within which its answer must be expected to begin, from now. Who was let in is not sent away."""
        own_s, policy_s = request.arrived.max_ttft_s, self.policy.max_ttft_s
        if (own_s is None and policy_s is None) or request.state is not S.COUNTING:
            return math.inf
        bound_s = min(s for s in (policy_s, own_s) if s is not None)
        return (bound_s - (now_s - request.arrived_s)) / LATER_THAN_EXPECTED

    def _turn_came(self, request: Request, event: e.TurnCame, now_s: float) -> None:
        dispatch, seen = self.dispatch, request.route
        assert seen is not None, "who waits was routed"
        if event.route is not None:
            assert dispatch is not None, "who gets an instance was dispatched"
            dispatch.bound(request)
            request.route = Route(
                event.route.kind, event.route.reason, event.route.decode, event.route.prefill,
                event.route.num_uncached_tokens, options=seen.options, fetch_from=event.route.fetch_from,
                num_fetched_tokens=event.route.num_fetched_tokens,
            )  # fmt: skip
            self._reserve(request, request.route, now_s)
            return
        if dispatch is not None:
            dispatch.left(request)
        if dispatch is None or self._place(request, dispatch, now_s) is None:
            self._decided(request, request.num_prompt_tokens, now_s)

    # The transfer

    def _reserve(self, request: Request, route: Route, now_s: float) -> None:
        assert request.num_prompt_tokens is not None, "only counted prompts are prefilled elsewhere"
        decode = self.fleet.instances[route.decode]
        request.skip_tokens = decode.match(request.chains).skippable_tokens
        request.matched_boot_id = decode.cache.boot_id
        request.state = S.RESERVING
        request.move_landing(P.ASKED)
        request.landing_at, request.landing_beside = route.decode, decode
        decode.num_landings += 1
        self._decodes_at(request, route.decode)
        # From now on, not from the node's answer: else all that come meanwhile would choose the same one.
        request.prefill, request.prefill_instance = route.prefill, self.fleet.instances[route.prefill]
        request.prefill_instance.num_inflight += 1
        self.health.bound(request.prefill_instance, request.request_id)
        if self.dispatch is not None:
            self._computes_at(request, self.dispatch, request.prefill_instance, request.num_prompt_tokens)
        due_s = now_s + self.terms.deadline_s
        request.deadline_s = self.timers.set(due_s, request.request_id, TimerKind.DEADLINE)
        self.out.append(
            a.Reserve(request.request_id, request.arrived.transfer_id, route, request.num_prompt_tokens,
                      request.skip_tokens, self.terms.lease_s)
        )  # fmt: skip

    def _reserved(self, request: Request, event: e.LandingReserved, now_s: float) -> None:
        decode = request.landing_beside
        assert decode is not None, "a landing was asked for beside an instance"
        restarted = decode.engine_registered(event.block_tokens, event.engine_boot_id, event.kv_group_kinds)
        if restarted:
            self.health.restarted(decode)
        # A probe may have seen the new life first, after the match and before this answer.
        restarted = restarted or decode.cache.boot_id != request.matched_boot_id
        if request.landing is P.ABANDONED:
            self._drop(request)
            return
        request.move_landing(P.HELD)
        if restarted and request.skip_tokens:
            # What was to be skipped went with the engine's former life: an image without it would be useless.
            self._fall_back(request, Failure(FallbackReason.LANDING_LOST, "the decode engine restarted"))
        elif self._has_moved(request):
            self._fall_back(request, Failure(FallbackReason.LANDING_LOST, "the decode instance has moved"))
        elif event.num_bytes == 0:
            self._fall_back(request, Failure(FallbackReason.ZERO_BYTES, "the landing has no bytes"))
        else:
            self._prefill(request, now_s)

    def _prefill(self, request: Request, now_s: float) -> None:
        assert request.route is not None, "a request is routed before it is prefilled"
        assert request.deadline_s is not None, "a transfer has a deadline"
        route = request.route
        prefill = self.fleet.instances.get(route.prefill)
        if prefill is None or prefill.is_draining or prefill.duty.decodes:
            detail = f"{route.prefill} prefills for others no more"
            self._fall_back(request, Failure(FallbackReason.PREFILL_UNREACHABLE, detail))
            return
        request.state = S.PREFILLING
        request.prefill_instance = prefill
        self._renew_later(request, now_s)
        if self.dispatch is not None:
            self.dispatch.begins(request, now_s)
        left_s = max(0.0, request.deadline_s - now_s)
        self.out.append(
            a.Prefill(
                request.request_id, route.prefill, route.decode, left_s, route.fetch_from, route.num_fetched_tokens
            )
        )
        self.out.append(a.AwaitLanding(request.request_id, route.decode))

    def _reserve_failed(self, request: Request, event: e.ReserveFailed, now_s: float) -> None:
        if event.failure.refused and request.landing_beside is not None:
            request.landing_beside.node_ready = False
        # Perhaps the node has reserved and its answer was lost.
        was_wanted = request.landing is P.ASKED
        if was_wanted and request.landing_beside is not None:
            self._blame(request, request.landing_beside, event.failure)
        self._drop(request)
        if was_wanted:
            self._fall_back(request, event.failure)

    def _prefill_ended(self, request: Request, event: e.PrefillEnded, now_s: float) -> None:
        self._prefill_over(request, event.failure, is_done=event.failure is None)
        if event.failure is not None and request.state is S.PREFILLING:
            self._fall_back(request, event.failure)

    def _prefill_over(self, request: Request, failure: Failure | None, *, is_done: bool = False) -> None:
        if not request.prefill:
            return
        if self.dispatch is not None and request.works_at is request.prefill_instance:
            ratio = self.dispatch.worked(request, self.now_s, is_done=is_done)
            if ratio is not None and request.prefill_instance is not None:
                self.health.took(request.prefill_instance, ratio, self.now_s)
        if request.prefill_instance is not None:
            if is_done:
                _ran_locally(request, request.prefill_instance)
                self.health.worked(request.prefill_instance, request.request_id, self.now_s)
            elif failure is not None and request.state is S.PREFILLING:
                self._blame(request, request.prefill_instance, failure)
            self.health.given_up(request.prefill_instance, request.request_id)
        self.fleet.instances[request.prefill].num_inflight -= 1
        asked, request.prefill, request.prefill_instance = request.prefill_instance, "", None
        if failure is not None and failure.refused and asked is not None:
            asked.engine_silent(refused=True)

    def _landing_ended(self, request: Request, event: e.LandingEnded, now_s: float) -> None:
        if request.state is not S.PREFILLING:
            return
        failure = event.failure
        if failure is None and event.num_bytes == 0:
            failure = Failure(FallbackReason.ZERO_BYTES, "landed without a byte")
        if failure is None and self._has_moved(request):
            # Its name leads to another engine now, beside another node.
            failure = Failure(FallbackReason.LANDING_LOST, "the decode instance has moved")
        if failure is not None:
            self._fall_back(request, failure)
            return
        request.deadline_s = None
        request.num_landed_bytes = event.num_bytes
        if self.dispatch is not None:
            self.dispatch.crossed(request)
        self._decode(request, request.landing_at, is_landed=True)

    def _deadline_passed(self, request: Request, event: e.DeadlinePassed, now_s: float) -> None:
        detail = event.why or f"not landed within {event.deadline_s:g} s"
        self._fall_back(request, Failure(FallbackReason.DEADLINE, detail))

    def _lease_renewed(self, request: Request, event: e.LeaseRenewed, now_s: float) -> None:
        if event.is_held and request.landing is P.HELD:
            self._renew_later(request, now_s)

    def _renew_later(self, request: Request, now_s: float) -> None:
        due_s = now_s + self.terms.lease_s / RENEWALS_PER_LEASE
        request.renew_s = self.timers.set(due_s, request.request_id, TimerKind.RENEW)

    # Decode

    def _decode(
        self,
        request: Request,
        instance: str,
        *,
        is_landed: bool = False,
        fallback: Failure | None = None,
        is_retry: bool = False,
    ) -> None:
        assert request.route is not None, "a request is routed before it is decoded"
        request.attempt += 1
        request.state = S.LOADING if is_landed else S.COMPUTING
        self._decodes_at(request, instance)
        if is_landed:
            self._is_in_batch(request)
        if self.dispatch is not None and not is_landed and request.num_prompt_tokens is not None:
            self._computes_at(request, self.dispatch, self.fleet.instances[instance], request.num_prompt_tokens)
        self.out.append(
            a.Decode(request.request_id, request.attempt, instance, request.route, is_landed,
                     request.num_landed_bytes if is_landed else 0, fallback, is_retry)
        )  # fmt: skip

    def _computes_at(self, request: Request, dispatch: Dispatch, instance: Instance, num_tokens: int) -> None:
        uncached = num_tokens - instance.match(request.chains).reusable_prefix_tokens
        dispatch.works(request, instance, max(1, uncached), self.now_s)

    def _computes_no_more(self, request: Request, *, is_done: bool = False) -> None:
        if self.dispatch is not None:
            self.dispatch.worked(request, self.now_s, is_done=is_done)

    def _answer_began(self, request: Request, event: e.AnswerBegan, now_s: float) -> None:
        if request.state is S.ENDED:
            return
        if request.state is S.LOADING:
            request.move_landing(P.SETTLING)
            request.renew_s = None
            self.out.append(a.SettleLanding(request.request_id, request.landing_at))
        elif request.decode_instance is not None:
            self._computes_no_more(request, is_done=True)
            _ran_locally(request, request.decode_instance)
            self._is_in_batch(request)
        if request.decode_instance is not None:
            self.health.worked(request.decode_instance, request.request_id, now_s)
            if self.dispatch is not None:
                self.dispatch.answers.begins(request.request_id, request.decode_instance.cluster, now_s)
        request.answered_by = request.decode_instance
        request.state = S.ANSWERING

    def _decode_failed(self, request: Request, event: e.DecodeFailed, now_s: float) -> None:
        if request.state is S.ENDED:
            return
        failed, was_loading = request.decode, request.state is S.LOADING
        self._computes_no_more(request)
        if event.failure.refused and request.decode_instance is not None:
            request.decode_instance.engine_silent(refused=True)
        if request.decode_instance is not None:
            self._blame(request, request.decode_instance, event.failure)
        may_retry, request.may_retry = request.may_retry, False
        if was_loading:
            self._fall_back(request, event.failure, avoid=failed)
        elif may_retry:
            self._again(request, failed, None, is_retry=True)
        else:
            detail = "the engine broke off before it answered"
            self._refuse(request, a.RefusalCode.UPSTREAM_DOWN, detail, None)

    def _fall_back(self, request: Request, failure: Failure, *, avoid: str = "") -> None:
        self._give_up_transfer(request)
        self._again(request, avoid, failure, is_retry=False)

    def _again(self, request: Request, avoid: str, failure: Failure | None, *, is_retry: bool) -> None:
        """Compute the prompt on a decode engine; on `avoid` only if there is no other."""
        assert request.route is not None, "only routed requests fail"
        if failure is not None:
            request.route = Route(RouteKind.LOCAL, f"fallback:{failure.reason}", considered=request.route.considered,
                                  num_uncached_tokens=request.route.num_uncached_tokens)  # fmt: skip
        # Its own load must not drive it away from the engine that knows its prefix.
        self._decodes_at(request, "")
        candidates = self.fleet.decode_candidates(request.chains)
        healthy = [c for c in candidates if c.engine_healthy]
        chosen = least_busy([c for c in healthy if c.name != avoid] or healthy)
        if chosen is None:
            self._refuse(request, a.RefusalCode.NO_HEALTHY_ENGINE, "", failure)
        else:
            self._decode(request, chosen.name, fallback=failure, is_retry=is_retry)

    def _refuse(
        self,
        request: Request,
        code: a.RefusalCode,
        detail: str,
        failure: Failure | None,
        retry_after_s: int | None = None,
    ) -> None:
        assert request.route is not None, "only routed requests are refused"
        self._decodes_at(request, "")
        self._computes_no_more(request)
        request.attempt += 1
        request.state = S.ANSWERING
        self.out.append(a.Refuse(request.request_id, code, detail, request.route, failure, retry_after_s))

    # The end

    def _answer_ended(self, request: Request, event: e.AnswerEnded, now_s: float) -> None:
        if request.state is S.ENDED:
            return
        if request.counts_late and event.outcome == "ok" and request.state is S.ANSWERING:
            request.is_counting = True
            self.out.append(a.CountPrompt(request.request_id, self.fleet.block_sizes, is_late=True))
        elif request.state is S.COUNTING:
            request.is_counting = False
        if self.dispatch is not None and event.outcome == "ok" and event.completion_tokens is not None:
            self.dispatch.estimates.saw_answer(event.completion_tokens)
        self._end(request)

    def _abandoned(self, request: Request, event: e.RequestAbandoned, now_s: float) -> None:
        if request.state is S.COUNTING:
            request.is_counting = False
        self._end(request)

    def _end(self, request: Request) -> None:
        self._give_up_transfer(request)
        self._computes_no_more(request)
        self._decodes_at(request, "")
        request.state = S.ENDED

    def _give_up_transfer(self, request: Request) -> None:
        """Idempotent. A landing that is being settled is freed by that."""
        request.deadline_s = request.renew_s = None
        if self.dispatch is not None:
            self.dispatch.left(request)
        if request.state is S.PREFILLING:
            self.out.append(a.StopPrefill(request.request_id))
        elif request.state is S.RESERVING:
            self._prefill_over(request, None)
        if request.landing is P.ASKED:
            # Whether there is a landing to drop is known when the node has answered.
            request.move_landing(P.ABANDONED)
        elif request.landing is P.HELD:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        request.move_landing(P.DROPPING)
        self.out.append(a.DropLanding(request.request_id, request.landing_at))

    def _dropped(self, request: Request, event: e.LandingDropped, now_s: float) -> None:
        self._landing_gone(request)

    def _settled(self, request: Request, event: e.LandingSettled, now_s: float) -> None:
        record = event.record
        if record is None:
            self._drop(request)
            return
        instance = self.fleet.instances[request.landing_at]
        chain = request.chains.get(instance.block_tokens or 0)
        if chain is not None and not self._has_moved(request):
            if was_loaded(record):
                instance.cache.landed(chain)
            else:
                if record.tokens_recomputed is not None:
                    instance.cache.lacked(chain, max(0, chain.num_tokens - record.tokens_recomputed))
                instance.cache.ran_locally(chain)
        self._landing_gone(request)

    def _has_moved(self, request: Request) -> bool:
        return self.fleet.instances[request.landing_at] is not request.landing_beside

    def _landing_gone(self, request: Request) -> None:
        request.move_landing(P.GONE)
        self.fleet.instances[request.landing_at].num_landings -= 1

    # What the fleet is told

    def _decodes_at(self, request: Request, name: str) -> None:
        if request.decode:
            self.fleet.instances[request.decode].num_inflight -= 1
            if self.dispatch is not None:
                self.dispatch.answers.ends(request.request_id)
        if request.answers_at is not None:
            request.answers_at.num_answers -= 1
            request.answers_at = None
        if request.decode_instance is not None:
            self.health.given_up(request.decode_instance, request.request_id)
        request.decode, request.decode_instance = name, None
        if name:
            request.decode_instance = self.fleet.instances[name]
            request.decode_instance.num_inflight += 1
            self.health.bound(request.decode_instance, request.request_id)

    def _blame(self, request: Request, instance: Instance, failure: Failure) -> None:
        if blames(failure.reason):
            self.health.failed(instance, request.request_id, failure.reason, self.now_s)

    def _is_in_batch(self, request: Request) -> None:
        request.answers_at = request.decode_instance
        if request.answers_at is not None:
            request.answers_at.num_answers += 1


def _ran_locally(request: Request, instance: Instance) -> None:
    """It has computed the prompt. If its name has moved, only the old instance's record changes."""
    chain = request.chains.get(instance.block_tokens or 0)
    if chain is not None:
        instance.cache.ran_locally(chain)


def was_loaded(record: e.FinalRecord) -> bool:
    """Whether the KVCache that was sent served the request."""
    return record.state == "consumed" and bool(record.tokens_loaded)
