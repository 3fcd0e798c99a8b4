"""Drawings as SVG within the page: they take their colours from its style sheet and are sharp at every size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 44
COLOURS = 7  # of the style sheet: --c0 to --c6
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named curve; its colour is its place's unless given."""

    name: str
    points: Sequence[Point]
    step: bool = False  # horizontal until the next point
    colour: int | None = None


@dataclass(frozen=True)
class Dot:
    """A named point; `low` and `high` end a horizontal bar through it."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Axes:
    """Maps numbers to pixels, and draws frame, ticks and labels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str) -> None:
        self.x_ends, self.y_ends = widened(*x), widened(*y)
        self.x_label, self.y_label = x_label, y_label

    def at(self, x: float, y: float) -> Point:
        """The pixel of a point."""
        across = (x - self.x_ends[0]) / (self.x_ends[1] - self.x_ends[0])
        up = (y - self.y_ends[0]) / (self.y_ends[1] - self.y_ends[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def frame(self) -> list[str]:
        """Grid, ticks and labels."""
        parts = []
        for value in ticks(*self.y_ends):
            _, y = self.at(self.x_ends[0], value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(text(LEFT - 8, y + 4, f"{value:g}", "end"))
        for value in ticks(*self.x_ends):
            if self.x_label == "epoch" and value != round(value):
                continue
            x, _ = self.at(value, self.y_ends[0])
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - 40}"/>')
            parts.append(text(x, HEIGHT - 26, f"{value:g}", "middle"))
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, self.x_label, "middle"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = f'transform="rotate(-90 14 {middle:g})"'
        parts.append(f'<text x="14" y="{middle:g}" text-anchor="middle" {turned}>{escape(self.y_label)}</text>')
        return parts


def widened(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis, apart even where all values are the same."""
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def drawing(words: str, parts: Sequence[str], height: int = HEIGHT) -> Markup:
    """An SVG that says to a screen reader what it shows."""
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(words)}">'
    return Markup("".join([head, *parts, "</svg>"]))


def curves(words: str, lines: Sequence[Line], x_label: str, y_label: str, zero: bool = False) -> Markup:
    """Curves over a common axis, from 0 on if asked for; what is no finite number is left out."""
    kept = [(i if line.colour is None else line.colour, line, finite(line.points)) for i, line in enumerate(lines)]
    everything = [p for _, _, points in kept for p in points]
    if not everything:
        raise ValueError(f"there is no finite number to draw of {words}")
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    axes = Axes((min(xs), max(xs)), (min([*ys, 0] if zero else ys), max(ys)), x_label, y_label)
    parts = axes.frame()
    for colour, line, points in kept:
        path = stepped(points) if line.step else points
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(*p) for p in path))
        shown = f"<title>{escape(line.name)}</title>"
        parts.append(f'<polyline fill="none" class="line c{colour % COLOURS}" points="{drawn}">{shown}</polyline>')
        if len(points) < 30 and not line.step:
            for p in points:
                x, y = axes.at(*p)
                parts.append(f'<circle class="dot c{colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
    return drawing(words, parts)


def finite(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]


def stepped(points: Sequence[Point]) -> list[Point]:
    corners = [corner for a, b in zip(points, points[1:], strict=False) for corner in (a, (b[0], a[1]))]
    return [*corners, points[-1]] if points else []


def dots(words: str, given: Sequence[Dot], front: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Named points with their bars, and a front through some of them."""
    xs = [v for d in given for v in (d.x, d.low, d.high) if v is not None]
    ys = [d.y for d in given]
    spread = max(ys) - min(ys) or 1.0
    axes = Axes((0, 1.25 * max(xs)), (min(ys) - 0.15 * spread, max(ys) + 0.2 * spread), x_label, y_label)
    parts = axes.frame()
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(*p) for p in stepped(sorted(front))))
    parts.append(f'<polyline fill="none" class="front" points="{path}"/>')
    for i, dot in enumerate(given):
        x, y = axes.at(dot.x, dot.y)
        if dot.low is not None and dot.high is not None:
            (a, _), (b, _) = axes.at(dot.low, dot.y), axes.at(dot.high, dot.y)
            parts.append(f'<line class="line c{i % COLOURS}" x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="dot c{i % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        right = x > 0.7 * WIDTH
        parts.append(text(x - 10 if right else x + 10, y - 9, dot.name, "end" if right else "start"))
    return drawing(words, parts)


def intervals(words: str, rows: Sequence[tuple[str, float, float | None, float | None]], x_label: str) -> Markup:
    """One line for each row: its mean, and its interval where there is one, beside zero."""
    ends = [v for _, *values in rows for v in values if v is not None] + [0.0]
    low, high = widened(min(ends), max(ends))
    left, row, height = 190, 30, 30 * len(rows) + 56
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin

    def at(x: float) -> float:
        return left + (x - low) / (high - low) * (WIDTH - left - RIGHT)

    bottom = height - 44
    parts = [f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="6" y2="{bottom}"/>']
    for value in ticks(low, high):
        parts.append(text(at(value), bottom + 18, f"{value:+g}" if value else "0", "middle"))
    parts.append(text((left + WIDTH - RIGHT) / 2, height - 6, x_label, "middle"))
    for i, (name, mean, a, b) in enumerate(rows):
        y = 22 + i * row
        parts.append(text(left - 12, y + 4, name if len(name) <= 26 else name[:25] + "…", "end"))
        if a is not None and b is not None:
            parts.append(f'<line class="bar c0" x1="{at(a):.1f}" x2="{at(b):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot c0" cx="{at(mean):.1f}" cy="{y}" r="5"/>')
    return drawing(words, parts, height)


def stacked(words: str, rows: Sequence[tuple[str, Sequence[float]]], x_label: str) -> Markup:
    """One bar for each row, of pieces side by side with their lengths."""
    most = max(sum(pieces) for _, pieces in rows) or 1.0
    left, height = 190, 40 * len(rows) + 50
    scale = (WIDTH - left - 60) / most
    parts = []
    for i, (name, pieces) in enumerate(rows):
        y, x = 10 + 40 * i, float(left)
        parts.append(text(left - 12, y + 18, name if len(name) <= 26 else name[:25] + "…", "end"))
        for k, piece in enumerate(pieces):
            parts.append(f'<rect class="fill c{k}" x="{x:.1f}" y="{y}" width="{piece * scale:.1f}" height="26"/>')
            x += piece * scale
        parts.append(text(x + 8, y + 18, f"{sum(pieces):.2f}"))
    parts.append(text((left + WIDTH) / 2, height - 10, x_label, "middle"))
    return drawing(words, parts, height)
