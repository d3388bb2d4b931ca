"""An accuracy with its confidence interval. Imports no torch."""

from __future__ import annotations

import math

from pydantic import Field

from glr_dist.config import Count, Section

_Z = 1.959963984540054  # two-sided 95 %


class Rate(Section):
    """The fraction of examples that are classified correctly, with its 95 % interval by Wilson (JASA 22, 1927)."""

    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    examples: Count

    @classmethod
    def of(cls, correct: int, examples: int) -> Rate:
        """Returns the rate of counts; its interval is (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
        n, p = examples, correct / examples
        centre, spread = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        # At p = 0 and p = 1 the interval ends exactly there; rounding may miss it.
        low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
        return cls(accuracy=p, low=low if correct else 0.0, high=high if correct < n else 1.0, examples=n)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"
