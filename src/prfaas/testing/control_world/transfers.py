"""How a simulated gateway reserves, prefills, watches, renews, settles and drops, and what each may meet on its way."""

from __future__ import annotations

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import FallbackReason as R
from prfaas.core.errors import Refused
from prfaas.core.transfer.landings import ClaimKey, Landing
from prfaas.core.wire.node_api import FINAL_STATES, LandingState
from prfaas.sim.kernel import Thunk
from prfaas.testing.control_world.gateway import Gateway, Job, failed
from prfaas.testing.control_world.menu import Fault
from prfaas.testing.control_world.site import FINGERPRINT, Site
from prfaas.testing.control_world.work import Work

BYTES_PER_TOKEN = 100
#: How long a settlement waits for the engine's final record, and how often it looks.
FINAL_RECORD_WAIT_S = 5.0
FINAL_RECORD_LOOK_S = 0.5
DROP_ATTEMPTS = 3
#: A lost renewal is told as late as this.
RENEWAL_LOST_S = 1.0
#: Both ends give a stalled transfer up after this.
PEER_LOST_S = 6.0
HELD_STATES = (LandingState.RESERVED, LandingState.RECEIVING, LandingState.LANDED)


def claim_key(job: Job) -> ClaimKey:
    return ClaimKey(job.num_tokens, job.transfer_id, job.transfer_id)


def reserve(gateway: Gateway, job: Job, action: a.Reserve) -> None:
    site = job.node = gateway.places.site(action.route.decode)
    job.skip_tokens, job.lease_s = action.skip_tokens, action.lease_s
    work = gateway.begin(job, "reserve")
    size = (action.num_prompt_tokens - action.skip_tokens) * BYTES_PER_TOKEN

    def fails(reason: R, delay_s: float, *, refused: bool = False) -> None:
        work.ends(e.ReserveFailed(job.request_id, failed(reason, refused=refused)), delay_s)

    def arrives() -> None:
        if not site.node_up:
            gateway.met(Fault.RESERVE_NODE_DOWN, job.request_id)
            fails(R.NODE_UNREACHABLE, gateway.dice.hop_s(), refused=True)
        elif not site.has_engine:
            fails(R.NO_ENGINE, gateway.dice.hop_s())
        elif gateway.strikes(Fault.RESERVE_REFUSED, job.request_id):
            fails(gateway.dice.random.choice((R.ARENA_FULL, R.TOO_MANY_LANDINGS, R.RESERVE_ERROR)), 0.01)
        else:
            try:
                landing = site.reserve(
                    job.transfer_id, claim_key(job), size, action.skip_tokens, gateway.kernel.now_s, action.lease_s
                )
            except Refused as refusal:
                gateway.met(Fault.RESERVE_REFUSED, job.request_id)
                fails(R(refusal.code), gateway.dice.hop_s())
            else:
                _reserved(gateway, job, work, site, landing)

    gateway.node_may_die(site, 0.2)
    gateway.member_may_depart(action.route.prefill)
    gateway.kernel.after(gateway.dice.hop_s(), arrives)


def _reserved(gateway: Gateway, job: Job, work: Work, site: Site, landing: Landing) -> None:
    account = gateway.books.accounts[job.request_id]
    account.landing, job.boot_id = landing, site.boot_id
    num_bytes, delay_s = landing.extent.size, gateway.dice.hop_s()
    if gateway.dice.strikes(1.5):
        delay_s = _long_s(gateway)

        def lost() -> None:
            gateway.met(Fault.RESERVE_ANSWER_LOST, job.request_id)
            work.ends(e.ReserveFailed(job.request_id, failed(R.NODE_UNREACHABLE)), 0.0)

        account.is_late_to_renew = True
        gateway.kernel.after(delay_s, lost)
        return
    if gateway.strikes(Fault.RESERVE_HANGS, job.request_id, 2.0):
        delay_s = _long_s(gateway)
        account.is_late_to_renew = True
    elif gateway.strikes(Fault.LANDING_HAS_NO_BYTES, job.request_id):
        num_bytes = 0
    work.ends(e.LandingReserved(job.request_id, num_bytes, site.block_tokens, site.boot_id, site.kinds), delay_s)


