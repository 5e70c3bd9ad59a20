"""The answers that are being given, and when batches get places by their ends.

How long an answer will be is not known: each is taken to last as long as answers lately did.
"""

from __future__ import annotations

import math
from itertools import islice


class Answers:
    """Of one scheduler, by the cluster that answers."""

    def __init__(self) -> None:
        #: When each began, the oldest first: they are told as they begin.
        self._began_s: dict[str, dict[str, float]] = {}
        self._clusters: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._clusters)

    def begins(self, request_id: str, cluster: str, now_s: float) -> None:
        """Its first token has come."""
        self.ends(request_id)
        self._clusters[request_id] = cluster
        self._began_s.setdefault(cluster, {})[request_id] = now_s

    def ends(self, request_id: str) -> None:
        """Idempotent."""
        cluster = self._clusters.pop(request_id, None)
        if cluster is not None:
            del self._began_s[cluster][request_id]

    def left_s(self, cluster: str, number: float, answer_s: float, now_s: float) -> float:
        """From now until so many have ended, where each that ends makes room for another. 0 if none is known of.

        Answers that began together end together: then no batch has a place for long, and many at once. So a mean rate
        says little about the next place.
        """
        began_s = self._began_s.get(cluster)
        if not began_s or number <= 0:
            return 0.0
        rounds, place = divmod(math.ceil(number) - 1, len(began_s))
        return next(islice(began_s.values(), place, None)) + (rounds + 1) * answer_s - now_s
