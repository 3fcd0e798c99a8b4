"""PKD: Pearson correlation between feature maps, blind to every channel's offset and scale.

W. Cao, Y. Zhang, J. Gao, A. Cheng, K. Cheng, J. Cheng: "PKD: General Distillation Framework for Object Detectors via
Pearson Correlation Coefficient", 2022, arXiv:2207.02039.

At one level, with every channel c standardised over the batch and all cells, on both sides:

    n(x)_c = (x_c - mean x_c) / sqrt(var x_c + eps)      mean and population variance over B, H, W
    loss   = 1/2 mean (n(A(s)) - n(t))^2                  mean over B, C, H, W
           = mean_c (1 - r_c)                             r_c: Pearson's coefficient of channel c (eps -> 0)

and the mean over levels, so a value between 0 (r = 1) and 2 (r = -1), near 1 for unrelated maps.

Where the authors' code (in mmrazor) departs from this, or we from it, and why:
- It divides by the sample standard deviation plus 1e-6. We take the population variance, for which the equality with
  1 - r is exact, with eps inside the root: at a constant channel the derivative of a bare root is infinite.
- It sums over levels (weights 6 to 10); we take the mean.
- Its recipes pair maps of equal width without an adapter. We always train one: two nets that were trained apart share
  no order of channels. It has no bias, because standardising removes any: a bias could not learn.
- It resizes the student's map to the teacher's size by default; we resize the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View

EPS = 1e-8  # far below the variance of a living channel, far above float32's rounding of a constant one near 1


@dataclass(frozen=True, slots=True)
class PKDOptions:
    """PKD has no options: its only symbols are the maps."""


class PKD(Method):
    """One minus Pearson's correlation, channel by channel."""

    level = "neck"
    term = "pkd"
    paper = (
        "Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient, "
        "2022, arXiv:2207.02039"
    )
    reported = "Mask R-CNN Swin -> RetinaNet R50 37.4 -> 41.5 COCO AP (mmrazor)"
    unit = 10.0  # measured 0.036 at unit 1; paper: 6 to 10 on the sum over levels
    taps = ("neck", "backbone", "towers")
    Options: ClassVar[type] = PKDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: PKDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.adapters = ops.adapters(ops.widths("pkd", student, teacher, tap, self.taps), bias=False)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        return ops.level_mean([(standardise(s) - standardise(t)).square().mean() / 2 for s, t in pairs])


def standardise(x: Tensor) -> Tensor:
    """Every channel to mean 0 and variance 1 over batch and cells, (B, C, H, W) -> (B, C, H, W)."""
    x = x - x.mean((0, 2, 3), keepdim=True)
    return x * (x.square().mean((0, 2, 3), keepdim=True) + EPS).rsqrt()
