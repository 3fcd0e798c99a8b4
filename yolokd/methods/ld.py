"""LD: the teacher's box distributions, on the objects and on the valuable region around them.

Z. Zheng, R. Ye, P. Wang, D. Ren, W. Zuo, Q. Hou, M.-M. Cheng: "Localization Distillation for Dense Object Detection",
2021, arXiv:2102.12252, and its extension "Localization Distillation for Object Detection", 2022, arXiv:2204.05957;
code: https://github.com/HikariTJU/LD (read at commit 4287990).

With z_ne the R logits of edge e at anchor point n, tau the temperature, g over the objects of n's image, a_n the
anchor of n:

    KL_n  = tau^2 mean_e sum_r p_t log(p_t / p_s)             p = softmax_r(z_ne / tau)
    theta = mean + standard deviation of IoU(a_n, g) over g's candidates: the topk nearest anchors of each level
    main  = points that are a candidate of some g, with IoU(a_n, g) >= theta and the centre inside g (ATSS's positives)
    vlr   = points with gamma theta <= DIoU(a_n, g) < theta for some g: the valuable localization region
    DIoU  = IoU - (distance of the centres)^2 / (diagonal of the smallest box around both)^2
    u_n   = max_k sigmoid(z_nk) on main,     v_n = the highest IoU with such a g on vlr
    cls_n = cls_tau^2 sum_k c_t log(c_t / c_s)                c = softmax_k(z_nk / cls_tau) over the classes
    loss  = main sum_n u_n KL_n / sum_n u_n + vlr sum_n v_n KL_n / sum_n v_n + cls mean_{n on main} cls_n

A region that is empty counts 0. The class part is off by default (cls=0).

The two regions may overlap, as in the authors' code: an anchor off the centre has a DIoU below its IoU.

We follow the authors' code in this: the score in u is the student's (weight="student"), without gradient, and the
standard deviation over candidates is the sample's.

Where their code departs from the paper, or we from it, and why:
- Its "diou" mode divides the intersection by the anchor's area, not by the union, which gives another region (on
  random objects most of its points differ). We take the paper's DIoU.
- It takes the mean of the KL over the R bins, which makes the term smaller for more bins. We take the KL, whose size at
  a high temperature does not depend on R.
- It does not divide the regions by their weights (main sums over 4 edges / 4, vlr over 4 edges / 16, both times 0.25),
  so both grow with the number of objects and images. We divide each by its own weights, as its head divides its other
  box losses. That also replaces the 4 and the 16, because vlr holds several times more points than main; the equal
  weights are our main = vlr = 1.
- Its anchors and positives are the detector's (GFL, which is trained with ATSS). The heads we read have no anchors and
  do not show their assignment: main is ATSS's rule on synthetic anchors: squares of `side` cells at the cells' centres.
- Its class part is a mean over classes times 10, where its box part is a mean over bins times 0.25: with 80 classes and
  17 bins cls = 8.5 main has the ratio of its weights. We take the KL, whose size does not depend on the number of
  classes. A softmax over the classes means little for a sigmoid head (see bckd.py), so the part is off by default; the
  recipe `method=ld.full` turns it on, because the published gain is that of all three parts.
- The extension's rotated boxes are left out: readers show no bins of obb heads, whose boxes `probiou` compares.
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
class LDOptions:
    """Options of localization distillation."""

    tau: float = 10.0  # temperature of both softmaxes
    main: float = 1.0  # weight of the positives; 0 leaves them out
    vlr: float = 1.0  # weight of the valuable localization region; 0 leaves it out
    gamma: float = 0.25  # lower end of the region as a fraction of theta: smaller reaches farther from the objects
    topk: int = 9  # candidates per level and object
    side: float = 8.0  # side of a synthetic anchor in cells
    cls: float = 0.0  # weight of the class scores on the positives; the authors' ratio is 8.5
    cls_tau: float = 2.0  # temperature of the class part's softmaxes
    weight: str = "student"  # u_n: highest score of the "student" (authors' code) or of the "teacher"

    def __post_init__(self) -> None:
        for name in ("tau", "topk", "side", "cls_tau"):
            ops.check_number(f"ld.{name}", getattr(self, name))
        for name in ("main", "vlr", "gamma", "cls"):
            ops.check_number(f"ld.{name}", getattr(self, name), inclusive=True)
        if not isinstance(self.topk, int):
            raise ValueError(f"ld.topk={self.topk!r} is not allowed: it must be a whole number.")
        if self.main == self.vlr == self.cls == 0:
            raise ValueError("ld.main, ld.vlr and ld.cls are all 0: leave the method out instead.")
        ops.check_choice("ld.weight", self.weight, ("student", "teacher"))


class LD(Method):
    """Divergence of box edge distributions, on positives and on the region around them."""

    taxonomy_level = "head"
    term = "ld"
    paper = "Zheng et al., Localization Distillation for Object Detection, 2022, arXiv:2204.05957 and arXiv:2102.12252"
    reported = "GFL R101 -> R50 40.1 -> 41.1 COCO AP on objects alone, 42.1 as ld.full (authors' repository)"
    unit = 0.5  # measured 0.44 at unit 1; paper: 0.25 on other means
    needs = frozenset({"logits", "bins"})
    heads = DENSE_HEADS
    truth = True
    Options: ClassVar[type] = LDOptions
    options: LDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: LDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        check_bins(student, teacher)
        self.classwise = options.cls > 0
        if self.classwise:
            ops.check_classes("ld.cls", student, teacher)
            if student.classes < 2:
                raise ValueError(f"ld.cls={options.cls:g} compares classes, and there is one: leave it at 0.")

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_s = ops.wide(ops.required(student.bins, "bins"))
        z_t = ops.wide(ops.required(teacher.bins, "bins")).detach()
        positive, valuable = self.regions(student.strides, z_s, batch)
        score = ops.confidence(self.scores(student, teacher)).to(positive.dtype)
        shares = [(self.options.main, score * positive), (self.options.vlr, valuable)]
        weight = torch.stack([share * w / ops.positive_or_one(w.sum()) for share, w in shares]).sum(0)
        chosen = weight > 0
        loss = (weight[chosen] * divergence(z_s[chosen], z_t[chosen], self.options.tau)).sum()
        return loss + self.of_classes(student, teacher, positive > 0) if self.classwise else loss

    def of_classes(self, student: View, teacher: View, positive: Tensor) -> Tensor:
        """The class part, from the positives (B, N)."""
        z_s, z_t = (ops.wide(ops.required(view.logits, "logits")[positive]) for view in (student, teacher))
        total = divergence(z_s[:, None], z_t[:, None].detach(), self.options.cls_tau).sum()
        return self.options.cls * total / max(len(z_s), 1)

    def scores(self, student: View, teacher: View) -> Tensor:
        """Logits whose highest score is the weight of the positives, (B, N, K)."""
        return ops.required((student if self.options.weight == "student" else teacher).logits, "logits")

    def regions(self, strides: tuple[int, ...], like: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """main as 1 or 0 and vlr as v_n or 0 at every anchor point, like (B, N, ...) -> (B, N) twice."""
        boxes, index = ops.ground_truth(batch)
        centres, sizes = ops.points(batch, strides, like)
        positive, valuable = regions(boxes, centres.to(boxes.dtype), sizes.to(boxes.dtype), self.options)
        zeros = like.new_zeros(like.shape[:2])
        return any_object(positive.to(like.dtype), index, zeros), any_object(valuable.to(like.dtype), index, zeros)


def check_bins(student: Spec, teacher: Spec) -> None:
    """Refuse a pair without comparable box distributions, and name a method that does not need them."""
    for role, spec in (("student", student), ("teacher", teacher)):
        if not spec.bins:
            raise ValueError(
                f"ld compares box distributions, and {role} {spec.name} has none, or none in the student's "
                "cells because its images are of another size: use bckd_box, the box term of BCKD, instead."
            )
    if student.bins != teacher.bins:
        raise ValueError(
            f"ld compares box distributions bin by bin, but student {student.name} has {student.bins} bins and "
            f"teacher {teacher.name} has {teacher.bins}: use bckd_box, the box term of BCKD, instead."
        )


def divergence(z_s: Tensor, z_t: Tensor, tau: float) -> Tensor:
    """tau^2 KL(p_t || p_s), mean over edges; (P, 4, R) twice -> (P,)."""
    log_s, log_t = (z_s / tau).log_softmax(-1), (z_t / tau).log_softmax(-1)
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean(-1)


def regions(boxes: Tensor, centres: Tensor, sizes: Tensor, options: LDOptions) -> tuple[Tensor, Tensor]:
    """main as true or false and vlr as IoU or 0; boxes (M, 4), centres (N, 2), pixels per cell (N,) -> (M, N) twice."""
    half = options.side / 2 * sizes[:, None]
    anchors, objects = torch.cat((centres - half, centres + half), -1)[None], boxes[:, None]
    iou = ops.paired_iou(objects, anchors)
    distance = ((objects[..., :2] + objects[..., 2:]) / 2 - centres).square().sum(-1)
    nearest = candidates(distance, sizes, options.topk)
    theta = mean_and_deviation(iou.gather(1, nearest))
    inside = ((centres[nearest] > objects[..., :2]) & (centres[nearest] < objects[..., 2:])).all(-1)
    good = inside & (iou.gather(1, nearest) >= theta)
    positive = torch.zeros_like(iou, dtype=torch.bool).scatter_(1, nearest, good)
    around = torch.maximum(objects[..., 2:], anchors[..., 2:]) - torch.minimum(objects[..., :2], anchors[..., :2])
    diou = iou - distance / around.square().sum(-1).clamp(min=ops.TINY_AREA)
    return positive, iou * ((diou >= options.gamma * theta) & (diou < theta))


def candidates(distance: Tensor, sizes: Tensor, topk: int) -> Tensor:
    """The topk nearest anchors of every level, (M, N), pixels per cell (N,) -> indices (M, L topk or fewer)."""
    starts = [0, *(sizes.diff().nonzero().flatten() + 1).tolist()]
    levels = torch.tensor_split(distance, starts[1:], 1)
    nearest = [level.topk(min(topk, level.shape[1]), 1, largest=False).indices for level in levels]
    return torch.cat([index + start for index, start in zip(nearest, starts, strict=True)], 1)


def mean_and_deviation(x: Tensor) -> Tensor:
    """Mean plus the sample's standard deviation of each row, (M, C) -> (M, 1)."""
    mean = x.mean(1, keepdim=True)
    return mean + ((x - mean).square().sum(1, keepdim=True) / max(x.shape[1] - 1, 1)).sqrt()


def any_object(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """An anchor point's highest value among the objects of its image, else 0; (M, N), (M,) -> like (B, N)."""
    return torch.zeros_like(like).scatter_reduce(0, index[:, None].expand_as(values), values, "amax")
