"""Drives the control core: feeds it what happens, does what it asks, and notes both in the journal.

Laws of this file:
- It decides nothing. Whatever depends on more than one event is the scheduler's.
- An action's work ends in exactly the events that `core.control.actions` lists for it, also when it is stopped before
  it has begun, and when it fails by a defect of ours: else a request would stay for ever.
- What a client waits for runs in the client's own task and ends with it, and so does the late count of a short prompt;
  what must outlive the client runs in the background.
- Between an event and the end of its actions' start nothing is awaited.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Duty, Instance
from prfaas.engines.kinds import dialect_of
from prfaas.gateway.answer import Answer, Answered, ServerError
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import Response
from prfaas.gateway.api.openai import ApiRequest
from prfaas.gateway.api.streaming import EventStream
from prfaas.gateway.api.urgency import Urgency
from prfaas.gateway.live_request import LiveRequest
from prfaas.gateway.prompt.prompt_tokens import PromptTokens
from prfaas.gateway.prompt.tokenize import MAX_INLINE_CHARS, NotCountable
from prfaas.gateway.service import Service
from prfaas.gateway.tracing import RequestTracing
from prfaas.gateway.transfers import Transfers
from prfaas.gateway.upstream.clients import Engines, UpstreamDown
from prfaas.gateway.upstream.nodes import Nodes
from prfaas.gateway.upstream.params import OffloadSpec, decode_params
from prfaas.observe.spans import PhaseName

logger = logging.getLogger("prfaas.gateway")

#: A whole answer waits this long for the proof that goes into its headers; a stream does not wait.
MAX_PROOF_WAIT_S: Final = 2.0
#: After landed, a prefill engine has only its answer left to send.
PREFILL_LINGER_S: Final = 10.0


Leg = Coroutine[Any, Any, e.RequestEvent]


class Driver:
    """One gateway's. Everything runs in one event loop."""

    def __init__(self, service: Service, engines: Engines, nodes: Nodes) -> None:
        self.scheduler: Scheduler = service.scheduler
        self._service = service
        self._engines = engines
        self._transfers = Transfers(engines, nodes)
        self._live: dict[str, LiveRequest] = {}
        #: Whoever can give an instance another duty. Ends in `TopologyChanged` or in `ConversionRefused`.
        self.convert: Callable[[str, Duty], None] = self._cannot_convert
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s: float | None = None
        self._do: dict[type, Callable[[LiveRequest, Any], None]] = {
            a.CountPrompt: self._count_prompt,
            a.Reserve: self._reserve,
            a.Prefill: self._prefill,
            a.AwaitLanding: self._await_landing,
            a.StopPrefill: self._stop_prefill,
            a.RenewLease: self._renew_lease,
            a.Decode: self._decode,
            a.Refuse: self._refuse,
            a.SettleLanding: self._settle_landing,
            a.DropLanding: self._drop_landing,
            a.NoteUncached: lambda live, action: None,
            a.Close: self._close,
        }

    def feed(self, event: e.Event) -> None:
        """Something has happened."""
        now_s = time.monotonic()
        try:
            actions = self.scheduler.handle(event, now_s)
            self._see(event)
            self._service.journal.note(now_s, event, actions)
            for action in actions:
                if isinstance(action, a.FleetAction):
                    self._of_fleet(action)
                    continue
                live = self._live.get(action.request_id)
                if live is not None:
                    self._do[type(action)](live, action)
        finally:
            self._arm(now_s)

    def _of_fleet(self, action: a.FleetAction) -> None:
        if isinstance(action, a.Convert):
            # Not within an event: what comes of it is one.
            self._loop.call_soon(self.convert, action.instance, action.duty)

    async def serve(
        self, request: ApiRequest, urgency: Urgency, response: Response, tracing: RequestTracing, request_id: str
    ) -> e.AnswerEnded:
        """One client's request, to the last byte of its answer. Cancel it when the client has left."""
        stream = None
        if request.stream:
            stream = EventStream(response, self._service.deployment.gateway.keep_alive)
            stream.arm()
        live = LiveRequest(request_id, request, response, stream, tracing, PromptTokens(), urgency)
        self._live[request_id] = live
        try:
            self.feed(self._arrival(live))
            while live.ended is None:
                await self._next_work(live)
            await self._count_late(live)
            return live.ended
        finally:
            self._drop_late_count(live)
            if stream is not None:
                stream.disarm()

    def abandon(self, request_id: str, outcome: str, status: int | None = None, error: str | None = None) -> None:
        """The client's task was stopped before its answer was whole."""
        live = self._live.get(request_id)
        if live is not None and live.ended is None:
            if live.work is not None:
                live.work.close()
            self.feed(e.RequestAbandoned(request_id, outcome, status, error))

    def is_live(self, request_id: str) -> bool:
        """Whether something of a request of this id is still going on."""
        return request_id in self._live

    @property
    def num_live(self) -> int:
        """Requests of which something is still going on."""
        return len(self._live)

    def stop(self) -> None:
        """Set no more timers."""
        if self._timer is not None:
            self._timer.cancel()

    async def quiesce(self, request_id: str) -> None:
        """Let a comment that is on its way to the client finish, so that an error can follow it."""
        live = self._live.get(request_id)
        if live is not None and live.stream is not None:
            await live.stream.quiesce()

    async def _next_work(self, live: LiveRequest) -> None:
        while live.work is None:
            live.woken.clear()
            await live.woken.wait()
        work, live.work = live.work, None
        try:
            await work
        except ApiError as error:
            await self.quiesce(live.request_id)
            await live.response.error(error)
            status = live.response.status
            self.feed(e.AnswerEnded(live.request_id, outcome_of(error.status), status, error.message))

    def _cannot_convert(self, instance: str, duty: Duty) -> None:
        self.feed(e.ConversionRefused(instance, "nobody here converts instances"))

    def _arrival(self, live: LiveRequest) -> e.RequestArrived:
        request = live.request
        at_most = self._service.tokenizer.max_tokens(request)
        limit = self._service.model.max_model_tokens
        fits = at_most + (request.max_output_tokens or 1) <= limit
        return e.RequestArrived(
            live.request_id, secrets.token_hex(16), at_most, fits, request.obstacle, request.endpoint, request.stream,
            request.stripped, live.urgency.priority, live.urgency.tenant, live.urgency.max_ttft_s,
        )  # fmt: skip

    def _see(self, event: e.Event) -> None:
        """What the shell itself wants to know of an event."""
        if isinstance(event, e.AnswerEnded):
            live = self._live.get(event.request_id)
            if live is not None:
                live.ended = event
        elif isinstance(event, e.LandingSettled):
            live = self._live.get(event.request_id)
            if live is not None:
                live.proven.set()

    def _arm(self, now_s: float) -> None:
        due_s = self.scheduler.next_due_s
        if due_s == self._timer_due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_s, self._timer = due_s, None
        if due_s is not None:
            self._timer = self._loop.call_later(max(0.0, due_s - now_s), self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_due_s = None
        self.feed(e.Tick())

    # The client's own task

    def _count_prompt(self, live: LiveRequest, action: a.CountPrompt) -> None:
        if not action.is_late:
            live.do(self._count(live, action))
        elif len(live.request.raw) <= MAX_INLINE_CHARS:
            live.late_count = self._counted_late(live, action)
        else:
            # What is not counted by a defect of ours is not counted.
            self._leg(self._counted_late(live, action), e.PromptUncountable(live.request_id, None))

    async def _count(self, live: LiveRequest, action: a.CountPrompt) -> None:
        self.feed(await self._counted(live, action))

    async def _counted(self, live: LiveRequest, action: a.CountPrompt) -> e.PromptCounted | e.PromptUncountable:
        service = self._service
        limit = service.model.max_model_tokens
        try:
            live.prompt.take(await service.tokenizer.token_ids(live.request, limit))
        except NotCountable as unknown:
            return e.PromptUncountable(live.request_id, unknown.reason)
        finally:
            live.request.forget_values()
        seed, salt = service.deployment.transfer.hash.seed, live.request.cache_salt
        chains = live.prompt.chains(action.block_sizes, seed, salt)
        return e.PromptCounted(live.request_id, len(live.prompt.token_ids), chains)

    async def _counted_late(self, live: LiveRequest, action: a.CountPrompt) -> e.PromptCounted | e.PromptUncountable:
        try:
            return await self._counted(live, action)
        except ApiError:
            # A normalizer that expands may refute the bound: then the engine has had its say already.
            return e.PromptUncountable(live.request_id, None)

    async def _count_late(self, live: LiveRequest) -> None:
        """In the client's task: one of its own would cost as much as the count of a short prompt."""
        if live.late_count is None:
            return
        work, live.late_count = live.late_count, None
        counted: e.PromptCounted | e.PromptUncountable = e.PromptUncountable(live.request_id, None)
        try:
            # The answer's last bytes leave when the event loop gets its turn.
            await asyncio.sleep(0)
            counted = await work
        except Exception:
            logger.exception("counting failed request_id=%s", live.request_id)
        finally:
            work.close()
            self.feed(counted)

    def _drop_late_count(self, live: LiveRequest) -> None:
        """A defect ended the client's task before it came to its count."""
        if live.late_count is not None:
            live.late_count.close()
            live.late_count = None
            self.feed(e.PromptUncountable(live.request_id, None))

    def _decode(self, live: LiveRequest, action: a.Decode) -> None:
        self._tell_route(live, action.route.kind, action.route.reason)
        if action.is_landed:
            live.response.set_header(b"x-prfaas-kv-bytes", str(action.num_landed_bytes))
            self._let_linger(live)
        live.do(self._answer(live, action, self._member(action.instance)))

    async def _answer(self, live: LiveRequest, action: a.Decode, member: Instance) -> None:
        dialect = dialect_of(member.kind)
        url = member.engine_url + dialect.paths[live.request.endpoint]
        request_id, attempt = live.request_id, action.attempt
        answer = Answer(
            live.response,
            live.stream,
            on_first=lambda: self.feed(e.AnswerBegan(request_id, attempt)),
            before_whole=lambda: self._show_proof(live, action),
        )
        spec = live.spec if action.is_landed else None
        request, headers = live.request, live.tracing.headers(PhaseName.DECODE)
        request.forget_values()
        body = request.raw if spec is None else dialect.decode_body(request.raw, decode_params(spec))
        try:
            answered = await answer.send(self._engines, url, body, headers, spare_server_errors=action.is_landed)
        except UpstreamDown as error:
            if error.is_own:
                text = "the gateway has no connection left"
                raise ApiError(503, text, code="overloaded", retry_after_s=1) from error
            failure = Failure(FallbackReason.DECODE_UNREACHABLE, str(error), error.refused)
            self.feed(e.DecodeFailed(request_id, attempt, failure))
        except ServerError as error:
            self.feed(e.DecodeFailed(request_id, attempt, Failure(FallbackReason.DECODE_ERROR, str(error))))
        else:
            self.feed(_ended(live, answered))

    async def _show_proof(self, live: LiveRequest, action: a.Decode) -> None:
        if not action.is_landed:
            return
        try:
            async with asyncio.timeout(MAX_PROOF_WAIT_S):
                await live.proven.wait()
        except TimeoutError:
            pass
        story = self._service.stories.get(live.request_id)
        if story is not None and story.tokens_recomputed is not None:
            live.response.set_header(b"x-prfaas-tokens-recomputed", str(story.tokens_recomputed))

    def _refuse(self, live: LiveRequest, action: a.Refuse) -> None:
        self._tell_route(live, action.route.kind, action.route.reason)
        live.do(_refusal(action))

    def _tell_route(self, live: LiveRequest, kind: str, reason: str) -> None:
        live.response.set_header(b"x-prfaas-route", str(kind))
        live.response.set_header(b"x-prfaas-reason", str(reason))

    # What outlives the client

    def _reserve(self, live: LiveRequest, action: a.Reserve) -> None:
        self._tell_route(live, action.route.kind, action.route.reason)
        live.node_url = self._member(action.route.decode).kvnode_url
        live.spec = OffloadSpec(
            transfer_id=action.transfer_id,
            token_ids=live.prompt.token_ids,
            token_digest=live.prompt.digest,
            claim_secret=secrets.token_urlsafe(32),
            skip_tokens=action.skip_tokens,
            model=self._service.model.name,
            cache_salt=live.request.cache_salt,
            headers=live.tracing.headers(PhaseName.PREFILL),
            lease_s=action.lease_s,
        )
        self._service.stories.hide(live.request_id, live.spec.claim_secret)
        failure = Failure(FallbackReason.RESERVE_ERROR, "the reservation was stopped")
        self._leg(self._transfers.reserve(live), e.ReserveFailed(live.request_id, failure))

    def _prefill(self, live: LiveRequest, action: a.Prefill) -> None:
        member = self._member(action.instance)
        work = self._transfers.prefill(live, member, action.deadline_s)
        # Its failure counts only while it is waited for, and then it was not stopped.
        failure = Failure(FallbackReason.PREFILL_FAILED, "the prefill was stopped")
        live.prefilling = self._leg(work, e.PrefillEnded(live.request_id, failure))

    def _await_landing(self, live: LiveRequest, action: a.AwaitLanding) -> None:
        lease_s = self._service.deployment.transfer.lease
        failure = Failure(FallbackReason.LANDING_LOST, "the landing was no longer watched")
        work = self._transfers.watch(live, lease_s)
        live.watching = self._leg(work, e.LandingEnded(live.request_id, failure=failure))

    def _stop_prefill(self, live: LiveRequest, action: a.StopPrefill) -> None:
        for task in (live.prefilling, live.watching):
            if task is not None:
                task.cancel()

    def _let_linger(self, live: LiveRequest) -> None:
        if live.prefilling is not None and not live.prefilling.done():
            self._loop.call_later(PREFILL_LINGER_S, live.prefilling.cancel)

    def _renew_lease(self, live: LiveRequest, action: a.RenewLease) -> None:
        work = self._transfers.renew(live, action.lease_s)
        self._leg(work, e.LeaseRenewed(live.request_id, is_held=True))

    def _settle_landing(self, live: LiveRequest, action: a.SettleLanding) -> None:
        self._leg(self._transfers.settle(live), e.LandingSettled(live.request_id, None))

    def _drop_landing(self, live: LiveRequest, action: a.DropLanding) -> None:
        self._leg(self._transfers.drop(live), e.LandingDropped(live.request_id))

    def _leg(self, work: Leg, otherwise: e.RequestEvent) -> asyncio.Task[Any]:
        """Run it in the background and feed the event that it returns; `otherwise`, if it returns none."""
        task = self._service.background.spawn(work)

        def ended(task: asyncio.Task[Any]) -> None:
            returned = not task.cancelled() and task.exception() is None
            self.feed(task.result() if returned else otherwise)

        task.add_done_callback(ended)
        return task

    def _close(self, live: LiveRequest, action: a.Close) -> None:
        del self._live[live.request_id]
        story = self._service.stories.get(live.request_id)
        if story is not None:
            live.tracing.finish(story)

    def _member(self, name: str) -> Instance:
        return self.scheduler.fleet.instances[name].member


async def _refusal(action: a.Refuse) -> None:
    if action.code is a.RefusalCode.NO_HEALTHY_ENGINE:
        text = "no healthy engine can serve this model now"
        raise ApiError(503, text, code=action.code, retry_after_s=1)
    if action.code is a.RefusalCode.TOO_BUSY:
        raise ApiError(429, action.detail, code=action.code, retry_after_s=action.retry_after_s)
    raise ApiError(502, action.detail, code=action.code)


def _ended(live: LiveRequest, answered: Answered) -> e.AnswerEnded:
    status = live.response.status
    outcome = "ok" if status < 400 and answered.error is None else outcome_of(status)
    return e.AnswerEnded(live.request_id, outcome, status, answered.error, answered.completion_tokens)


def outcome_of(status: int) -> str:
    """What an answer with an error's status counts as."""
    if status in (429, 503):
        return "unavailable"
    return "error" if status >= 500 or status < 400 else "client_error"
