"""Plots of studies, of latency over time and of Pareto fronts, written as PNG files."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolokd.latency.drawing import COLOURS, new_figure, place_label, save_figure, strip_frame

if TYPE_CHECKING:
    from matplotlib.transforms import Bbox


ABOVE = {"alone": "the student alone", "builtin": "Ultralytics' own distillation"}


def gains(comparisons: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw a study's paired differences: mean, 95 % interval and one dot per seed; one panel per metric and reference.

    Args:
        comparisons: From studies.report.compare, mAP as fractions.
        path: The PNG to write.
    """
    metrics = {"map50": "mAP50", "map50_95": "mAP50-95"}
    references = list(dict.fromkeys(c["reference"] for c in comparisons))
    arms = {r: list(dict.fromkeys(c["arm"] for c in comparisons if c["reference"] == r)) for r in references}
    width = 0.075 * max(len(arm) for row in arms.values() for arm in row)
    heights = [1.1 + 0.38 * len(row) for row in arms.values()]
    figure = new_figure(8.5 + width, sum(heights) + 0.3)
    panels = figure.subplots(len(references), len(metrics), squeeze=False, sharey="row", height_ratios=heights)
    for row, (reference, row_arms) in zip(panels, arms.items(), strict=True):
        for axes, (metric, label) in zip(row, metrics.items(), strict=True):
            _intervals(axes, [c for c in comparisons if (c["reference"], c["metric"]) == (reference, metric)], row_arms)
            axes.set_xlabel(f"{label}, points above {ABOVE.get(reference, reference)}", fontsize=9)
        row[0].set_yticks(range(len(row_arms)), ["built-in" if a == "builtin" else a for a in row_arms], fontsize=9)
        row[0].set_ylim(len(row_arms) - 0.4, -0.6)
    figure.suptitle("Paired difference by seed: mean, 95 % interval and one dot per seed", fontsize=11)
    return save_figure(figure, path)


