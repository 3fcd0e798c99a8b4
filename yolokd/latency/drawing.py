"""Plots of measurements, written as PNG files. Matplotlib is imported only to draw and needs no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # colour-blind safe
STAGE_COLOURS = {"pre": "#A6CEE3", "infer": "#1F78B4", "post": "#FDBF6F"}
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))  # of a label, best first
MARKS = {"p50": "o", "p90": "s", "p99": "D"}


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # not pyplot, which has global state and needs a display

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def strip_frame(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """File names without suffix; a repeated name gets a number."""
    stems = [Path(r["model"]["file"]).stem for r in records]
    return [s if stems.count(s) == 1 else f"{s} ({stems[: k + 1].count(s)})" for k, s in enumerate(stems)]


def latency(records: Sequence[Mapping[str, Any]], series: Sequence[Mapping[str, np.ndarray]], path: str | Path) -> Path:
    """Draw what `bench` measured: the distribution of total latency, and the time of each stage.

    Args:
        records: Records of schema yolokd.latency/1, one per model.
        series: Their samples in ns by stage, in the same order.
        path: The PNG to write.
    """
    figure = new_figure(11, 4.2 + 0.25 * len(records))
    spread, stages = figure.subplots(1, 2, width_ratios=(1.25, 1))
    labels = _labels(records)
    _distribution(spread, records, series, labels)
    _stages(stages, records, labels)
    runtime, protocol, device = (records[0][key] for key in ("runtime", "protocol", "device"))
    threads = f"{runtime['intra_threads']} thread" + ("s" if runtime["intra_threads"] != 1 else "")
    figure.suptitle(
        f"Latency of one frame: {device['cpu_model'] or device['kind']}, {runtime['providers_active'][0]}, "
        f"{threads}, profile {protocol['profile']}",
        fontsize=11,
    )
    return save_figure(figure, path)


def _distribution(
    axes: Axes, records: Sequence[Mapping[str, Any]], series: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str]
) -> None:
    """Draw the share of frames that took at most x ms, with the percentiles marked on each curve."""
    curves, names, right = [], [], 0.0
    for k, record in enumerate(records):
        colour, total = COLOURS[k % len(COLOURS)], record["results"]["stages"]["total"]
        ms = np.sort(np.asarray(series[k]["total"])) / 1e6
        curves += axes.step(ms, np.arange(1, len(ms) + 1) / len(ms) * 100, where="post", color=colour, linewidth=1.6)
        known = {key: total[key] for key in MARKS if total[key] is not None}
        for key, value in known.items():
            axes.plot(value, float(key[1:]), MARKS[key], color=colour, markersize=6, markeredgecolor="white")
        figures = ", ".join(f"{key} {value:.2f}" for key, value in known.items())
        names.append(f"{labels[k]}: {figures}, max {total['max']:.2f} ms (n {len(ms)})")
        right = max(right, total["p99"] or total["max"])
    used = [key for key in MARKS if any(r["results"]["stages"]["total"][key] is not None for r in records)]
    marks = [axes.plot([], [], MARKS[key], color="#555555")[0] for key in used]
    axes.add_artist(axes.legend(marks, used, loc="lower right", fontsize=8))
    strip_frame(axes, "both")
    axes.set(xlim=(0, right * 1.12), ylim=(0, 102), xlabel="total latency (ms)", ylabel="frames at or below (%)")
    axes.set_title("Distribution", fontsize=10)
    axes.legend(curves, names, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False)


def _stages(axes: Axes, records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    """Draw each stage's mean time as stacked bars: means add up to the mean total; medians would not."""
    totals = [record["results"]["stages"]["total"]["mean"] for record in records]
    for row, record in enumerate(records):
        left = 0.0
        for stage, colour in STAGE_COLOURS.items():
            mean = record["results"]["stages"][stage]["mean"]
            axes.barh(row, mean, 0.55, left=left, color=colour, label=stage if row == 0 else None)
            if mean > 0.09 * max(totals):  # room for the figure
                ink = "white" if stage == "infer" else "black"
                axes.text(left + mean / 2, row, f"{mean:.2f}", ha="center", va="center", fontsize=8, color=ink)
            left += mean
        axes.text(totals[row] + 0.015 * max(totals), row, f"{totals[row]:.2f} ms", va="center", fontsize=8)
    strip_frame(axes, "x")
    axes.set(xlim=(0, max(totals) * 1.18), ylim=(len(records) - 0.4, -0.6), xlabel="mean time (ms)")
    axes.set_yticks(range(len(records)), labels)
    axes.set_title("Stages", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False, ncols=3)


