"""RPN: class-agnostic objectness with foreground and background decoupled, the proposal part of DeFeat.

J. Guo, K. Han, Y. Wang, H. Wu, X. Chen, C. Xu, C. Xu: "Distilling Object Detectors via Decoupled Features", 2021,
arXiv:2103.14475; code: https://github.com/ggjy/DeFeat.pytorch (read at c46a793).

This is an analogue. A one-stage detector has no region proposal network and no second stage; its highest class score
plays the RPN's role: where is any object? With n over the anchor points of all images, k over classes, z logits:

    o_n   = max_k z_nk                                                      the objectness logit
    d_n   = tau^2 KL(sigmoid(o_tn / tau) || sigmoid(o_sn / tau))             of a binary variable: object or none
    loss  = w_fg mean_{n in fg} d_n + w_bg mean_{n in bg} d_n
    fg    = the anchor points whose cell a ground truth box of their image touches; bg = all others

The paper's weights are 2 for both parts and tau=1: a ratio of 1 to 1 (options foreground, background) at gain 2.

Where we depart, and why:
- DeFeat splits proposals by their assigned label and compares their softmax over classes. We split anchor points by
  whether their cell touches a ground truth box, as DeFeat splits feature maps; their class scores are sigmoids, of
  which only the highest is used, so the two models may have different classes.
- An image or a batch without objects has no foreground part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class RPNOptions:
    """Options of the proposal analogue."""

    foreground: float = 1.0  # weight of anchor points on objects (w_fg)
    background: float = 1.0  # weight of all other anchor points (w_bg)
    tau: float = 1.0  # temperature: above 1 low scores have more weight

    def __post_init__(self) -> None:
        ops.check_number("rpn.foreground", self.foreground, inclusive=True)
        ops.check_number("rpn.background", self.background, inclusive=True)
        ops.check_number("rpn.tau", self.tau)


class RPN(Method):
    """Binary divergence of objectness scores, separately on and off objects: an analogue, not a proposal network."""

    taxonomy_level = "roi"
    term = "rpn"
    paper = "Guo et al., Distilling Object Detectors via Decoupled Features, 2021, arXiv:2103.14475 (proposals)"
    reported = "Faster R-CNN R50 37.4 -> 40.9 COCO AP, as defeat.full (paper)"
    unit = 2.0  # measured 0.13 at unit 1; paper: 2
    needs = frozenset({"logits"})
    heads = DENSE_HEADS
    truth = True
    Options: ClassVar[type] = RPNOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: RPNOptions) -> None:
        super().__init__(student, teacher, tap, options)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        o_s = ops.wide(ops.required(student.logits, "logits")).amax(-1)
        o_t = ops.wide(ops.required(teacher.logits, "logits")).detach().amax(-1)
        tau = self.options.tau
        each = ops.divergence(o_s / tau, o_t / tau) * tau**2
        boxes, index = ops.ground_truth(batch)
        on = ops.point_foreground(boxes, index, batch, student.strides, o_s).to(each.dtype)
        loss: Tensor = self.options.foreground * mean(each, on) + self.options.background * mean(each, 1 - on)
        return loss


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where the mask is 1, (B, N) twice -> (); 0 for an empty mask."""
    return (x * mask).sum() / mask.sum().clamp(min=1)
