"""Is a prompt answered sooner if it is computed where it would be decoded, or if its KVCache crosses a slow link?

Laws of this file:
- What was computed elsewhere, and what has crossed already, counts for nothing: only what is left does, on either way.
- Whoever lands queues behind what the engine has to compute by then: as much as now, less what it gets rid of meanwhile
  at the load that the split gives its cluster.
- Who computes slows the answers down that it gives. What these lose counts as others' waiting does (see `options`).
- The same is asked before a prompt is sent there: what would be given up at once is not sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prfaas.core.control.estimates import Estimates
from prfaas.core.control.instance import Instance
from prfaas.core.control.route import OTHERS_COUNT

#: Estimates err: it must be sooner by this share of what the other way would take.
SOONER_BY: Final = 0.2
#: What has been prefilled elsewhere is not thrown away for less. Nor is it kept away from the link: short prompts that
#: still cross show when it is back.
MIN_GIVEN_UP_S: Final = 2.0


def is_sooner_here(
    estimates: Estimates, decoders: Sequence[Instance], num_tokens: int, lands_s: float, now_s: float
) -> bool:
    """`decoders` are those of its cluster that work; `num_tokens` are not cached there; the last byte of its KVCache
    lands in `lands_s`."""
    if lands_s <= MIN_GIVEN_UP_S or not decoders:
        return False
    instance = min(decoders, key=lambda one: one.work.remaining_s(now_s))
    queued_s = instance.work.remaining_s(now_s)
    _, load = estimates.rate_and_load(instance.cluster, now_s)
    still_queued_s = max(0.0, queued_s - max(0.0, 1.0 - load) * lands_s)
    prefill_s = estimates.prefill_s(instance.cluster, num_tokens)
    computed_s = queued_s + prefill_s * (1.0 + OTHERS_COUNT * instance.num_answers)
    return computed_s < (1.0 - SOONER_BY) * (lands_s + still_queued_s)
