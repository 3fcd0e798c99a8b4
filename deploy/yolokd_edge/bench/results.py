"""The record's `results`: figures by stage, by run and against the first model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from yolokd_edge.bench.schema import PERCENTILES, STAGES
from yolokd_edge.bench.statistics import MIN_RUNS, percentile, samples_needed, summary
from yolokd_edge.bench.timing import COUNTS_SWITCHES
from yolokd_edge.bench.trial import Trial
from yolokd_edge.board.telemetry import Window


def explain_nulls(stages: dict[str, Any], missing: dict[str, str], fewest: int | None = None) -> None:
    """Give each percentile, bound and interval that is null its reason; `fewest`: frames of the shortest of the runs
    that intervals are over."""
    for stage, figures in stages.items():
        for key, p in PERCENTILES.items():
            needed, n = samples_needed(p), figures["n_eff_p99"] if key == "p99" else figures["n_eff"]
            if figures[key] is None:
                missing["results.stages.*." + key] = f"fewer samples than the {needed} needed"
            if figures["upper95"][key] is None:
                missing[f"results.stages.{stage}.upper95.{key}"] = f"worth fewer than {needed} independent samples"
            if figures["ci95"][key] is None:
                worth = "too few samples" if n is None else f"worth only {n:.0f} independent samples"
                missing[f"results.stages.{stage}.ci95.{key}"] = worth
            short = f"a run has {fewest} frames, fewer than the {needed} needed" if fewest and fewest < needed else None
            for field in ("upper95", "ci95"):
                if short and figures[field][key] is None:
                    missing[f"results.stages.{stage}.{field}.{key}"] = short
        if figures["n_eff_p99"] is None:
            missing[f"results.stages.{stage}.n_eff_p99"] = "no p99"


def _across(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, smallest and largest of the runs' percentiles, by stage."""
    out: dict[str, Any] = {}
    for stage in STAGES:
        out[stage] = {}
        for key in ("p50", "p90", "p95", "p99"):
            values = [run["stages"][stage][key] for run in runs]
            if None not in values:
                out[stage][key] = {"median": median(values), "min": min(values), "max": max(values)}
    return out


def run_summary(trial: Trial) -> dict[str, Any]:
    """The percentiles of one process's frames, ms, by stage."""
    stages = {}
    for stage in STAGES:
        ms = np.sort(trial.series[stage]) / 1e6
        stages[stage] = {
            k: percentile(ms, p) if len(ms) >= samples_needed(p) else None
            for k, p in PERCENTILES.items()
            if k != "p999"
        }
    return {"n": trial.facts["n"], "cpu_ratio": trial.facts["cpu_ratio"], "stages": stages}


def busy_windows(trials: Sequence[Trial]) -> list[Window]:
    """The times in which frames were timed, overlapping ones merged, in order."""
    out: list[Window] = []
    for start, end in sorted((t.facts["window"][0], t.facts["window"][1]) for t in trials):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def make_results(trials: Sequence[Trial], missing: dict[str, str], models: int = 1) -> dict[str, Any]:
    """The record's `results`: all trials' frames pooled, times in ms; `runs` keeps the trials apart."""
    repeats = [t.facts["repeat"] for t in trials]
    stages = {stage: summary(*(t.series[stage] for t in trials), repeats=repeats) for stage in STAGES}
    over_runs = len(set(repeats)) >= MIN_RUNS
    fewest = min(sum(t.facts["n"] for t in trials if t.facts["repeat"] == k) for k in set(repeats))
    explain_nulls(stages, missing, fewest if over_runs else None)
    facts, runs = [t.facts for t in trials], [run_summary(t) for t in trials]
    n, seconds = sum(f["n"] for f in facts), sum(end - start for start, end in busy_windows(trials)) / 1e9
    wall = sum(int(t.series["total"].sum()) * t.facts["threads"] for t in trials)
    p50, steal = stages["total"]["p50"], [f["steal"] for f in facts if f["steal"] is not None]
    if p50 is None:
        missing["results.fps_from_p50"] = "no p50"
    if models > 1:
        missing["results.throughput_fps"] = "several models share the time"
    if not steal:
        missing["results.steal"] = "no /proc/stat, or no time passed"
    return {
        "unit": "ms",
        "n": n,
        "duration_s": round(seconds, 3),
        "stages": stages,
        "ci95_over": "runs" if over_runs else "frames of one process",
        "fps_from_p50": 1000 / p50 if p50 else None,
        "throughput_fps": n / seconds if models == 1 and seconds else None,
        "candidates_mean": sum(f["candidates"] for f in facts) / n,
        "dets_mean": sum(f["detections"] for f in facts) / n,
        "cpu_ratio": round(sum(f["cpu_ns"] for f in facts) / wall, 4) if wall else None,
        "nivcsw_per_frame": sum(int(t.series["switches"].sum()) for t in trials) / n if COUNTS_SWITCHES else None,
        "steal": max(steal) if steal else None,
        "load_average": {"before": facts[0]["load"]["before"], "after": facts[-1]["load"]["after"]},
        "runs": runs,
        "across_runs": _across(runs),
    }


def versus_first(
    trials: Sequence[Trial], base: Sequence[Trial] | None, missing: dict[str, str]
) -> dict[str, Any] | None:
    """Ratio of this model's percentiles to those of the first model, run by run: both met the same background load.

    The interval is a bootstrap over the runs, null below five of them, of which it could not hold 95 %.
    """
    if not base:
        missing["results.versus_first"] = "this is the first or only model"
        return None
    out: dict[str, Any] = {"model": base[0].facts["model"]["file"], "p50": None, "p99": None}
    pairs = [(run_summary(a)["stages"]["total"], run_summary(b)["stages"]["total"]) for a, b in zip(trials, base)]  # noqa: B905
    for key in ("p50", "p99"):
        if any(a[key] is None or not b[key] for a, b in pairs):
            missing["results.versus_first." + key] = "a run has too few samples"
            continue
        ratios, ends = np.array([a[key] / b[key] for a, b in pairs]), None
        if len(ratios) >= 5:
            draws = np.median(np.random.RandomState(0).choice(ratios, (1000, len(ratios))), 1)
            ends = [percentile(draws, 0.025), percentile(draws, 0.975)]
        else:
            missing[f"results.versus_first.{key}.ci95"] = "fewer than five runs"
        out[key] = {"ratio": float(np.median(ratios)), "ci95": ends}
    return out
