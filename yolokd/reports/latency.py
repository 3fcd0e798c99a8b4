"""The parts of a report that tell latency: its distribution, stages and percentiles, and accuracy against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolokd.errors import UsageError
from yolokd.latency import pareto, schema
from yolokd.latency.plot_report import read_series
from yolokd.reports.parts import NONE, Drawing, Part, Table, Text, percent, plain
from yolokd.reports.svg import Dot, Line, curves, dots, stacked

STAGES = ("pre", "infer", "post")
POINTS = 200  # of a curve


def latency(file: Path) -> list[Part]:
    """What a report of `bench` says, and its raw samples where they lie beside it."""
    records = schema.read(file)
    names = labels(records)
    parts: list[Part] = [Text(verdict(name, record)) for name, record in zip(names, records, strict=True)]
    parts.append(percentiles(names, records))
    try:
        parts.append(distribution(names, read_series(file, records)))
    except UsageError as error:
        parts.append(Text(f"The distribution is not shown: {error}"))
    return [*parts, *stages(names, records)]


def labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """File names, numbered where two are the same."""
    files = [plain(record["model"]["file"]) for record in records]
    return [f if files.count(f) == 1 else f"{f} ({files[: i + 1].count(f)})" for i, f in enumerate(files)]


def verdict(name: str, record: Mapping[str, Any]) -> str:
    """Whether the measurement is to be relied on."""
    stability = record["stability"]
    reasons = "; ".join(plain(reason) for reason in stability.get("reasons") or [])
    return f"{name}: {plain(stability.get('verdict') or 'not judged')}{f' ({reasons})' if reasons else ''}."


def percentiles(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Table:
    """Percentiles of the total with their intervals."""
    rows = []
    for name, record in zip(names, records, strict=True):
        total = record["results"]["stages"]["total"]
        cells = []
        for key in ("mean", "p50", "p90", "p99", "max"):
            value, ends = total.get(key), (total.get("ci95") or {}).get(key)
            cells.append(
                (NONE if value is None else f"{value:.2f}") + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
            )
        rows.append([name, *cells])
    return Table(
        "Total latency of one frame in ms, with the 95 % interval where there is one",
        ["model", "mean", "p50", "p90", "p99", "max"],
        rows,
    )


def distribution(names: Sequence[str], series: Sequence[Mapping[str, Any]]) -> Drawing:
    """The share of frames that took at most a given time, in ms."""
    lines = []
    for name, samples in zip(names, series, strict=True):
        ms = np.sort(np.asarray(samples["total"])) / 1e6
        places = np.unique(np.linspace(0, len(ms) - 1, min(POINTS, len(ms))).round().astype(int))
        lines.append(Line(name, [(float(ms[i]), 100 * (i + 1) / len(ms)) for i in places], step=True))
    words = "Distribution of the total latency"
    svg = curves(words, lines, "total latency (ms)", "frames at or below (%)", zero=True)
    return Drawing(f"{words}, all frames", svg, list(enumerate(names)))


def stages(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Mean time of each stage: means add up, medians would not."""
    rows = []
    for name, record in zip(names, records, strict=True):
        means = [record["results"]["stages"][stage].get("mean") for stage in STAGES]
        if all(isinstance(mean, (int, float)) for mean in means):
            rows.append((name, [float(mean) for mean in means]))
    if not rows:
        return [Text("The stages were not measured.")]
    words = "Mean time of each stage"
    legend = list(enumerate(("preprocessing", "inference", "postprocessing")))
    return [
        Drawing(words, stacked(words, rows, "mean time (ms)"), legend),
        Table(f"{words} in ms", ["model", *STAGES], [[n, *(f"{m:.2f}" for m in means)] for n, means in rows]),
    ]


def conditions(file: Path) -> list[Part]:
    """On what and how it was measured."""
    rows = []
    records = schema.read(file)
    for name, record in zip(labels(records), records, strict=True):
        told = {
            "device": pareto.device(record),
            "provider": ", ".join(map(str, record["runtime"]["providers_active"])),
            "threads": record["runtime"].get("intra_threads"),
            "profile": record["protocol"].get("profile"),
            "runs": record["protocol"].get("repeats"),
            "frames": schema.get(record, "results.n"),
            "ONNX Runtime": record["runtime"].get("onnxruntime"),
        }
        rows.append([name, *(NONE if v is None else plain(v) for v in told.values())])
    return [Table("Conditions", ["model", *told], rows)]


def front(rows: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Accuracy against latency of a demo's models; those on the front are beaten by no other in both."""
    names = [plain(r["name"]) for r in rows]
    points: list[dict[str, Any]] = [{"device": "", "x": float(r["p50_ms"]), "y": float(r["map50"])} for r in rows]
    best = [not any(pareto.beats(other, p) for other in points) for p in points]
    given = [
        Dot(name, p["x"], 100 * p["y"], p["x"], r.get("p90_ms")) for name, p, r in zip(names, points, rows, strict=True)
    ]
    ends = [(p["x"], 100 * p["y"]) for p, good in zip(points, best, strict=True) if good]
    words = "Accuracy against latency"
    svg = dots(words, given, ends, "total latency of one frame (ms): p50, bar to p90", "mAP50 (%)")
    table = [
        [
            name, percent(r["map50"]), percent(r["map50_95"]), f"{r['params']:,}", f"{r['mb']:.1f}",
            f"{r['p50_ms']:.2f}", f"{r['p90_ms']:.2f}", "yes" if good else "",
        ]
        for name, r, good in zip(names, rows, best, strict=True)
    ]  # fmt: skip
    head = ["model", "mAP50", "mAP50-95", "parameters", "MB", "p50 ms", "p90 ms", "on the front"]
    return [
        Drawing(f"{words}; the dashed line is the Pareto front", svg),
        Table("All validation images; latency on this machine", head, table),
    ]
