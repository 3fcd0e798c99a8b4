"""Terms fade as the student catches up: a student that has overtaken its teacher has nothing left to learn from it.

Before the first epoch the teacher's detections on the validation split are scored as Ultralytics scores the student's
after every epoch. With T the teacher's mAP50-95 over the classes that it shares with the data, and S the student's over
the same classes, the mean of its last epochs, the teacher's terms weigh

    min(1, max(0, 1 - S / T) / MARGIN)        1 until the student has scored at all

beside their gains: all of them until the student has half of its teacher's score, none once it is as good. Both scores
are of images that neither learnt from; on training images a large teacher, or a student that knows them by heart, would
look better than it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, distributed
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER, RANK

from yolokd.data.random_streams import kept_streams
from yolokd.distill.pairing import Pairing
from yolokd.errors import printable
from yolokd.methods import ops
from yolokd.views import View

# Of the teacher's score: with this lead, or a larger one, its terms count in full. With 0.05 a teacher that the student
# would soon overtake had done its harm by then: 2 points of mAP50-95, see docs/why-the-default.md.
MARGIN = 0.5
LAST = 3  # epochs whose mean is the student's score: one epoch's is noisy on few images
NEEDS = frozenset({"logits", "boxes"})  # fields of a teacher's view that are scored
KEY = "kd_fading"  # in the optimizer's state


class Fading:
    """The scores of the teachers and of the student's last epochs, and what the teachers' terms weigh for them.

    Args:
        teachers: mAP50-95 of each teacher over the classes that it shares with the data, nan where it is not known.
    """

    def __init__(self, teachers: Sequence[float]) -> None:
        self.teachers = list(teachers)
        self.student: list[list[float]] = []  # of the last epochs, over each teacher's classes

    def note(self, scores: Sequence[float]) -> None:
        """Take the student's scores after an epoch, over each teacher's classes; nan where none can be told."""
        if any(math.isfinite(s) for s in scores):
            self.student = [*self.student, list(scores)][-LAST:]

    def mean(self, teacher: int) -> float:
        """The student's score over a teacher's classes, 0 before it has any."""
        known = [scores[teacher] for scores in self.student if math.isfinite(scores[teacher])]
        return sum(known) / max(len(known), 1)

    def weights(self) -> list[float]:
        """What the terms of each teacher weigh, 0 to 1."""
        return [weight(self.mean(i), score) for i, score in enumerate(self.teachers)]

    def state(self) -> dict[str, Tensor]:
        """What a resumed run must know."""
        return {"teachers": torch.tensor(self.teachers), "student": torch.tensor(self.student)}

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Fading:
        """What `state` saved."""
        fading = cls(state["teachers"].tolist())
        fading.student = state["student"].tolist()
        return fading


def weight(student: float, teacher: float) -> float:
    """What a teacher's terms weigh, from two scores."""
    if not student > 0 or not math.isfinite(teacher):
        return 1.0
    lead = 1 - student / teacher if teacher > 0 else 0.0
    return min(max(lead, 0.0) / MARGIN, 1.0)


# --- scores ---------------------------------------------------------------------------------------------------------


def can_score(pairing: Pairing, task: str) -> bool:
    """Whether the teacher's views have the boxes and class scores of detections, and some class of the data; upright
    boxes cannot be held against the rotated ones of the task obb."""
    shared = task != "obb" and (pairing.classes is None or bool(pairing.classes.shared))
    return shared and pairing.teacher.fields >= NEEDS and pairing.teacher.reader.spec.provides >= NEEDS


def shared_ap(box: Any, pairing: Pairing) -> tuple[float, float]:
    """mAP50 and mAP50-95 over the classes with objects that a teacher knows, from Ultralytics' metric; nan without."""
    known = None if pairing.classes is None else set(pairing.classes.student.tolist())
    rows = [i for i, k in enumerate(box.ap_class_index) if known is None or int(k) in known]
    if not rows:
        return math.nan, math.nan
    return float(box.all_ap[rows, 0].mean()), float(box.all_ap[rows].mean())


