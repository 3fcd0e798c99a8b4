"""What a check finds, and how it is told: a level, and one sentence that names the thing, the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolokd.errors import printable

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
NAMED = 3  # files that a sentence names


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found: a problem stops a training, a warning makes it doubtful, a note is good to know."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {printable(self.text)}"


def ordered(findings: list[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(findings, key=lambda finding: (PROBLEM, WARNING, NOTE).index(finding.level))


def named(files: Sequence[str | Path]) -> str:
    """The first files by name, and the number of the others."""
    listed = ", ".join(map(str, files[:NAMED]))
    return listed + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
