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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER

from yolokd.detectors.class_map import ClassMap
from yolokd.detectors.reader import Reader
from yolokd.detectors.tasks import OBBReader
from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError, one_line, printable
from yolokd.init.layer_fitter import LayerFitter
from yolokd.init.layer_pairs import LayerPair, layer_pairs
from yolokd.init.teacher_statistics import TeacherStatistics

PIXELS_SEEN = 512 * 160 * 160  # pixels of the training images that are used, such as 32 of 640 x 640
STARTS = ("own", "neck", "teacher")  # all that a student may start from

State = dict[str, Tensor]


def start(
    how: str, student: Reader, teacher: Reader, images: Tensor, classes: ClassMap | None = None
) -> dict[str, State]:
    """Start the student as `init=` says, and return the weights of every start in question, by its name.

    One start is in question unless how is "auto": then all of STARTS that can be had are, the student keeps its own
    weights, and a race (`yolokd.init.race`) has to decide.

    Args:
        how: one of STARTS, or "auto"; "auto" has only the own start if the two models have no layers in common.
        student: the reader of the student, whose weights are changed.
        teacher: the reader of the teacher, on the same device.
        images: two or more training images, (B, C, H, W) in [0, 1].
        classes: the classes that both models have; None if their classes are the same.

    Raises:
        UsageError: how is "teacher" or "neck", and no layer has a partner, the device's memory is too small, or what
            the teacher computes cannot be solved for.
    """
    own = {"own": copy.deepcopy(student.model.state_dict())}
    matched = partners(how, student, teacher)
    if how == "own" or not matched:
        return own
    wanted = STARTS[1:] if how == "auto" else (how,)
    try:
        solved = solve(wanted, student, teacher, matched, images, classes)
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        why = "too little memory to compute it" if isinstance(error, torch.OutOfMemoryError) else one_line(error)
        solved = {name: why for name in wanted}
        torch.cuda.empty_cache()
    for name, found in solved.items():
        if isinstance(found, str):
            if how != "auto":
                raise UsageError(
                    f"init={how}: {teacher.spec.name} gives no start ({found}): leave init= out, or choose a smaller "
                    "imgsz= or teacher."
                )
            said = f"init=auto: the start {name} is left out, {teacher.spec.name} gives none ({found})."
            LOGGER.warning(printable(said))
    starts = {name: state for name, state in solved.items() if not isinstance(state, str)}
    student.model.load_state_dict(own["own"] if how == "auto" else starts[how])
    return {**own, **starts} if how == "auto" else starts


def solve(
    wanted: Sequence[str], student: Reader, teacher: Reader, matched: list[LayerPair], images: Tensor,
    classes: ClassMap | None,
) -> dict[str, State | str]:  # fmt: skip
    """The weights of each wanted start, or why there are none; leaves the student with some of them."""
    own = copy.deepcopy(student.model.state_dict())
    found: dict[str, State | str] = {}
    statistics = TeacherStatistics(teacher, matched, images)
    for name in wanted:
        student.model.load_state_dict(own)
        pairs = matched if name == "teacher" else behind_backbone(student.model, matched)
        LayerFitter(student.model, pairs, statistics, classes).fit(images)
        state = copy.deepcopy(student.model.state_dict())
        finite = all(x.isfinite().all() for x in state.values() if x.is_floating_point())
        found[name] = state if finite else "what was solved is not finite"
    return found


def behind_backbone(model: Any, matched: list[LayerPair]) -> list[LayerPair]:
    """The pairs that lie in the student's neck and head."""
    first = len(model.yaml["backbone"])
    return [p for p in matched if int(p.name.split(".")[1]) >= first]


def fit_head(student: Reader, teacher: Reader, images: Tensor, classes: ClassMap | None = None) -> bool:
    """Fit the student's last convolutions and batch norm statistics, for what they reach without training.

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
    return max(PIXELS_SEEN // side**2, 16)


def partners(how: str, student: Reader, teacher: Reader) -> list[LayerPair]:
    """The pairs of convolutions; empty if only the heads' last convolutions correspond, which is too little for a
    start, if one of the heads is not a YOLO's, or if one model's boxes are rotated and the other's are not.

    Raises:
        UsageError: how is "teacher" or "neck" and there are none.
    """
    yolos = isinstance(student, YoloReader) and isinstance(teacher, YoloReader)
    same_boxes = isinstance(student, OBBReader) == isinstance(teacher, OBBReader)
    matched = layer_pairs(student.model, teacher.model) if yolos and same_boxes else []
    if any(not p.last for p in matched):
        return matched
    if how in STARTS[1:]:
        raise UsageError(
            f"init={how}: no layer of {student.spec.name} has a partner in {teacher.spec.name} to start from: "
            "leave init= out, or choose a teacher of the student's family."
        )
    return []
