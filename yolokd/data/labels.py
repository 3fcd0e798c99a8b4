"""One label file: which of its rows are wrong, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 0.01  # how far outside 0 to 1 Ultralytics takes a coordinate, and clips it

# kind of fault -> what is wrong with such files, and the remedy
FAULTS = {
    "text": ("that cannot be read as UTF-8 text", "write one object a line"),
    "columns": ("with a wrong number of columns", "write {columns} a row"),
    "number": ("with values that are no finite numbers", "write numbers only"),
    "class": (
        "with a class that the data does not have",
        "write whole numbers from 0 to {last}, or mend names: in the YAML",
    ),
    "range": ("with coordinates outside 0 to 1", "divide them by the width and height of the image"),
    "empty": ("with boxes without width or height", "remove them"),
    "twice": ("with a row more than once", "remove the copies"),
}


@dataclass(frozen=True, slots=True)
class Form:
    """How the rows of a data set must look.

    Args:
        task: the student's.
        classes: how many the data has; None where every class counts as one.
        keypoints: the data's kpt_shape, (0, 0) without.
    """

    task: str
    classes: int | None
    keypoints: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, data: dict[str, Any], task: str, single_cls: bool = False) -> Form:
        """That of a data set, as Ultralytics describes it, for a task."""
        count, dims = data.get("kpt_shape") or (0, 0)
        return cls(task, None if single_cls else len(data["names"]), (int(count), int(dims)))

    @property
    def columns(self) -> str:
        """In words."""
        return {
            "segment": "an odd number of columns from 7 on (class x1 y1 x2 y2 x3 y3 ...)",
            "obb": "9 columns (class x1 y1 x2 y2 x3 y3 x4 y4)",
            "pose": f"{self.of_pose} columns (class x y width height and {self.keypoints[0]} keypoints)",
        }.get(self.task, "5 columns (class x y width height)")

    @property
    def of_pose(self) -> int:
        """Columns of a box with keypoints."""
        return 5 + self.keypoints[0] * self.keypoints[1]

    def fits(self, columns: int) -> bool:
        """Whether a row may have this number of columns; of polygons and keypoints a detector takes the boxes."""
        polygon = columns >= 7 and columns % 2 == 1
        if self.task == "segment":
            return polygon
        if self.task == "obb":
            return columns == 9
        if self.task == "pose":
            return columns == self.of_pose
        return columns == 5 or polygon or columns == self.of_pose


def read_rows(file: Path) -> list[tuple[int, list[str]]]:
    """(line, values) of every row of a label file, as Ultralytics splits it; raises UnicodeDecodeError, OSError."""
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]


def faults(rows: list[tuple[int, list[str]]], form: Form) -> dict[str, str]:
    """Kind of fault -> the first row that has it, in words; a row has one kind."""
    found: dict[str, str] = {}
    before = set()
    for line, row in rows:
        for kind, said in _fault(row, form):
            found.setdefault(kind, f"line {line}: {said}")
            break
        if tuple(row) in before:
            found.setdefault("twice", f"line {line}")
        before.add(tuple(row))
    return found


def _fault(row: list[str], form: Form) -> Iterator[tuple[str, str]]:
    """The faults of a row, the one that hides the others first, and what is wrong."""
    if not form.fits(len(row)):
        yield "columns", f"{len(row)} columns"
    try:
        values = [float(value) for value in row]
    except ValueError:
        yield "number", next(value for value in row if not _is_number(value))[:20]
        return
    if not all(map(math.isfinite, values)):
        yield "number", next(word for word, value in zip(row, values, strict=True) if not math.isfinite(value))
        return
    if values[0] % 1 or values[0] < 0 or (form.classes is not None and values[0] >= form.classes):
        yield "class", f"class {row[0]}"
    points = _points(values, form)
    if odd := [v for v in points if not -TOLERANCE <= v <= 1 + TOLERANCE]:
        yield "range", f"{odd[0]:g}"
    if len(row) >= 5 and min(_sides(values, form)) <= 0:
        yield "empty", "width or height 0"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _points(values: list[float], form: Form) -> list[float]:
    """The coordinates of a row, without the class and without whether keypoints are visible."""
    count, dims = form.keypoints
    if count and form.task in ("pose", "detect") and len(values) == form.of_pose:
        return values[1:5] + [v for i, v in enumerate(values[5:]) if i % dims < 2]
    return values[1:]


def _sides(values: list[float], form: Form) -> tuple[float, float]:
    """Width and height of the box of a row."""
    if len(values) in (5, form.of_pose):
        return values[3], values[4]
    return max(values[1::2]) - min(values[1::2]), max(values[2::2]) - min(values[2::2])
