"""How a simulated gateway counts a prompt, has it decoded, and refuses, and what each may meet on its way."""

from __future__ import annotations

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import FallbackReason as R
from prfaas.core.errors import Refused
from prfaas.sim.kernel import Thunk
from prfaas.testing.control_world.gateway import Gateway, Job, failed
from prfaas.testing.control_world.menu import Fault
from prfaas.testing.control_world.site import Site
from prfaas.testing.control_world.transfers import claim_key
from prfaas.testing.control_world.work import Work


def count_prompt(gateway: Gateway, job: Job, action: a.CountPrompt) -> None:
    request_id = job.request_id
    work = gateway.begin(job, "late count") if action.is_late else gateway.begin(job, "count")
    counted = e.PromptCounted(request_id, job.num_tokens, job.chains(job.num_tokens, action.block_sizes))
    count_s = gateway.dice.span_s(0.001, 0.3)
    if action.is_late:
        fails = gateway.strikes(Fault.LATE_COUNT_FAILS, request_id, 5.0)
        work.ends(e.PromptUncountable(request_id, None) if fails else counted, count_s)
    elif job.is_over_long:
        gateway.met(Fault.TOO_LONG, request_id)
        work.ends(e.AnswerEnded(request_id, "client_error", 400, "too long"), count_s)
    elif not job.is_countable:
        gateway.met(Fault.UNCOUNTABLE, request_id)
        work.ends(e.PromptUncountable(request_id, "chat_template"), count_s)
    else:
        work.ends(counted, count_s)


def refuse(gateway: Gateway, job: Job, action: a.Refuse) -> None:
    work = gateway.begin(job, "refuse")
    is_down = action.code is a.RefusalCode.NO_HEALTHY_ENGINE
    outcome, status = ("unavailable", 503) if is_down else ("error", 502)
    work.ends(e.AnswerEnded(job.request_id, outcome, status, str(action.code)), gateway.dice.span_s(0.0005, 0.3))


def decode(gateway: Gateway, job: Job, action: a.Decode) -> None:
    site = gateway.places.site(action.instance)
    work = gateway.begin(job, "decode")

    def arrives() -> None:
        if work.is_over:
            return
        if site.engine_up:
            Leg(gateway, job, work, site, action).begin()
        else:
            gateway.met(Fault.DECODE_ENGINE_DOWN, job.request_id)
            down = failed(R.DECODE_UNREACHABLE, refused=gateway.dice.chance(0.7))
            work.ends(e.DecodeFailed(job.request_id, action.attempt, down), gateway.dice.hop_s())

    gateway.kernel.after(gateway.dice.hop_s(), arrives)


class Leg:
    """One decode leg inside one life of an engine. Its answer comes back over one connection, so in order."""

    def __init__(self, gateway: Gateway, job: Job, work: Work, site: Site, action: a.Decode) -> None:
        self.gateway, self.job, self.work, self.site, self.action = gateway, job, work, site, action
        self.hop_s = gateway.dice.hop_s()
        self.has_begun = False
        self.holds = False
        self.boot_id = site.boot_id
        self.node_life = site.node_life
        self.number = site.add_leg(self.died)

    def begin(self) -> None:
        dice, request_id = self.gateway.dice, self.job.request_id
        self.work.on_stop = self.stopped
        if self.gateway.strikes(Fault.DECODE_REFUSES, request_id):
            self.ends(e.AnswerEnded(request_id, "client_error", 400, "refused"))
        elif self.gateway.strikes(Fault.DECODE_SERVER_ERROR, request_id):
            if self.action.is_landed:
                self.fails(R.DECODE_ERROR)
            else:
                self.ends(e.AnswerEnded(request_id, "error", 500, "server error"))
        elif self.gateway.strikes(Fault.DECODE_BREAKS, request_id):
            self.later(dice.span_s(0.0, 2.0), lambda: self.fails(R.DECODE_UNREACHABLE))
        elif self.action.is_landed:
            self.later(dice.span_s(0.0, 12.0), self.claims)
        else:
            self.later(dice.span_s(0.01, 4.0), self.answers)

    def claims(self) -> None:
        """The engine asks its node for the landing. What it cannot load it computes."""
        if self.work.is_over:
            return
        site, key = self.site, claim_key(self.job)
        is_registered = site.has_engine and site.registered_life == site.engine_life
        # What was to be skipped may have gone from the engine's cache meanwhile.
        is_lacking = bool(self.job.skip_tokens) and self.job.boot_id != site.boot_id
        if not is_registered or is_lacking or self.gateway.strikes(Fault.NOT_LOADED, self.job.request_id):
            if site.node_up:
                site.ledger.declined(self.job.transfer_id, key.secret, "not loaded", self.job.num_tokens)
            self.later(self.gateway.dice.span_s(0.01, 3.0), self.answers)
            return
        self.boot_id, self.node_life = site.boot_id, site.node_life
        try:
            site.ledger.claim(self.job.transfer_id, self.boot_id, key)
        except Refused:
            self.later(self.gateway.dice.span_s(0.01, 3.0), self.answers)
            return
        self.holds = True
        self.later(self.gateway.dice.span_s(0.01, 2.0), self.loaded)

    def loaded(self) -> None:
        self.lets_go()
        self.answers()

    def lets_go(self) -> None:
        """The engine reads the arena no more. Of no effect if it or the node has died meanwhile."""
        if self.holds and self.site.node_up and self.site.node_life == self.node_life:
            self.site.ledger.consumed(self.job.transfer_id, self.boot_id, self.job.num_tokens - 1, 1)
        self.holds = False

    def answers(self) -> None:
        """The first byte leaves the engine."""
        if self.work.is_over:
            return
        self.has_begun = True
        self.work.then(e.AnswerBegan(self.job.request_id, self.action.attempt), self.hop_s)
        stream_s = self.gateway.dice.span_s(0.01, 6.0)
        if self.gateway.dice.strikes():
            self.later(stream_s, self.breaks)
        else:
            ok = e.AnswerEnded(self.job.request_id, "ok", 200, completion_tokens=16)
            self.later(stream_s, lambda: self.ends(ok))

    def breaks(self) -> None:
        """After the first byte the client gets an answer that is cut."""
        if not self.work.is_over:
            self.gateway.met(Fault.DECODE_BREAKS, self.job.request_id)
            self.ends(e.AnswerEnded(self.job.request_id, "error", 200, "cut"))

    def fails(self, reason: R, *, refused: bool = False) -> None:
        what = failed(reason, refused=refused)
        self.ends(e.DecodeFailed(self.job.request_id, self.action.attempt, what))

    def ends(self, event: e.RequestEvent) -> None:
        self.site.end_leg(self.number)
        self.work.ends(event, self.hop_s)

    def died(self) -> None:
        """With its engine."""
        self.holds = False
        if self.work.is_over:
            return
        if self.has_begun:
            self.ends(e.AnswerEnded(self.job.request_id, "error", 200, "cut"))
        else:
            self.fails(R.DECODE_UNREACHABLE, refused=self.gateway.dice.chance(0.3))

    def stopped(self) -> None:
        """The client has left: the engine aborts the request, when it has loaded what it is loading."""
        self.site.end_leg(self.number)
        self.later(self.gateway.dice.hop_s(), self.lets_go)

    def later(self, delay_s: float, thunk: Thunk) -> None:
        self.gateway.kernel.after(delay_s, thunk)
