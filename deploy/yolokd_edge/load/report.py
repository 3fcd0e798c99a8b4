"""The record of a measurement of throughput, in the schema yolokd.throughput/1, and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.bench.facts import image_facts
from yolokd_edge.common import EdgeError, check_writable, json_text, printable, usable_cores
from yolokd_edge.detector import Detector
from yolokd_edge.load.curve import typical
from yolokd_edge.load.options import CURVE, LoadOptions
from yolokd_edge.load.record import load_record
from yolokd_edge.load.verdicts import NOT_SERVED, SERVED

SCHEMA = "yolokd.throughput/1"
MEASURED = "infer: from an input array on the host to output arrays on the host; no pre- and postprocessing"
STOLEN = 0.01  # share of the time that a hypervisor gave to others


def make_record(
    detector: Detector,
    options: LoadOptions,
    frames: Sequence[np.ndarray],
    results: dict[str, Any],
    load_before: float | None,
    stolen: float | None,
) -> dict[str, Any]:
    """The record: what was loaded, where, how, and what was found."""
    protocol = {
        "scenario": options.scenario,
        "measured": MEASURED,
        "seconds": options.duration,
        "repeats": options.repeats if options.scenario == CURVE else 1,
        "images": {**image_facts(frames), "random": options.random},
        "percentile_rule": "nearest rank, ceil(p*n)",
    }
    reasons = doubts(options, len(frames), load_before, stolen)
    record = load_record(SCHEMA, options.seed, detector, protocol, results, reasons, {})
    record["runtime"].update(io_binding="IO binding" in str(results), cuda_graph=options.cuda_graph)
    return record


def doubts(options: LoadOptions, images: int, load_before: float | None, stolen: float | None) -> list[str]:
    """Reasons to doubt the figures."""
    out = []
    if options.random:
        out.append("random: inputs were noise, not images")
    elif images < 32:
        out.append(f"only {images} different images, at least 32 are recommended")
    if load_before is not None and load_before > 0.5:
        out.append(f"busy: load average {load_before:.1f} on {usable_cores()} cores before")
    if stolen is not None and stolen > STOLEN:
        out.append(f"contended: the hypervisor took the CPU away for {stolen:.1%} of the time")
    return out


def check_place(out: str | Path) -> Path:
    """Refuse a file that exists or cannot be written, before anything is measured."""
    path = Path(out)
    if path.exists():
        raise EdgeError(f"{path} exists already; choose another name for the report.")
    check_writable(path, str(path))
    return path


def write(record: dict[str, Any], out: str | Path) -> None:
    """Write a record as JSON."""
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json_text(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"{path} cannot be written ({error.strerror}).") from None


def as_text(record: dict[str, Any]) -> str:
    """A record to read: a table of the curve, or the scenario's figures; then the reasons to doubt them."""
    where = record["runtime"]["providers_active"][0]
    lines = [printable(f"{record['model']['file']} on {where}; {record['protocol']['measured']}")]
    results = record["results"]
    lines += curve_text(results["points"]) if "points" in results else scenario_text(results)
    return "\n".join(lines + [printable(reason) for reason in record["stability"]["reasons"]])


def curve_text(points: Sequence[dict[str, Any]]) -> list[str]:
    """The points as a table; those that no other beats have a star."""
    head = ("", "batch", "streams", "threads", "images/s", "95 %", "latency p50", "p90", "p99", "how")
    rows = [head]
    for p in points:
        ends, latency = p["images_per_s_ci95"], p["latency_ms"]
        auto = " (auto)" if p["streams_asked"] == "auto" else ""
        cells = ["*" if p["front"] else "", str(p["batch"]), f"{p['streams']}{auto}", str(p["threads"])]
        cells += [f"{p['images_per_s']:.1f}", "-" if ends is None else "{:.1f}..{:.1f}".format(*ends)]
        cells += ["-" if v is None else f"{v:.2f}" for v in (typical(latency), latency["p90"], latency["p99"])]
        rows.append((*cells, p["how"]))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]  # noqa: B905
    return [*lines, "latency: ms of one input of the batch; * no other point has more images/s and a lower latency"]


def scenario_text(results: dict[str, Any]) -> list[str]:
    """A scenario's metric, its verdict and whether the rules would let it count."""
    metric, latency = results["metric"], results["latency_ms"]
    value = "-" if metric["value"] is None else f"{metric['value']:.2f} {metric['unit']}"
    lines = [f"{results['scenario']}: {metric['name']}: {value}"]
    streams = (
        f"batch {results['batch']}, {results['streams']} streams of {results['threads']} threads, {results['how']}"
    )
    lines.append(f"{results['queries']} queries, {results['images']} images in {results['seconds']:.1f} s; {streams}")
    if latency is not None:
        figures = [(key, latency[key]) for key in ("p50", "p90", "p99", "max")]
        lines.append("latency in ms: " + ", ".join(f"{k} {v:.2f}" for k, v in figures if v is not None))
    if "verdict" in results:
        asked = f"{results['metric']['value']:g} queries a second within {results['bound_ms']:g} ms"
        lines.append(f"{asked}: {results['verdict']} ({results['late']} of {results['offered']} late)")
    valid = results["validity"]
    return [*lines, "MLPerf's rules on duration and queries: " + ("kept" if valid["valid"] else "not kept"),
            *(f"- {reason}" for reason in valid["reasons"])]  # fmt: skip


def check_served(record: dict[str, Any]) -> None:
    """Say with an exit code that a server's rate is not served within its bound (1), or that too few queries tell (3).

    Raises:
        EdgeError: it is not served, or not shown to be.
    """
    results = record["results"]
    verdict = results.get("verdict", SERVED)
    if verdict == SERVED:
        return
    asked = f"{results['metric']['value']:g} queries a second within {results['bound_ms']:g} ms"
    shown = "are not served" if verdict == NOT_SERVED else "are not shown to be served"
    raise EdgeError(f"{asked} {shown}: {results['validity']['reasons'][-1]}.", 1 if verdict == NOT_SERVED else 3)
