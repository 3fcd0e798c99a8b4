"""DeFeat: imitate objects and background separately, each with its own weight (the neck part).

J. Guo, K. Han, Y. Wang, H. Wu, X. Chen, C. Xu, C. Xu: "Distilling Object Detectors via Decoupled Features", 2021,
arXiv:2103.14475; code: https://github.com/ggjy/DeFeat.pytorch.

At one level, with M_i = 1 in the cells that a ground truth box touches, else 0, and s adapted to C channels:

    m(x, W)  = sum_i W_i |x_i|^2 / (C sum_i W_i)          over the cells of all images; 0 if W is 0 everywhere
    plain    = w_f m(s - t, M) + w_b m(s - t, 1 - M)
    relative = w_f m(s - t, M) / m(t, M) + w_b m(s - t, 1 - M) / m(t, 1 - M)
    loss     = mean over levels

The paper's other part, on the proposals, is not in this file; rpn.py has an analogue.

Where the authors' code departs from this, or we from it, and why:
- It takes half the squares, and w_f = 3, w_b = 12 (for VOC). The defaults keep that ratio and sum to 1, so the code's
  loss is 7.5 times our plain one, and an adapter that returns 0 has a relative loss of 1.
- `relative` (default) divides by the teacher's own mean square in each region. That is larger on objects, so at equal
  relative error the code's balance favours them more than w_f : w_b.
- It puts a box on one level only, the one where the root of its area is 14 to 28 cells (smaller boxes on the finest,
  larger ones on the coarsest level); on other levels the box is background. That is `levels="size"`. A YOLO head may
  assign an object to any level, so `levels="all"` (default) puts it on every one.
- It rounds both edges down, and marks one cell for a box that would then have none; we mark every cell the box touches.
- Its adapter is a 3x3 conv that starts near 0; ours is the 1x1 conv of the other methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View

CELLS = 14  # the root of a box's area is 14 to 28 cells on its level (56 to 112 px at stride 4)


@dataclass(frozen=True, slots=True)
class DeFeatOptions:
    """Options of DeFeat's neck part."""

    w_f: float = 0.2  # weight of the cells that an object touches (3 in the authors' code, against 12)
    w_b: float = 0.8  # weight of the cells that no object touches
    levels: str = "all"  # on which levels a box is an object: "all", or the one of its "size" (authors' code)
    relative: bool = True  # divide by the teacher's mean square in the same cells; False: the paper's plain form

    def __post_init__(self) -> None:
        ops.check_number("defeat.w_f", self.w_f, inclusive=True)
        ops.check_number("defeat.w_b", self.w_b, inclusive=True)
        ops.check_choice("defeat.levels", self.levels, ("all", "size"))
        ops.check_choice("defeat.relative", self.relative, (True, False))


class DeFeat(Method):
    """Squared error between adapted student maps and teacher maps, objects and background separately."""

    taxonomy_level = "neck"
    term = "deft"
    paper = "Guo et al., Distilling Object Detectors via Decoupled Features, 2021, arXiv:2103.14475 (neck part)"
    reported = "Faster R-CNN R50 37.4 -> 40.9 COCO AP, as defeat.full (paper)"
    unit = 10.0  # measured 0.033 at unit 1; paper: 3 and 12 on halves, 7.5 on ours
    taps = ("neck", "backbone")
    truth = True
    Options: ClassVar[type] = DeFeatOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: DeFeatOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.adapters = ops.adapters(ops.widths("defeat", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        o: DeFeatOptions = self.options
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        losses = []
        for (s, t), mask in zip(pairs, self.masks(student, [s for s, _ in pairs], batch), strict=True):
            error, energy = (s - t).square().mean(1), t.square().mean(1)
            objects, rest = (ops.region_error(error, energy, m.to(error.dtype), o.relative) for m in (mask, 1 - mask))
            losses.append(o.w_f * objects + o.w_b * rest)
        return ops.level_mean(losses)

    def masks(self, student: View, maps: list[Tensor], batch: dict[str, Tensor]) -> list[Tensor]:
        """M of the module's docstring, one (B, H, W) per map."""
        boxes, index = ops.ground_truth(batch)
        level = level_of(boxes, student.strides)
        masks = []
        for i, (like, stride) in enumerate(zip(maps, student.strides, strict=True)):
            on_level = (level == i).to(boxes.dtype) if self.options.levels == "size" else None
            masks.append(ops.foreground(boxes, index, like, stride, on_level))
        return masks


def level_of(boxes: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The level for each box's size, (M, 4) -> (M,): the coarsest where the root of its area is 14 cells or more."""
    root = ops.area(boxes).sqrt()
    return torch.stack([root >= CELLS * stride for stride in strides[1:]] or [root < 0]).sum(0)
