"""What the scheduler reckons with: times of the deployment's model, corrected by what was seen; lengths; links.

Laws of this file:
- A cluster's prefill times are its model's times one factor, which follows the prefills seen lately.
- The split (see `threshold`) is solved anew with the next prompt when the fleet or a link has changed, and else when
  `SOLVE_EVERY` more have come and `SOLVE_EVERY_S` have passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Final

from prfaas.core.control.lengths import MIN_LENGTHS, Lengths
from prfaas.core.control.link_rates import LinkRates
from prfaas.core.control.threshold import Share, Split, Stage, solve
from prfaas.core.model.curve import Curve, polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.portable_math import exp2

#: The solved threshold moves this often at most; queues are looked at with every request.
SOLVE_EVERY_S: Final = 1.0
SOLVE_EVERY: Final = 16
#: A prefill counts half as much when so many of its cluster have ended after it.
_KEEPS: Final = exp2(-1.0 / 32)
#: An answer counts half as much when so many have ended after it; the model's stand for so many.
_KEEPS_ANSWERS: Final = exp2(-1.0 / 512)
_PRIOR_ANSWERS: Final = 16.0
#: Seconds of prefill for which the model itself stands, until others have been seen.
_PRIOR_S: Final = 2.0
#: Of a cluster of which the model says nothing: a tenth of a second, and 10,000 tokens a second.
_UNKNOWN: Final = ClusterModel(polynomial(0.1, 1e-4))
#: Lengths of which a curve's values are kept.
_REMEMBERED: Final = 1_024


def _remembering(curve: Curve) -> Callable[[float], float]:
    """The curve, which never changes: of one length it is asked with every way of a prompt, of the means of most bins
    with every split."""
    return lru_cache(maxsize=_REMEMBERED)(curve.at)


class _Speed:
    """Of one cluster: the model's times, and seconds seen over seconds expected."""

    __slots__ = ("at", "expected_s", "factor", "taken_s")

    def __init__(self, curve: Curve) -> None:
        self.at = _remembering(curve)
        self.expected_s = self.taken_s = _PRIOR_S
        self.factor = 1.0

    def saw(self, expected_s: float, taken_s: float) -> None:
        self.expected_s = self.expected_s * _KEEPS + expected_s
        self.taken_s = self.taken_s * _KEEPS + taken_s
        self.factor = self.taken_s / self.expected_s


class Estimates:
    """Of one deployment. `planned` is the split until enough lengths have been seen."""

    def __init__(self, model: ServingModel, planned_threshold_tokens: float) -> None:
        self.model = model
        self._kv_bytes = _remembering(model.kv_bytes)
        self.planned_threshold_tokens = planned_threshold_tokens
        self.lengths = Lengths()
        self.links = LinkRates()
        self.split: Split | None = None
        self._outputs = self._answers = 0.0
        self._speeds: dict[str, _Speed] = {}
        self._solved_s: float | None = None
        self._num_solved = 0

    def cluster(self, name: str) -> ClusterModel:
        return self.model.clusters.get(name, _UNKNOWN)

    def prefill_s(self, cluster: str, num_tokens: float) -> float:
        """Of one prompt on one instance that does nothing else."""
        speed = self._speeds.get(cluster) or self._speed(cluster)
        return speed.at(num_tokens) * speed.factor

    def factor(self, cluster: str) -> float:
        """What times of this cluster are multiplied with."""
        return self._speed(cluster).factor

    def saw_prefill(self, cluster: str, num_tokens: int, taken_s: float) -> None:
        speed = self._speed(cluster)
        speed.saw(speed.at(num_tokens), taken_s)

    def _speed(self, cluster: str) -> _Speed:
        speed = self._speeds.get(cluster)
        if speed is None:
            speed = self._speeds[cluster] = _Speed(self.cluster(cluster).prefill_s)
        return speed

    @property
    def output_tokens(self) -> float:
        """Of an answer, on average."""
        return (self._outputs + _PRIOR_ANSWERS * self.model.output_tokens) / (self._answers + _PRIOR_ANSWERS)

    def saw_answer(self, num_tokens: int) -> None:
        """A whole one has ended."""
        self._outputs = self._outputs * _KEEPS_ANSWERS + num_tokens
        self._answers = self._answers * _KEEPS_ANSWERS + 1.0

    def kv_bytes(self, num_tokens: float, skip_tokens: float = 0.0) -> float:
        """What crosses of a prompt whose first `skip_tokens` are left out; what does not grow with it, always."""
        at = self._kv_bytes
        return at(num_tokens) - (at(skip_tokens) - at(0.0) if skip_tokens else 0.0)

    def threshold_tokens(self) -> float:
        """The solved one, or the planned one."""
        return self.planned_threshold_tokens if self.split is None else self.split.threshold_tokens

    def rate_and_load(self, cluster: str, now_s: float) -> tuple[float, float]:
        """Prompts a second that this cluster prefills, by the split, and how full that keeps it; zeros before there is
        one."""
        share = self.share(cluster)
        if share is None:
            return 0.0, 0.0
        rate_rps = share.share * self.lengths.rate_rps(now_s)
        return rate_rps, rate_rps / share.max_rps

    def share(self, cluster: str) -> Share | None:
        """By the split; None if it gets none."""
        return None if self.split is None else self.split.shares.get(cluster)

    def solve_if_due(self, stages: Callable[[float], tuple[Sequence[Stage], Sequence[Stage]]], now_s: float) -> bool:
        """`stages` gives those of PrfaaS clusters and those of PD clusters. Returns True if there is a new split."""
        if self.lengths.num_seen < MIN_LENGTHS:
            return False
        is_new = self.lengths.num_seen - self._num_solved >= SOLVE_EVERY
        if self._solved_s is not None and (now_s - self._solved_s < SOLVE_EVERY_S or not is_new):
            return False
        self._solved_s, self._num_solved = now_s, self.lengths.num_seen
        self.split = solve(self.lengths.bins(), *stages(now_s), self._kv_bytes)
        return True

    def forget_split(self) -> None:
        """The fleet or a link has changed: solve at the next occasion."""
        self._solved_s = None

    def stage(self, cluster: str, num_instances: int, bytes_per_s: float) -> Stage:
        return Stage(cluster, num_instances, partial(self.prefill_s, cluster), bytes_per_s)
