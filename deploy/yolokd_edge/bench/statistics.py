"""Percentiles of latencies with bounds and intervals that hold although successive frames depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.bench.schema import PERCENTILES

# Of every run, where an interval is over runs: with fewer the runs' own percentiles are too low more often than not.
MIN_SAMPLES_BEYOND_IN_A_RUN = 2.5  # at 2, the few series that passed by chance held p99 in 75 % instead of 95 %
MIN_RUNS = 3  # below, processes say nothing of how they differ, and an interval holds within one process only
CONFIDENCE = 0.95
MIN_CORRELATION = 0.02  # autocorrelation below which the sum over the lags stops
MAX_LAGS = 500
# Independent samples beyond a percentile, for an interval of it. They must be there even if the dependence is stronger
# than estimated by a standard error: else mostly series whose dependence was underestimated would get one.
MIN_SAMPLES_BEYOND = 5
CLUSTERING_RATIO = 1.5  # times the expected clustering from which that of the exceedances themselves counts


def percentile(samples: Sequence[float] | np.ndarray, p: float) -> float:
    """The nearest-rank percentile: the ceil(p * n)-th smallest sample, for 0 < p <= 1."""
    if not len(samples) or not 0 < p <= 1:
        raise ValueError(f"percentile needs samples and 0 < p <= 1, got n={len(samples)}, p={p}")
    rank = math.ceil(p * len(samples) - 1e-9)  # p * n may land a rounding error above a whole number
    return float(np.sort(samples)[max(rank, 1) - 1])


def samples_needed(p: float, confidence: float = CONFIDENCE) -> int:
    """Samples below which no upper bound of percentile p exists at this confidence: 29 for p90, 299 for p99."""
    return math.ceil(math.log(1 - confidence) / math.log(p))


def beta_cdf(x: float, a: float, b: float) -> float:
    """P[X <= x] of the Beta(a, b) distribution, by its continued fraction (NIST DLMF 8.17.22, Lentz's method)."""
    if x <= 0 or b <= 0:
        return 0.0
    if x >= 1 or a <= 0:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1.0 - beta_cdf(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    numerator, value = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    denominator = value
    for m in range(1, 1000):
        change = 1.0
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            denominator = 1.0 / ((1.0 + term * denominator) or 1e-300)
            numerator = (1.0 + term / numerator) or 1e-300
            change *= denominator * numerator
        value *= change
        if abs(change - 1) < 1e-12:
            break
    return front * value


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """The point between low and high where `below` turns from true to false."""
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def t_quantile(p: float, freedom: float) -> float:
    """The t below which Student's distribution with the given degrees of freedom, at least 1, has the share p."""
    if not 0 < p < 1 or freedom < 1:
        raise ValueError(f"t_quantile({p}, {freedom}): p must lie between 0 and 1, the freedom be at least 1")
    if p < 0.5:
        return -t_quantile(1 - p, freedom)

    def within(t: float) -> float:  # P(|T| <= t)
        return 1 - beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)

    high = 1.0
    while within(high) < 2 * p - 1:
        high *= 2
    return _bisect(lambda t: within(t) < 2 * p - 1, 0.0, high)


def upper_bound_rank(n: int, p: float, confidence: float = CONFIDENCE) -> int | None:
    """The smallest rank r with P[Binomial(n, p) <= r - 1] >= confidence, or None where even the maximum is too low.

    The r-th smallest of n independent samples is then an upper bound of percentile p at this confidence.
    """
    if n < 1 or 1 - p**n < confidence:
        return None
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        enough = 1 - beta_cdf(p, middle, n - middle + 1) >= confidence  # P[Binomial(n, p) <= middle - 1]
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def upper_bound(ordered: np.ndarray, p: float, n_eff: float, confidence: float = CONFIDENCE) -> float | None:
    """Upper bound of percentile p from sorted samples that are worth only n_eff independent ones."""
    n, worth = len(ordered), min(int(n_eff), len(ordered))
    rank = upper_bound_rank(worth, p, confidence)
    return None if rank is None else float(ordered[math.ceil(rank * n / worth - 1e-9) - 1])


def autocorrelation(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Autocorrelation at lags 1, 2, ... up to the first at or below 0.02; lags never reach from one part to the next.

    Args:
        parts: Series (n,), one per process.

    Returns:
        The correlations (k,), k possibly 0, each raised by what subtracting the mean of a finite series hides.
    """
    lags = min(MAX_LAGS, max(len(part) for part in parts) // 4)
    sums = np.zeros(lags + 1)
    for part in parts:
        centred = part - part.mean()
        size = 1 << (2 * len(part)).bit_length()
        spectrum = np.fft.rfft(centred, size)
        own = np.fft.irfft(np.abs(spectrum) ** 2, size)[: lags + 1]
        sums[: len(own)] += own
    scale = sum(float(np.square(part).sum()) for part in parts) * 1e-12
    if not sums[0] > scale:  # a constant series
        return np.zeros(0)
    rho = sums[1:] / sums[0]
    low = np.flatnonzero(rho <= MIN_CORRELATION)
    rho = rho[: low[0] if len(low) else len(rho)]
    bias = (1 + 2 * rho.sum()) / sum(len(part) for part in parts)
    raised: np.ndarray = np.minimum(rho + bias, 1.0)
    return raised


_NORMAL = NormalDist()


@lru_cache(maxsize=None)
def _normal_quantiles() -> tuple[np.ndarray, np.ndarray]:
    levels = np.linspace(0, 1, 4001)[1:-1]
    return levels, np.array([_NORMAL.inv_cdf(level) for level in levels.tolist()])


@lru_cache(maxsize=None)
def exceedance_correlation(p: float) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of two normal variables -> correlation of the events that each exceeds its percentile p.

    The derivative of the bivariate normal orthant probability by the correlation is the density at (c, c), with c the
    normal quantile of p; it is integrated over the arc sine of the correlation, where it is smooth.
    """
    arc = np.linspace(0, math.pi / 2, 801)
    rho, c = np.sin(arc), _NORMAL.inv_cdf(p)
    density = np.exp(-c * c / (1 + rho)) / (2 * math.pi)
    joint = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(arc))])
    return rho, joint / (p * (1 - p))


