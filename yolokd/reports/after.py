"""The report that a command leaves behind. It breaks nothing: where it cannot be made, a warning says why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yolokd.errors import one_line, printable


def after(place: str | Path, command: Sequence[str] = (), trust: bool = False) -> Path | None:
    """Make the report of what has just ended.

    Args:
        place: the folder, or the report of `bench`.
        command: its words, for the page.
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