def _long_s(gateway: Gateway) -> float:
    """Within the transfer's deadline, or behind it."""
    low_s, high_s = gateway.dice.random.choice(((0.5, 6.0), (12.0, 15.0)))
    return gateway.dice.random.uniform(low_s, high_s)


def await_landing(gateway: Gateway, job: Job, action: a.AwaitLanding) -> None:
    site = _node(job)
    work = job.watch = gateway.begin(job, "watch")
    work.on_stop = lambda: site.unwatch(job.transfer_id)

    def ended(failure: R | None, num_bytes: int, delay_s: float) -> None:
        what = None if failure is None else failed(failure)
        work.ends(e.LandingEnded(job.request_id, num_bytes, what), delay_s)

    def seen(landing: Landing | None, alive: bool) -> None:
        hop_s = gateway.dice.hop_s()
        if not alive:
            ended(R.NODE_UNREACHABLE, 0, hop_s)
        elif landing is None:
            ended(R.LANDING_LOST, 0, hop_s)
        elif landing.state is LandingState.LANDED:
            is_empty = not work.is_over and gateway.strikes(Fault.LANDING_HAS_NO_BYTES, job.request_id, 0.3)
            ended(None, 0 if is_empty else landing.extent.size, hop_s)
        else:
            ended(R.LANDING_EXPIRED if landing.state is LandingState.EXPIRED else R.LANDING_ABORTED, 0, hop_s)

    def arrives() -> None:
        if work.is_over:
            return
        if gateway.strikes(Fault.WATCH_LOST, job.request_id):
            ended(R.NODE_UNREACHABLE, 0, gateway.dice.random.uniform(0.1, 3.0))
        else:
            site.watch(job.transfer_id, seen)

    gateway.kernel.after(gateway.dice.hop_s(), arrives)


def stop_prefill(gateway: Gateway, job: Job, action: a.StopPrefill) -> None:
    for work in (job.prefill, job.watch):
        if work is not None:
            work.stop()


def renew_lease(gateway: Gateway, job: Job, action: a.RenewLease) -> None:
    site, work = _node(job), gateway.begin(job, "renew")
    account = gateway.books.accounts[job.request_id]
    # Losses come in rows, as they do while a network is partitioned.
    if gateway.strikes(Fault.RENEWAL_LOST, job.request_id, 30.0 if account.num_renewals_lost else 2.0):
        account.num_renewals_lost += 1
        work.ends(e.LeaseRenewed(job.request_id, True), RENEWAL_LOST_S)
        return

    def arrives() -> None:
        is_held = True
        if site.node_up:
            landing = site.ledger.renew(job.transfer_id, gateway.kernel.now_s, action.lease_s)
            is_held = landing is None or landing.state in HELD_STATES
        work.ends(e.LeaseRenewed(job.request_id, is_held), gateway.dice.hop_s())

    gateway.kernel.after(gateway.dice.hop_s(), arrives)


def settle_landing(gateway: Gateway, job: Job, action: a.SettleLanding) -> None:
    site, work = _node(job), gateway.begin(job, "settle")
    waits_until_s = gateway.kernel.now_s + FINAL_RECORD_WAIT_S

    def unknown(delay_s: float) -> None:
        work.ends(e.LandingSettled(job.request_id, None), delay_s)

    def looks() -> None:
        landing = site.ledger.find(job.transfer_id) if site.node_up else None
        if landing is not None and landing.state not in FINAL_STATES and gateway.kernel.now_s < waits_until_s:
            gateway.kernel.after(FINAL_RECORD_LOOK_S, looks)
            return
        if landing is not None and landing.state not in FINAL_STATES:
            landing = site.drop(job.transfer_id, "released by the gateway")
        if landing is None:
            unknown(gateway.dice.hop_s())
        elif gateway.dice.strikes(3.0):
            gateway.kernel.after(gateway.dice.random.uniform(0.02, 5.0), lost)
        else:
            record = e.FinalRecord(
                landing.state, landing.reason, landing.tokens_loaded, landing.tokens_recomputed, landing.bytes_repeated
            )
            work.ends(e.LandingSettled(job.request_id, record), gateway.dice.hop_s())

    def lost() -> None:
        gateway.met(Fault.SETTLE_ANSWER_LOST, job.request_id)
        unknown(0.0)

    gateway.node_may_die(site)
    gateway.kernel.after(gateway.dice.hop_s(), looks)


