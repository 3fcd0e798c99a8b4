"""The record of one model: everything that was measured, found and not found, in the schema yolokd.latency/1."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from yolokd_edge.bench.plan import Plan
from yolokd_edge.bench.results import make_results, versus_first
from yolokd_edge.bench.schema import SCHEMA
from yolokd_edge.bench.trial import Trial
from yolokd_edge.bench.verdict import BLOCKS, Doubt, Drift, doubts, measure_drift, tail_attribution
from yolokd_edge.board.telemetry import Telemetry
from yolokd_edge.common import PROVIDER, EdgeError
from yolokd_edge.version import VERSION

NOT_ASKED = (None, "trtexec was not asked for (--trtexec)")
UNAVAILABLE = {  # fields of the schema that this program cannot fill
    "tool.git": "an installed program knows no commit",
    "model.opset": "ONNX Runtime does not tell it",
    "model.ir": "ONNX Runtime does not tell it",
}


def stability_fields(
    trials: Sequence[Trial], reasons: Sequence[Doubt], drifts: Sequence[Drift], missing: dict[str, str]
) -> dict[str, Any]:
    """The record's `stability`: how steady the latency was, and the verdict with its reasons."""
    if not drifts:
        for key in ("block_medians", "drift_ratio", "slope_pct_per_min"):
            missing["stability." + key] = f"fewer than {3 * BLOCKS} frames a run"
    verdict = "invalid" if any(r.void for r in reasons) else "valid_with_warnings" if reasons else "valid"
    return {
        "block_medians": [level for d in drifts for level in d.block_medians] if drifts else None,
        "drift_ratio": max(d.ratio for d in drifts) if drifts else None,
        "slope_pct_per_min": median(d.slope for d in drifts) if drifts else None,
        "verdict": verdict,
        "reasons": [r.text for r in reasons],
    }


def make_record(
    trials: Sequence[Trial],
    plan: Plan,
    telemetry: Telemetry | None = None,
    base: Sequence[Trial] | None = None,
    overhead_pct: float | None = None,
    cross_check: tuple[dict[str, Any] | None, str] = NOT_ASKED,
) -> dict[str, Any]:
    """The record (schema yolokd.latency/1) of one model.

    Args:
        trials: What each process measured of it.
        plan: How it was measured.
        telemetry: What the board told meanwhile.
        base: The first model's trials, if this is a further one measured interleaved with it.
        overhead_pct: By how much sampling the power slowed the frames.
        cross_check: What trtexec measured, or why it did not.
    """
    limits, first, models = plan.limits, trials[0].facts, len(plan.options.models)
    missing = dict(UNAVAILABLE)
    for trial in reversed(trials):
        missing.update(trial.facts["missing"])
    if cross_check[0] is None:
        missing["cross_check"] = cross_check[1]
    drifts = [d for d in (measure_drift(t.series) for t in trials) if d is not None]
    figures = make_results(trials, missing, models)
    ticks = telemetry.monitor.ticks() if telemetry else np.zeros(0, np.int64)
    figures["tail_attribution"] = tail_attribution(trials, figures["stages"]["total"]["p99"], ticks)
    if figures["tail_attribution"] is None:
        missing["results.tail_attribution"] = "no p99, or the system counts no context switches"
    figures["versus_first"] = versus_first(trials, base, missing)
    watched = board_fields(telemetry, first, figures["n"], models, overhead_pct, missing)
    return {
        "schema": SCHEMA,
        "id": uuid.uuid4().hex,
        "created_utc": plan.created_utc,
        "tool": {"name": "yolokd_edge", "version": VERSION, "git": None},
        "command": plan.command,
        "seed": plan.options.seed,
        "model": first["model"],
        "accuracy": first["accuracy"],
        "parity": first["parity"],
        "runtime": first["runtime"],
        "device": first["device"],
        "clocks": watched["clocks"],
        "protocol": _protocol(trials, plan),
        "cold": first["cold"],
        "results": figures,
        "memory": dict(first["memory"], lfb=watched["lfb"]),
        "power": watched["power"],
        "thermal": watched["thermal"],
        "stability": stability_fields(trials, doubts(trials, limits, drifts, telemetry), drifts, missing),
        "series": {"file": None, "sha256": None},
        "cross_check": cross_check[0],
        "notes": None,
        "unavailable": missing,
    }


def _protocol(trials: Sequence[Trial], plan: Plan) -> dict[str, Any]:
    warmups, limits = [t.facts["warmup"] for t in trials], plan.limits
    return {
        "profile": plan.options.profile_name,
        "n_min": limits.n_min,
        "t_min_s": limits.t_min_s,
        "t_max_s": limits.t_max_s,
        "warmup": {
            "frames": int(median(w["frames"] for w in warmups)),
            "s": median(w["s"] for w in warmups),
            "stable": all(w["stable"] for w in warmups),
        },
        "repeats": len({t.facts["repeat"] for t in trials}),
        "streams": plan.options.streams,
        "interleaved": len(plan.options.models) > 1,
        "images": trials[0].facts["images"],
        "percentile_rule": "nearest rank, ceil(p*n)",
        "gc_disabled": True,
    }


def board_fields(
    telemetry: Telemetry | None,
    first: dict[str, Any],
    frames: int,
    models: int,
    overhead_pct: float | None,
    missing: dict[str, str],
) -> dict[str, Any]:
    """The record's clocks, power, thermal and memory.lfb, each None with its reason where nothing was seen."""
    out: dict[str, Any] = dict.fromkeys(("clocks", "power", "thermal", "lfb"))
    if telemetry is None:
        missing.update({key: "the board was not watched" for key in ("clocks", "power", "thermal", "memory.lfb")})
        return out
    if first["device"]["kind"] == "jetson" and first["uses_gpu"] and telemetry.gpu_seen_busy() is False:
        provider = first["runtime"]["providers_active"][0]
        raise EdgeError(f"{provider} is active, but the GPU was idle while {first['model']['file']} ran.", PROVIDER)
    out["clocks"], out["thermal"], out["lfb"] = telemetry.clocks(missing), telemetry.thermal(missing), telemetry.lfb()
    if models == 1:
        out["power"] = telemetry.power(frames, missing, overhead_pct)
    else:
        missing["power"] = "several models share the time: measure one at a time"
    if out["lfb"] is None:
        missing["memory.lfb"] = "tegrastats reports none"
    return out
