"""RoI mimic: the teacher's features pooled from regions that hold objects.

Q. Li, S. Jin, J. Yan: "Mimicking Very Efficient Network for Object Detection", 2017, CVPR 2017 (no arXiv version).

At one level, with r over the N regions of all B images, u_r = RoIAlign(t), v_r = RoIAlign(s) at region r, m the size of
u_r (channels times cells) and A a trained 1x1 conv:

    plain    = sum_r |u_r - A(v_r)|^2 / (2 N m)
    relative = sum_r |u_r - A(v_r)|^2 / sum_r |u_r|^2
    loss     = mean over levels

The regions of an image are its ground truth boxes and the teacher's `boxes` most confident ones (score above `score`,
after NMS at IoU `nms` over all classes, clipped to the image). An object with a box of both kinds counts twice. If
an image has more than `objects` ground truth boxes, that many are taken, evenly in their order: memory grows with the
number of regions.

Where we depart, and why (the authors have published no code):
- The paper's regions are the proposals of a region proposal network, which a one-stage detector lacks. Its
  confident boxes take their place.
- The paper pools by spatial pyramid from one map. We use RoIAlign (arXiv:1703.06870) and pool each region from every
  level: a YOLO's label assignment does not bind objects to levels by size, as an FPN's rule does, and every adapter
  gets a gradient in every step.
- `relative` (default) divides by the mean square of the teacher's pooled features; the plain form is the paper's.
- A map is assumed to span the image, so a teacher's map of another size is pooled at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class RoIOptions:
    """Options of RoI mimic."""

    objects: int = 50  # at most this many ground truth boxes per image, taken evenly if there are more
    boxes: int = 10  # the teacher's most confident boxes per image, besides ground truth; 0: ground truth only
    score: float = 0.25  # a teacher's box counts above this score
    nms: float = 0.5  # of the teacher's boxes that overlap by more than this IoU only the best is kept
    cells: int = 7  # cells per side of a pooled feature
    relative: bool = True  # divide by the mean square of the teacher's pooled features; False: the paper's loss

    def __post_init__(self) -> None:
        ops.check_choice("roi.objects", self.objects, tuple(range(1, 1001)))
        ops.check_choice("roi.boxes", self.boxes, tuple(range(101)))
        ops.check_number("roi.score", self.score, inclusive=True)
        ops.check_number("roi.nms", self.nms, inclusive=True)
        ops.check_choice("roi.cells", self.cells, tuple(range(1, 33)))
        ops.check_choice("roi.relative", self.relative, (True, False))


class RoI(Method):
    """Squared error between features pooled from ground truth boxes and from the teacher's confident boxes."""

    taxonomy_level = "roi"
    term = "roi"
    paper = "Li, Jin, Yan, Mimicking Very Efficient Network for Object Detection, 2017, CVPR 2017"
    reported = "figures not at hand"
    unit = 8.0  # measured 0.042 at unit 1; paper: none at hand
    taps = ("neck", "backbone")
    needs = frozenset({"logits", "boxes"})
    Options: ClassVar[type] = RoIOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: RoIOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.adapters = ops.adapters(ops.widths("roi", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        boxes, index = regions(teacher, batch, size, self.options)
        s_maps: tuple[Tensor, ...] = ops.required(getattr(student, self.tap), self.tap)
        t_maps: tuple[Tensor, ...] = ops.required(getattr(teacher, self.tap), self.tap)
        losses = []
        for adapter, s, t in zip(self.adapters, s_maps, t_maps, strict=True):
            u = ops.pooled(ops.wide(t.detach()), boxes, index, size, self.options.cells)
            v = adapter(ops.pooled(ops.wide(s), boxes, index, size, self.options.cells))
            scale = 1.0 if self.options.relative else 0.5
            losses.append(scale * ops.pooled_error(v, u, self.options.relative))
        return ops.level_mean(losses)


def regions(
    teacher: View, batch: dict[str, Tensor], size: tuple[int, int], options: RoIOptions
) -> tuple[Tensor, Tensor]:
    """Boxes to pool from (N, 4), ground truth first, and their images (N,)."""
    true, true_index = thinned(*ops.ground_truth(batch), options.objects)
    score = ops.confidence(ops.required(teacher.logits, "logits"))
    boxes = ops.wide(ops.required(teacher.boxes, "boxes"))
    confident, index = ops.top_boxes(boxes, score, size, options.boxes, options.nms, options.score)
    return torch.cat((true.to(confident), confident)), torch.cat((true_index.to(index), index))


def thinned(boxes: Tensor, index: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """At most limit boxes per image, evenly spaced in their order; boxes (M, 4) and their images (M,)."""
    same = index[:, None] == index
    count = same.sum(1).clamp(min=limit)
    rank = same.tril(-1).sum(1)
    kept = (rank + 1) * limit // count > rank * limit // count
    return boxes[kept], index[kept]
