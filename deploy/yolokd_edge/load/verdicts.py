"""What a scenario's figures are worth: its metric, and whether the rules would let it count."""

from __future__ import annotations

from typing import Any

from yolokd_edge.bench.statistics import percentile, summary
from yolokd_edge.load.rules import RULES, SOURCE, early_stopping_estimate, proves, queries_needed
from yolokd_edge.load.scenarios import Outcome

SERVED, NOT_SERVED, UNDECIDED = "served", "not served", "undecided"
OFFLINE_NAME = "images per second"


def judge(scenario: str, outcome: Outcome, rate: float | None, bound_ms: float | None) -> dict[str, Any]:
    """The record's `results` of a scenario.

    Returns:
        `metric` with its name, value and unit (None where too few queries were answered for one), `latency_ms`,
        `validity` with the reasons why the rules would not let it count, and for the server `verdict`: served, not
        served or undecided.
    """
    rule, ms = RULES[scenario], [latency / 1e6 for latency in outcome.latencies.tolist()]
    reasons = [] if outcome.seconds >= rule.seconds else [_short(outcome.seconds, rule.seconds)]
    found: dict[str, Any] = {
        "scenario": scenario,
        "queries": len(ms),
        "images": outcome.images,
        "seconds": round(outcome.seconds, 3),
        "images_per_s": outcome.images / outcome.seconds if outcome.seconds else None,
        "latency_ms": summary(outcome.latencies) if ms else None,
    }
    if scenario == "offline":
        found["metric"] = {"name": OFFLINE_NAME, "value": found["images_per_s"], "unit": "1/s"}
        if outcome.images < rule.queries:
            reasons.append(f"{outcome.images} images are fewer than the {rule.queries} that the rules ask for")
    elif scenario == "server":
        assert rate is not None and bound_ms is not None
        found.update(_server(outcome, ms, rate, bound_ms, reasons))
    else:
        assert rule.percentile is not None
        estimate = early_stopping_estimate(ms, rule.percentile)
        name = f"p{rule.percentile * 100:.0f} of a query's latency, early-stopping estimate"
        found["metric"] = {"name": name, "value": estimate.value, "unit": "ms"}
        found["early_stopping"] = {"discarded": estimate.discarded, "queries_needed": estimate.needed}
        if estimate.value is None:
            reasons.append(f"{len(ms)} queries are fewer than the {estimate.needed} needed for early stopping")
    found["validity"] = {"valid": not reasons, "reasons": reasons, "rules": SOURCE}
    return found


def _server(outcome: Outcome, ms: list[float], rate: float, bound_ms: float, reasons: list[str]) -> dict[str, Any]:
    share = RULES["server"].percentile or 0.0
    late = sum(latency > bound_ms for latency in ms) + outcome.offered - len(ms)
    offered = max(outcome.offered, len(ms))
    over = bool(offered) and (outcome.behind_s > 0 or late > (1 - share) * offered)
    if over:
        verdict = NOT_SERVED
        text = f"{late} of {offered} queries were not answered within {bound_ms:g} ms; {1 - share:.0%} may be"
        if outcome.behind_s:
            text += f"; given up {outcome.behind_s:.1f} s behind, at {outcome.images / outcome.seconds:.1f} a second"
        reasons.append(text)
    elif proves(offered, late, share):
        verdict = SERVED
    else:
        verdict = UNDECIDED
        needed = queries_needed(late, share)
        reasons.append(f"{offered} queries with {late} late ones show too little: early stopping needs {needed}")
    return {
        "metric": {"name": "queries per second offered", "value": rate, "unit": "1/s"},
        "bound_ms": bound_ms,
        "late": late,
        "offered": offered,
        "p99_ms": percentile(ms, share) if ms else None,
        "early_stopping": {"queries_needed": queries_needed(late, share) if not over else None},
        "verdict": verdict,
    }


def _short(seconds: float, wanted: float) -> str:
    return f"{seconds:.0f} s are less than the {wanted:.0f} s that the rules ask for"
