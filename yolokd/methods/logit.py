"""Logit distillation: classic soft targets, for each class separately, as in a detector's sigmoid head.

G. Hinton, O. Vinyals, J. Dean: "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

With n over the anchor points of all images, k over classes, z logits:

    p_nk = sigmoid(z_t / tau)
    loss = tau^2 sum_nk [ BCE(z_s / tau, p_nk) - H(p_nk) ] / max(1, sum_n max_k sigmoid(z_t))
    BCE(z, p) = -p log sigmoid(z) - (1 - p) log sigmoid(-z),     H(p) = -p log p - (1 - p) log(1 - p)

that is tau^2 KL(p || sigmoid(z_s / tau)) of each of the N K binary predictions: 0 if and only if the logits are equal.

Where we depart, and why:
- The paper softens one softmax over classes. A detector's classes are N K independent sigmoids, and a softmax over
  them would lose the absolute scores, above all those of background (the argument of arXiv:2308.14286).
- The sum is divided by the teacher's soft count of positives in the batch. A mean over all N K would shrink with every
  empty cell and class; assigned positives would make the term depend on the student's assigner and labels.
- H(p) has no gradient; subtracting it makes 0 the optimum, so the number in the log can be interpreted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class LogitOptions:
    """Options of logit distillation."""

    tau: float = 1.0  # temperature: above 1 the scores of background and of rare classes count more

    def __post_init__(self) -> None:
        ops.check_number("logit.tau", self.tau)


class Logit(Method):
    """Binary divergence between class scores at equal anchor points."""

    taxonomy_level = "head"
    term = "logit"
    paper = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531"
    reported = "none published for detection"
    unit = 0.2  # measured 1.8 at unit 1; paper: none for detection
    needs = frozenset({"logits"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = LogitOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: LogitOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("logit", student, teacher)
        self.tau = options.tau

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_s = ops.wide(ops.required(student.logits, "logits"))
        z_t = ops.wide(ops.required(teacher.logits, "logits")).detach()
        return ops.divergence(z_s / self.tau, z_t / self.tau).sum() * self.tau**2 / ops.soft_count(z_t)
