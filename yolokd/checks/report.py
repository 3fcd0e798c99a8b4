"""The outcome of `yolokd check` as text and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolokd.distill.preflight import Ready
from yolokd.errors import printable
from yolokd_edge.common import json_text

LISTED = 20  # classes in the table; of more the rarest
COUNTS = ("images", "with_objects", "without_objects", "skipped", "objects")


def write(outcome: dict[str, Any], file: Path) -> None:
    """Write the outcome as JSON."""
    file.write_text(json_text(outcome, indent=1) + "\n", encoding="utf-8")


def pair(ready: Ready) -> dict[str, Any]:
    """What of the recipe applies to student and teachers, and what is left out, in plain values."""
    return {
        "student": ready.student.spec.name,
        "task": ready.student.model.task,
        "imgsz": ready.side,
        "strides": list(ready.student.strides),
        "teachers": [
            {
                "teacher": plan.teacher.spec.name,
                "task": getattr(plan.teacher.model, "task", None),
                "strides": list(plan.teacher.strides),
                "classes": plan.coverage,
                "terms": [
                    {"term": name, "gain": term.gain.gain, "strides": list(term.place[0])}
                    for name, term in plan.terms.items()
                ],
                "left_out": plan.refused,
            }
            for plan in ready.plans
        ],
    }


def text(outcome: dict[str, Any]) -> str:
    """All of it, part by part; names from files are made printable."""
    parts = [_data(outcome["data"]), _pair(outcome["pair"]), _scores(outcome["scores"]), _cost(outcome["cost"])]
    parts.append(["versions: " + ", ".join(f"{name} {version}" for name, version in outcome["versions"].items())])
    parts.append([f"{f['level']}: {f['text']}" for f in outcome["findings"]])
    parts.append([f"verdict: {outcome['verdict']}"])
    return "\n\n".join("\n".join(map(printable, part)) for part in parts if part)


def _data(data: dict[str, Any]) -> list[str]:
    splits = {name: counts for name, counts in data.items() if name != "file"}
    if not splits:
        return []
    head = "".join(f" {key.replace('_', ' '):>15}" for key in COUNTS)
    lines = [f"{'split':16}{head}"]
    lines += [f"{name:16}" + "".join(f" {counts[key]:15}" for key in COUNTS) for name, counts in splits.items()]
    tables = [counts["classes"] for counts in splits.values()]
    classes = list(tables[0])
    if len(classes) > LISTED:
        classes = sorted(classes, key=lambda name: tables[0][name])[:LISTED]
        lines.append(f"\nthe {LISTED} rarest of {len(tables[0])} classes")
    lines += ["", f"{'objects by class':16}" + "".join(f" {name:>15}" for name in splits)] if classes else []
    lines += [f"{name:16}" + "".join(f" {table[name]:15}" for table in tables) for name in classes]
    return lines


def _pair(pair: dict[str, Any] | None) -> list[str]:
    if pair is None:
        return []
    lines = [f"student: {pair['student']} for {pair['task']}, strides {_listed(pair['strides'])}, {pair['imgsz']} px"]
    for one in pair["teachers"]:
        lines.append(f"teacher: {one['teacher']} for {one['task']}, strides {_listed(one['strides'])}")
        lines.append(f"  classes: {one['classes']}")
        for term in one["terms"]:
            lines.append(f"  applies: {term['term']} x {term['gain']:g} at strides {_listed(term['strides'])}")
        lines += [f"  left out: {reason}" for reason in one["left_out"]]
    return lines


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _scores(scores: dict[str, Any]) -> list[str]:
    if not scores["models"]:
        return []
    names = [f"{score['of']} {score['name']}" for score in scores["models"]]
    width = max(map(len, names))
    head = f"on {scores['images']} validation images"
    width = max(len(head), width)
    lines = [f"{head:{width}} {'mAP50':>9} {'mAP50-95':>9}"]
    for name, score in zip(names, scores["models"], strict=True):
        known = score["map50"] is not None
        figures = f"{score['map50']:9.1f} {score['map50_95']:9.1f}" if known else f" unknown: {score['why']}"
        lines.append(f"{name:{width}} {figures}")
    return lines


def _cost(cost: dict[str, Any] | None) -> list[str]:
    if cost is None:
        return []
    memory = cost["peak_memory_bytes"]
    validation = cost["validation_seconds"]
    return [
        f"estimate on {cost['device']}, from a few steps: {cost['step_seconds']:.2f} s for a step of {cost['batch']} "
        f"images, {cost['steps_per_epoch']} steps in each of {cost['epochs']} epochs",
        f"  time: about {duration(cost['total_seconds'])}"
        + (
            ", without validations"
            if validation is None
            else f", with a validation of {duration(validation)} in each epoch"
        ),
        f"  memory: about {memory / 1e9:.1f} GB" if memory else "  memory: unknown on this system",
    ]


def duration(seconds: float) -> str:
    """A time in words, in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(whole, 1)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
