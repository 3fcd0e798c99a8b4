"""Masks of the teacher's confident objects, pixel by pixel.

Y. Liu, C. Shu, J. Wang, C. Shen: "Structured Knowledge Distillation for Dense Prediction", 2019, arXiv:1903.04197 (its
pixel-wise part), on masks made as in D. Bolya, C. Zhou, F. Xiao, Y. J. Lee: "YOLACT: Real-time Instance Segmentation",
2019, arXiv:1904.02689.

A point's coefficients c combine the image's prototypes P into mask logits m = sum_p c_p P_p. Objects o of an image are
the teacher's `objects` best points (score above `score`, after NMS at IoU `nms` over all classes); with n their
anchor points, w_o their scores, and C_o the cells of the prototypes whose centre is in the teacher's box:

    loss = sum_o w_o mean_(i in C_o) KL(sigma(m_t,n,i) || sigma(m_s,n,i)) / max(1, sum_o w_o)

The two heads' coefficients are never compared: they have a meaning only together with their own prototypes, which
two nets learn in different order, sign and number. The resulting masks can always be compared. A teacher's mask of
another size is resized to the student's.

Where we depart, and why:
- A mask has a meaning only inside its box, to which YOLACT crops it, and a large object must not count more than a
  small one: hence a mean over C_o for each object instead of one over all pixels. An object whose box contains no
  cell's centre has loss 0.
- Pixels are sigmoids, not a softmax over classes, so the divergence is binary.
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
class MasksOptions:
    """Options of mask distillation."""

    objects: int = 20  # the teacher's most confident objects per image
    score: float = 0.1  # an object counts above this score
    nms: float = 0.7  # of the teacher's boxes that overlap by more than this IoU only the best is kept

    def __post_init__(self) -> None:
        ops.check_choice("masks.objects", self.objects, tuple(range(1, 101)))
        ops.check_number("masks.score", self.score, inclusive=True)
        ops.check_number("masks.nms", self.nms, inclusive=True)


class Masks(Method):
    """Binary divergence between the masks at the teacher's most confident points, within their boxes."""

    taxonomy_level = "head"
    term = "masks"
    paper = "Liu et al., Structured Knowledge Distillation for Dense Prediction, 2019, arXiv:1903.04197 (pixel-wise)"
    reported = "none published for detection"
    unit = 2.0  # measured 0.17 at unit 1; paper: none at hand
    needs = frozenset({"logits", "boxes", "coefficients", "prototypes"})
    heads = DENSE_HEADS
    Options: ClassVar[type] = MasksOptions
    options: MasksOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: MasksOptions) -> None:
        super().__init__(student, teacher, tap, options)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        score = ops.confidence(ops.required(teacher.logits, "logits"))
        boxes = ops.wide(ops.required(teacher.boxes, "boxes")).detach()
        o = self.options
        places, there = ops.top_places(boxes, score, o.objects, o.nms, o.score)  # (B, M) twice
        prototypes = ops.wide(ops.required(student.prototypes, "prototypes"))
        t_prototypes = ops.resize(ops.wide(ops.required(teacher.prototypes, "prototypes")).detach(), prototypes)
        m_s = mask_logits(ops.required(student.coefficients, "coefficients"), prototypes, places)
        m_t = mask_logits(ops.required(teacher.coefficients, "coefficients"), t_prototypes, places).detach()
        weight = score.gather(1, places) * there
        height, width = batch["img"].shape[-2:]
        inside = cells(taken(boxes, places), prototypes, height, width)
        error = (inside * ops.divergence(m_s, m_t)).sum((-1, -2)) / inside.sum((-1, -2)).clamp(min=1)
        return (weight * error).sum() / weight.sum().clamp(min=1)


def taken(x: Tensor, places: Tensor) -> Tensor:
    """The chosen points of each image, (B, N, C), (B, M) -> (B, M, C)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def mask_logits(coefficients: Tensor, prototypes: Tensor, places: Tensor) -> Tensor:
    """Masks of the chosen points, (B, N, P), (B, P, H, W), (B, M) -> (B, M, H, W)."""
    return torch.einsum("bmp,bphw->bmhw", ops.wide(taken(coefficients, places)).to(prototypes.dtype), prototypes)


def cells(boxes: Tensor, like: Tensor, height: int, width: int) -> Tensor:
    """1 in cells whose centre is in the box, else 0; boxes (B, M, 4) in a height x width image -> (B, M, H, W)."""
    rows, columns = ((torch.arange(n, device=boxes.device, dtype=boxes.dtype) + 0.5) / n for n in like.shape[-2:])
    left, top, right, bottom = (boxes / boxes.new_tensor([width, height] * 2)).unsqueeze(-1).unbind(-2)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (in_rows[..., :, None] & in_columns[..., None, :]).to(like.dtype)
