"""`yolokd methods`: what method= may name, and the options of one method."""

from __future__ import annotations

from dataclasses import fields

from yolokd.config import check_keys
from yolokd.methods import METHODS
from yolokd.methods.base import Method

LEVELS = ("backbone", "neck", "head")


def describe(name: str | None = None) -> str:
    """The methods by level, or one method with its taps and options."""
    if name is not None:
        check_keys([name], METHODS, "method")
        return _one(name, METHODS[name])
    lines = []
    for level in LEVELS:
        lines.append(level)
        lines += [f"  {key:10} {cls.paper}" for key, cls in METHODS.items() if cls.level == level]
    return "\n".join(lines)


def _one(name: str, cls: type[Method]) -> str:
    taps = f"taps: {', '.join(f'{name}@{t}' for t in cls.taps)}; the first is meant by {name} alone" if cls.taps else ""
    options = [f"  {name}.{f.name}={f.default!r}" for f in fields(cls.Options)]
    text = [f"{name} ({cls.level}): {cls.paper}", (cls.__doc__ or "").strip(), taps, "options:", f"  {name}.gain=1.0"]
    return "\n".join(t for t in [*text, *options] if t)
