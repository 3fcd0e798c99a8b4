"""Matched responses: the teacher's detections as objects with soft labels, for any two heads.

Predictions of a YOLO and of an RT-DETR do not correspond one to one, and only boxes and scores may be known of a
foreign detector. But every detector outputs a set of detections. This method takes the teacher's detections as objects
with soft labels and assigns the student's predictions to them as the student's own training does: one to one by least
cost for a set (N. Carion et al.: "End-to-End Object Detection with Transformers", 2020, arXiv:2005.12872), several
points per object by task alignment for anchor points (C. Feng, Y. Zhong, Y. Gao, M. R. Scott, W. Huang: "TOOD:
Task-aligned One-stage Object Detection", 2021, arXiv:2108.07755). The combination is ours; no paper defines it.

Objects m of an image, at most `objects`, those of highest score c_m = max_k p_mk, p = sigmoid(z_t), b_m their boxes:

    set under set         the teacher's boxes with c > least, as they are
    otherwise             its boxes with c > least after NMS at IoU `nms`, over all classes at once: two boxes in one
                          place are one object, and p gives its possible classes

A set student: for each of its decoder layers, or once without layers,

    loss = min over one-to-one n(m) of  sum_m [cls KL(p_m || s_n) + c_m box(b_n, b_m)] / max(1, sum_m c_m)
    box(a, b) = l1 |a - b|_1 + giou (1 - GIoU(a, b))      |.|_1 over centre, width, height in fractions of the image

and the mean over layers; s = sigmoid(z_s), KL the sum over classes of the binary divergences. With fewer queries than
objects the most confident objects are matched. A dense student: with k_m = argmax_k p_mk, over points n whose centre is
in b_m and whose box overlaps it,

    a_mn = s_n,k_m^alpha IoU(b_n, b_m)^beta               the `topk` highest are m's; a point of several objects
                                                          goes to the one that its box overlaps most
    q_n  = (a_mn / max_n a_mn) max_n IoU(b_n, b_m)        over the points of m, as TOOD's normalised alignment
    loss = sum_n [cls KL(q_n p_m || s_n) + q_n c_m box(b_n, b_m)] / max(1, sum_n q_n c_m)

Reasons:
- An object is weighted by the teacher's score, in the boxes and in the divisor, so the threshold hardly matters.
- q scales the target as in the student's own training, to which this reduces for a teacher of certain labels
  (p one-hot): a point whose box fits worse must score less, or NMS could not choose. A weight instead of it would
  raise all points of an object to the same score.
- At equal predictions a set's loss is 0. A dense student's is 0 only for topk=1: the score of further points should
  follow from how well they fit, whatever the teacher's own points scored.
- A set's weaker boxes must not take points of a dense student away from a more confident box in the same place: without
  NMS it learned worse (17.2 mAP50 instead of 18.3 at gain 3, YOLO11 under RT-DETR). Each query of a set student can
  match an object of its own.
- Points and queries without a matched object are left to the task's own loss: a teacher that detects nothing above the
  threshold has not shown that nothing is there. For a teacher that can be trusted there too, background > 0 adds
  background sum_nk s_nk^2 softplus(z_nk) over them, with the same divisor: the binary cross entropy to 0, weighted as
  in quality focal loss (arXiv:2006.04388), so that the many easy ones do not outweigh the objects.
- The gains are those that DETRs are trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from yolokd.methods import ops, sets
from yolokd.methods.base import ANY_HEADS, Method
from yolokd.views import Spec, View

LAYERS = frozenset({"layer_logits", "layer_boxes"})


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """Options of matched responses."""

    least: float = 0.1  # detections of the teacher count as objects above this score
    objects: int = 100  # highest number of objects per image
    nms: float = 0.7  # of boxes that overlap by more than this IoU the best is kept; unused for a set under a set
    topk: int = 10  # points per object of a dense student
    alpha: float = 0.5  # exponent of the score in the alignment of a dense student's points
    beta: float = 6.0  # exponent of the IoU in the alignment of a dense student's points
    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU
    background: float = 0.0  # gain of lowering the scores that match no object; 0 leaves them to the task's loss

    def __post_init__(self) -> None:
        for name in ("least", "nms", "alpha", "beta", "cls", "l1", "giou", "background"):
            ops.check_number(f"match.{name}", getattr(self, name), inclusive=True)
        ops.check_choice("match.objects", self.objects, tuple(range(1, ops.CANDIDATES + 1)))
        ops.check_choice("match.topk", self.topk, tuple(range(1, 101)))


class Match(Method):
    """Divergence of scores and boxes from the teacher's detections, whatever the two heads are."""

    taxonomy_level = "logit"
    term = "match"
    paper = "ours, on Carion et al., 2020, arXiv:2005.12872 and Feng et al., TOOD, 2021, arXiv:2108.07755"
    reported = "none published for detection"
    unit = 1.0  # measured 0.41 at unit 1 between RT-DETRs, 1.6 between YOLOs, 8.5 for a YOLO under that RT-DETR
    needs = frozenset({"logits", "boxes"})
    heads = ANY_HEADS
    classwise = True
    Options: ClassVar[type] = MatchOptions
    options: MatchOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: MatchOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("match", student, teacher)
        self.dense, self.dense_teacher = student.dense, teacher.dense
        if not student.dense and student.provides >= LAYERS:
            self.student_needs = LAYERS  # of the teacher only the last layer's predictions
        self.gains = sets.PairGains(options.cls, options.l1, options.giou)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        t = self.targets(teacher)
        if self.dense:
            return self.on_points(student, t, batch)
        return self.on_set(student, t, (batch["img"].shape[-2], batch["img"].shape[-1]))

    def targets(self, teacher: View) -> sets.Targets:
        """The teacher's objects, as predictions of one layer."""
        z_t, b_t = (ops.required(getattr(teacher, name), name).detach() for name in ("logits", "boxes"))
        detections = sets.stacked((z_t,), (b_t,))
        if self.dense_teacher or self.dense:
            chosen = self.options.objects, self.options.nms, self.options.least
            places, there = ops.top_places(detections.boxes[0], detections.score[0], *chosen)
        else:
            score, places = detections.score[0].topk(min(self.options.objects, detections.score.shape[-1]))
            there = score > self.options.least
        best = detections.at(places[None])
        return sets.Targets(*best.both, best.score, there[None]).first(max(int(there.sum(-1).max()), 1))

    def on_set(self, student: View, t: sets.Targets, size: tuple[int, int]) -> Tensor:
        """The loss of a student whose predictions are a set."""
        if self.student_needs:
            z_s, b_s = (ops.required(getattr(student, name), name) for name in ("layer_logits", "layer_boxes"))
        else:
            z_s, b_s = ((ops.required(getattr(student, name), name),) for name in ("logits", "boxes"))
        s = sets.stacked(z_s, b_s)
        t = t.first(s.logits.shape[2]).repeated(len(z_s))
        places = sets.assignment(s, t, size, self.gains)
        loss = sets.per_target(sets.pair_losses(s.at(places), t, size, self.gains), t)
        if not self.options.background:
            return loss
        taken = torch.zeros_like(s.score).scatter_reduce(2, places, t.there.to(s.score.dtype), "amax")
        pushed = (quality_focal(s.logits).sum(-1) * (1 - taken)).sum((1, 2))
        return loss + self.options.background * (pushed / t.count).mean()

    def on_points(self, student: View, t: sets.Targets, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a student whose predictions are anchor points."""
        z_s, b_s = (ops.wide(ops.required(getattr(student, name), name)) for name in ("logits", "boxes"))
        quality, owner = self.aligned(z_s.detach(), b_s.detach(), t, batch, student.strides)
        image, n = (quality > 0).nonzero(as_tuple=True)
        m = owner[image, n]
        p = t.logits[0, image, m].sigmoid() * quality[image, n, None]
        weight = p.amax(-1)
        total = weight.sum().clamp(min=1)
        cross: Tensor = F.binary_cross_entropy_with_logits(z_s[image, n], p, reduction="none")
        cls = (cross - torch.special.entr(p) - torch.special.entr(1 - p)).sum(-1)
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        box = sets.box_losses(b_s[image, n], t.boxes[0, image, m], size, self.gains)
        loss: Tensor = (self.gains.cls * cls + weight * box).sum() / total
        if not self.options.background:
            return loss
        return loss + self.options.background * quality_focal(z_s[quality == 0]).sum() / total

    def aligned(
        self, z_s: Tensor, b_s: Tensor, t: sets.Targets, batch: dict[str, Tensor], strides: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """q of every point, 0 without an object, and the index of its object, (B, N) twice."""
        z_t, b_t, there = t.logits[0], t.boxes[0], t.there[0]
        centres, _ = ops.points(batch, strides, b_t.new_empty(z_s.shape[:2]))
        image, m, n = (contains(b_t, centres, min(strides)) & there[..., None]).nonzero(as_tuple=True)
        score = z_s[image, n, z_t.argmax(-1)[image, m]].sigmoid()
        overlap = ops.paired_iou(b_s[image, n], b_t[image, m])
        iou, alignment = b_t.new_zeros(2, *there.shape, z_s.shape[1])
        iou[image, m, n] = overlap
        alignment[image, m, n] = score**self.options.alpha * overlap**self.options.beta * (overlap > 0)
        best, point = alignment.topk(min(self.options.topk, alignment.shape[-1]))
        taken = torch.zeros_like(iou).scatter(-1, point, (best > 0).to(iou.dtype))
        owner = (iou * taken).argmax(1)  # the one object of a point that several objects take
        taken = taken * torch.zeros_like(iou).scatter(1, owner[:, None], 1.0)
        iou, alignment = iou * taken, alignment * taken
        quality = alignment / ops.positive_or_one(alignment.amax(-1, keepdim=True)) * iou.amax(-1, keepdim=True)
        return quality.amax(1), owner


def contains(boxes: Tensor, centres: Tensor, side: int) -> Tensor:
    """Which points are inside which boxes, (B, M, 4), (N, 2) -> (B, M, N).

    A box is enlarged to at least `side`, a cell of the finest level, so that it always contains a point.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    middle, half = (low + high) / 2, ((high - low) / 2).clamp(min=side / 2)
    return ((centres - middle[:, :, None]).abs() <= half[:, :, None]).all(-1)


def quality_focal(z: Tensor) -> Tensor:
    """The binary cross entropy to 0, weighted by the squared score, (...) -> (...)."""
    cross: Tensor = F.softplus(z)
    return z.sigmoid().square() * cross
