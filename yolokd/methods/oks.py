"""OKS: object keypoint similarity to the teacher's keypoints, and divergence of their visibility.

The similarity is COCO's (T.-Y. Lin et al., 2014, arXiv:1405.0312); as a loss it is from D. Maji, S. Nagori, M. Mathew,
D. Poddar: "YOLO-Pose: Enhancing YOLO for Multi Person Pose Estimation Using Object Keypoint Similarity Loss", 2022,
arXiv:2204.06806.

With n over the anchor points of all images, j over the J keypoints of an object, z class logits, v visibility logits,
p places in pixels, A_n the area of the teacher's box in square pixels (at least 1), sigma the sigmoid:

    e_nj  = |p_s - p_t|^2 / (2 A_n (2 spread)^2)
    place = sum_j sigma(v_t) (1 - exp(-e_nj)) / sum_j sigma(v_t)
    vis   = mean_j KL(sigma(v_t) || sigma(v_s))
    w_n   = max_k sigma(z_t)
    loss  = sum_n w_n (place + visibility vis) / max(1, sum_n w_n)

Where we depart, and why:
- The teacher replaces the ground truth: its keypoints, its visibility as a soft weight, its box for the object's size.
- One spread is used for all keypoints. COCO's 17 values, whose mean is about 0.07, fit human bodies only.
- For a head without visibility all keypoints of an object have equal weight, and there is no `vis`.

Both heads must have the same number of keypoints, which are assumed to be the same ones in the same order: a model
does not record what its keypoints are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class OKSOptions:
    """Options of keypoint similarity."""

    spread: float = 0.07  # distance, as a share of the object's size, up to which a keypoint counts as nearly correct
    visibility: float = 0.1  # weight of the visibility part; that of the place part is 1

    def __post_init__(self) -> None:
        ops.check_number("oks.spread", self.spread)
        ops.check_number("oks.visibility", self.visibility, inclusive=True)


class OKS(Method):
    """1 - OKS between keypoints, and the divergence of their visibility, weighted by the teacher's confidence."""

    taxonomy_level = "head"
    term = "oks"
    paper = "Maji et al., YOLO-Pose: Pose Estimation Using Object Keypoint Similarity Loss, 2022, arXiv:2204.06806"
    reported = "none published for detection"
    unit = 5.0  # measured 0.063 at unit 1; paper: none for distillation
    needs = frozenset({"logits", "boxes", "keypoints"})
    heads = DENSE_HEADS
    Options: ClassVar[type] = OKSOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: OKSOptions) -> None:
        super().__init__(student, teacher, tap, options)
        if student.keypoints != teacher.keypoints:
            raise ValueError(
                f"oks compares keypoints one to one, but student {student.name} has {student.keypoints} "
                f"and teacher {teacher.name} has {teacher.keypoints}."
            )
        self.spread, self.visibility = options.spread, options.visibility

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_t = ops.required(teacher.logits, "logits")
        boxes = ops.wide(ops.required(teacher.boxes, "boxes")).detach()
        s = ops.wide(ops.required(student.keypoints, "keypoints"))
        t = ops.wide(ops.required(teacher.keypoints, "keypoints")).detach()
        visible_s, visible_t = s[..., 2:], t[..., 2:]  # (B, N, J, 1), or empty
        weight = visible_t.sigmoid().squeeze(-1) if visible_t.shape[-1] else torch.ones_like(t[..., 0])
        size = 2 * ops.area(boxes).clamp(min=1) * (2 * self.spread) ** 2
        wrong = -torch.expm1(-(s[..., :2] - t[..., :2]).square().sum(-1) / size[..., None])
        loss = (weight * wrong).sum(-1) / ops.positive_or_one(weight.sum(-1))
        if visible_s.shape[-1] and visible_t.shape[-1]:
            loss = loss + self.visibility * ops.divergence(visible_s, visible_t).mean((-1, -2))
        return (ops.confidence(z_t) * loss).sum() / ops.soft_count(z_t)
