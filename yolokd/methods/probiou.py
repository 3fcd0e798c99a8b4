"""ProbIoU: rotated boxes as Gaussian distributions, compared by their overlap.

J. M. Llerena, L. F. Zeni, L. N. Kristen, C. Jung: "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union
for Object Detection", 2021, arXiv:2106.06072.

A box with centre m, sides w, h and angle r is the Gaussian of the uniform distribution over it, with covariance
S = R(r) diag(w^2, h^2) R(r)^T / 12. With n over the anchor points of all images, z logits, sigma the sigmoid:

    B     = (m_s - m_t)^T S^-1 (m_s - m_t) / 8 + ln(det S / sqrt(det S_s det S_t)) / 2,   S = (S_s + S_t) / 2
    H     = sqrt(1 - exp(-B)) = 1 - ProbIoU        (Bhattacharyya and Hellinger distance; H is the paper's L1)
    w_n   = max_k sigma(z_t)
    loss  = sum_n w_n H(b_s, b_t) / max(1, sum_n w_n)

This is the counterpart of bckd_box with weight="teacher" for rotated heads: the weight is the teacher's confidence.

Where we depart, and why:
- The teacher's box replaces the ground truth. The paper compares with labels, and trains with B before H. We take H
  from the start: boxes too far apart for a gradient of H are brought together by the task's own loss.
- Every side is widened to sqrt(w^2 + 1), the blur of one pixel: a box of width 0 has no density.
- H has a kink where it is 0. We take sqrt(H^2 + e) - sqrt(e), which is 0 and flat there, with e = 1e-6.
- The determinants are sums of positive terms in the frames of the two boxes. The usual form with matrix entries
  subtracts nearly equal products, which leaves no correct digit for long thin boxes in single precision.

A box rotated by 180 degrees, or by 90 degrees with its sides exchanged, is the same Gaussian: no convention for the
angle is needed. For a square the loss does not depend on the angle, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

SMOOTH = 1e-6  # e: squared distances below it are treated as 0


@dataclass(frozen=True, slots=True)
class ProbIoUOptions:
    """ProbIoU has no options."""


class ProbIoU(Method):
    """Hellinger distance of rotated boxes, weighted by the teacher's confidence."""

    taxonomy_level = "head"
    term = "piou"
    paper = "Llerena et al., Gaussian Bounding Boxes and Probabilistic Intersection-over-Union, 2021, arXiv:2106.06072"
    reported = "none published for detection"
    unit = 3.0  # measured 0.10 at unit 1; paper: none for distillation
    needs = frozenset({"logits", "rotated"})
    heads = DENSE_HEADS
    Options: ClassVar[type] = ProbIoUOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: ProbIoUOptions) -> None:
        super().__init__(student, teacher, tap, options)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_t = ops.required(teacher.logits, "logits")
        b_s = ops.wide(ops.required(student.rotated, "rotated"))
        b_t = ops.wide(ops.required(teacher.rotated, "rotated")).detach()
        return (ops.confidence(z_t) * distance(b_s, b_t)).sum() / ops.soft_count(z_t)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - ProbIoU of rotated boxes at equal indices, (..., 5) twice -> (...), in [0, 1)."""
    square = -torch.expm1(-bhattacharyya(a, b))
    hellinger: Tensor = (square.clamp(min=0) + SMOOTH).sqrt() - SMOOTH**0.5
    return hellinger


def bhattacharyya(a: Tensor, b: Tensor) -> Tensor:
    """Bhattacharyya distance of two boxes' Gaussians, (..., 5) twice -> (...), 0 at equal ones."""
    (w_a, h_a), (w_b, h_b) = variances(a), variances(b)
    turn = a[..., 4] - b[..., 4]
    cos, sin = turn.cos().square(), turn.sin().square()
    det_a, det_b = w_a * h_a, w_b * h_b
    # of S_a + S_b; the mixed part is the trace of adj(S_a) S_b in a's frame
    det = det_a + det_b + h_a * (w_b * cos + h_b * sin) + w_a * (w_b * sin + h_b * cos)
    shift = a[..., :2] - b[..., :2]
    (u_a, v_a), (u_b, v_b) = along(shift, a), along(shift, b)
    far = h_a * u_a.square() + w_a * v_a.square() + h_b * u_b.square() + w_b * v_b.square()
    return far / det / 4 + (det / (4 * det_a.sqrt() * det_b.sqrt())).log() / 2


def variances(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Variances along a box's sides in square pixels, blurred by a pixel; (..., 5) -> (...) twice."""
    width, height = ((boxes[..., 2:4].square() + 1) / 12).unbind(-1)
    return width, height


def along(shift: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Components of a shift (..., 2) along each box's two sides, (...) twice."""
    x, y = shift.unbind(-1)
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return x * cos + y * sin, y * cos - x * sin
