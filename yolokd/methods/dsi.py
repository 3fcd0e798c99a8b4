"""DSI: the deepest map should point where a vision foundation model's points.

Z. Liao, Y. Zhao, X. Shan, Y. Yan, C. Liu, L. Lu, X. Ji, J. Chen: "RT-DETRv4: Painlessly Furthering Real-Time Object
Detection with Vision Foundation Models", 2025, arXiv:2510.25257 (Deep Semantic Injector);
code: https://github.com/RT-DETRs/RT-DETRv4 (read at commit df44122).

With s the student's map of the largest stride, A a trained 1x1 conv, t the teacher's map, i over the cells of all
images:

    loss = mean_i (1 - cos(A(s)_i, t_i))

Only directions count: multiplying the teacher's map by anything above 0 changes nothing.

The teacher is meant to be a DINOv2 or v3, such as teacher=timm:vit_small_patch16_dinov3, beside a detector or alone.

Where we depart, and why:
- Theirs is the output of RT-DETR's encoder attention (AIFI). Our views show the deepest stage of the backbone, which in
  YOLO11 and 26 ends with attention too, and in RT-DETR is the input of that attention.
- Their teacher sees the images at half their sides, so that its patches of 16 px cover cells of 32 px. By default ours
  sees the whole images and its map is interpolated, which at half the cells is the mean of 2 x 2 patches. With
  teacher.imgsz= half of imgsz= it is theirs, at a quarter of the teacher's cost.
- Their weight (5, 5, 15, 20 for S, M, L, X) follows the gradients (Gradient-guided Adaptive Modulation): after each
  epoch it is scaled so that the encoder attention's parameters have a fixed share, 2 to 11 %, of the absolute gradients
  of all parameters. A method sees views, not parameters; balance= does the like for any method: it keeps the term's
  gradient at a share of the task's, measured on maps (this term's own map for a backbone tap), every 20 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class DSIOptions:
    """DSI has no options: its weight is its gain."""


class DSI(Method):
    """One minus the cosine between the adapted deepest map and the teacher's, cell by cell."""

    taxonomy_level = "backbone"
    term = "dsi"
    paper = "Liao et al., RT-DETRv4: Painlessly Furthering Real-Time Object Detection, 2025, arXiv:2510.25257"
    reported = "RT-DETRv4-S/M/L/X to 49.8/53.7/55.4/57.0 COCO AP under a DINOv3-B, with GAM (authors' repository)"
    unit = 1.0  # measured 0.35 at unit 1; paper: 5 to 20
    taps = ("backbone", "neck")
    deepest = True
    Options: ClassVar[type] = DSIOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: DSIOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.adapters = ops.adapters(ops.widths("dsi", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        return ops.level_mean([(1 - F.cosine_similarity(s, t, dim=1)).mean() for s, t in pairs])
