"""`yolokd help`: the verbs in one line each, or all about one."""

from __future__ import annotations

import os
import re
import sys
import textwrap

from yolokd.errors import UsageError
from yolokd.verbs import VERBS, load
from yolokd.verbs.declaration import Option, Verb

WIDTH = 100
HEAD = "yolokd: train a small YOLO under a large one, export it, measure it."
GROUPS = {
    "train": "Train",
    "export": "Export",
    "measure": "Measure",
    "understand": "Understand",
    "try": "Try it out",
    "about": "About yolokd",
}
END = """\
Arguments are written key=value, as for `yolo`. `yolokd help VERB` explains one command.
Exit codes: 0 done or pass, 1 regression, 2 bad input, 3 inconclusive, some runs of a study failed or a
check has warnings, 4 the provider that was asked for was not active, 5 parity failed: an exported file computes
something else than the checkpoint, 70 anything else, with a traceback."""

VERB = Verb(
    summary="prints this list, or all about one command",
    usage=("yolokd help [VERB]", "yolokd VERB --help"),
    options=(Option("VERB", "the command to explain", bare=True),),
    examples=("yolokd help train",),
)


def run(words: list[str]) -> None:
    """Print the help of a verb, or the list of all."""
    if len(words) > 1:
        raise UsageError(f"help explains one command at a time and was given {' '.join(words)}: name one.")
    text = explain(words[0]) if words else listing()
    print(coloured(text) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text)


def listing() -> str:
    """All verbs, one line each, in groups."""
    width = max(map(len, VERBS))
    lines = [HEAD]
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  yolokd {name:{width}}  {load(name).VERB.summary}" for name, g in VERBS.items() if g == group]
    return "\n".join([*lines, "", END])


def explain(name: str) -> str:
    """Examples, usage, and every argument of one verb with its meaning and default, in groups."""
    if name not in VERBS:
        from yolokd.config.parse import did_you_mean

        raise UsageError(f"unknown verb {name!r}{did_you_mean(name, VERBS)}.")
    verb: Verb = load(name).VERB
    parts = [f"yolokd {name}: {verb.summary}."]
    parts.append(_block("Examples" if len(verb.examples) > 1 else "Example", verb.examples))
    parts.append(_block("Usage", verb.usage))
    options = verb.all_options()
    width = min(max((len(option.spelling) for option in options), default=0), 20)
    for title, group in grouped(options).items():
        parts.append(_block(title, [_line(option, width) for option in group]))
    parts += ["\n".join(textwrap.fill(note, WIDTH) for note in verb.notes)] if verb.notes else []
    return "\n\n".join(parts)


def grouped(options: list[Option]) -> dict[str, list[Option]]:
    """Title -> options: what must be given first, what has no group of its own next."""
    groups: dict[str, list[Option]] = {"Required": [], "Options": []}
    for option in options:
        groups.setdefault("Required" if option.required else option.group or "Options", []).append(option)
    return {title: group for title, group in groups.items() if group}


def coloured(text: str) -> str:
    """The text with bold titles and arguments in cyan, for a terminal that wants colours."""
    text = re.sub(r"^(\S.*:)$", "\033[1m\\1\033[0m", text, flags=re.MULTILINE)
    return re.sub(r"^(  )([\w.-]+=)(?=\s)", "\\1\033[36m\\2\033[0m", text, flags=re.MULTILINE)


def _block(title: str, lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join([f"{title}:", *(textwrap.indent(line, "  ") for line in lines)])


def _line(option: Option, width: int) -> str:
    known = "required" if option.required else f"default: {option.default}" if option.default else ""
    text = f"{option.meaning.rstrip('.')} ({known})" if known else option.meaning.rstrip(".")
    filled = textwrap.wrap(text, WIDTH - width - 4)
    return "\n".join([f"{option.spelling:{width}}  {filled[0]}", *(f"{'':{width}}  {line}" for line in filled[1:])])