def drop_landing(gateway: Gateway, job: Job, action: a.DropLanding) -> None:
    site, work = _node(job), gateway.begin(job, "drop")
    num_left = DROP_ATTEMPTS

    def arrives() -> None:
        nonlocal num_left
        num_left -= 1
        is_lost = gateway.strikes(Fault.DROP_LOST, job.request_id, 4.0)
        if site.node_up and not is_lost:
            site.drop(job.transfer_id, "released by the gateway")
            if not gateway.strikes(Fault.DROP_ANSWER_LOST, job.request_id):
                work.ends(e.LandingDropped(job.request_id), gateway.dice.hop_s())
                return
        if num_left:
            gateway.kernel.after(0.2, arrives)
            return
        account = gateway.books.accounts.get(job.request_id)
        landing = site.ledger.find(job.transfer_id)
        if landing is not None and landing.state not in FINAL_STATES:
            assert account is not None
            account.is_drop_lost = True
            site.orphans[job.transfer_id] = None
        work.ends(e.LandingDropped(job.request_id), gateway.dice.hop_s())

    gateway.node_may_die(site, 0.3)
    gateway.kernel.after(gateway.dice.hop_s(), arrives)


def prefill(gateway: Gateway, job: Job, action: a.Prefill) -> None:
    source = gateway.places.site(action.instance)
    work = job.prefill = gateway.begin(job, "prefill")
    ended = e.PrefillEnded(job.request_id)
    work.on_stop = lambda: work.then(ended, gateway.dice.hop_s())

    def arrives() -> None:
        if work.is_over:
            return
        if source.engine_up:
            Prefilling(gateway, job, work, source, _node(job)).begin()
        else:
            gateway.met(Fault.PREFILL_ENGINE_DOWN, job.request_id)
            down = failed(R.PREFILL_UNREACHABLE, refused=True)
            work.ends(e.PrefillEnded(job.request_id, down), gateway.dice.hop_s())

    gateway.kernel.after(gateway.dice.hop_s(), arrives)


