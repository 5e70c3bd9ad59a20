"""A scheduler in the hands of a test: instances that were seen, one request, events and what follows from them."""

from __future__ import annotations

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.request import Request, RequestState
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology, complete_links

TERMS = TransferTerms(deadline_s=10.0, lease_s=9.0)
POLICY = RoutePolicy(offload=True, threshold_tokens=100)
BLOCK = 16
ONE_OF_EACH = ("west-0 prefill", "pd-0 both")
TWO_DECODERS = ("west-0 prefill", "pd-0 both", "pd-1 both")
PD_PREFILL = ("west-0 prefill", "pd-0 decode", "pd-p prefill")


def member(text: str, url: str = "") -> Instance:
    """From "name duty"; names that begin with `west` stand in the PrfaaS cluster."""
    name, duty = text.split()
    cluster = "west" if name.startswith("west") else "pd"
    return Instance(name, cluster, Duty(duty), url or f"http://{name}", f"{url or 'http://' + name}/node", f"{name}:1")


def topology_of(*members: Instance | str) -> Topology:
    clusters = (Cluster("west", Role.PRFAAS), Cluster("pd", Role.PD))
    instances = tuple(member(m) if isinstance(m, str) else m for m in members)
    return Topology(clusters, instances, complete_links(clusters, ()))


def chain(num_tokens: int) -> dict[int, TokenChain]:
    """All of these prompts begin alike."""
    names = tuple(str(index).encode() for index in range(num_tokens // BLOCK))
    return {BLOCK: TokenChain(num_tokens, BLOCK, names)}


def failure(reason: str = "prefill_http_error", *, refused: bool = False) -> Failure:
    return Failure(FallbackReason(reason), "as the test says", refused)


class Drive:
    """Request `r` unless a test says otherwise. After every event the scheduler's invariants are checked."""

    def __init__(self, *members: Instance | str, policy: RoutePolicy = POLICY, seen: bool = True) -> None:
        self.now_s = 100.0
        self.scheduler = Scheduler(topology_of(*(members or ONE_OF_EACH)), policy, TERMS)
        if seen:
            for instance in self.scheduler.fleet.all:
                self.see(instance.name)

    def see(self, name: str, *, boot: str = "life-1", load: int | None = None) -> None:
        """Engine and node answer a probe."""
        self.feed(e.EngineSeen(name, True, load))
        self.feed(e.NodeSeen(name, True, BLOCK, boot, ("full_attention",)))

    def feed(self, event: e.Event, after_s: float = 0.0) -> list[a.Action]:
        self.now_s += after_s
        actions = self.scheduler.handle(event, self.now_s)
        self.scheduler.check()
        return actions

    def arrives(self, num_tokens: int = 500, *, request_id: str = "r", **facts: object) -> list[a.Action]:
        """A request, and its count if it is asked for. Returns what follows."""
        arrived = e.RequestArrived(request_id, f"{request_id}/t", num_tokens, **facts)  # type: ignore[arg-type]
        actions = self.feed(arrived)
        if any(isinstance(action, a.CountPrompt) and not action.is_late for action in actions):
            actions = self.feed(e.PromptCounted(request_id, num_tokens, chain(num_tokens)))
        return actions

    def to(self, state: RequestState, num_tokens: int = 500) -> None:
        """Bring request `r` there, along the way of a prompt that is prefilled elsewhere."""
        self.arrives(num_tokens)
        if state is RequestState.RESERVING:
            return
        self.feed(e.LandingReserved("r", 1000, BLOCK, "life-1", ("full_attention",)))
        if state is RequestState.PREFILLING:
            return
        self.feed(e.PrefillEnded("r"))
        self.feed(e.LandingEnded("r", 1000))
        if state is RequestState.LOADING:
            return
        self.feed(e.AnswerBegan("r", 1))
        assert state is RequestState.ANSWERING, "this way leads to no other state"

    @property
    def request(self) -> Request:
        return self.scheduler.requests["r"]

    @property
    def is_closed(self) -> bool:
        return "r" not in self.scheduler.requests

    def at(self, name: str) -> tuple[int, int]:
        """Requests and landings at an instance."""
        instance = self.scheduler.fleet.instances[name]
        return instance.num_inflight, instance.num_landings


def told(actions: list[a.Action]) -> list[str]:
    """Actions in short, with the instance that each is about."""
    return [f"{type(x).__name__} {getattr(x, 'instance', '') or getattr(x, 'decode', '')}".rstrip() for x in actions]
