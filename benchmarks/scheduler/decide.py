"""`python -m benchmarks.scheduler.decide`: how long `Scheduler.handle` takes, by the size of the fleet.

Requests come, wait, are bound, prefilled and answered; every event is timed. The policy moves the threshold, prompts
are of 200 conversations, and instances hold what they have computed. With `--rounds` the same events come several
times to new schedulers, and of each the least time counts: what others do on the machine is left out.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Iterator
from typing import Final

from prfaas.core.cache.engine_cache import EngineCache
from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens
from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.instance import MAX_RECORD_BLOCKS
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links

#: Kimi Linear's attention blocks; and its KV groups.
BLOCK_TOKENS: Final = 544
KINDS: Final = ("full_attention", "linear_state")


def topology(num_clusters: int, num_instances: int) -> Topology:
    """As many PrfaaS as PD clusters, of which half of the instances prefill."""
    clusters, members = [], []
    for number in range(num_clusters):
        for role, name in ((Role.PRFAAS, f"w{number}"), (Role.PD, f"p{number}")):
            clusters.append(Cluster(name, role))
            for index in range(num_instances):
                duty = Duty.PREFILL if role is Role.PRFAAS or index % 2 else Duty.DECODE
                members.append(Instance(f"{name}-{index}", name, duty, f"{name}{index}", f"{name}{index}n", "l"))
    links = [Link(f"w{a}", f"p{b}", 1e10, 0.02) for a in range(num_clusters) for b in range(num_clusters)]
    return Topology(tuple(clusters), tuple(members), complete_links(clusters, links))


def chains(rng: random.Random) -> tuple[int, dict[int, TokenChain]]:
    """Prompts of 200 conversations; each holds what the conversation had before, or a part of it."""
    conversation, num_tokens = rng.randrange(200), rng.randint(100, 60_000)
    names = tuple(conversation * 1_000_000 + index for index in range(num_tokens // BLOCK_TOKENS))
    hashes = tuple(name.to_bytes(32) for name in names)
    return num_tokens, {BLOCK_TOKENS: TokenChain(num_tokens, BLOCK_TOKENS, hashes)}


def scheduler(fleet: Topology) -> Scheduler:
    """All of whose instances work."""
    curve = polynomial(0.1, 1e-4)
    model = ServingModel({c.name: ClusterModel(curve, 20, 0.025) for c in fleet.clusters}, polynomial(0.0, 1e4), 100.0)
    made = Scheduler(fleet, RoutePolicy(True, 10_000, model), TransferTerms(60.0, 30.0))
    for member in fleet.instances:
        made.handle(e.EngineSeen(member.name, True), 0.0)
        made.handle(e.NodeSeen(member.name, True, BLOCK_TOKENS, "life", KINDS), 0.0)
    return made


def timed(scheduler: Scheduler, num_requests: int) -> dict[str, list[float]]:
    """Seconds by kind of event. Ten thousand a second come, so that some wait; most answers are still being given when
    the last one comes."""
    rng, now_s, seconds = random.Random(1), 1.0, dict[str, list[float]]()
    todo: list[e.Event] = []

    def handle(event: e.Event) -> None:
        began_s = time.perf_counter()
        actions = scheduler.handle(event, now_s)
        seconds.setdefault(type(event).__name__, []).append(time.perf_counter() - began_s)
        for action in actions:
            todo.extend(results(action))

    for number in range(num_requests):
        now_s += 0.001
        name = f"r{number}"
        handle(e.RequestArrived(name, name, 100_000))
        handle(e.PromptCounted(name, *chains(rng)))
        rng.shuffle(todo)
        for event in [todo.pop() for _ in range(min(len(todo), 8))]:
            handle(event)
        due_s = scheduler.next_due_s
        if due_s is not None and due_s <= now_s:
            handle(e.Tick())
    return seconds


def results(action: a.Action) -> Iterator[e.Event]:
    """What comes of it."""
    if isinstance(action, a.FleetAction):
        return
    name = action.request_id
    if isinstance(action, a.Reserve):
        yield e.LandingReserved(name, 1_000, BLOCK_TOKENS, "life", KINDS)
    elif isinstance(action, a.Prefill):
        yield e.PrefillEnded(name)
        yield e.LandingEnded(name, 1_000)
    elif isinstance(action, a.Decode):
        yield e.AnswerBegan(name, action.attempt)


def hashed_and_matched(num_prompts: int) -> None:
    """A prompt of 128K tokens, packed, cut into named blocks, and looked up in one instance that holds half of it."""
    print("| tokens a block | pack and hash p50, ms | match p50, ms |\n|---|---|---|")
    rng = random.Random(1)
    for block_tokens in (16, 256, BLOCK_TOKENS):
        hashing_s, matching_s = [], []
        for _ in range(num_prompts):
            tokens = [rng.randrange(150_000) for _ in range(131_072)]
            began_s = time.perf_counter()
            chain = chain_tokens(pack_tokens(tokens), block_tokens, "prfaas")
            hashing_s.append(time.perf_counter() - began_s)
            cache = EngineCache(MAX_RECORD_BLOCKS)
            cache.observe_kinds(KINDS)
            cache.ran_locally(TokenChain(65_536, block_tokens, chain.hashes[: 65_536 // block_tokens]))
            began_s = time.perf_counter()
            match = cache.match(chain)
            matching_s.append(time.perf_counter() - began_s)
            assert match.attention_prefix_tokens == 65_536 // block_tokens * block_tokens
        print(
            f"| {block_tokens} | {statistics.median(hashing_s) * 1e3:.2f} | {statistics.median(matching_s) * 1e3:.3f} |"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print("| clusters of each kind | instances each | event | number | p50, ms | p99, ms |\n|---|---|---|---|---|---|")
    for num_clusters, num_instances in ((1, 4), (1, 100), (4, 25), (10, 100)):
        rounds = []
        for _ in range(options.rounds):
            made = scheduler(topology(num_clusters, num_instances))
            gc.collect()
            rounds.append(timed(made, options.requests))
        by_kind = {
            kind: [min(one) for one in zip(*(times[kind] for times in rounds), strict=True)] for kind in rounds[0]
        }
        shown = {"all": [s for times in by_kind.values() for s in times], "PromptCounted": by_kind["PromptCounted"]}
        for kind, times in shown.items():
            ordered = sorted(times)
            p50_s, p99_s = statistics.median(ordered), ordered[len(ordered) * 99 // 100]
            size = f"| {num_clusters} | {num_instances} | {kind} | {len(ordered)}"
            print(f"{size} | {p50_s * 1e3:.3f} | {p99_s * 1e3:.2f} |", flush=True)
    print()
    hashed_and_matched(15)


if __name__ == "__main__":
    main()
