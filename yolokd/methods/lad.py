"""LAD: the teacher says which anchor points an object belongs to, and the student is trained there.

C. H. Nguyen, T. C. Nguyen, T. N. Tang, N. L. H. Phan: "Improving Object Detection by Label Assignment Distillation",
2021, arXiv:2108.10520; code: https://github.com/cybercore-co-ltd/CoLAD (read at commit f21f89e).

The labels stay those of the data; only their assignment is the teacher's. With object g of class k_g, anchor points n:

    a_gn = sigmoid(z_tnk_g)^alpha IoU(b_tn, g)^beta         for points n whose centre is in g
    P_g  = the topk such points of highest a > 0; a point in several P_g is left to the g of its highest IoU
    y_nk = a_gn / max_{P_g} a . max_{P_g} IoU(b_tn, g)      for n in P_g and k = k_g, else 0
    W    = max(B, sum_nk y_nk)                               B images, as in the authors' code
    loss = cls sum_nk BCE(z_snk, y_nk) / W + box sum_n (sum_k y_nk) (1 - GIoU(b_sn, g_n)) / W

Where we depart, and why:
- The paper's detector is PAA, whose anchors are scored by their losses and split by a mixture of two Gaussians. YOLO
  assigns by the rule above (task-aligned, arXiv:2108.07755: alpha 0.5, beta 6, top 10), which is applied to the
  teacher's predictions; with IoU for its CIoU, targets are those of Ultralytics' assigner. The losses are YOLO's too:
  soft targets y, weights 0.5 and 7.5, GIoU for its CIoU; its third, on the box distribution, is left out.
- The paper replaces the student's own assignment. A term is added to the student's own loss, so both assignments teach.
  For the paper's form alone set the student's own gains box=, cls= and dfl= of Ultralytics to 0.01 or so.
- An NMS-free branch of the student (YOLO26, v10) is assigned from the same branch of the teacher; under a teacher
  without one it would get ten points per object. Leave the method out there.
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
class LADOptions:
    """Options of label assignment distillation."""

    topk: int = 10  # points per object
    alpha: float = 0.5  # exponent of the score in the alignment
    beta: float = 6.0  # exponent of the IoU in the alignment
    cls: float = 0.5  # weight of the class scores
    box: float = 7.5  # weight of the boxes

    def __post_init__(self) -> None:
        ops.check_number("lad.topk", self.topk)
        if not isinstance(self.topk, int):
            raise ValueError(f"lad.topk={self.topk!r} is not allowed: it must be a whole number.")
        for name in ("alpha", "beta", "cls", "box"):
            ops.check_number(f"lad.{name}", getattr(self, name), inclusive=True)
        if self.cls == self.box == 0:
            raise ValueError("lad.cls and lad.box are both 0: leave the method out instead.")


class LAD(Method):
    """The task's loss with objects assigned to anchor points as the teacher's predictions assign them."""

    taxonomy_level = "head"
    term = "lad"
    paper = "Nguyen et al., Improving Object Detection by Label Assignment Distillation, 2021, arXiv:2108.10520"
    reported = "PAA R101 -> R50 40.4 -> 41.6 COCO AP (authors' repository)"
    unit = 0.3  # measured 0.94 at unit 1; paper: it replaces the task's loss
    student_needs = frozenset({"logits", "boxes"})
    teacher_needs = frozenset({"logits", "boxes"})
    heads = DENSE_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = LADOptions
    options: LADOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: LADOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("lad", student, teacher)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z, boxes = (ops.wide(ops.required(getattr(student, name), name)) for name in ("logits", "boxes"))
        g, n, weight = self.assigned(teacher, batch)
        objects, index = ops.ground_truth(batch)
        label = batch["cls"].detach().to(index.device).reshape(-1).long()[g]
        target = z.new_zeros(z.shape).index_put((index[g], n, label), weight.to(z.dtype))
        cls = F.binary_cross_entropy_with_logits(z, target, reduction="sum")
        box = (weight * (1 - ops.paired_giou(boxes[index[g], n], objects[g].to(boxes.dtype)))).sum()
        return (self.options.cls * cls + self.options.box * box) / weight.sum().clamp(min=len(z))

    def assigned(self, teacher: View, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The assigned pairs: object, anchor point and target score, (P,) each, no point of an image twice."""
        quality, iou = ops.alignment(teacher, batch, self.options.alpha, self.options.beta)
        best, point = quality.topk(min(self.options.topk, quality.shape[1]), 1)
        chosen = quality.new_zeros(quality.shape).scatter(1, point, (best > 0).to(quality.dtype))
        _, index = ops.ground_truth(batch)
        overlap = iou * chosen  # above 0 where chosen, if beta is; a point of IoU 0 teaches nothing
        images = len(batch["img"])
        highest = overlap.new_zeros(images, overlap.shape[1]).scatter_reduce(
            0, index[:, None].expand_as(overlap), overlap, "amax"
        )
        own = (overlap > 0) & (overlap == highest[index])
        own = first_of_image(own, index)
        quality, overlap = quality * own, overlap * own
        if not len(quality):
            return index, index, quality.new_zeros(0)
        top, reach = quality.amax(1, keepdim=True), overlap.amax(1, keepdim=True)
        weight = quality / ops.positive_or_one(top) * reach
        g, n = own.nonzero(as_tuple=True)
        return g, n, weight[g, n]


def first_of_image(own: Tensor, index: Tensor) -> Tensor:
    """Of objects of one image that claim the same point, the first, (M, N) and (M,) -> (M, N)."""
    same = (index[:, None] == index).tril(-1).to(own.device)  # earlier objects of the same image
    earlier = same.float() @ own.float()
    return own & (earlier == 0)
