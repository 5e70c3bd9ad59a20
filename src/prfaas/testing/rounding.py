"""How far two answers to one prompt are apart, where they need not be equal to the last bit (docs/equality.md).

A greedy token tips as soon as two candidates are near, so tokens say little about how large a difference is. What is
measured is the first token's distribution: nothing can have tipped before it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from prfaas.testing.site import Answer

#: Of these many likeliest tokens the largest difference counts: a single one may come out alike by chance.
NUM_CANDIDATES = 20


def first_token_gap(one: Answer, other: Answer) -> float:
    """|Δlogprob| of the token that `one` begins with; infinite if `other` does not have it among its candidates."""
    token = one.tokens[0]
    return abs(one.candidates[0][token] - other.candidates[0].get(token, float("-inf")))


def widest_gap(one: Answer, other: Answer) -> float:
    """Largest |Δlogprob| of the first token, over the tokens that `one` finds likeliest."""
    likeliest = sorted(one.candidates[0].items(), key=lambda item: -item[1])[:NUM_CANDIDATES]
    return max(abs(logprob - other.candidates[0].get(token, float("-inf"))) for token, logprob in likeliest)


def median_widest_gap(ones: Sequence[Answer], others: Sequence[Answer]) -> float:
    """Over pairs of answers, each to a prompt of its own."""
    return statistics.median(widest_gap(one, other) for one, other in zip(ones, others, strict=True))
