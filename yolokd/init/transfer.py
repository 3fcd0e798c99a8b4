"""Start the student from its teacher: solve for every convolution that has a partner in the teacher, in one pass.

Training images run through the teacher, then once through the student. When a student's convolution is reached, its
weights are set to the least-squares solution that turns its *actual input* into what the teacher's partner outputs
before its activation, so a layer also compensates for errors of the layers before it. Layers without a partner keep
their weights, and the next layer that has one is fitted to their outputs. Batch norm's statistics are those of the
images. The head's last convolutions are fitted to the teacher's predictions. An RT-DETR's transformers are solved in
the same way, see `transformer` and `decoder_fitter`.

A narrower student cannot hold all of the teacher's channels. They are chosen so that the teacher's predictions lose
least, see `least_squares.select_channels`; the cost of an error is the mean outer product of the predictions' gradients
at the map (their Gauss-Newton metric). Channels that are added to others (residual connections) or filtered one by one
(depthwise convolutions) follow the choice made at their source, see `channel_map`. `channel_choice` has other ways to
choose, for comparison.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from ultralytics.utils import LOGGER

from yolokd.detectors.class_map import ClassMap
from yolokd.detectors.reader import Reader
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.detectors.tasks import OBBReader
from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError, one_line, printable
from yolokd.init.channel_choice import SOLVED, ChannelChoice
from yolokd.init.detr_pairs import TransformerPair, detr_pairs
from yolokd.init.layer_fitter import LayerFitter
from yolokd.init.layer_pairs import LayerPair, layer_pairs
from yolokd.init.teacher_statistics import TeacherStatistics, passes
from yolokd_edge.progress import Progress

PIXELS_SEEN = 512 * 160 * 160  # pixels of the training images that are used, such as 32 of 640 x 640
STARTS = ("own", "head", "neck", "teacher")  # what a student may start from; each solves more than the one before

State = dict[str, Tensor]
Pairs = dict[str, list[LayerPair | TransformerPair]]  # of each start
OURS = ChannelChoice()


def start(
    how: str, student: Reader, teacher: Reader, images: Tensor, classes: ClassMap | None = None,
    frozen: frozenset[int] = frozenset(), choice: ChannelChoice = OURS,
) -> dict[str, State]:  # fmt: skip
    """Start the student as `init=` says, and return the weights of every start in question, by its name.

    One start is in question unless how is "auto": then all of STARTS that can be had are, the student keeps its own
    weights, and a race (`yolokd.init.race`) has to decide.

    Args:
        how: one of STARTS, or "auto".
        student: the reader of the student, whose weights are changed.
        teacher: the reader of the teacher, on the same device.
        images: two or more training images, (B, C, H, W) in [0, 1].
        classes: the classes that both models have; None if their classes are the same.
        frozen: indices of the student's layers that must stay as they are.
        choice: which channels a narrower layer represents, and whether their weights are solved for or copied.

    Raises:
        UsageError: how names a start that there is not, for which the device's memory is too small, or for which what
            the teacher computes cannot be solved for.
    """
    refuse_choice(choice.how, student)
    own = {"own": copy.deepcopy(student.model.state_dict())}
    pairs = candidates(how, student, teacher, frozen)
    if not pairs:
        return own
    try:
        solved = solve(pairs, student, teacher, images, classes, frozen, choice)
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        why = "too little memory to compute it" if isinstance(error, torch.OutOfMemoryError) else one_line(error)
        solved = dict.fromkeys(pairs, why)
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


def candidates(how: str, student: Reader, teacher: Reader, frozen: frozenset[int] = frozenset()) -> Pairs:
    """The starts beside the student's own that `init=` asks for and that can be had, with the pairs that each solves.

    There is none but the own between a YOLO and an RT-DETR, or where one model's boxes are rotated and the other's are
    not. An RT-DETR's head is its whole decoder. A start whose pairs are all in the start before it, or touch a frozen
    layer, is left out.

    Raises:
        UsageError: how names a start that there is not.
    """
    if how == "own":
        return {}
    matched = all_pairs(student, teacher)
    first, head = len(student.model.yaml["backbone"]), len(student.model.model) - 1
    decoder = isinstance(student, RTDETRReader)
    found: Pairs = {
        "head": [p for p in matched if p.last or decoder and layer_of(p) == head],
        "neck": [p for p in matched if layer_of(p) >= first],
        "teacher": matched,
    }
    found = {name: pairs for name, pairs in found.items() if pairs and not any(layer_of(p) in frozen for p in pairs)}
    names = list(found)
    kept = {b: found[b] for a, b in zip(["", *names], names, strict=False) if not a or len(found[b]) > len(found[a])}
    if how == "auto":
        return kept
    if how in found:
        return {how: found[how]}
    why = "one of them is frozen" if frozen and matched else f"none has a partner in {teacher.spec.name}"
    raise UsageError(
        f"init={how}: the layers of {student.spec.name} cannot be solved for ({why}): leave init= out, or choose "
        + ("a smaller freeze=." if frozen and matched else "a teacher of the student's family.")
    )


def refuse_choice(how: str, student: Reader) -> None:
    """Refuse to copy or draw channels where it is not known how: a transformer's share a space of their own."""
    if how != SOLVED and isinstance(student, RTDETRReader):
        raise UsageError(f"init.channels={how} is for YOLOs, and {student.spec.name} is an RT-DETR: leave it out.")


