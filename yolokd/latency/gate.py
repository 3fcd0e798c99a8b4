"""`yolokd compare base.json new.json`: has the new model become slower, and is that certain?

A gate for CI: it passes only what is shown not to be slower than allowed, fails only what is shown to be, and says
"inconclusive" in between, or where the two reports cannot be compared at all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.errors import GateError, UsageError, as_path
from yolokd.latency import gate_report, intervals, schema
from yolokd.latency.schema import get
from yolokd_edge.runtimes.table import PROVIDERS

SCHEMA = "yolokd.compare/1"
PASS, REGRESSION, INCONCLUSIVE, PROVIDER, PARITY = 0, 1, 3, 4, 5
NAMES = {PASS: "pass", REGRESSION: "regression", INCONCLUSIVE: "inconclusive", PROVIDER: "provider", PARITY: "parity"}
NO_INTERVAL = "too few frames for an interval, in each of 3 runs or within one: measure with profile=standard repeats=5"
MIN_RUNS = 3  # below, the runs say nothing of how they spread
# Where a difference means that the two figures answer different questions. Unknown (null) on one side counts as equal.
FINGERPRINT = {
    "device": ("kind", "board_model", "soc", "cpu_model", "gpu", "cores_online", "l4t"),
    "clocks": ("power_mode.name", "governor", "jetson_clocks"),
    "runtime": ("providers_active", "intra_threads", "io_binding", "trt.fp16"),
    "protocol": ("streams", "images.sha", "profile"),
    "model": ("imgsz", "task"),
}
DATA = ("dataset", "split", "n_images", "conf", "iou")  # of an accuracy


def compare(
    base: str | Path,
    new: str | Path | None = None,
    max_regress: Any = "5%",
    metric: Any = "total.p50,total.p99",
    min_map_delta: float | None = None,
    json: str | Path | None = None,
    md: str | Path | None = None,
    junit: str | Path | None = None,
) -> dict[str, Any]:
    """Judge a new latency report against an earlier one.

    Args:
        base: report.json to compare with.
        new: report.json to judge; without one, `base` must hold several models measured interleaved, and the others
            are judged against its first, run by run.
        max_regress: how much slower is allowed, such as "5%" or 0.05.
        metric: comma list of STAGE.PERCENTILE: pre, infer, post or total; p50, p90, p95, p99, p999.
        min_map_delta: least allowed change of mAP50-95, in points: -0.5 allows half a point less.
        json, md, junit: new files to write the outcome to.

    Returns:
        {"schema", "verdict", "code", "pairs": [...]}; times in ms. The code is 0 pass, 1 regression (the whole 95 %
        interval of the ratio is above the limit), 3 inconclusive, 4 a provider asked for was not active, 5 parity
        failed.

    Raises:
        UsageError: a report or an option that cannot be used; nothing was written.
    """
    limit, metrics = 1 + read_share(max_regress), read_metrics(metric)
    if min_map_delta is not None and not schema.number(min_map_delta):
        raise UsageError(f"min_map_delta={min_map_delta} is not a number of points, such as -0.5.")
    outputs = _check_outputs({"json": json, "md": md, "junit": junit})
    records = schema.read(base)
    pairs = pair_records(records, schema.read(new)) if new is not None else within(base, records)
    judged = [judge(old, now, metrics, limit, min_map_delta, paired=new is None) for old, now in pairs]
    code = _worst([pair["code"] for pair in judged])
    outcome: dict[str, Any] = {"schema": SCHEMA, "verdict": NAMES[code], "code": code}
    outcome |= {"base": str(base), "new": str(base if new is None else new), "max_regress": limit - 1}
    outcome |= {"min_map_delta": min_map_delta, "pairs": judged}
    gate_report.write(outcome, outputs)
    return outcome


def gate(*args: Any, **options: Any) -> None:
    """The command line's compare: prints the table, then raises what is not a pass with its exit code."""
    outcome = compare(*args, **options)
    print(gate_report.markdown(outcome))
    if outcome["code"] != PASS:
        raise GateError(gate_report.sentence(outcome), outcome["code"])


