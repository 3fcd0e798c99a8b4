"""Bounded regression: a box is pulled to its object only while it is worse than the teacher's.

G. Chen, W. Choi, X. Yu, T. Han, M. Chandraker: "Learning Efficient Object Detection Models with Knowledge
Distillation", NeurIPS 2017. The authors published no code.

With g an object of width w and height h, b a box by its four sides, n over the points P_g that predict g:

    e(b)_n = ((x1 - x1_g) / w)^2 + ((y1 - y1_g) / h)^2 + ((x2 - x2_g) / w)^2 + ((y2 - y2_g) / h)^2
    L_n    = e(b_s)_n if e(b_s)_n + margin > e(b_t)_n, else 0
    loss   = sum_g sum_{n in P_g} L_n / number of all n in all P_g            0 without any

So the teacher's box is no target, only a bound: it may be wrong, and a student that is better is left alone.

Where we depart, and why:
- The paper regresses offsets from proposals. The heads we read decode boxes; their sides in units of the object's own
  size weigh small and large objects alike, as offsets do.
- P_g is the rule of YOLO's assigner on the teacher's predictions (see rank.py) instead of a proposal's overlap.
- The paper's class part weighs the cross-entropy with the teacher's scores 1.5 on background and 1 elsewhere, over a
  softmax with a background class, which sigmoid heads do not have: use logit or bckd_cls. Its hint is fitnet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

ALPHA, BETA = 0.5, 6.0  # exponents of score and IoU in the assigner's rule


@dataclass(frozen=True, slots=True)
class BoundedOptions:
    """Options of bounded regression."""

    margin: float = 0.0  # a box counts until it is better than the teacher's by this much
    topk: int = 10  # points per object

    def __post_init__(self) -> None:
        ops.check_number("bounded.margin", self.margin, inclusive=True)
        ops.check_number("bounded.topk", self.topk)
        if not isinstance(self.topk, int):
            raise ValueError(f"bounded.topk={self.topk!r} is not allowed: it must be a whole number.")


class Bounded(Method):
    """Squared distance of boxes to their objects, where the teacher's boxes are nearer."""

    taxonomy_level = "head"
    term = "bound"
    paper = "Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, 2017, NeurIPS 2017"
    reported = "figures not at hand"
    unit = 0.025  # measured 12 at unit 1; paper: 0.5 on offsets
    student_needs = frozenset({"boxes"})
    teacher_needs = frozenset({"boxes", "logits"})
    heads = DENSE_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = BoundedOptions
    options: BoundedOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: BoundedOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("bounded", student, teacher)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        b_s, b_t = (ops.wide(ops.required(view.boxes, "boxes")) for view in (student, teacher))
        objects, index = ops.ground_truth(batch)
        quality, _ = ops.alignment(teacher, batch, ALPHA, BETA)
        best, point = quality.topk(min(self.options.topk, quality.shape[1]), 1)
        g, rank = (best > 0).nonzero(as_tuple=True)
        n = point[g, rank]
        e_s, e_t = (distance(b[index[g], n], objects[g].to(b.dtype)) for b in (b_s, b_t.detach()))
        return torch.where(e_s + self.options.margin > e_t, e_s, 0.0).sum() / max(len(g), 1)


def distance(b: Tensor, g: Tensor) -> Tensor:
    """e of the module's docstring, (P, 4) twice -> (P,); objects have at least one pixel a side."""
    size = (g[:, 2:] - g[:, :2]).clamp(min=1).repeat(1, 2)
    return ((b - g) / size).square().sum(-1)
