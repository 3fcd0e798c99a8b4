"""`yolokd pareto reports/*.json`: the Pareto front of measured models, accuracy against latency, energy or size."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.errors import UsageError, as_path, printable
from yolokd.latency import schema
from yolokd.latency.gate import read_metrics
from yolokd.latency.schema import get

SCHEMA = "yolokd.pareto/1"
COSTS = {"latency": "ms", "energy": "J per frame", "size": "MB"}
ACCURACIES = {"map50_95": "mAP50-95", "map50": "mAP50"}
DEVICE = ("board_model", "cpu_model", "gpu", "kind")  # the first known one is the device's name


def pareto(
    files: Sequence[str | Path],
    x: str = "latency",
    y: str = "map50_95",
    metric: str = "total.p50",
    out: str | Path | None = None,
    json: str | Path | None = None,
    md: str | Path | None = None,
) -> dict[str, Any]:
    """Gather the records of many reports and mark those that no other record on the same device dominates.

    Args:
        files: reports, or folders of them.
        x: latency (ms, of the figure that `metric` names), energy (J per frame) or size (MB).
        y: map50_95 or map50.
        metric: STAGE.FIGURE of the latency, such as total.p99.
        out: new PNG file.
        json, md: new files for the table.

    Returns:
        {"points": [{name, file, device, x, y, low, high, front}], "left_out": [...]}; y as a fraction, low and high
        the 95 % interval of a latency or None.
    """
    if x not in COSTS or y not in ACCURACIES:
        raise UsageError(f"x={x} y={y}: x is one of {', '.join(COSTS)}, y one of {', '.join(ACCURACIES)}.")
    if len(read_metrics(metric)) != 1:
        raise UsageError(f"metric={metric}: the picture shows one figure: give one such as total.p50.")
    outputs = [as_path("out", path) for path in (out, json, md) if path is not None]
    for path in outputs:
        if path.exists() or outputs.count(path) > 1 or not path.parent.is_dir():
            raise UsageError(f"{path} exists already, is named twice or its folder does not exist: name a new file.")
    if out is not None and Path(str(out)).suffix.lower() != ".png":
        raise UsageError(f"out={out} is not a PNG file: name one such as pareto.png.")
    points, left_out = gather(files, x, y, metric)
    result: dict[str, Any] = {"schema": SCHEMA, "x": x, "y": y, "metric": metric if x == "latency" else None}
    result |= {"points": points, "left_out": left_out}
    text = table(result)
    if out is not None:
        from yolokd.latency.plots import pareto_front

        pareto_front(points, out, f"{_axis(x, metric)} ({COSTS[x]})", f"{ACCURACIES[y]} (%)")
    if json is not None:
        Path(json).expanduser().write_text(
            json_module.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
    if md is not None:
        Path(md).expanduser().write_text(text + "\n", encoding="utf-8")
    print(text)
    return result


def gather(
    files: Sequence[str | Path], x: str, y: str, metric: str
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Points with both coordinates, cheapest first and the front marked; and incomplete records, with the reason."""
    points: list[dict[str, Any]] = []
    left_out = []
    for file in expand(files):
        for record in schema.read(file):
            paths = {"latency": f"results.stages.{metric}", "energy": "power.j_per_frame", "size": "model.bytes"}
            fields = {"x": paths[x], "y": f"accuracy.{y}"}
            values = {key: get(record, path) for key, path in fields.items()}
            verdict = get(record, "stability.verdict")
            lacking = [fields[key] for key, value in values.items() if not schema.number(value)]
            if lacking or (verdict == "invalid" and x != "size"):
                why = f"no {lacking[0]}: {schema.why_null(record, lacking[0])}" if lacking else "the record is invalid"
                left_out.append({"file": str(file), "name": schema.label(record), "why": why})
                continue
            half = " fp16" if get(record, "runtime.trt.fp16") else ""
            name = Path(record["model"]["file"]).stem + half
            points.append({"name": name, "label": schema.label(record), "file": str(file)})
            points[-1] |= {"device": device(record), "x": values["x"] / (1e6 if x == "size" else 1), "y": values["y"]}
            points[-1] |= dict(
                zip(("low", "high"), _ends(record, metric) if x == "latency" else (None, None), strict=True)
            )
    if not points:
        raise UsageError(f"no point to draw: of {left_out[0]['name']} in {left_out[0]['file']}, {left_out[0]['why']}.")
    for point in points:
        point["front"] = not any(beats(other, point) for other in points)
    return sorted(points, key=lambda p: (p["device"], p["x"], -p["y"])), left_out


def expand(files: Sequence[str | Path]) -> list[Path]:
    """The reports among files and folders, each once; in a folder, other JSON files are skipped."""
    reports: list[Path] = []
    for file in files:
        path = as_path("files", file)
        reports += sorted(p for p in path.rglob("*.json") if _is_report(p)) if path.is_dir() else [path]
    if not reports:
        raise UsageError("there are no reports: give latency reports or a folder of them, such as reports/*.json.")
    return list(dict.fromkeys(reports))


def _is_report(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return schema.SCHEMA in file.read(300)


def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `one` is on the same device, not worse in x and y, and better in at least one of them."""
    if one["device"] != other["device"] or (one["x"], one["y"]) == (other["x"], other["y"]):
        return False
    return bool(one["x"] <= other["x"] and one["y"] >= other["y"])


def device(record: dict[str, Any]) -> str:
    """A readable name of the device of a record."""
    known = [str(value) for key in DEVICE if (value := get(record, f"device.{key}"))]
    mode = get(record, "clocks.power_mode.name")
    return (known[0] if known else "unknown device") + (f", {mode}" if mode else "")


def _ends(record: dict[str, Any], metric: str) -> tuple[float | None, float | None]:
    stage, key = metric.split(".")
    ends = get(record, f"results.stages.{stage}.ci95.{key}")
    return (
        (ends[0], ends[1])
        if isinstance(ends, list) and len(ends) == 2 and all(map(schema.number, ends))
        else (None, None)
    )


def _axis(x: str, metric: str) -> str:
    stage, key = metric.split(".")
    return {"latency": f"{stage} latency of one frame, {key}", "energy": "energy", "size": "file size"}[x]


def table(result: dict[str, Any]) -> str:
    """The points as a Markdown table."""
    x, y = result["x"], result["y"]
    cost = f"{result['metric']} ms" if x == "latency" else COSTS[x]
    lines = [f"| device | model | {cost} | {ACCURACIES[y]} | on the front |", "|---|---|--:|--:|---|"]
    for p in result["points"]:
        lines.append(
            f"| {p['device']} | {p['label']} | {p['x']:.3g} | {100 * p['y']:.1f} | {'yes' if p['front'] else ''} |"
        )
    lines += [""] * bool(result["left_out"])
    lines += [f"Left out: {p['name']} in {p['file']}: {p['why']}." for p in result["left_out"]]
    return "\n".join(map(printable, lines))