def predictions(view: View, pairing: Pairing, classes: int) -> Tensor:
    """Detections as Ultralytics' validators take them, (B, 4 + K, N): centres and sides in pixels, then scores."""
    logits, boxes = ops.required(view.logits, "logits"), ops.required(view.boxes, "boxes")
    scores = logits.float().sigmoid()
    if pairing.classes is not None:
        known = scores[..., pairing.classes.teacher].amax(-1)
        scores = scores.new_zeros(*scores.shape[:2], classes)
        scores[..., pairing.classes.student] = known
    low, high = boxes.float().split(2, -1)
    return torch.cat(((low + high) / 2, high - low, scores), -1).transpose(1, 2)


@torch.no_grad()
def teacher_metric(trainer: Any, pairing: Pairing) -> Any:
    """Ultralytics' metric of a teacher's boxes on the trainer's validation images; that of the first rank counts."""
    args = copy.copy(trainer.args)
    vars(args).pop("kd", None)
    args.task, args.plots, args.save_txt, args.save_json = "detect", False, False, False
    validator: Any = DetectionValidator(trainer.test_loader, save_dir=trainer.save_dir, args=args)
    validator.device, validator.data = trainer.device, trainer.data
    names = trainer.data["names"]
    validator.init_metrics(SimpleNamespace(names=names, end2end=False))
    teacher = pairing.teacher
    for batch in trainer.test_loader:
        batch = validator.preprocess(batch)
        view = next(iter(teacher(batch["img"])(teacher.reader.strides).values()))
        validator.update_metrics(validator.postprocess(predictions(view, pairing, len(names))), batch)
    validator.gather_stats()
    if RANK in {-1, 0}:
        validator.get_stats()
    return validator.metrics.box


# --- the trainer ----------------------------------------------------------------------------------------------------


class FadingMixin(BaseTrainer):
    """A trainer whose teachers' terms fade."""

    args: Any
    distillation: Any
    distiller: Any
    fading: Fading | None = None
    world_size: int

    def leave_unscored(self) -> None:
        """Let the terms count in full, for steps that are only timed."""
        self.fading = Fading([math.nan] * len(self.distiller.pairings))

    @kept_streams()
    def score_teachers(self) -> Fading:
        """Score the teachers on the validation split; what cannot be scored stays unknown."""
        scores = []
        for i, pairing in enumerate(self.distiller.pairings):
            map50, score = (math.nan, math.nan)
            scored = i not in self.distillation.of_student and can_score(pairing, self.args.task)
            if self.args.val and scored:
                box = teacher_metric(self, pairing)
                map50, score = shared_ap(box, pairing) if RANK in {-1, 0} else (0.0, 0.0)
            scores.append(score)
            if RANK in {-1, 0} and math.isfinite(score):
                of = "" if pairing.classes is None else f", over {pairing.classes.shared} shared classes"
                name = printable(pairing.teacher.reader.spec.name)
                LOGGER.info(f"Teacher {name} on the validation split: mAP50 {map50:.1%}, mAP50-95 {score:.1%}{of}")
        return Fading(scores)

    def validate(self) -> Any:
        """As upstream; the student's score is noted."""
        metrics, fitness = super().validate()
        if self.fading is not None and RANK in {-1, 0}:
            box = self.validator.metrics.box
            self.fading.note([shared_ap(box, pairing)[1] for pairing in self.distiller.pairings])
        return metrics, fitness

    def fade(self) -> None:
        """Set what the teachers' terms weigh in the epoch that begins; the log says what changes."""
        if self.fading is None:  # else an interrupted run has scored them
            self.fading = self.score_teachers()
        weights = torch.tensor(self.fading.weights(), device=self.device)
        if self.world_size > 1:
            distributed.broadcast(weights, 0)
        before, self.distiller.weights = self.distiller.weights, weights.tolist()
        for i, now in enumerate(self.distiller.weights):
            if RANK in {-1, 0} and f"{now:.2f}" != f"{before[i]:.2f}":
                name = printable(self.distiller.pairings[i].teacher.reader.spec.name)
                LOGGER.info(
                    f"Epoch {self.epoch + 1}: the student's mAP50-95 is {self.fading.mean(i):.1%} and that of its "
                    f"teacher {name} {self.fading.teachers[i]:.1%}: this teacher's terms weigh {now:.2f} from here"
                )
