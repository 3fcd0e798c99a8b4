"""DIST: class scores should rise and fall with the teacher's, whatever their size.

T. Huang, S. You, F. Wang, C. Qian, C. Xu: "Knowledge Distillation from A Stronger Teacher", 2022, arXiv:2205.10536;
code: https://github.com/hunto/DIST_KD (read at commit 2418f18).

With y = sigmoid(z), n over the anchor points of all images, k over the K classes, w_n = max_k y_tnk, and Pearson's
correlation r(a, b) = cov(a, b) / sqrt((var a + 1e-12) (var b + 1e-12)):

    inter = sum_n w_n (1 - r_k(y_sn, y_tn)) / sum_n w_n       over the classes of a point; 0 for one class
    intra = mean_k (1 - r_n(y_sk, y_tk))                      over the points of a class
    loss  = beta inter + gamma intra

Scaling or shifting all scores of a point (inter) or class (intra) changes nothing: a teacher that is far surer than
the student can be, the paper's case, still teaches the order.

Where we depart, and why:
- The paper takes a softmax over classes; the heads we read have sigmoids, which are not normalised over classes.
- The mean over points in inter is weighted by the teacher's confidence: on background, which is most of an image, the
  order of the classes is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

TINY = 1e-12  # of a variance


@dataclass(frozen=True, slots=True)
class DISTOptions:
    """Options of DIST."""

    beta: float = 1.0  # weight of the correlation over a point's classes
    gamma: float = 1.0  # weight of the correlation over a class's points

    def __post_init__(self) -> None:
        for name in ("beta", "gamma"):
            ops.check_number(f"dist.{name}", getattr(self, name), inclusive=True)


class DIST(Method):
    """One minus the correlation of class scores, over classes and over points."""

    taxonomy_level = "head"
    term = "dist"
    paper = "Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, arXiv:2205.10536"
    reported = "figures not at hand"
    unit = 0.5  # measured 0.63 at unit 1; paper: 1 and 1 in classification
    needs = frozenset({"logits"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = DISTOptions
    options: DISTOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: DISTOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("dist", student, teacher)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_t = ops.wide(ops.required(teacher.logits, "logits")).detach()
        y_s, y_t = (z.sigmoid().flatten(0, 1) for z in (ops.wide(ops.required(student.logits, "logits")), z_t))
        loss = self.options.gamma * (1 - correlation(y_s.mT, y_t.mT)).mean()
        if y_s.shape[1] > 1:
            weight = ops.confidence(z_t).flatten()
            inter = (weight * (1 - correlation(y_s, y_t))).sum() / ops.positive_or_one(weight.sum())
            loss = loss + self.options.beta * inter
        return loss


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row, (P, Q) twice -> (P,)."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    spread = (a.square().mean(1) + TINY).sqrt() * (b.square().mean(1) + TINY).sqrt()
    return (a * b).mean(1) / spread
