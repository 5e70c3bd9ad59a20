"""What may be done with a prompt, and what each way costs: until its own answer can begin, and to all others.

A cost is in seconds of waiting. Whoever takes a place in a queue also makes those wait who come after. To an M/G/1
queue with rate λ, load ρ and u seconds of work in it, work of x seconds adds λ/(1-ρ) · (u·x + x²/2) seconds of waiting
in all: that is what it adds to the queue's value function. To choose the least sum of both is one step of policy
iteration from the split of Eq. 7 (see `threshold`), and so is no worse than that split, as far as arrivals are random
and the estimates are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from prfaas.core.control.route import MAX_TOLD, Option
from prfaas.core.control.standing import Backlog

#: For a reservation, two messages on their way, and an engine that takes up what has landed.
HANDOVER_S: Final = 0.05
#: Nearer to one, a queue's value function has no end.
MAX_LOAD: Final = 0.95


def cheapest(options: Iterable[Option]) -> Option:
    """The first of those that cost least. Raises ValueError without any."""
    return min(options, key=attrgetter("cost_s"))


def told(options: Sequence[Option], chosen: Option) -> tuple[Option, ...]:
    """What a request's route keeps of its ways: the cheapest, in their order, and the chosen one."""
    if len(options) <= MAX_TOLD:
        return tuple(options)
    costs_s = [option.cost_s for option in options]
    cheap = sorted(range(len(options)), key=costs_s.__getitem__)[:MAX_TOLD]
    found = [options[index] for index in sorted(cheap)]
    return tuple(found) if any(option is chosen for option in found) else (*found[:-1], chosen)


def delay_to_others_s(rate_rps: float, load: float, queued_s: float, work_s: float) -> float:
    """What `work_s` adds to the waiting of all who come later, in a queue that has `queued_s` of work."""
    idle = 1.0 - (load if load < MAX_LOAD else MAX_LOAD)
    return rate_rps / idle * (queued_s + work_s / 2) * work_s


def wait_s(backlog: Backlog, waiting_s: float, mean_left_s: float) -> float:
    """Until the turn of a prompt comes that queues behind `waiting_s` of work, given what the instances have to do.
    While others wait, every instance is busy: when a turn comes, the other instances have `mean_left_s` left each."""
    if waiting_s <= 0:
        return backlog.soonest_s
    num = backlog.num
    return max(backlog.soonest_s, (backlog.sum_s + waiting_s - (num - 1) * mean_left_s) / num)