def all_pairs(student: Reader, teacher: Reader) -> list[LayerPair | TransformerPair]:
    """Whatever of the student can be solved for."""
    if isinstance(student, RTDETRReader) and isinstance(teacher, RTDETRReader):
        strides = student.strides, teacher.strides
        return [*layer_pairs(student.model, teacher.model), *detr_pairs(student.model, teacher.model, strides)]
    yolos = isinstance(student, YoloReader) and isinstance(teacher, YoloReader)
    same_boxes = isinstance(student, OBBReader) == isinstance(teacher, OBBReader)
    return [*layer_pairs(student.model, teacher.model)] if yolos and same_boxes else []


def layer_of(pair: LayerPair | TransformerPair) -> int:
    """The index of the student's layer that a pair lies in."""
    return int(pair.name.split(".")[1])


def solve(
    pairs: Pairs, student: Reader, teacher: Reader, images: Tensor, classes: ClassMap | None,
    frozen: frozenset[int] = frozenset(), choice: ChannelChoice = OURS,
) -> dict[str, State | str]:  # fmt: skip
    """The weights of each start, or why there are none; leaves the student with some of them."""
    own = copy.deepcopy(student.model.state_dict())
    found: dict[str, State | str] = {}
    widest = max(pairs.values(), key=len)
    with Progress("solving the student's start", passes(images) + sum(map(len, pairs.values()))) as progress:
        statistics = TeacherStatistics(teacher, widest, images, progress.step)
        for name, its in pairs.items():
            student.model.load_state_dict(own)
            LayerFitter(student.model, its, statistics, classes, frozen, progress.step, choice).fit(images)
            state = copy.deepcopy(student.model.state_dict())
            finite = all(x.isfinite().all() for x in state.values() if x.is_floating_point())
            found[name] = state if finite else "what was solved is not finite"
    return found


def fit_head(student: Reader, teacher: Reader, images: Tensor, classes: ClassMap | None = None) -> bool:
    """Fit the student's last convolutions (an RT-DETR's decoder) and batch norm statistics, for what they reach without
    training.

    Args:
        student: the reader of the student, whose weights are changed.
        teacher: the reader of the teacher, on the same device.
        images: two or more training images, (B, C, H, W) in [0, 1].
        classes: the classes that both models have; None if their classes are the same.

    Returns:
        Whether it could be done: the two have layers in common, and enough memory; else the weights may be changed.
    """
    pairs = {k: v for k, v in candidates("auto", student, teacher).items() if k == "head"}
    if not pairs:
        return False
    try:
        state = solve(pairs, student, teacher, images, classes)["head"]
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return False
    return not isinstance(state, str)


def images_for(side: int) -> int:
    """The number of images of side x side pixels that `start` should be given."""
    return max(PIXELS_SEEN // side**2, 16)
