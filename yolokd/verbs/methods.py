"""`yolokd methods`: the taxonomy as a tree, the options of one method, and the table in the README."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from yolokd.config import check_keys
from yolokd.gains import Gain
from yolokd.methods import METHODS
from yolokd.methods.base import Method

# of the review arXiv:2508.03317, "roi" for its RPN/RoI; the last three are those of Transformer detectors
LEVELS = ("backbone", "neck", "roi", "head", "query", "feature", "logit")


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


def table() -> str:
    """The methods as a Markdown table, by level."""
    rows = ["| level | method | reads | taps | paper |", "|---|---|---|---|---|"]
    for level in LEVELS:
        for name, cls in METHODS.items():
            if cls.level == level:
                reads, taps = ", ".join(sorted(cls.needs)) or "maps", ", ".join(cls.taps) or "predictions"
                rows.append(f"| {level} | `{name}` | {reads} | {taps} | {cls.paper} |")
    return "\n".join(rows)


def _one(name: str, cls: type[Method]) -> str:
    taps = f"taps: {', '.join(f'{name}@{t}' for t in cls.taps)}; the first is meant by {name} alone" if cls.taps else ""
    text = [f"{name} ({cls.level}): {cls.paper}", (cls.__doc__ or "").strip(), taps]
    own = _options(name, cls.Options)
    text += ["options:" if own else "", *own, "weight:", *_options(name, Gain)]
    return "\n".join(t for t in text if t)


def _options(name: str, options: type) -> list[str]:
    """One line an option: its default and, from the comment behind it in the source, its meaning."""
    source = inspect.getsource(options)
    meanings = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.MULTILINE))
    settings = [(f"{name}.{f.name}={f.default!r}", meanings[f.name]) for f in fields(options)]
    return [f"  {setting:26} {meaning}" for setting, meaning in settings]


if __name__ == "__main__":
    print(table())
