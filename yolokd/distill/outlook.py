"""What is said before a training starts, as far as it costs seconds: data, pair, and the scores that checkpoints state.

`yolokd check` says the same of every image, and measures the scores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO
from ultralytics.utils import LOGGER, RANK

from yolokd.config.options import DistillOptions
from yolokd.data.audit import Frame, Split, look_through
from yolokd.data.findings import NOTE, WARNING, Finding, counted
from yolokd.data.labels import Form
from yolokd.data.splits import read_data
from yolokd.data.verdict import findings, of_strays
from yolokd.detectors import read
from yolokd.detectors.opening import open_student, read_content
from yolokd.detectors.teachers import EMA, title
from yolokd.distill.applicability import kept_classes, rounded_imgsz
from yolokd.distill.preflight import Ready
from yolokd.errors import printable

LOOKED_AT = 2000  # images of each split before a training
CLEARLY = 2.0  # points of mAP50 by which a teacher must be better for its lead to count


def tell(student: YOLO | RTDETR, ready: Ready, arguments: dict[str, Any], trust: bool) -> None:
    """Log what is known of a training that is about to begin, but for the labels that it will itself tell of."""
    if RANK not in {-1, 0}:
        return
    splits, found = examine(student, ready.data, min(ready.student.strides), ready.side, arguments, LOOKED_AT)
    train, val = splits
    told = of_strays(train)
    teachers = DistillOptions.of(arguments).teacher
    say([val], [finding for finding in found if finding not in told], student, teachers, ready.data, trust)


def say(
    splits: list[Split],
    found: list[Finding],
    student: YOLO | RTDETR,
    teachers: Sequence[str],
    data: dict[str, Any],
    trust: bool,
) -> None:
    """Log splits, the scores that the checkpoints of a pair state, and what was found."""
    for split in splits:
        LOGGER.info(printable(f"Check: {describe(split)}"))
    scores = [stated(student.ckpt, data)]
    teachers = [file for file in teachers if file != EMA]  # which will be about as good as the student
    scores += [stated(content_of(file, trust), data) for file in teachers]
    names = ["student", *map(title, teachers)]
    said = ", ".join(f"{n} {'unknown' if s is None else format(s, '.1f')}" for n, s in zip(names, scores, strict=True))
    unknown = "; `yolokd check` measures them" if None in scores else ""
    LOGGER.info(printable(f"Check: mAP50 on these validation images, as the checkpoints state it: {said}{unknown}"))
    known = [score for score in scores[1:] if score is not None]
    if scores[0] is not None and known and (doubt := doubt_of(max(known), scores[0])):
        found = [doubt, *found]
    for finding in found:
        if finding.level != NOTE:
            LOGGER.warning(f"Check: {finding}")


def of_pair(arguments: dict[str, Any], teachers: Sequence[str], trust: bool) -> list[Finding]:
    """Log what `tell` does and of the training's images too; returns what was found.

    Args:
        arguments: of a training of the student alone.
        teachers: their files.
        trust: the user answers for what the files run.
    """
    student, data = open_student(arguments["model"], trust=trust), read_data(arguments, trust)
    if arguments.get("single_cls"):
        data = {**data, "names": {0: "item"}}
    side = rounded_imgsz(arguments.get("imgsz") or 640, student.model)
    splits, found = examine(student, data, min(read(student.model).strides), side, arguments, LOOKED_AT)
    say(splits, found, student, teachers, data, trust)
    return found


def examine(
    student: YOLO | RTDETR,
    data: dict[str, Any],
    stride: int,
    side: int,
    arguments: dict[str, Any],
    most: int | None = None,
) -> tuple[list[Split], list[Finding]]:
    """The training's and the validation's images, and what is to be said of them.

    Args:
        student: whose task the labels must be for.
        data: Ultralytics' description of the data set.
        stride: the student's smallest.
        side: of the student's images, in pixels.
        arguments: the training's.
        most: images of a split that are looked at; None for all.
    """
    single = bool(arguments.get("single_cls"))
    form, kept = Form.of(data, student.task, single), kept_classes(arguments.get("classes"), data["names"], single)
    names = ["train", str(arguments.get("split") or "val")]
    splits = look_through(data, names, form, Frame(side, isinstance(student, RTDETR)), most, kept)
    taught = {k: name for k, name in data["names"].items() if kept is None or k in kept}
    return splits, findings(splits, taught, form, stride, side)


def describe(split: Split) -> str:
    """A split in one line."""
    counts = split.counts()
    some = f" (looked at {len(split.seen)})" if len(split.seen) < split.total else ""
    return (
        f"{split.name} has {counted(split.total, 'image')}{some}: {counts['with_objects']} with objects, "
        f"{counts['without_objects']} without, {counts['skipped']} that Ultralytics will skip"
    )


def stated(content: dict[str, Any] | None, data: dict[str, Any]) -> float | None:
    """mAP50 in points that a checkpoint states for a data set: that of a training with the same YAML; None without."""
    metrics, trained = ((content or {}).get(key) or {} for key in ("train_metrics", "train_args"))
    files = trained.get("data"), data.get("yaml_file")
    if not all(file and Path(str(file)).is_file() for file in files) or "metrics/mAP50(B)" not in metrics:
        return None
    same = os.path.samefile(*map(str, files))
    return 100 * float(metrics["metrics/mAP50(B)"]) if same else None


def content_of(teacher: str, trust: bool) -> dict[str, Any] | None:
    """What a teacher's checkpoint holds; None where it is none."""
    return read_content(teacher, "teacher", trust) if teacher.endswith(".pt") and Path(teacher).is_file() else None


def doubt_of(teacher: float, student: float) -> Finding | None:
    """A warning where a teacher's mAP50, in points, is not clearly better than what the student has already."""
    if teacher >= student + CLEARLY:
        return None
    return Finding(
        WARNING,
        f"the teacher is not clearly better than the student: mAP50 {teacher:.1f} and {student:.1f}, which should be "
        f"at least {CLEARLY:g} points apart; choose a better teacher, or train without one.",
    )
