"""`yolokd methods`: the taxonomy as a tree, the options of one method, and the table in docs/methods.md."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from yolokd.config.parse import check_keys
from yolokd.config.schedule import Gain
from yolokd.methods import METHODS
from yolokd.methods.base import TAXONOMY_LEVELS, Method

HEADS = {"dense": "YOLO", "set": "RT-DETR"}  # kinds of heads


def describe(name: str | None = None) -> str:
    """The methods as a tree by level, or one method with its taps and options."""
    if name is not None:
        check_keys([name], METHODS, "method")
        return _one(name, METHODS[name])
    lines = []
    for level, methods in _levels().items():
        lines.append(level)
        for key, cls in methods.items():
            lines += [f"  {key}", *(f"    {what:9} {text}" for what, text in _facts(cls).items())]
    return "\n".join(lines)


def table() -> str:
    """The methods as a Markdown table, by level."""
    rows = ["| level | method | reads | heads | published gain | paper |", "|---|---|---|---|---|---|"]
    for level, methods in _levels().items():
        for name, cls in methods.items():
            facts = _facts(cls)
            rows.append(
                f"| {level} | `{name}` | {' | '.join(facts[f] for f in ('reads', 'heads', 'reported', 'paper'))} |"
            )
    return "\n".join(rows)


def _levels() -> dict[str, dict[str, type[Method]]]:
    """Level -> its methods; without those that have none."""
    found = {
        level: {key: cls for key, cls in METHODS.items() if cls.taxonomy_level == level} for level in TAXONOMY_LEVELS
    }
    return {level: methods for level, methods in found.items() if methods}


def _facts(cls: type[Method]) -> dict[str, str]:
    maps = [f"{' or '.join(cls.taps)} maps"] if cls.taps else []
    reads = ", ".join([*maps, *sorted(cls.needs | cls.student_needs | cls.teacher_needs)])
    return {"paper": cls.paper, "reads": reads, "heads": heads(cls), "default": default(cls), "reported": cls.reported}


def heads(cls: type[Method]) -> str:
    """Which students it can compare with which teachers."""
    teachers = {s: [t for t in HEADS if f"{s}/{t}" in cls.heads] for s in HEADS}
    if all(len(found) == len(HEADS) for found in teachers.values()):
        return "any"
    groups: dict[str, list[str]] = {}
    for student, found in teachers.items():
        if found:
            groups.setdefault(" or ".join(HEADS[t] for t in found), []).append(HEADS[student])
    return ", ".join(f"{' or '.join(students)} under {teacher}" for teacher, students in groups.items())


def default(cls: type[Method]) -> str:
    """What the bare name stands for."""
    return f"gain 1{f', on {cls.taps[0]}' if cls.taps else ''}"


def _one(name: str, cls: type[Method]) -> str:
    taps = f"taps: {', '.join(f'{name}@{t}' for t in cls.taps)}; the first is meant by {name} alone" if cls.taps else ""
    text = [f"{name} ({cls.taxonomy_level}): {cls.paper}", (cls.__doc__ or "").strip()]
    text += [
        f"heads: {heads(cls)}",
        f"published gain: {cls.reported}",
        f"a gain of 1 counts {cls.unit:g} x its value",
        taps,
    ]
    own = _options(name, cls.Options)
    text += ["options:" if own else "", *own, "weight:", *_options(name, Gain)]
    return "\n".join(t for t in text if t)


def _options(name: str, options: type) -> list[str]:
    """One line an option: its default and, from the comment behind it in the source, its meaning."""
    source = inspect.getsource(options)
    meanings = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.MULTILINE))
    settings = [(f"{name}.{f.name}={f.default!r}", meanings[f.name]) for f in fields(options)]
    return [f"  {setting:26} {meaning}" for setting, meaning in settings]
