"""Start the student from its teacher: every convolution that has a partner in the teacher is solved for, in one pass.

Training images run through the teacher, then once through the student. When a student's convolution is reached, its
weights are set to the least-squares solution that turns *what really arrives there* into what the teacher's partner
puts out before its activation, so that a layer also makes up for what the layers before it lost. Layers without a
partner keep their weights, and the next one that has a partner works with what they give. Batch norm's statistics are
those of the images. Last convolutions of the head are fitted to the teacher's predictions.

A narrower student cannot hold all of the teacher's channels. Which it holds is chosen by what the teacher's predictions
would lose, see `least_squares.select_channels`; the cost of an error is the mean outer product of the predictions'
gradients at the map (their Gauss-Newton metric). Channels that are added to others (residual connections) or filtered
one by one (depthwise convolutions) follow the choice made where they come from, see `channel_map`.
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

PIXELS_SEEN = 512 * 160 * 160  # of the training images that are looked at, such as 32 of 640 x 640
MIN_UNSEEN = 16  # images on which "auto" chooses, which nothing was fitted to


def start(how: str, student: Reader, teacher: Reader, batch: dict[str, Tensor], classes: ClassMap | None = None) -> str:
    """Start the student as `init=` says and return how it starts, "own" or "teacher".

    "auto" takes the teacher's if the student's own weights, given last convolutions and batch norm statistics that are
    fitted in the same way, have the higher detection loss on some of the images, which nothing was fitted to.
    Own weights are left exactly as they are.

    Args:
        how: "own", "teacher" or "auto"; "auto" keeps the own start where the two have no layers in common.
        student: reads the student, which is changed.
        teacher: reads the teacher, on the same device.
        batch: two or more training images, (B, C, H, W) in [0, 1], and their labels, as Ultralytics' trainer has them.
        classes: which the two share; None where they have the same.

    Raises:
        UsageError: "teacher" is asked for, and no layer has a partner or the device's memory is too small.
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
    LOGGER.warning("init=auto: too little memory to solve for the teacher's start, the student keeps its own.")
    return "own"


def choose_start(
    how: str, student: Reader, teacher: Reader, matched: list[LayerPair], batch: dict[str, Tensor],
    classes: ClassMap | None, own: dict[str, Tensor],
) -> str:  # fmt: skip
    """`start` where layers correspond; own is what the student's weights are."""
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
    LayerFitter(student.model, [p for p in matched if p.last], statistics, classes).fit(images)
    if not math.isfinite(cost):
        LOGGER.warning("init=auto: what was solved from the teacher is not finite, so the student keeps its own start.")
    better = cost < detection_loss(student.model, unseen)
    student.model.load_state_dict(inherited if better else own)
    return "teacher" if better else "own"


def images_for(side: int) -> int:
    """How many images of side x side pixels `start` should be given."""
    seen = PIXELS_SEEN // side**2
    return seen + max(MIN_UNSEEN - seen // 8, 0)


def unseen_of(images: int) -> int:
    """How many of so many images are kept from the fit: an eighth, or if that is few, up to a third."""
    return max(images // 8, min(MIN_UNSEEN, images // 3), 1)


def partners(how: str, student: Reader, teacher: Reader) -> list[LayerPair]:
    """The pairs of convolutions; none if only last ones of the head correspond, which are not worth a start, or one of
    the heads is not a YOLO's for detection.

    Raises:
        UsageError: "teacher" is asked for and there are none.
    """
    plain = type(student) is YoloReader and type(teacher) is YoloReader  # fitted to classes and boxes, no other task's
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
    """The images of a batch from the given one on, and their labels."""
    here = batch["batch_idx"] >= first
    labels = {key: batch[key][here] for key in ("cls", "bboxes")}
    return {"img": batch["img"][first:], "batch_idx": batch["batch_idx"][here] - first, **labels}


@torch.no_grad()
def detection_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """The student's own training loss, without touching batch norm statistics."""
    with raw_outputs(model):
        loss, _ = model.loss(batch)
    model.criterion = None  # it was made for this; Ultralytics makes one when there is none
    return float(loss.sum())
