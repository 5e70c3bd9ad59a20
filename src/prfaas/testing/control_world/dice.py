"""How often what happens, and how long it takes, in one world. Everything random is drawn here, from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Dice:
    """`trouble` is the chance of each fault where it can strike; 0 makes the world whole."""

    random: random.Random
    trouble: float

    def strikes(self, weight: float = 1.0) -> bool:
        """Whether a fault of this weight happens now."""
        return self.trouble > 0 and self.random.random() < self.trouble * weight

    def chance(self, probability: float) -> bool:
        """Something that is no fault."""
        return self.random.random() < probability

    def hop_s(self) -> float:
        """One message: mostly a few milliseconds, now and then as long as a queue."""
        return self.random.uniform(0.001, 0.02) if self.random.random() < 0.95 else self.random.uniform(0.02, 0.8)

    def span_s(self, low: float, high: float) -> float:
        """Skewed: short ones are common, long ones happen."""
        share = self.random.random()
        return low + (high - low) * (share * share * share)