# --- What is asked --------------------------------------------------------------------------------------------------


def read_share(value: Any) -> float:
    """0.05 from "5%" or 0.05."""
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if isinstance(value, bool) or not 0 <= share < 1:
        raise UsageError(f"max_regress={value} is not a share from 0 up to below 1: write 5% or 0.05.")
    return share


def read_metrics(value: Any) -> list[str]:
    """["total.p50", ...] from a comma list."""
    metrics = [str(m).strip() for m in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    for metric in metrics:
        stage, _, key = metric.partition(".")
        if stage not in schema.STAGES or key not in schema.PERCENTILES or metrics.count(metric) > 1:
            stages, keys = ", ".join(schema.STAGES), ", ".join(schema.PERCENTILES)
            raise UsageError(f"metric={metric} is none or given twice: write STAGE.FIGURE, of {stages} and of {keys}.")
    return metrics


def _check_outputs(asked: dict[str, str | Path | None]) -> dict[str, Path]:
    outputs = {kind: as_path(kind, path) for kind, path in asked.items() if path is not None}
    for kind, path in outputs.items():
        if path.exists() or list(outputs.values()).count(path) > 1:
            raise UsageError(f"{kind}={path} exists already or is named twice: name a new file.")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(
                f"{kind}={path} cannot be written: you cannot write to the folder {path.parent}, name another."
            )
    return outputs


Record = dict[str, Any]


def pair_records(old: Sequence[Record], new: Sequence[Record]) -> list[tuple[Record | None, Record | None]]:
    """Pairs of records: one against one whatever their names, of several those of the same model and settings."""
    if len(old) == len(new) == 1:
        return [(old[0], new[0])]
    # a new model has a new name: names tell records apart only where a report holds several
    several = any(len({r["model"]["file"] for r in records}) > 1 for records in (old, new))
    before, after = _by_cell(old, several), _by_cell(new, several)
    return [(before.get(cell), after.get(cell)) for cell in dict.fromkeys((*before, *after))]


def _by_cell(records: Sequence[Record], models: bool) -> dict[tuple[Any, ...], Record]:
    cells = {schema.cell(record, models): record for record in records}
    if len(cells) < len(records):
        raise UsageError(
            f"{schema.label(records[0])} or another record is measured twice in one report: keep one each."
        )
    return cells


def within(path: str | Path, records: Sequence[Record]) -> list[tuple[Record | None, Record | None]]:
    """The first record of a report against each of the others, if they were measured interleaved."""
    if len(records) < 2 or not all(get(r, "protocol.interleaved") for r in records):
        raise UsageError(f"{path} does not hold several models measured interleaved: give a second report to compare.")
    return [(records[0], record) for record in records[1:]]


# --- The judgement --------------------------------------------------------------------------------------------------


def judge(
    old: Record | None, new: Record | None, metrics: Sequence[str], limit: float, min_map: float | None, paired: bool
) -> dict[str, Any]:
    """One pair of records: what stands in the way of comparing them, then each metric, then accuracy."""
    if old is None or new is None:
        there, side = (new, "base") if old is None else (old, "new")
        problem = {"code": INCONCLUSIVE, "what": "match", "why": f"the {side} report has no record of it"}
        name = schema.label(there or {})
        return {"base": name, "new": name, "problems": [problem], "metrics": [], "notes": [], "code": INCONCLUSIVE}
    problems: list[dict[str, Any]] = [
        {"code": code, "what": what, "why": why}
        for side, record in (("base", old), ("new", new))
        for code, what, why in [*provider_problems(side, record), *parity_problems(side, record), *void(side, record)]
    ] + [{"code": INCONCLUSIVE, "what": "fingerprint", "why": why} for why in different(old, new)]
    rows = [judge_metric(old, new, metric, limit, paired) for metric in metrics]
    if min_map is not None:
        rows.append(judge_map(old, new, min_map))
    # figures of records that cannot be compared are shown, but decide nothing
    code = _worst([p["code"] for p in problems]) if problems else _worst([row["code"] for row in rows])
    return {
        "base": schema.label(old),
        "new": schema.label(new),
        "code": code,
        "problems": problems,
        "metrics": rows,
        "notes": notes(old, new),
    }


def _worst(codes: Sequence[int]) -> int:
    """A provider or parity failure first, then a certain regression, then doubt."""
    return next((code for code in (PROVIDER, PARITY, REGRESSION, INCONCLUSIVE) if code in codes), PASS)


def provider_problems(side: str, record: Record) -> list[tuple[int, str, str]]:
    """Whether what was asked for is what ran."""
    runtime = record["runtime"]
    asked, active = runtime.get("provider_requested"), next(iter(runtime["providers_active"]), None)
    coverage = runtime.get("ep_coverage")
    why = None
    if runtime.get("fallback") or (asked in PROVIDERS and active != PROVIDERS[asked].names[0]):
        why = f"{asked} was asked for and {active or 'none'} was active"
    elif asked in PROVIDERS and asked != "cpu" and schema.number(coverage) and coverage < PROVIDERS[asked].coverage:
        why = f"only {coverage:.0%} of the graph ran on {active}"
    return [(PROVIDER, "provider", f"{side}: {why}")] if why else []


def parity_problems(side: str, record: Record) -> list[tuple[int, str, str]]:
    """Whether the file was shown not to compute what the checkpoint computes."""
    failed = get(record, "parity.pass") is False
    return [(PARITY, "parity", f"{side}: the exported file differs from its checkpoint")] if failed else []


def void(side: str, record: Record) -> list[tuple[int, str, str]]:
    """Whether the measurement itself says that it is not valid."""
    verdict = get(record, "stability.verdict")
    if verdict in ("valid", "valid_with_warnings"):
        return []
    reasons = "; ".join(map(str, get(record, "stability.reasons") or [])) or schema.why_null(
        record, "stability.verdict"
    )
    return [(INCONCLUSIVE, "validity", f"{side} is {verdict or 'not judged'}: {reasons}")]


def different(old: Record, new: Record) -> list[str]:
    """Settings and device facts that both reports know and that differ."""
    out = []
    for section, keys in FINGERPRINT.items():
        for key in keys:
            was, now = get(old, f"{section}.{key}"), get(new, f"{section}.{key}")
            if was is not None and now is not None and was != now:
                out.append(f"{section}.{key} was {was} and is {now}")
    return out


def notes(old: Record, new: Record) -> list[str]:
    """What a reader should know and what does not decide."""
    out = [
        f"{side}: {reason}"
        for side, record in (("base", old), ("new", new))
        if get(record, "stability.verdict") == "valid_with_warnings"
        for reason in get(record, "stability.reasons") or []
    ]
    for key in ("runtime.onnxruntime", "runtime.trt.version", "device.kernel", "device.serial_hash", "model.precision"):
        was, now = get(old, key), get(new, key)
        if was != now:
            out.append(f"{key} was {was} and is {now}")
    out += [f"{side}: parity unknown" for side, r in (("base", old), ("new", new)) if get(r, "parity.pass") is None]
    return out


def judge_metric(old: Record, new: Record, metric: str, limit: float, paired: bool) -> dict[str, Any]:
    """The ratio new / base of one figure with its interval, against the limit."""
    before, after = (get(r, f"results.stages.{metric}") for r in (old, new))
    row: dict[str, Any] = {"metric": metric, "base": before, "new": after, "limit": limit}
    row |= {"ratio": None, "ci95": None, "interval": None, "code": INCONCLUSIVE, "why": None}
    for side, record, value in (("base", old, before), ("new", new, after)):
        if value is None:
            return {**row, "why": f"{side} has no {metric}: {schema.why_null(record, f'results.stages.{metric}')}"}
    found = ratio(old, new, metric, paired)
    if found is None:
        return {**row, "ratio": after / before, "why": NO_INTERVAL}
    middle, low, high, how = found
    row |= {"ratio": middle, "ci95": [low, high], "interval": how}
    if low > limit:
        return {**row, "code": REGRESSION, "why": f"at least {low - 1:.1%} slower"}
    if high > limit:
        return {**row, "why": f"between {low - 1:+.1%} and {high - 1:+.1%}, which leaves the limit inside"}
    return {**row, "code": PASS}


def ratio(old: Record, new: Record, metric: str, paired: bool) -> tuple[float, float, float, str] | None:
    """(ratio, low, high, how) with a 95 % interval: over paired runs, over runs, or from within one run each.

    Over runs it is Student's t on the log scale, which holds for as few as these (a bootstrap of so few does not), and
    the ratio is that of the runs' geometric means.
    """
    before, after = (_by_run(r, metric) for r in (old, new))
    old_logs, new_logs = ([math.log(v) for v in values] for values in (before, after))
    found: intervals.Paired | intervals.Difference
    if paired and len(before) == len(after) >= MIN_RUNS:
        found = intervals.paired([b - a for a, b in zip(old_logs, new_logs, strict=True)])
        how = f"{len(before)} paired runs"
    elif min(len(before), len(after)) >= MIN_RUNS:
        found, how = intervals.apart(old_logs, new_logs), f"{len(before)} and {len(after)} runs"
    else:
        return _within_runs(old, new, metric)
    assert found.low is not None and found.high is not None  # of one pair only there is no interval
    return math.exp(found.mean), math.exp(found.low), math.exp(found.high), how


def _within_runs(old: Record, new: Record, metric: str) -> tuple[float, float, float, str] | None:
    """The same from the frames' own intervals; None without them."""
    stage, key = metric.split(".")
    ends = [get(r, f"results.stages.{stage}.ci95.{key}") for r in (old, new)]
    if not all(isinstance(e, list) and len(e) == 2 and all(map(schema.is_time, e)) for e in ends):
        return None
    return (
        *combine_means(get(old, f"results.stages.{metric}"), ends[0], get(new, f"results.stages.{metric}"), ends[1]),
        "frames",
    )


def _by_run(record: Record, metric: str) -> list[float]:
    """The figure of each run, or none of them if one lacks it."""
    values = [get(run, f"stages.{metric}") for run in record["results"].get("runs") or []]
    return [] if None in values else values


def combine_means(x: float, x_ends: Sequence[float], y: float, y_ends: Sequence[float]) -> tuple[float, float, float]:
    """y / x with the interval that follows from theirs, on the log scale (MOVER, Donner and Zou 2012)."""
    x, (x0, x1), y, (y0, y1) = math.log(x), map(math.log, x_ends), math.log(y), map(math.log, y_ends)
    down, up = math.hypot(y - y0, x1 - x), math.hypot(y1 - y, x - x0)
    return math.exp(y - x), math.exp(y - x - down), math.exp(y - x + up)


def judge_map(old: Record, new: Record, least: float) -> dict[str, Any]:
    """The change of mAP50-95 in points against the least allowed; both must be of the same images."""
    before, after = (get(r, "accuracy.map50_95") for r in (old, new))
    row: dict[str, Any] = {"metric": "mAP50-95", "limit": least, "ratio": None, "ci95": None, "interval": None}
    row |= {"base": before, "new": after, "delta": None, "code": INCONCLUSIVE, "why": None}
    for side, record, value in (("base", old, before), ("new", new, after)):
        if not schema.number(value):
            return {**row, "why": f"{side} has no mAP50-95: {schema.why_null(record, 'accuracy.map50_95')}"}
    for key in DATA:
        was, now = get(old, f"accuracy.{key}"), get(new, f"accuracy.{key}")
        if was is not None and now is not None and was != now:
            return {**row, "why": f"accuracy.{key} was {was} and is {now}"}
    delta = 100 * (after - before)
    if delta < least - 1e-9:
        return {**row, "delta": delta, "code": REGRESSION, "why": f"{delta:+.2f} points, {least:+.2f} allowed"}
    return {**row, "delta": delta, "code": PASS}
