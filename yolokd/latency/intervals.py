"""Statistics of few runs: paired differences and two samples, by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from yolokd_edge.bench.statistics import t_quantile

BETTER, WORSE, NO_EVIDENCE, ONE_RUN = "better", "worse", "no evidence of a difference", "one seed: no conclusion"


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean of paired differences with its confidence interval, in the unit of the values."""

    differences: tuple[float, ...]
    mean: float
    sd: float | None  # of the differences; None for a single pair, which has no interval either
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """The conclusion that the interval allows; an interval that touches zero is not evidence."""
        if self.low is None or self.high is None:
            return ONE_RUN
        return BETTER if self.low > 0 else WORSE if self.high < 0 else NO_EVIDENCE


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two means with its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def paired(differences: Sequence[float], confidence: float = 0.95) -> Paired:
    """Mean difference of pairs and its t interval, which assumes that the differences are roughly normal."""
    if not differences:
        raise ValueError("paired() needs at least one difference")
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Paired(tuple(differences), mean, None, None, None)
    sd = statistics.stdev(differences)
    half = t_quantile(0.5 + confidence / 2, len(differences) - 1) * sd / math.sqrt(len(differences))
    return Paired(tuple(differences), mean, sd, mean - half, mean + half)


def apart(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Difference:
    """Difference of the means of two independent samples and its interval (Welch, Biometrika 34, 1947).

    Each needs two values or more. Welch's degrees of freedom are rounded down, which makes the interval wider.
    """
    if min(len(before), len(after)) < 2:
        raise ValueError("apart() needs two values or more on each side")
    mean = statistics.fmean(after) - statistics.fmean(before)
    shares = [(statistics.variance(x) / len(x), len(x) - 1) for x in (before, after)]
    square = sum(share for share, _ in shares)
    if square == 0:
        return Difference(mean, mean, mean)
    df = math.floor(square**2 / sum(share**2 / free for share, free in shares) + 1e-9)
    half = t_quantile(0.5 + confidence / 2, max(df, 1)) * math.sqrt(square)
    return Difference(mean, mean - half, mean + half)
