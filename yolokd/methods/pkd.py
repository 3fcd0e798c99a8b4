"""PKD: Pearson correlation between feature maps, which ignores every channel's offset and scale.

W. Cao, Y. Zhang, J. Gao, A. Cheng, K. Cheng, J. Cheng: "PKD: General Distillation Framework for Object Detectors via
Pearson Correlation Coefficient", 2022, arXiv:2207.02039.

At one level, with every channel c of both maps standardised over the batch and all cells:

    n(x)_c = (x_c - mean x_c) / sqrt(var x_c + eps)      mean and population variance over B, H, W
    loss   = 1/2 mean (n(A(s)) - n(t))^2                  mean over B, C, H, W
           = mean_c (1 - r_c)                             r_c: Pearson's coefficient of channel c (eps -> 0)

and the mean over levels, so the value is between 0 (r = 1) and 2 (r = -1), near 1 for unrelated maps.

A(s) = W s is linear, so its moments follow from those of s (C_s channels) and t: var A(s)_c = w_c' Cov(s) w_c and
cov(A(s)_c, t_c) = w_c' Cov(s, t_c). The loss is computed from these, so no map of A(s) or n is ever stored.

Where the authors' code (in mmrazor) departs from this, or we from it, and why:
- It divides by the sample standard deviation plus 1e-6. We take the population variance, for which the equality with
  1 - r is exact, with eps inside the root: at a constant channel the derivative of a root without it is infinite.
- It sums over levels (weights 6 to 10); we take the mean.
- Its recipes pair maps of equal width without an adapter. We always train one: two nets that were trained separately
  order their channels differently. It has no bias, because standardising would remove it: it could not learn.
- It resizes the student's map to the teacher's size by default; we resize the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
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

    taxonomy_level = "neck"
    term = "pkd"
    paper = (
        "Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient, "
        "2022, arXiv:2207.02039"
    )
    reported = "Mask R-CNN Swin -> RetinaNet R50 37.4 -> 41.5 COCO AP (mmrazor)"
    unit = 10.0  # measured 0.033 at unit 1; paper: 6 to 10 on the sum over levels
    taps = ("neck", "backbone", "towers")
    Options: ClassVar[type] = PKDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: PKDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.adapters = ops.adapters(ops.widths("pkd", student, teacher, tap, self.taps), bias=False)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.paired(student, teacher, self.tap, self.adapters)
        return ops.level_mean([decorrelation(adapter.weight.flatten(1), s, t) for adapter, s, t in pairs])


def decorrelation(w: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The loss at one level; w (C_t, C_s), s (B, C_s, H, W), t (B, C_t, H, W) without gradient -> ()."""
    x, y = centred(s), centred(t)
    covariance = (w * (y.T @ x)).sum(1) / len(x)
    t_variance = y.square().mean(0)
    # where w cancels what the channels share, rounding may leave less variance than the covariance implies
    min_variance = covariance.square() / (t_variance + EPS)
    variance = torch.maximum(((w @ (x.T @ x)) * w).sum(1) / len(x), min_variance)
    unit_variances = variance / (variance + EPS) + t_variance / (t_variance + EPS)
    return (unit_variances / 2 - covariance * ((variance + EPS) * (t_variance + EPS)).rsqrt()).mean()


def centred(x: Tensor) -> Tensor:
    """Every channel shifted to mean 0 over batch and cells, one row per cell: (B, C, H, W) -> (B H W, C)."""
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    return rows - rows.mean(0)
