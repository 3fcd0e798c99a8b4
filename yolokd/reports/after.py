"""The report that is left behind. It breaks nothing: where it cannot be made, a warning says why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolokd.errors import one_line, printable


def after(place: str | Path, command: str = "", trust: bool = False) -> Path | None:
    """Make the report of what has just ended.

    Args:
        place: the folder, or the report of `bench`.
        command: as it was typed, for the page.
        trust: open checkpoints that may run code.

    Returns:
        The HTML file, None without one.
    """
    from ultralytics.utils import LOGGER, RANK

    if RANK not in {-1, 0}:
        return None
    try:
        from yolokd.reports import make, subject  # within: what these import may be broken too

        found = subject.find(place, trust)
        file = make.make(found, found.folder / make.PAGE, command)
    except (Exception, KeyboardInterrupt) as error:  # what was done is done, and its report can be made again
        why = one_line(error) if isinstance(error, Exception) else "stopped"
        LOGGER.warning(
            printable(f"The report was not made ({why or type(error).__name__}): `yolokd report {place}` tries again.")
        )
        return None
    LOGGER.info(printable(f"Report: {file}"))
    return file


def typed(name: str, arguments: Mapping[str, Any]) -> str:
    """A call of a function of ours, as it may be typed."""
    plain = [f"{key}={value!r}" for key, value in arguments.items() if key.isidentifier()]
    dotted = {key: value for key, value in arguments.items() if not key.isidentifier()}
    return f"yolokd.{name}({', '.join([*plain, *([f'**{dotted!r}'] if dotted else [])])})"


def told_as(inner: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A function that calls `inner` and leaves a report: its signature and its docstring say so."""
    taken = inspect.signature(inner)
    own = inspect.Parameter("report", inspect.Parameter.KEYWORD_ONLY, default=True, annotation="bool")
    listed = list(taken.parameters.values())
    rest = [p for p in listed if p.kind is p.VAR_KEYWORD]
    signature = taken.replace(parameters=[*(p for p in listed if p not in rest), own, *rest])
    words = f"{inspect.getdoc(inner)}\n\nIt leaves a report.html, see `yolokd.report`; report=False leaves none."

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__doc__, function.__signature__ = words, signature  # type: ignore[attr-defined]
        return function

    return told