class Prefilling:
    """A prompt in a prefill engine, and its KVCache on the way to another node."""

    def __init__(self, gateway: Gateway, job: Job, work: Work, source: Site, target: Site) -> None:
        self.gateway, self.job, self.work, self.source, self.target = gateway, job, work, source, target
        self.target_life = target.node_life
        self.is_sending = True
        self.is_staged = False
        self.leg = source.add_leg(self.engine_died)
        self.send = source.add_send(self.node_died)

    def begin(self) -> None:
        dice, request_id = self.gateway.dice, self.job.request_id
        self.work.on_stop = self.stopped
        compute_s = dice.span_s(0.02, 5.0)
        if self.gateway.strikes(Fault.PREFILL_SERVER_ERROR, request_id):
            self._later(compute_s, lambda: self.answers(R.PREFILL_HTTP_ERROR))
        elif self.gateway.strikes(Fault.PREFILL_ZERO_BYTES, request_id):
            self._later(compute_s, lambda: self.answers(R.ZERO_BYTES))
        elif not self.source.node_up or self.gateway.strikes(Fault.NO_LANE, request_id):
            self.is_sending = False
            self._later(compute_s, lambda: self.answers(R.PREFILL_FAILED))
        else:
            open_s = dice.hop_s()
            self._later(open_s, self.opens)
            self._later(open_s + compute_s, self.staged)

    def opens(self) -> None:
        """The sender shows its token."""
        size = (self.job.num_tokens - self.job.skip_tokens) * BYTES_PER_TOKEN
        if not self.is_there:
            self.is_sending = False
            return
        try:
            self.target.ledger.open(self.source.url, self.job.transfer_id, self.job.transfer_id, size, FINGERPRINT)
        except Refused:
            self.is_sending = False

    @property
    def is_there(self) -> bool:
        """The receiving node still lives the life in which it reserved."""
        return self.target.node_up and self.target.node_life == self.target_life

    def staged(self) -> None:
        """The engine has computed everything."""
        if self.work.is_over:
            return
        if not self.is_sending:
            self.answers(R.PREFILL_FAILED)
            return
        self.is_staged = True
        dice, request_id = self.gateway.dice, self.job.request_id
        if dice.strikes(2.0):
            self._later(dice.random.uniform(0.0, 8.0), self.answer_lost)
        else:
            self._later(dice.span_s(0.0, 4.0), lambda: self.answers(None))
        if dice.strikes():
            self._later(dice.span_s(0.0, 8.0), lambda: self.gateway.places.engine_dies(self.source))
        link_s = dice.span_s(0.0, 4.0)
        if self.gateway.strikes(Fault.LINK_TOO_SLOW, request_id, 3.0):
            link_s = dice.random.uniform(4.0, 16.0)
        if self.gateway.strikes(Fault.BYTES_NEVER_LAND, request_id, 2.0):
            return
        if self.gateway.strikes(Fault.LANE_BREAKS, request_id):
            link_s += 0.2
        if self.gateway.strikes(Fault.TRANSFER_ABORTED, request_id):
            self._later(link_s, lambda: self.gives_up("nine chunks were damaged"))
        else:
            self._later(link_s, self.lands)

    def lands(self) -> None:
        """The last byte comes in, unless the link stands still."""
        if not self.is_sending or not self.is_there:
            return
        stall_s = self.gateway.places.stall_left_s(self.source)
        landing = self.target.ledger.find(self.job.transfer_id)
        if stall_s > 0.0:
            self.gateway.met(Fault.LINK_STALLS, self.job.request_id)
        if stall_s > PEER_LOST_S:
            self._later(PEER_LOST_S, lambda: self.gives_up("link is lost"))
        elif stall_s > 0.0:
            self._later(stall_s, self.lands)
        elif landing is not None:
            self.is_sending = False
            self.source.end_send(self.send)
            self.target.fill(landing, self.source.url, self.gateway.kernel.now_s)

    def gives_up(self, reason: str) -> None:
        """The sending node aborts the transfer; the receiving one hears of it."""
        if self.is_sending:
            self.is_sending = False
            self.source.end_send(self.send)
            self._later(self.gateway.dice.hop_s(), lambda: self.aborted(reason))

    def aborted(self, reason: str) -> None:
        landing = self.target.ledger.find(self.job.transfer_id) if self.is_there else None
        if landing is not None and landing.state in (LandingState.RESERVED, LandingState.RECEIVING):
            self.target.drop(self.job.transfer_id, reason)

    def answers(self, failure: R | None) -> None:
        self.source.end_leg(self.leg)
        if failure is not None:
            self.gives_up("the engine failed")
        what = None if failure is None else failed(failure)
        self.work.ends(e.PrefillEnded(self.job.request_id, what), self.gateway.dice.hop_s())

    def answer_lost(self) -> None:
        if not self.work.is_over:
            self.gateway.met(Fault.PREFILL_ANSWER_LOST, self.job.request_id)
            self.source.end_leg(self.leg)
            self.work.ends(e.PrefillEnded(self.job.request_id, failed(R.PREFILL_UNREACHABLE)), 0.0)

    def engine_died(self) -> None:
        """Its node frees the staging and aborts the transfer, unless everything is staged."""
        if self.work.is_over:
            return
        self.gateway.met(Fault.PREFILL_ENGINE_DIES, self.job.request_id)
        if not self.is_staged:
            self.gives_up("the prefill engine is gone")
        what = failed(R.PREFILL_UNREACHABLE, refused=self.gateway.dice.chance(0.3))
        self.work.ends(e.PrefillEnded(self.job.request_id, what), self.gateway.dice.hop_s())

    def node_died(self) -> None:
        """The receiving node misses it a few seconds later."""
        if self.is_sending:
            self.gateway.met(Fault.SENDING_NODE_DIES, self.job.request_id)
            self.is_sending = False
            self._later(self.gateway.dice.random.uniform(3.0, PEER_LOST_S), lambda: self.aborted("link is lost"))

    def stopped(self) -> None:
        """The gateway closed the connection: the engine stops computing. What is staged may land all the same."""
        self.source.end_leg(self.leg)
        if not self.is_staged:
            self.gives_up("the prefill was stopped")
        self.work.then(e.PrefillEnded(self.job.request_id), self.gateway.dice.hop_s())

    def _later(self, delay_s: float, thunk: Thunk) -> None:
        self.gateway.kernel.after(delay_s, thunk)


def _node(job: Job) -> Site:
    assert job.node is not None, "only a transfer has a node"
    return job.node
