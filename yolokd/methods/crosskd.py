"""CrossKD: predictions that the teacher's own last layers make from the student's head maps.

J. Wang, Y. Chen, Z. Zheng, X. Li, M.-M. Cheng, Q. Hou: "CrossKD: Cross-Head Knowledge Distillation for Object
Detection", 2023, arXiv:2306.11369; code: https://github.com/jbwang1997/CrossKD (read at commit 87e156a).

With f the tower maps of the head (box and class, level by level), A a trained 1x1 conv to the teacher's width, and
mean and deviation taken over the batch and all cells of a channel:

    f_x      = (A(f_s) - mean A(f_s)) / std A(f_s) * std f_t + mean f_t
    z_x, b_x = the teacher's frozen last convolutions on f_x: the cross predictions
    count    = max(1, sum_n max_k sigma(z_t))
    cls      = sum_nk |sigma(z_x) - sigma(z_t)|^beta BCE(z_x, sigma(z_t)) / count
    box      = sum_n w_n mean_e KL(softmax bins_t || softmax bins_x) / count,    w_n = max_k sigma(z_t)
               sum_n w_n (1 - GIoU(b_x, b_t)) / count for a teacher without box bins
    loss     = cls + bins box, or cls + giou box

The student's own predictions are not touched, so a teacher's mistake does not pull them away from the labels. The
gradient passes through the teacher's convolutions, which stay frozen, to A and the student's towers. Only the teacher
needs bins.

We follow the authors' code in this: the maps are rescaled to the teacher's mean and deviation; the weight
|.|^beta is differentiated; the weights of the terms are 1 and, with bins, 4 (GFL), else 1 (RetinaNet, ATSS).

Where we depart, and why:
- The authors cut after the third of four convolutions and finish with a ReLU, a convolution and the prediction. The
  heads we read have two convolutions and a prediction: we cut before the prediction, after its activation.
- They pair heads of one width without an adapter. Ours differ in width, and two heads that were trained separately
  order their channels differently. A has no bias, because the rescaling would remove it: it could not learn.
- Their standard deviation is the sample's, with 1e-6 added outside the root; ours is the population's, with eps inside:
  at a constant channel the derivative of a root without it is infinite.
- They divide cls by the assigned positives and box by sum w. We divide both by the teacher's soft count, as bckd.py
  does (equal to sum w whenever that is above 1).
- The two branches of a dual head share A, as they do on every tap of towers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

EPS = 1e-8  # far below the variance of a living channel, far above float32's rounding of a constant one near 1


@dataclass(frozen=True, slots=True)
class CrossKDOptions:
    """Options of CrossKD."""

    beta: float = 1.0  # exponent of the score gap: above 1 only large gaps count
    bins: float = 4.0  # weight of the box term for a teacher with box bins; that of the class term is 1
    giou: float = 1.0  # weight of the box term for a teacher without box bins

    def __post_init__(self) -> None:
        # below 1 the weight's derivative is infinite where the scores agree
        ops.check_number("crosskd.beta", self.beta, above=1.0, inclusive=True)
        ops.check_number("crosskd.bins", self.bins, inclusive=True)
        ops.check_number("crosskd.giou", self.giou, inclusive=True)


class CrossKD(Method):
    """Compares the teacher's predictions with those of its last layers on the student's head maps."""

    taxonomy_level = "head"
    term = "xkd"
    paper = "Wang et al., CrossKD: Cross-Head Knowledge Distillation for Object Detection, 2023, arXiv:2306.11369"
    reported = "GFL R101 -> R50 40.2 -> 43.7 COCO AP (authors' repository)"
    unit = 0.15  # measured 2.1 at unit 1; paper: 1
    needs = frozenset({"towers", "finish", "logits", "bins"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = CrossKDOptions
    options: CrossKDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: CrossKDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("crosskd", student, teacher)
        self.adapters = ops.adapters(ops.widths("crosskd", student, teacher, "towers", ("towers",)), bias=False)
        if not teacher.bins:
            self.needs = type(self).needs - {"bins"} | {"boxes"}

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, "towers", self.adapters)
        cross = ops.required(teacher.finish, "finish")(tuple(rescale(s, t) for s, t in pairs))
        z_t = ops.wide(ops.required(teacher.logits, "logits")).detach()
        total = class_loss(ops.wide(cross["logits"]), z_t, self.options.beta) + self.box_loss(cross, teacher, z_t)
        return total / ops.soft_count(z_t)

    def box_loss(self, cross: dict[str, Tensor], teacher: View, z_t: Tensor) -> Tensor:
        """The box term, a weighted sum over anchor points, before the division by the count; ()."""
        name = "bins" if "bins" in self.needs else "boxes"
        t = ops.wide(ops.required(getattr(teacher, name), name)).detach()
        x = ops.wide(cross[name])
        if name == "bins":
            return self.options.bins * (ops.confidence(z_t) * divergence(x, t)).sum()
        return self.options.giou * (ops.confidence(z_t) * (1 - ops.paired_giou(x, t))).sum()


def rescale(s: Tensor, t: Tensor) -> Tensor:
    """s, given the mean and standard deviation of t in every channel (over batch and cells); (B, C, H, W) twice."""
    mean_s, mean_t = (x.mean((0, 2, 3), keepdim=True) for x in (s, t))
    var_s, var_t = ((x - m).square().mean((0, 2, 3), keepdim=True) for x, m in ((s, mean_s), (t, mean_t)))
    return (s - mean_s) * ((var_t + EPS) / (var_s + EPS)).sqrt() + mean_t


def class_loss(z_x: Tensor, z_t: Tensor, beta: float) -> Tensor:
    """Binary cross entropy weighted by the difference of the scores, summed; (B, N, K) twice -> ()."""
    p_t = z_t.sigmoid()
    return (
        (z_x.sigmoid() - p_t).abs().pow(beta) * F.binary_cross_entropy_with_logits(z_x, p_t, reduction="none")
    ).sum()


def divergence(x: Tensor, t: Tensor) -> Tensor:
    """KL(softmax t || softmax x), mean over edges; logits (B, N, 4, R) twice -> (B, N)."""
    log_x, log_t = x.log_softmax(-1), t.log_softmax(-1)
    return (log_t.exp() * (log_t - log_x)).sum(-1).mean(-1)
