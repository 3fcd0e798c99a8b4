"""The picture of a fit: accuracy against latency, with the budget and the student that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolokd.fitting.times import Budget
from yolokd.latency.drawing import COLOURS, new_figure, place_label, save_figure, strip_frame

GREY = "#777777"


def draw(models: Sequence[Mapping[str, Any]], budget: Budget, path: Path) -> Path:
    """Draw the models: filled ones are trained to the end, hollow ones for a round of the race.

    Args:
        models: mappings with name, ms and map50_95 (a fraction, None where it was not trained), and epochs where it
            was trained for a round; the student comes last.
        budget: a line.
        path: the PNG to write.
    """
    figure = new_figure(8.5, 5.4)
    axes = figure.subplots()
    shown = [m for m in models if m.get("map50_95") is not None]
    ys = [100 * float(m["map50_95"]) for m in shown]
    xs = [float(m["ms"]) for m in shown]
    unseen = [float(m["ms"]) for m in models if m.get("map50_95") is None]
    margin = max(0.2 * (max(ys) - min(ys)), 2.0)
    bottom = max(min(ys) - margin, -0.02 * max(ys))
    right = 1.15 * max([*xs, *unseen, budget.ms])
    axes.axvspan(0, budget.ms, color=COLOURS[2], alpha=0.07)
    axes.axvline(budget.ms, color=COLOURS[2], linewidth=1.4, linestyle="--")
    for k, model in enumerate(shown):
        raced, last = bool(model.get("epochs")), k == len(shown) - 1
        colour = COLOURS[1] if last else GREY if raced else COLOURS[0]
        marker, size = ("*", 15) if last else ("o", 7)
        axes.plot(xs[k], ys[k], marker, color=colour, markersize=size, markerfacecolor="white" if raced else colour)
    axes.plot(unseen, [bottom] * len(unseen), "|", color=GREY, markersize=14, clip_on=False)
    axes.set(xlim=(0, right), ylim=(bottom, max(ys) + margin))
    axes.set(xlabel=f"{budget.metric} (ms)", ylabel="mAP50-95 (%)")
    for label, mark, colour, face in (
        ("chosen and trained to the end", "*", COLOURS[1], COLOURS[1]),
        ("teacher", "o", COLOURS[0], COLOURS[0]),
        ("candidate after its last round of the race", "o", GREY, "white"),
        ("candidate that was ranked only", "|", GREY, GREY),
    ):
        axes.plot([], [], mark, color=colour, markerfacecolor=face, label=label)
    axes.plot([], [], "--", color=COLOURS[2], label=f"budget {budget}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=8, frameon=False, ncols=2)
    strip_frame(axes, "both")
    figure.suptitle("Students for a latency budget", fontsize=11)
    _name(figure, axes, shown, xs, ys)
    return save_figure(figure, path)


def _name(figure: Any, axes: Any, shown: Sequence[Mapping[str, Any]], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Write names where they cover nothing."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # positions in pixels are final from here on
    taken = []
    for x, y in zip(xs, ys, strict=True):
        left, level = axes.transData.transform((x, y))
        taken.append(Bbox.from_extents(left - 10, level - 10, left + 10, level + 10))
    for k, model in enumerate(shown):
        colour = COLOURS[1] if k == len(shown) - 1 else GREY if model.get("epochs") else COLOURS[0]
        text = f"{model['name']}\n{xs[k]:.2f} ms, {ys[k]:.1f}"
        taken += place_label(axes, text, (xs[k], ys[k]), colour, taken[:k] + taken[k + 1 :])