def accuracy_latency(points: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw accuracy against latency, one point per model: better is up and to the left.

    Args:
        points: Mappings with name, map50 and map50_95 (fractions, 0 to 1; map50_95 may be None), p50_ms, p90_ms (or
            None) and, if known, params (their number).
        path: The PNG to write.
    """
    if not points:
        raise ValueError("accuracy_latency needs at least one point")
    figure = new_figure(7.5, 5)
    axes = figure.subplots()
    x = [float(p["p50_ms"]) for p in points]
    y = [100 * float(p["map50"]) for p in points]
    for k, point in enumerate(points):
        colour, p90 = COLOURS[k % len(COLOURS)], point.get("p90_ms")
        tail = [[0.0], [max(0.0, float(p90) - x[k])]] if p90 is not None else None
        axes.errorbar(x[k], y[k], xerr=tail, fmt="o", color=colour, markersize=8, capsize=4, elinewidth=1.4)
    strip_frame(axes, "both")
    right = max(float(p.get("p90_ms") or p["p50_ms"]) for p in points)
    margin = max(0.25 * (max(y) - min(y)), 2.0)
    top, bottom = max(y) + margin, min(y) - margin
    axes.set(xlim=(0, right * 1.25), ylim=(max(bottom, -0.05 * top), top))  # a point at 0 is not cut
    axes.set(xlabel="total latency of one frame (ms): p50, bar to p90", ylabel="mAP50 (%)")
    axes.set_title("Accuracy against latency", fontsize=11)
    _place_labels(figure, axes, points, x, y)
    return save_figure(figure, path)


def _text(point: Mapping[str, Any]) -> str:
    details = []
    if point.get("map50_95") is not None:
        details.append(f"mAP50-95 {100 * float(point['map50_95']):.1f}")
    if point.get("params"):
        details.append(f"{float(point['params']) / 1e6:.2f} M")
    return "\n".join([str(point["name"])] + ([", ".join(details)] if details else []))


def _place_labels(
    figure: Figure, axes: Axes, points: Sequence[Mapping[str, Any]], x: Sequence[float], y: Sequence[float]
) -> None:
    """Put each label at the nearest position around its point that does not cover another label, point or error bar."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout as drawn, so that positions in pixels are final
    taken = []
    for k, point in enumerate(points):
        left, level = axes.transData.transform((x[k], y[k]))
        end = axes.transData.transform((float(point.get("p90_ms") or x[k]), y[k]))[0]
        taken.append(Bbox.from_extents(left - 12, level - 12, max(end, left) + 8, level + 12))
    for k, point in enumerate(points):
        others = taken[:k] + taken[k + 1 :]  # a label may come near its own point
        taken += place_label(axes, _text(point), (x[k], y[k]), COLOURS[k % len(COLOURS)], others)


def place_label(axes: Axes, text: str, at: tuple[float, float], colour: str, taken: Sequence[Bbox]) -> list[Bbox]:
    """Write a label for the point `at`; return the boxes, in pixels, of the text and of the line to its point."""
    style: dict[str, Any] = {"textcoords": "offset pixels", "ha": "center", "va": "center", "fontsize": 8}
    label = axes.annotate(text, at, (0, 0), **style)
    size, frame, point = label.get_window_extent(), axes.get_window_extent(), axes.transData.transform(at)
    label.remove()
    best: tuple[int, int, tuple[float, float], list[Bbox]] | None = None
    for radius, (dx, dy) in product((14, 40, 70, 100, 140, 180, 220), DIRECTIONS):
        shift = (dx * (radius + size.width / 2), dy * (radius + size.height / 2))
        boxes = _label_boxes(point, shift, size, radius)
        text_box = boxes[0]
        outside = text_box.x0 < frame.x0 or text_box.x1 > frame.x1 or text_box.y0 < frame.y0 or text_box.y1 > frame.y1
        hidden = [sum(box.overlaps(other) for other in taken) for box in boxes]
        clashes = 100 * (hidden[0] + outside) + sum(hidden[1:])  # covering by text is worse than by a line
        if best is None or clashes < best[0]:
            best = (clashes, radius, shift, boxes)
    assert best is not None
    _, radius, shift, boxes = best
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6} if radius > 14 else None
    axes.annotate(text, at, shift, color=colour, arrowprops=line, **style)
    return boxes


def _label_boxes(point: np.ndarray, shift: tuple[float, float], size: Bbox, radius: int) -> list[Bbox]:
    """The box of a label's text, then small boxes along the line to its point if it is far enough to have one."""
    from matplotlib.transforms import Bbox

    centre = point + np.array(shift)
    text = Bbox.from_bounds(centre[0] - size.width / 2, centre[1] - size.height / 2, size.width, size.height)
    steps = np.linspace(0, 1, 30) if radius > 14 else ()
    dots = [point + step * np.array(shift) for step in steps]
    return [text] + [Bbox.from_bounds(d[0] - 1, d[1] - 1, 2, 2) for d in dots if not text.contains(*d)]


def throughput_curve(record: Mapping[str, Any], path: str | Path) -> Path:
    """Draw what `throughput` measured: images per second against the median latency of an input, a line per batch.

    Args:
        record: A curve of schema yolokd.throughput/1.
        path: The PNG to write.
    """
    figure = new_figure(7, 4.6)
    axes, points = figure.subplots(), record["results"]["points"]
    for k, batch in enumerate(sorted({p["batch"] for p in points})):
        own = sorted((p for p in points if p["batch"] == batch), key=lambda p: p["streams"])
        ms = [p["latency_ms"]["p50"] or p["latency_ms"]["mean"] for p in own]
        rates, colour = [p["images_per_s"] for p in own], COLOURS[k % len(COLOURS)]
        ends = [p["images_per_s_ci95"] or (p["images_per_s"],) * 2 for p in own]
        axes.errorbar(ms, rates, [[r - low for r, (low, _) in zip(rates, ends, strict=True)],
                                  [high - r for r, (_, high) in zip(rates, ends, strict=True)]],
                      color=colour, marker="o", linewidth=1.4, capsize=3, label=f"batch {batch}")  # fmt: skip
        for point, x in zip(own, ms, strict=True):
            if point["front"]:
                axes.plot(
                    x, point["images_per_s"], "o", markersize=12, markerfacecolor="none", markeredgecolor="#333333"
                )
            axes.annotate(
                f"{point['streams']}", (x, point["images_per_s"]), (6, 6), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel("latency of an input, median (ms)")
    axes.set_ylabel("images per second")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, title="numbers: streams;\ncircles: no point is better", fontsize=8, title_fontsize=8)
    strip_frame(axes, "both")
    device = record["device"]
    figure.suptitle(f"{record['model']['file']}: {device['cpu_model'] or device['kind']}, "
                    f"{record['runtime']['providers_active'][0]}", fontsize=11)  # fmt: skip
    return save_figure(figure, path)
