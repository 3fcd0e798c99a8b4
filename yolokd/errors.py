"""Errors that a user can cause, each with the exit code that the command line gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """Something the user asked for cannot be done: one sentence naming the thing, the value and the remedy."""

    code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it names files, classes and values, which others may have written


class CompatError(ImportError):
    """An Ultralytics internal that yolokd stands on has moved."""

    code = 2


class ParityError(RuntimeError):
    """An exported file does not compute what the checkpoint computes."""

    code = 5


class StudyError(RuntimeError):
    """Some runs of a study failed, so that its tables are incomplete."""

    code = 3


class DoubtError(RuntimeError):
    """A training that could start, but whose data has faults or that may not pay."""

    code = 3


class GateError(RuntimeError):
    """A comparison of reports that does not pass: 1 regression, 3 inconclusive, 4 wrong provider, 5 parity."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(KeyboardInterrupt):
    """What was at work was stopped by Ctrl-C or SIGTERM: one sentence that says how to go on.

    No `Exception`, which somebody's handler on the way would take for a failure.
    """

    def __init__(self, message: str = "stopped", stop: BaseException | None = None, code: int = 130) -> None:
        super().__init__(message)
        self.code: int = getattr(stop, "code", code)  # 130 for SIGINT, 143 for SIGTERM


def one_line(error: Exception) -> str:
    """The first paragraph of somebody else's exception as one line of at most 200 characters."""
    return " ".join(str(error).strip().split("\n\n")[0].split())[:200].rstrip(". ")


def as_path(key: str, value: Any) -> Path:
    """What a user names as a file or folder; refused where no file can have that name."""
    try:
        path = Path(str(value)).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # what is there is another question
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody
        raise UsageError(f"{key}={str(value)[:80]} names no file ({one_line(error)}): give its path.") from error
    return path


def printable(text: str) -> str:
    """Foreign text as one line that a terminal only shows: escapes in place of what could move the cursor, begin a line
    that looks like ours, or turn the direction of writing.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
