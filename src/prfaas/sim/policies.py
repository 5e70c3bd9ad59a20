"""How others choose, to compare with: each takes one of the ways that a prompt has. See docs/simulation.md.

A policy that keeps a count or draws is made anew for each run, from the run's seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final
from zlib import crc32

from prfaas.core.control.route import Choose, Option, Prompt, RouteKind

#: llm-d's decider: more uncached tokens than this are prefilled elsewhere.
LLM_D_TOKENS: Final = 16
#: Dynamo's conditional disaggregation: more uncached tokens than this, and more than this share of the prompt.
DYNAMO_TOKENS: Final = 2_048
DYNAMO_SHARE: Final = 0.7
#: GORGO's learned weights of a round trip and of what queues (arXiv 2602.11688).
GORGO_RTT: Final = 0.276
GORGO_QUEUE: Final = 0.5


def _usual(options: Sequence[Option]) -> Sequence[Option]:
    """Without an engine that computes itself though instances of its cluster prefill for it."""
    if not any(option.kind is RouteKind.PD_PREFILL for option in options):
        return options
    return [option for option in options if option.kind is not RouteKind.LOCAL]


def _of(kind: RouteKind, options: Sequence[Option]) -> Option:
    """The shortest wait on ways of one kind; where there is none, of all."""
    wanted = [option for option in options if option.kind is kind]
    return min(wanted or _usual(options), key=lambda option: option.wait_s)


def _at_home(options: Sequence[Option]) -> Option:
    """In the PD cluster: by an instance that prefills, else by the one that decodes."""
    home = [option for option in options if option.kind is RouteKind.PD_PREFILL]
    return _of(RouteKind.PD_PREFILL if home else RouteKind.LOCAL, options)


def chance(seed: int) -> Choose:
    """Any."""
    rng = random.Random(seed)
    return lambda options, prompt: rng.choice(_usual(options))


def round_robin(seed: int) -> Choose:
    """One after the other."""
    turn = count(seed)

    def choose(options: Sequence[Option], prompt: Prompt) -> Option:
        ways = _usual(options)
        return ways[next(turn) % len(ways)]

    return choose


def least_load(seed: int) -> Choose:
    """The shortest queue, in seconds."""
    return lambda options, prompt: min(_usual(options), key=lambda option: option.wait_s)


def two_choices(seed: int) -> Choose:
    """The shorter of two queues drawn by chance."""
    rng = random.Random(seed)

    def choose(options: Sequence[Option], prompt: Prompt) -> Option:
        ways = _usual(options)
        return min(rng.choice(ways), rng.choice(ways), key=lambda option: option.wait_s)

    return choose


def prefix_affinity(seed: int) -> Choose:
    """Where most of the prompt is held; of equals the shortest queue."""
    return lambda options, prompt: min(options, key=lambda option: (option.num_prefill_tokens, option.wait_s))


def session_affinity(seed: int) -> Choose:
    """Always where this tenant went before."""

    def choose(options: Sequence[Option], prompt: Prompt) -> Option:
        ways = _usual(options)
        return ways[crc32(prompt.tenant.encode()) % len(ways)]

    return choose


def longer_than(num_tokens: int) -> Callable[[int], Choose]:
    """Whole prompts that are longer leave, whatever is cached of them."""
    return lambda seed: (
        lambda options, prompt: _of(RouteKind.REMOTE, options) if prompt.num_tokens > num_tokens else _at_home(options)
    )


def more_uncached_than(num_tokens: int, share: float = 0.0) -> Callable[[int], Choose]:
    """Prompts with more uncached tokens leave, if these are also more than a share of them."""

    def choose(options: Sequence[Option], prompt: Prompt) -> Option:
        uncached = min(option.num_uncached_tokens for option in options)
        leaves = uncached > num_tokens and uncached > share * prompt.num_tokens
        return _of(RouteKind.REMOTE, options) if leaves else _at_home(options)

    return lambda seed: choose


def append_prefill(seed: int) -> Choose:
    """PPD (arXiv 2603.13358): the instance that decodes computes what is added to what it holds; anything else leaves
    by the shortest queue."""

    def choose(options: Sequence[Option], prompt: Prompt) -> Option:
        held = [o for o in options if o.kind is RouteKind.LOCAL and 2 * o.num_uncached_tokens < prompt.num_tokens]
        return held[0] if held else min(_usual(options), key=lambda option: option.wait_s)

    return choose


def gorgo(seed: int) -> Choose:
    """GORGO (arXiv 2602.11688): round trip, prefill and queue, each with its learned weight. Here all are seconds; its
    authors count milliseconds and tokens. GORGO has no KVCache that crosses: a transfer is added to the round trip."""
    return lambda options, prompt: min(
        _usual(options),
        key=lambda option: (
            GORGO_RTT * (option.rtt_s + option.transfer_s) + option.prefill_s + GORGO_QUEUE * option.wait_s
        ),
    )


def soonest(seed: int) -> Choose:
    """Where the own answer is expected to begin first: what is left of ours if others do not count."""
    return lambda options, prompt: min(_usual(options), key=lambda option: option.finish_s)


#: By name; from a run's seed.
POLICIES: Final[dict[str, Callable[[int], Choose]]] = {
    "random": chance,
    "round_robin": round_robin,
    "least_load": least_load,
    "two_choices": two_choices,
    "prefix_affinity": prefix_affinity,
    "session_affinity": session_affinity,
    "raw_length_2048": longer_than(DYNAMO_TOKENS),
    "uncached_16": more_uncached_than(LLM_D_TOKENS),
    "uncached_2048": more_uncached_than(DYNAMO_TOKENS, DYNAMO_SHARE),
    "append_prefill": append_prefill,
    "gorgo": gorgo,
    "soonest": soonest,
}
