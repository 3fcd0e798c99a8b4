"""Start the student from its teacher: solve for every convolution that has a partner in the teacher, in one pass.

Training images run through the teacher, then once through the student. When a student's convolution is reached, its
weights are set to the least-squares solution that turns its *actual input* into what the teacher's partner outputs
before its activation, so a layer also compensates for errors of the layers before it. Layers without a partner keep
their weights, and the next layer that has one is fitted to their outputs. Batch norm's statistics are those of the
images. The head's last convolutions are fitted to the teacher's predictions.

A narrower student cannot hold all of the teacher's channels. They are chosen so that the teacher's predictions lose
least, see `least_squares.select_channels`; the cost of an error is the mean outer product of the predictions' gradients
at the map (their Gauss-Newton metric). Channels that are added to others (residual connections) or filtered one by one
(depthwise convolutions) follow the choice made at their source, see `channel_map`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER

from yolokd.detectors.class_map import ClassMap
from yolokd.detectors.reader import Reader
from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError, one_line
from yolokd.init.layer_fitter import LayerFitter
from yolokd.init.layer_pairs import LayerPair, layer_pairs
from yolokd.init.teacher_statistics import TeacherStatistics, raw_outputs

PIXELS_SEEN = 512 * 160 * 160  # pixels of the training images that are used, such as 32 of 640 x 640
MIN_UNSEEN = 16  # images that "auto" chooses on and nothing is fitted to


def start(how: str, student: Reader, teacher: Reader, batch: dict[str, Tensor], classes: ClassMap | None = None) -> str:
    """Start the student as `init=` says and return which start was taken, "own" or "teacher".

    "auto" compares the detection loss on some of the images, to which nothing is fitted: that of the teacher's start,
    and that of the student's own weights with last convolutions and batch norm statistics fitted in the same way. The
    lower one wins. If the own start is taken, its weights are left exactly as they are.

    Args:
        how: "own", "teacher" or "auto"; "auto" keeps the own start if the two models have no layers in common.
        student: the reader of the student, whose weights are changed.
        teacher: the reader of the teacher, on the same device.
        batch: two or more training images, (B, C, H, W) in [0, 1], and their labels, as Ultralytics' trainer has them.
        classes: the classes that both models have; None if their classes are the same.

    Raises:
        UsageError: how is "teacher", and no layer has a partner or the device's memory is too small.
    """
    matched = partners(how, student, teacher)
    if how == "own" or not matched:
        return "own"
    own = copy.deepcopy(student.model.state_dict())
    try:
        return choose_start(how, student, teacher, matched, batch, classes, own)
    except torch.OutOfMemoryError as error:
        if how == "teacher":
            raise UsageError(
                f"init=teacher: too little memory to run {teacher.spec.name} on one image with gradients: "
                "leave init= out, or choose a smaller imgsz= or teacher."
            ) from error
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if how == "teacher":
            raise UsageError(
                f"init=teacher: what {teacher.spec.name} computes cannot be solved for ({one_line(error)}): "
                "leave init= out."
            ) from error
        student.model.load_state_dict(own)
        LOGGER.warning("init=auto: what was solved from the teacher is not finite, so the student keeps its own start.")
        return "own"
    student.model.load_state_dict(own)
    torch.cuda.empty_cache()
    LOGGER.warning("init=auto: too little memory to compute the teacher's start, so the student keeps its own.")
    return "own"


def choose_start(
    how: str, student: Reader, teacher: Reader, matched: list[LayerPair], batch: dict[str, Tensor],
    classes: ClassMap | None, own: dict[str, Tensor],
) -> str:  # fmt: skip
    """`start` if there are matching layers; own holds the student's own weights."""
    fitted = len(batch["img"]) - unseen_of(len(batch["img"]))
    images = batch["img"][:fitted]
    statistics = TeacherStatistics(teacher, matched, images)
    LayerFitter(student.model, matched, statistics, classes).fit(images)
    if how == "teacher":
        if not all(x.isfinite().all() for x in student.model.state_dict().values() if x.is_floating_point()):
            raise UsageError(f"init=teacher: what was solved from {teacher.spec.name} is not finite: leave init= out.")
        return how
    unseen = part(batch, fitted)
    inherited, cost = copy.deepcopy(student.model.state_dict()), detection_loss(student.model, unseen)
    student.model.load_state_dict(own)
    fit_last(student.model, matched, statistics, classes, images)
    if not math.isfinite(cost):
        LOGGER.warning("init=auto: the teacher's start has no finite loss, so the student keeps its own.")
    better = cost < detection_loss(student.model, unseen)
    student.model.load_state_dict(inherited if better else own)
    return "teacher" if better else "own"


def fit_head(student: Reader, teacher: Reader, images: Tensor, classes: ClassMap | None = None) -> bool:
    """Fit the student's last convolutions and batch norm statistics as "auto" does to judge the student's own start.

    Args:
        student: the reader of the student, whose weights are changed.
        teacher: the reader of the teacher, on the same device.
        images: two or more training images, (B, C, H, W) in [0, 1].
        classes: the classes that both models have; None if their classes are the same.

    Returns:
        Whether it could be done: the two have layers in common, and enough memory; else the weights may be changed.
    """
    if not (matched := partners("auto", student, teacher)):
        return False
    try:
        last = [p for p in matched if p.last]
        fit_last(student.model, last, TeacherStatistics(teacher, last, images), classes, images)
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return False
    return all(bool(x.isfinite().all()) for x in student.model.state_dict().values() if x.is_floating_point())


def fit_last(
    model: Any, matched: list[LayerPair], statistics: TeacherStatistics, classes: ClassMap | None, images: Tensor
) -> None:
    """Set the last convolutions and the batch norm statistics, and leave every other weight as it is."""
    LayerFitter(model, [p for p in matched if p.last], statistics, classes).fit(images)


def images_for(side: int) -> int:
    """The number of images of side x side pixels that `start` should be given."""
    count = PIXELS_SEEN // side**2
    return count + max(MIN_UNSEEN - count // 8, 0)


def unseen_of(images: int) -> int:
    """The number of images that are not fitted to: an eighth, or if that is few, up to a third."""
    return max(images // 8, min(MIN_UNSEEN, images // 3), 1)


def partners(how: str, student: Reader, teacher: Reader) -> list[LayerPair]:
    """The pairs of convolutions; empty if only the heads' last convolutions correspond, which is too little for a
    start, or if one of the heads is not a YOLO head for detection.

    Raises:
        UsageError: how is "teacher" and there are none.
    """
    plain = type(student) is YoloReader and type(teacher) is YoloReader  # no other task's head
    matched = layer_pairs(student.model, teacher.model) if plain else []
    if any(not p.last for p in matched):
        return matched
    if how == "teacher":
        raise UsageError(
            f"init=teacher: no layer of {student.spec.name} has a partner in {teacher.spec.name} to start from: "
            "leave init= out, or choose a teacher of the student's family, both for detection."
        )
    return []


def part(batch: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """The images of a batch from the given index on, and their labels."""
    here = batch["batch_idx"] >= first
    labels = {key: batch[key][here] for key in ("cls", "bboxes")}
    return {"img": batch["img"][first:], "batch_idx": batch["batch_idx"][here] - first, **labels}


@torch.no_grad()
def detection_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """The student's own training loss, without touching batch norm statistics."""
    with raw_outputs(model):
        loss, _ = model.loss(batch)
    model.criterion = None  # it was created for this; Ultralytics creates a new one when needed
    return float(loss.sum())
