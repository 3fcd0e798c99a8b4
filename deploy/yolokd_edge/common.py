"""What every part of the runtime needs: its error with the exit codes, and small helpers. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE, PROVIDER, PARITY, DEFECT = 2, 4, 5, 70  # exit codes; a defect is not 1, by which a gate means a regression
PACKAGE = Path(__file__).resolve().parent  # this folder, which may lie inside a zip file


class EdgeError(Exception):
    """What went wrong in one sentence, and the exit code: 2 bad input or usage, 4 provider not active, 5 no parity."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(printable(message))  # it names files, classes and nodes, which others may have written
        self.code = code


def tell(text: str, keep: Callable[[], object] | None) -> None:
    """Print what was measured, then keep it in a file: first in print, as no fault of a file may lose it, and in the
    file also where the reader of the output has gone, as `| head` does."""
    try:
        print(text)
    finally:
        if keep is not None:
            keep()


def printable(text: object) -> str:
    """Text of a file or of its name as it may be shown: no escape moves the cursor, no newline starts a line of ours.

    What is not printable is written as Python writes it in a string, a newline as \\n.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: Python's own NaN and Infinity are no JSON and are refused."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        raise EdgeError("a figure is not a finite number, which JSON cannot hold.", PARITY) from None


def own_command(*words: str) -> list[str]:
    """The command that starts this very package again in a new process.

    Python runs the `__main__` of a folder whether it is installed, lies in a bundle or inside a zip file (zipapp).
    """
    return [sys.executable, str(PACKAGE), *words]


def one_line(error: Exception) -> str:
    """What an error says, without what ONNX Runtime puts before it: its number, and the place in C++ with file, line,
    signature and condition.
    """
    text = " ".join(re.split("failed:|Status Message:", str(error))[-1].split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^/\S+:\d+ .+?\) (\[with .*?\] )?(\S.*? was false\. )?(?=[A-Z])", "", text)[:200].rstrip(". ")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sha256(*paths: Path) -> str:
    """One checksum over files, read in blocks so that memory stays small."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_writable(place: Path, name: str) -> None:
    """Refuse a file or folder that cannot be created, now and not after minutes of measuring."""
    above = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    if not os.access(str(above), os.W_OK) or (above != place.absolute() and not above.is_dir()):
        raise EdgeError(f"{name} cannot be written, {above} is not a folder you can write to: choose another place.")
