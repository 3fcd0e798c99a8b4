"""BCKD: class scores as binary predictions and boxes by their IoU, both weighted by how much the two models disagree.

L. Yang, X. Zhou, X. Li, L. Qiao, Z. Li, Z. Yang, G. Wang, X. Li: "Bridging Cross-task Protocol Inconsistency for
Distillation in Dense Object Detection", 2023, arXiv:2308.14286; code: https://github.com/TinyTigerPan/BCKD.

With n over the anchor points of all images, k over classes, z logits, b boxes, sigma the sigmoid:

    count = max(1, sum_n max_k sigma(z_t))
    cls   = sum_nk |sigma(z_t) - sigma(z_s)|^beta BCE(z_s, sigma(z_t)) / count
    box   = sum_n w_n (1 - GIoU(b_s, b_t)) / count
    w_n   = max_k |sigma(z_t) - sigma(z_s)|   (weight="gap", the paper's)
            max_k sigma(z_t)                  (weight="teacher")

The paper adds cls + 4 box to the task's loss. The distiller applies gains: to follow the paper, give box four times the
gain of cls. Neither method scales its term.

We follow the authors' code in this:
- In cls the weight |sigma(z_t) - sigma(z_s)|^beta IS differentiated: only the teacher's scores are detached there.
  With beta=1 the term therefore has a kink (of slope H(sigma(z_t))) at its zero, where the scores are equal.
- In box the weight is NOT differentiated: it is computed from detached scores. Its beta is 1, whatever that of cls is.

Where we depart, and why:
- The authors divide by the number of assigned positives, averaged over processes, and skip levels without any. We
  divide by the teacher's soft count in this process's batch: it needs neither labels nor the student's assigner, so
  that images without labels can be used as well.
- A head without bins (YOLO26) can decode a box whose right side lies left of its left one. Its area is 0, and with it
  the overlap, so GIoU has no gradient that would turn the box over: the task's own loss has to (bounded.py's squared
  distance can too).
- `weight="teacher"` is ours: boxes then also learn where the teacher is confident and the scores agree already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class BCKDClsOptions:
    """Options of BCKD's classification part."""

    beta: float = 1.0  # exponent of the score gap: above 1 only large gaps count

    def __post_init__(self) -> None:
        # below 1 the weight's derivative is infinite where the scores agree
        ops.check_number("bckd_cls.beta", self.beta, above=1.0, inclusive=True)


@dataclass(frozen=True, slots=True)
class BCKDBoxOptions:
    """Options of BCKD's localisation part."""

    weight: str = "gap"  # w_n: "gap" between the scores of both (paper), or the "teacher"'s highest score

    def __post_init__(self) -> None:
        ops.check_choice("bckd_box.weight", self.weight, ("gap", "teacher"))


class BCKDCls(Method):
    """Binary cross entropy to the teacher's scores, weighted by the gap to them."""

    taxonomy_level = "head"
    term = "bckdc"
    paper = "Yang et al., Bridging Cross-task Protocol Inconsistency for Distillation, 2023, arXiv:2308.14286 (cls)"
    reported = "GFL R101 -> R50 40.1 -> 43.2 COCO AP, as bckd.full (authors' repository)"
    unit = 0.3  # measured 0.98 at unit 1; paper: 1
    needs = frozenset({"logits"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = BCKDClsOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: BCKDClsOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("bckd_cls", student, teacher)
        self.beta = options.beta

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_s, z_t = both_logits(student, teacher)
        p_t = z_t.sigmoid()
        cross = F.binary_cross_entropy_with_logits(z_s, p_t, reduction="none")
        return ((p_t - z_s.sigmoid()).abs().pow(self.beta) * cross).sum() / ops.soft_count(z_t)


class BCKDBox(Method):
    """GIoU loss to the teacher's boxes, weighted by scores."""

    taxonomy_level = "head"
    term = "bckdb"
    paper = "Yang et al., Bridging Cross-task Protocol Inconsistency for Distillation, 2023, arXiv:2308.14286 (box)"
    reported = "GFL R101 -> R50 40.1 -> 43.2 COCO AP, as bckd.full (authors' repository)"
    unit = 4.0  # measured 0.088 at unit 1; paper: 4
    needs = frozenset({"logits", "boxes"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = BCKDBoxOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: BCKDBoxOptions) -> None:
        super().__init__(student, teacher, tap, options)
        if options.weight == "gap":
            ops.check_classes("bckd_box with weight='gap'", student, teacher)
        self.weight = options.weight
        self.classwise = options.weight == "gap"  # the teacher's highest score needs no shared classes

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_s, z_t = both_logits(student, teacher)
        b_s = ops.wide(ops.required(student.boxes, "boxes"))
        b_t = ops.wide(ops.required(teacher.boxes, "boxes")).detach()
        weight = score_gap(z_s, z_t) if self.weight == "gap" else ops.confidence(z_t)
        return (weight * (1 - ops.paired_giou(b_s, b_t))).sum() / ops.soft_count(z_t)


def both_logits(student: View, teacher: View) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits in float32 or wider, (B, N, K) twice; the teacher's without gradient."""
    return ops.wide(ops.required(student.logits, "logits")), ops.wide(ops.required(teacher.logits, "logits")).detach()


def score_gap(z_s: Tensor, z_t: Tensor) -> Tensor:
    """Largest difference of scores over classes, without gradient; (B, N, K) twice -> (B, N)."""
    return (z_t.sigmoid() - z_s.sigmoid()).detach().abs().amax(-1)
