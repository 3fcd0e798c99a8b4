"""What a bundle says of its files: sizes and accuracy, which one is recommended and why, what `verify` allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolokd_edge.runtimes.table import PROVIDERS

Models = dict[str, dict[str, Any]]  # file name -> its manifest entry, the FP32 file first
BOXES = "map50_95"  # in an accuracy; that of what a task adds has its name behind, such as map50_95_masks


def table(models: Models) -> str:
    """The files with size, accuracy (changes in points of mAP50-95 against the first) and output error in percent."""
    first = next(iter(models.values()))["accuracy"] or {}
    added = [key for key in first if key.startswith(f"{BOXES}_")]  # of masks or keypoints, beside that of boxes
    titles = [title for key in added for title in (key.removeprefix(f"{BOXES}_"), "change")]
    rows = [["file", "MB", "mAP50", "mAP50-95", "change", *titles, "off by"]]
    for name, entry in models.items():
        known, change = entry["accuracy"] or {}, entry["change"] or {}
        figures = [f"{100 * known['map50']:.2f}" if known else "-"]
        for key in (BOXES, *added):
            figures += [f"{100 * known[key]:.2f}" if known else "-", f"{100 * change[key]:+.2f}" if change else "-"]
        error = entry.get("output_error")
        off = f"{100 * error['value']:.2f} %" if error else "-"
        rows.append([name, f"{entry['static']['bytes'] / 1e6:.2f}", *figures, off])
    return _aligned(rows)


def tried(models: Models, times: Mapping[str, float]) -> str:
    """What was measured without labels: how far each twin's detections are off, and by what this was decided.

    Args:
        models: the entries, `trials` in those of calibrated files.
        times: file -> its time on this machine, as a share of the first's.
    """
    measured = {name: entry["output_error"] for name, entry in models.items() if "output_error" in entry}
    if not measured:
        return "Nothing is detected in the images that were held out, so nothing was compared."
    of = next(iter(measured.values()))
    where = "training images that nothing is calibrated on" if of["split"] == "train" else "validation images"
    rows = [["file", "off by", "time on this CPU"]]
    for name, error in measured.items():
        time = f"{times[name]:.2f} x FP32" if name in times else "-"
        rows.append([name, f"{100 * error['value']:.2f} %", time])
    parts = [f"How far detections are off, in {of['n']} {where}:\n{_aligned(rows)}"]
    parts += [_trials(name, entry) for name, entry in models.items() if "trials" in entry]
    return "\n".join(parts)


def _trials(name: str, entry: dict[str, Any], most: int = 10) -> str:
    """The calibrators and layers that were tried for a file; of the layers those that cost most."""
    trials = entry["trials"]
    errors = ", ".join(f"{one} {100 * error:.2f} %" for one, error in trials["calibrators"].items())
    lines = [f"{name}: {errors}; {trials['chosen']} is taken"]
    if trials["layers"]:
        alone = [[row["layer"], f"{100 * row['error']:.2f} %"] for row in trials["layers"][:most]]
        lines.append(_aligned([["rounded alone", "off by"], *alone]))
    if trials["left"]:
        left = [[r["layer"], f"{100 * r['error']:.2f} %", f"{r['bytes'] / 1e6:.2f}"] for r in trials["left"]]
        lines.append(_aligned([["left in float, with those above", "off by", "MB"], *left]))
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
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
    """The most points of mAP50-95, of boxes or of masks or keypoints, that a file lost against the FP32 file; below 0
    where it gained."""
    return max(-100 * float(by) for key, by in entry["change"].items() if key.startswith(BOXES))


def changes(entry: dict[str, Any]) -> str:
    """What changed against the FP32 file, in words."""
    found = {key: by for key, by in entry["change"].items() if key.startswith(BOXES)}
    parts = [key.removeprefix(f"{BOXES}_") if key != BOXES else "boxes" for key in found]
    said = [f"{100 * by:+.2f} points" for by in found.values()]
    return said[0] if len(said) == 1 else ", ".join(f"{by} of {part}" for by, part in zip(said, parts, strict=True))


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
        size = models[file]["static"]["bytes"] / 1e6
        why = (
            "no smaller one is within it"
            if file == next(iter(models))
            else f"instead of {first:.2f} MB, {changes(models[file])}"
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