def _normal_scores(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each sample's rank among all parts as a normal quantile; equal samples get their mean rank."""
    values, places, counts = np.unique(np.concatenate(parts), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2 + 0.5  # mean rank from 0.5 to n - 0.5
    scores = np.interp(ranks / counts.sum(), *_normal_quantiles())[places.reshape(-1)]
    return np.split(scores, np.cumsum([len(part) for part in parts])[:-1])


class Dependence(NamedTuple):
    """How far successive samples of a series repeat each other."""

    tau: float  # 1 + 2 * sum of the autocorrelations of the samples themselves
    scores: np.ndarray  # autocorrelations of their normal scores: one far outlier cannot hide the rest
    parts: list[np.ndarray]
    n: int

    @property
    def n_eff(self) -> float:
        """Independent samples that give the mean as precisely."""
        return self.n / self.tau

    def n_eff_of(self, p: float) -> float:
        """Independent samples that give percentile p as precisely.

        What counts is how long the series stays above its percentile p. For a rare event a short series shows little
        of that, so it is derived from all samples' correlation through the normal copula; the exceedances themselves
        decide where they plainly cling together more, as in bursts.
        """
        copula = 1 + 2 * float(np.interp(self.scores, *exceedance_correlation(p)).sum())
        seen = [(part > percentile(np.concatenate(self.parts), p)).astype(float) for part in self.parts]
        direct = 1 + 2 * float(autocorrelation(seen).sum())
        return self.n / max(direct if direct > CLUSTERING_RATIO * copula else copula, 1.0)

    @property
    def freedom(self) -> float:
        """Independent stretches that the estimate of the dependence rests on."""
        return max(self.n / (2 * len(self.scores) + 1), 2.0)

    def carries(self, p: float, worth: float) -> bool:
        """Whether samples worth the given number of independent ones are enough for an interval of percentile p."""
        return worth * (1 - p) / (1 + math.sqrt(2 / self.freedom)) >= MIN_SAMPLES_BEYOND

    @property
    def confidence(self) -> float:
        """The nominal level to ask for, so that 95 % remains when tau is itself estimated (Student's t)."""
        return 2 * _NORMAL.cdf(t_quantile((1 + CONFIDENCE) / 2, self.freedom)) - 1


def dependence(parts: Sequence[np.ndarray]) -> Dependence:
    """Judge series (n,), one per process."""
    tau = 1 + 2 * float(autocorrelation(parts).sum())
    return Dependence(tau, autocorrelation(_normal_scores(parts)), list(parts), sum(len(part) for part in parts))


def percentile_interval(
    ordered: np.ndarray, p: float, n_eff: float, confidence: float = CONFIDENCE
) -> list[float] | None:
    """Two-sided interval of percentile p from sorted samples that are worth n_eff independent ones.

    Fractional order statistics (Hutson 1999): the r-th smallest of n lies at a level that is Beta(r, n + 1 - r)
    distributed; both ranks are solved for as real numbers and interpolated. None where one lies outside the samples.
    """
    n, worth = len(ordered), n_eff / len(ordered)
    ends = []
    for level in ((1 + confidence) / 2, (1 - confidence) / 2):
        rank = _bisect(lambda r: beta_cdf(p, r * worth, (n + 1 - r) * worth) > level, 0.0, n + 1.0)  # noqa: B023
        if not 1 <= rank <= n:
            return None
        k = min(int(rank), n - 1)
        ends.append(float(ordered[k - 1] + (rank - k) * (ordered[min(k, n - 1)] - ordered[k - 1])))
    return ends


def unbiased_percentile(samples: np.ndarray, p: float) -> float:
    """Percentile p between two samples, as often above the truth as below (Hyndman and Fan 1996, type 8).

    The nearest rank is a little low, which does not matter for one series but adds up in the mean over several.
    """
    rank = p * (len(samples) + 1 / 3) + 1 / 3
    return float(np.interp(rank, np.arange(1, len(samples) + 1), np.sort(samples)))


def run_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[list[float], float]:
    """Two-sided interval and upper bound of a figure from its values in several processes, by Student's t on logs.

    A process's own value errs by what its frames do not tell and by what sets this process apart from others (memory
    layout, clocks, neighbours). The values' spread holds both, whatever their shares: in the model of random effects
    the variance of their mean is that spread's square over their number. Within-process intervals would count again
    what is in it already.
    """
    positive = min(values) > 0
    logs = np.log(values) if positive else np.asarray(values, float)
    mean, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(values))
    half, up = (t_quantile(level, len(values) - 1) * error for level in ((1 + confidence) / 2, confidence))
    back = math.exp if positive else float
    return [back(mean - half), back(mean + half)], back(mean + up)


def _over_runs(
    runs: Sequence[np.ndarray], points: dict[str, float | None], carried: dict[str, bool]
) -> tuple[dict[str, list[float] | None], dict[str, float | None]]:
    """Intervals and upper bounds from three processes or more, None where one of them has too few samples."""
    ends: dict[str, list[float] | None] = dict.fromkeys(PERCENTILES)
    bounds: dict[str, float | None] = dict.fromkeys(PERCENTILES)
    for key, p in PERCENTILES.items():
        point = points[key]
        if point is not None and carried[key] and min(map(len, runs)) >= samples_needed(p):
            (low, high), bound = run_interval([unbiased_percentile(run, p) for run in runs])
            ends[key], bounds[key] = [min(low, point), max(high, point)], max(bound, point)
    return ends, bounds


def summary(*runs: Sequence[int] | np.ndarray, repeats: Sequence[int] | None = None) -> dict[str, Any]:
    """Summarise samples in ns, one series per process, as milliseconds.

    No sample is deleted; a percentile, bound or interval that the samples cannot carry is None. From three runs on,
    intervals and bounds are over the runs and hold for the next process, too; below, within one process only.

    Args:
        runs: Series (n,), one per process.
        repeats: Number of the run that each process belongs to: those that ran at the same time are one.
    """
    parts = [np.asarray(run, np.float64) / 1e6 for run in runs]
    ms = np.sort(np.concatenate(parts))
    shared = dependence(parts)
    points = {k: percentile(ms, p) if len(ms) >= samples_needed(p) else None for k, p in PERCENTILES.items()}
    worth = {k: shared.n_eff_of(p) for k, p in PERCENTILES.items() if points[k] is not None}
    carried = {k: shared.carries(p, worth.get(k, 0)) for k, p in PERCENTILES.items()}
    of = np.arange(len(parts)) if repeats is None else np.asarray(repeats)
    together = [np.concatenate([part for part, k in zip(parts, of) if k == run]) for run in np.unique(of)]  # noqa: B905
    ends: dict[str, list[float] | None]
    if len(together) >= MIN_RUNS:
        for k, p in PERCENTILES.items():
            carried[k] &= worth.get(k, 0) / len(together) * (1 - p) >= MIN_SAMPLES_BEYOND_IN_A_RUN
        ends, bounds = _over_runs(together, points, carried)
    else:
        bounds = {k: upper_bound(ms, p, worth[k]) if k in worth else None for k, p in PERCENTILES.items()}
        ends = {
            k: percentile_interval(ms, p, worth[k], shared.confidence) if carried[k] else None
            for k, p in PERCENTILES.items()
        }
    out: dict[str, Any] = {"mean": float(ms.mean()), "min": float(ms[0])}
    out.update(points)
    out.update({"max": float(ms[-1]), "ci95": ends, "upper95": bounds})
    out.update({"n_eff": shared.n_eff, "n_eff_p99": worth.get("p99"), "tau": shared.tau})
    return out