def _intervals(axes: Any, comparisons: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    colour = {"better": COLOURS[2], "worse": COLOURS[1]}
    for c in comparisons:
        y, (low, high) = arms.index(c["arm"]), c["ci95"]
        tint = colour.get(c["verdict"], "#666666")
        if low is not None:
            axes.plot([100 * low, 100 * high], [y, y], color=tint, linewidth=2.2, solid_capstyle="butt")
        axes.plot([100 * d for d in c["differences"]], [y + 0.18] * c["n"], "o", color=tint, markersize=3, alpha=0.6)
        axes.plot(100 * c["mean"], y, "D", color=tint, markersize=6)
    axes.axvline(0, color="#333333", linewidth=1)
    axes.margins(x=0.08)
    strip_frame(axes, "x")


TELEMETRY = {"tj_c": ("junction (°C)", COLOURS[1]), "power_w": ("power (W)", COLOURS[3])}
CLOCKS = {"gpu_mhz": ("GPU", COLOURS[2]), "cpu_mhz": ("CPU", COLOURS[4])}


def over_time(record: Mapping[str, Any], series: Mapping[str, np.ndarray], path: str | Path) -> Path:
    """Draw each frame's total latency over time, and below it temperature, power and clocks if they were sampled.

    Args:
        record: A record of schema yolokd.latency/1.
        series: Its samples: `total` in ns; if known `start` (ns) and `telemetry/NAME` (n, 2): ns on the same clock, and
            value. Without `start` the frames are numbered.
        path: The PNG to write.
    """
    start = series.get("start")
    zero = float(start.min()) if start is not None else 0.0
    telemetry = {k.removeprefix("telemetry/"): v for k, v in series.items() if k.startswith("telemetry/") and len(v)}
    lower = [k for k in TELEMETRY if k in telemetry] + ["clocks"] * any(k in telemetry for k in CLOCKS)
    lower = lower if start is not None else []
    figure = new_figure(11, 3.6 + 1.25 * len(lower))
    panels = figure.subplots(1 + len(lower), 1, sharex=True, squeeze=False, height_ratios=[2.6] + [1] * len(lower))[
        :, 0
    ]
    _frames(panels[0], record, series, zero)
    for axes, name in zip(panels[1:], lower, strict=True):
        curves = CLOCKS if name == "clocks" else {name: TELEMETRY[name]}
        for key, (legend, colour) in curves.items():
            if key in telemetry:
                seconds, values = (telemetry[key][:, 0] - zero) / 1e9, telemetry[key][:, 1]
                axes.plot(seconds, values, color=colour, linewidth=1.3, label=legend)
        axes.set_ylabel("clock (MHz)" if name == "clocks" else TELEMETRY[name][0], fontsize=9)
        axes.margins(y=0.15)
        if name == "clocks":
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
        strip_frame(axes, "both")
    panels[-1].set_xlabel("time (s)" if start is not None else "frame", fontsize=9)
    stability = record["stability"]
    doubts = [str(reason) for reason in stability.get("reasons") or []]
    title = f"{record['model']['file']}: {stability.get('verdict') or 'not judged'}"
    figure.suptitle("\n".join([title, *(textwrap.shorten(d, 120) for d in doubts[:2])]), fontsize=10)
    return save_figure(figure, path)


def _frames(axes: Any, record: Mapping[str, Any], series: Mapping[str, np.ndarray], zero: float) -> None:
    """Draw one dot per frame, a running median per run, and the percentiles as lines with their values at the right."""
    ms, start = np.asarray(series["total"]) / 1e6, series.get("start")
    x = np.arange(len(ms)) if start is None else (np.asarray(start) - zero) / 1e9
    runs = np.asarray(series.get("run", np.zeros(len(ms), int)))
    axes.plot(x, ms, ".", color="#8FB8D9", markersize=2.5, rasterized=True)
    for run in np.unique(runs):
        inside = np.flatnonzero(runs == run)[np.argsort(x[runs == run])]
        blocks = np.array_split(inside, max(1, len(inside) // 25))
        middle = [(np.mean(x[b]), np.median(ms[b])) for b in blocks if len(b)]
        axes.plot(*zip(*middle, strict=True), color=COLOURS[0], linewidth=1.4)
    known = {k: v for k in ("p50", "p90", "p99") if (v := record["results"]["stages"]["total"].get(k)) is not None}
    top = 1.05 * max(ms.max(), *known.values())
    axes.set_ylim(max(0, ms.min() - 0.08 * (top - ms.min())), top)
    heights = spread_apart(list(known.values()), 0.055 * np.ptp(axes.get_ylim()))
    for (key, value), height in zip(known.items(), heights, strict=True):
        axes.axhline(value, color="#555555", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{key} {value:.2f}", (1.005, height), xycoords=("axes fraction", "data"), fontsize=8, va="center"
        )
    axes.set_ylabel("total latency (ms)", fontsize=9)
    strip_frame(axes, "both")


def spread_apart(values: Sequence[float], gap: float) -> list[float]:
    """The ascending values, raised where necessary so that neighbours are at least gap apart."""
    out: list[float] = []
    for value in values:
        out.append(max(value, out[-1] + gap) if out else value)
    return out


def pareto_front(points: Sequence[Mapping[str, Any]], path: str | Path, x_label: str, y_label: str) -> Path:
    """Draw accuracy against cost, one front per device: better is up and to the left.

    Args:
        points: Mappings with name, device, x, y (a fraction), low and high (ends of x's interval or None), front.
        path: The PNG to write.
        x_label: Of the cost, with its unit.
        y_label: Of the accuracy, in percent.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    devices = list(dict.fromkeys(p["device"] for p in points))
    figure = new_figure(8.5, 5.4)
    axes = figure.subplots()
    x, y = [float(p["x"]) for p in points], [100 * float(p["y"]) for p in points]
    for k, device in enumerate(devices):
        colour, on_device = COLOURS[k % len(COLOURS)], [i for i, p in enumerate(points) if p["device"] == device]
        front = sorted((i for i in on_device if points[i]["front"]), key=lambda i: x[i])
        axes.step([x[i] for i in front], [y[i] for i in front], where="post", color=colour, linewidth=1.2, alpha=0.6)
        for i in on_device:
            low, high = points[i].get("low"), points[i].get("high")
            bar = None if low is None or high is None else [[max(0.0, x[i] - low)], [max(0.0, high - x[i])]]
            fill = colour if points[i]["front"] else "white"
            axes.errorbar(x[i], y[i], xerr=bar, fmt="o", color=colour, markerfacecolor=fill, markersize=7, capsize=3)
        axes.plot([], [], "o", color=colour, label=device)
    axes.plot([], [], "o", color="#555555", markerfacecolor="white", label="another model is at least as good in both")
    margin = max(0.15 * (max(y) - min(y)), 1.5)
    right = max(float(p.get("high") or p["x"]) for p in points)
    if right > 8 * min(x):  # several devices, or models of very different size
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(x) / 1.4, right * 1.6)
    else:
        axes.set_xlim(0, right * 1.25)
    axes.set(ylim=(min(y) - margin, max(y) + margin), xlabel=x_label, ylabel=y_label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, frameon=False, ncols=2)
    strip_frame(axes, "both")
    figure.suptitle("Accuracy against cost; filled: on the Pareto front", fontsize=11)
    _name_points(figure, axes, points, x, y)
    return save_figure(figure, path)


def _name_points(
    figure: Any, axes: Any, points: Sequence[Mapping[str, Any]], x: Sequence[float], y: Sequence[float]
) -> None:
    """Write each point's name where it covers nothing, as in the demo's picture."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # positions in pixels are final from here on
    taken = []
    for k, point in enumerate(points):
        low, high = (point.get(end) if point.get(end) is not None else x[k] for end in ("low", "high"))
        (left, level), right = axes.transData.transform((low, y[k])), axes.transData.transform((high, y[k]))[0]
        taken.append(Bbox.from_extents(left - 10, level - 10, right + 10, level + 10))
    devices = list(dict.fromkeys(p["device"] for p in points))
    taken += [box for device in devices for box in _steps(axes, points, x, y, device)]
    for k, point in enumerate(points):
        colour = COLOURS[devices.index(point["device"]) % len(COLOURS)]
        taken += place_label(axes, str(point["name"]), (x[k], y[k]), colour, taken[:k] + taken[k + 1 :])


def _steps(
    axes: Any, points: Sequence[Mapping[str, Any]], x: Sequence[float], y: Sequence[float], device: str
) -> list[Bbox]:
    """Thin boxes, in pixels, along the vertical parts of a device's front, so that no name is written across them."""
    from matplotlib.transforms import Bbox

    front = sorted((x[i], y[i]) for i, p in enumerate(points) if p["front"] and p["device"] == device)
    ends = [axes.transData.transform([(b[0], a[1]), b]) for a, b in zip(front, front[1:], strict=False)]
    return [Bbox.from_extents(low[0] - 1, low[1], high[0] + 1, high[1]) for low, high in ends]
