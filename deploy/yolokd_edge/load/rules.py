"""When the result of a scenario counts, after MLPerf's inference rules: duration, queries, percentile, early stopping.

MLPerf Inference Rules, section "Scenarios" and appendix "Early Stopping Criterion",
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc (read at 848b9ab). A figure that keeps
these rules is no MLPerf result: that needs MLPerf's own load generator, models, data sets and review.
"""

from __future__ import annotations

from typing import NamedTuple

from yolokd_edge.bench.statistics import beta_cdf

SOURCE = "https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc"
CONFIDENCE = 0.99  # the rules' c; their tolerance d is 0


class Rule(NamedTuple):
    """What the rules ask of a scenario."""

    samples: int  # images in a query
    percentile: float | None  # of the queries' latencies; None where no latency counts
    seconds: float
    queries: int  # at least; of offline, images in its one query


RULES = {
    "single": Rule(1, 0.90, 600.0, 1),
    "multi": Rule(8, 0.99, 600.0, 1),
    "server": Rule(1, 0.99, 600.0, 1),
    "offline": Rule(1, None, 600.0, 24576),
}


def proves(queries: int, late: int, percentile: float) -> bool:
    """Whether the late queries are few enough to show, at 99 % confidence, that the percentile is not late.

    F(t; h + t, 1 - p) = I(p; h, t + 1) <= 1 - c, with t late and h other queries.
    """
    return beta_cdf(percentile, queries - late, late + 1) <= 1 - CONFIDENCE


def queries_needed(late: int, percentile: float) -> int:
    """The fewest queries among which the given number of late ones still shows that the percentile is not late."""
    low, high = late, late + 1
    while not proves(high, late, percentile):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle, late, percentile) else (middle, high)
    return high


def late_allowed(queries: int, percentile: float) -> int | None:
    """The most late queries among the given number that still show that the percentile is not late; None: not even
    none would do."""
    if not proves(queries, 0, percentile):
        return None
    low, high = 0, queries
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if proves(queries, middle, percentile) else (low, middle)
    return low


class Estimate(NamedTuple):
    """The early-stopping estimate of a percentile."""

    value: float | None  # None: too few queries for one
    discarded: int  # of the highest latencies
    needed: int  # queries from which there is an estimate


def early_stopping_estimate(latencies: list[float], percentile: float) -> Estimate:
    """The latency that the percentile does not exceed, at 99 % confidence: with t late queries allowed, the highest
    that is left when the t - 1 highest are discarded. It needs t of at least 1."""
    needed, allowed = queries_needed(1, percentile), late_allowed(len(latencies), percentile)
    if not allowed:
        return Estimate(None, 0, needed)
    return Estimate(sorted(latencies)[len(latencies) - allowed], allowed - 1, needed)
