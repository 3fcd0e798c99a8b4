"""Plots of studies and of reports compared, written as PNG files; report.py has those of one measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolokd.report import COLOURS, _bare, _figure, _save


def gains(comparisons: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw a study's paired differences: mean and 95 % interval, a dot a seed, one panel a metric and reference.

    Args:
        comparisons: As study_report.compare gives them, mAP as fractions.
        path: The PNG to write.
    """
    names = {"alone": "the student alone", "builtin": "Ultralytics' own distillation"}
    metrics = {"map50": "mAP50", "map50_95": "mAP50-95"}
    references = list(dict.fromkeys(c["reference"] for c in comparisons))
    arms = list(dict.fromkeys(c["arm"] for c in comparisons))
    width = 0.075 * max(map(len, arms))
    figure = _figure(8.5 + width, (1.1 + 0.38 * len(arms)) * len(references) + 0.3)
    panels = figure.subplots(len(references), len(metrics), squeeze=False, sharey="row")
    for row, reference in zip(panels, references, strict=True):
        shown = [a for a in arms if any(c["arm"] == a and c["reference"] == reference for c in comparisons)]
        for axes, (metric, said) in zip(row, metrics.items(), strict=True):
            _intervals(axes, [c for c in comparisons if (c["reference"], c["metric"]) == (reference, metric)], shown)
            axes.set_xlabel(f"{said}, points above {names[reference]}", fontsize=9)
        row[0].set_yticks(range(len(shown)), ["built-in" if a == "builtin" else a for a in shown], fontsize=9)
        row[0].set_ylim(len(shown) - 0.4, -0.6)
    figure.suptitle("Paired difference by seed: mean and 95 % interval, a dot a seed", fontsize=11)
    return _save(figure, path)


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
    _bare(axes, "x")
