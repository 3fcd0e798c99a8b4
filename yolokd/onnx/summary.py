"""What a bundle says of its files: sizes and accuracy, which one is recommended and why, what `verify` allows."""

from __future__ import annotations

from typing import Any

from yolokd_edge.runtimes.table import PROVIDERS

Models = dict[str, dict[str, Any]]  # file name -> its manifest entry, the FP32 file first


def table(models: Models) -> str:
    """The files with size and accuracy; changes in points of mAP50-95 against the first."""
    rows = [["file", "MB", "mAP50", "mAP50-95", "change"]]
    for name, entry in models.items():
        known = entry["accuracy"]
        figures = [f"{100 * known[key]:.2f}" for key in ("map50", "map50_95")] if known else ["-", "-"]
        change = f"{100 * entry['change']['map50_95']:+.2f}" if entry["change"] else "-"
        rows.append([name, f"{entry['static']['bytes'] / 1e6:.2f}", *figures, change])
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def recommended(models: Models, max_drop: float) -> dict[str, str]:
    """For each provider the smallest file for it that loses at most `max_drop` points of mAP50-95 against the first.

    Empty where no accuracy was measured. Of files of equal size the first.
    """
    known = {name: entry for name, entry in models.items() if entry["change"]}
    found = {}
    for provider in PROVIDERS:
        fitting = [n for n, e in known.items() if provider in e["providers"] and lost(e) <= max_drop]
        if fitting:
            found[provider] = min(fitting, key=lambda name: known[name]["static"]["bytes"])
    return found


def lost(entry: dict[str, Any]) -> float:
    """Points of mAP50-95 that a file lost against the FP32 file; below 0 where it gained."""
    return -100 * float(entry["change"]["map50_95"])


def advice(models: Models, max_drop: float) -> str:
    """`recommended` in sentences, with the reasons."""
    chosen = recommended(models, max_drop)
    if not chosen:
        return "Nobody measured the accuracy of these files, so none is recommended."
    first = next(iter(models.values()))["static"]["bytes"] / 1e6
    lines = [
        f"Recommended is the smallest file that loses at most {max_drop:g} points of mAP50-95 (`max_drop=` when the "
        "bundle was made):",
        "",
    ]
    for file in dict.fromkeys(chosen.values()):
        where = ", ".join(f"`{provider}`" for provider, name in chosen.items() if name == file)
        size, change = models[file]["static"]["bytes"] / 1e6, -lost(models[file])
        why = (
            "no smaller one is within it"
            if file == next(iter(models))
            else f"instead of {first:.2f} MB, {change:+.2f} points"
        )
        lines.append(f"- {where}: `{file}`, {size:.2f} MB, {why}")
    return "\n".join([*lines, "", "The smallest need not be the fastest: `bench` measures."])


def allowed(models: Models, tolerance: dict[str, dict[str, float]]) -> str:
    """What `verify` allows, a line for each precision in the bundle."""
    lines = []
    for precision in dict.fromkeys(entry["precision"] for entry in models.values()):
        t = tolerance[precision]
        lines.append(
            f"{precision}: network output {t['raw_box']:g} px and {t['raw_score']:g} score; best boxes on average "
            f"{t['mean_box']:g} px; best scores together {t['score_scale']:.1%}; detections {t['box']:g} px and "
            f"{t['conf']:g} confidence, {t['unmatched']:.0%} without a partner"
        )
    return "\n".join(lines)
