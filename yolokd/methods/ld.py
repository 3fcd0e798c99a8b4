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

`ld_rotated` is the extension's LD of rotated boxes; code: https://github.com/Zzh-tju/Rotated-LD (read at commit
d97743b). A YOLO's obb head has R bins for the four sides too, measured along and across its angle, and an angle
(p - 1/4) pi with p = sigmoid(a). That angle is the mean of two bins at -pi/4 and 3 pi/4 whose logits are 0 and a, so
that it is a fifth variable with a distribution of its own, as in the paper, where it has R bins like the others. With
e over the four sides and the angle:

    KL_n   = tau^2 / 5 sum_e sum_r p_t log(p_t / p_s)         p = softmax_r(z_ne / tau)
    region = points with IoU(a_n, g) >= gamma theta for some g, with the upright box around g in place of g
    v_n    = the highest IoU with such a g on the region
    loss   = sum_n v_n KL_n / sum_n v_n + cls cls_tau^2 sum_n v_n sum_k c_t log(c_t / c_s) / sum_n v_n

- As in their code the region has no upper end, and objects and surroundings are one region.
- Their code takes the object's sides as if it were not turned; we take the box around it, in which it lies.
- Its parts are means over bins and classes times 10 and 20; with its 9 bins and DOTA's 15 classes that is cls = 0.24.
- Sides of two boxes are comparable as far as their angles agree, and a rectangle has two angles in this range where its
  sides are exchanged: there the term asks the student for the teacher's choice. `probiou` knows no such choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

SATURATED = 1e-6  # shares nearer than this to 0 or 1 have no logit to speak of


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


@dataclass(frozen=True, slots=True)
class RotatedLDOptions:
    """Options of localization distillation for rotated boxes."""

    tau: float = 5.0  # temperature of the sides' and the angle's distributions
    gamma: float = 0.25  # lower end of the region as a fraction of theta: smaller reaches farther from the objects
    topk: int = 9  # candidates per level and object
    side: float = 8.0  # side of a synthetic anchor in cells
    cls: float = 0.0  # weight of the class scores in the region; the authors' ratio is 0.24
    cls_tau: float = 5.0  # temperature of the class part's softmaxes

    def __post_init__(self) -> None:
        for name in ("tau", "topk", "side", "cls_tau"):
            ops.check_number(f"ld_rotated.{name}", getattr(self, name))
        for name in ("gamma", "cls"):
            ops.check_number(f"ld_rotated.{name}", getattr(self, name), inclusive=True)
        if not isinstance(self.topk, int):
            raise ValueError(f"ld_rotated.topk={self.topk!r} is not allowed: it must be a whole number.")


class RotatedLD(Method):
    """Divergence of the distributions of a rotated box's sides and angle, on objects and around them."""

    taxonomy_level = "head"
    term = "rld"
    paper = "Zheng et al., Localization Distillation for Object Detection, 2022, arXiv:2204.05957 (rotated boxes)"
    reported = "Rotated RetinaNet R34 -> R18 33.7 -> 39.1 DOTA AP, with the class part (authors' repository)"
    unit = 0.6  # measured 0.11 at unit 1 (probiou 0.023; 5 steps from random weights); paper: 10 on other means
    needs = frozenset({"logits", "rotated", "rotated_bins"})
    heads = DENSE_HEADS
    truth = True
    Options: ClassVar[type] = RotatedLDOptions
    options: RotatedLDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: RotatedLDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        check_bins(student, teacher, "ld_rotated", "probiou")
        self.classwise = options.cls > 0
        if self.classwise:
            ops.check_classes("ld_rotated.cls", student, teacher)
            if student.classes < 2:
                raise ValueError(f"ld_rotated.cls={options.cls:g} compares classes, and there is one: leave it at 0.")

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        (z_s, a_s, c_s), (z_t, a_t, c_t) = distributions(student), (z.detach() for z in distributions(teacher))
        boxes, index = ops.ground_truth(batch)
        centres, sizes = ops.points(batch, student.strides, z_s)
        near = around(boxes, centres.to(boxes.dtype), sizes.to(boxes.dtype), self.options)
        weight = any_object(near.to(z_s.dtype), index, z_s.new_zeros(z_s.shape[:2]))
        chosen, total = weight > 0, ops.positive_or_one(weight.sum())
        tau = self.options.tau
        sides = 4 * divergence(z_s[chosen], z_t[chosen], tau)
        angle = divergence(two_bins(a_s[chosen]), two_bins(a_t[chosen]), tau)
        loss = (weight[chosen] * (sides + angle)).sum() / (5 * total)
        if not self.classwise:
            return loss
        classes = divergence(c_s[chosen][:, None], c_t[chosen][:, None], self.options.cls_tau)
        return loss + self.options.cls * (weight[chosen] * classes).sum() / total


def distributions(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a rotated box's sides (B, N, 4, R), of the share p that its angle is made of (B, N), and of classes."""
    sides, rotated, logits = (ops.required(getattr(view, f), f) for f in ("rotated_bins", "rotated", "logits"))
    share = ops.wide(rotated)[..., 4] / math.pi + 0.25
    return ops.wide(sides), share.logit(eps=SATURATED), ops.wide(logits)


def two_bins(a: Tensor) -> Tensor:
    """The logit of a share as two bins' logits, (P,) -> (P, 1, 2)."""
    return torch.stack((torch.zeros_like(a), a), -1)[:, None]


def around(boxes: Tensor, centres: Tensor, sizes: Tensor, options: RotatedLDOptions) -> Tensor:
    """IoU of the anchors that are near an object, 0 of others; boxes (M, 4), centres (N, 2), sizes (N,) -> (M, N)."""
    half = options.side / 2 * sizes[:, None]
    anchors = torch.cat((centres - half, centres + half), -1)
    iou = ops.paired_iou(boxes[:, None], anchors[None])
    distance = ((boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - centres).square().sum(-1)
    theta = mean_and_deviation(iou.gather(1, candidates(distance, sizes, options.topk)))
    return iou * (iou >= options.gamma * theta)


def check_bins(
    student: Spec, teacher: Spec, method: str = "ld", instead: str = "bckd_box, the box term of BCKD,"
) -> None:
    """Refuse a pair without comparable box distributions, and name a method that does not need them."""
    for role, spec in (("student", student), ("teacher", teacher)):
        if not spec.bins:
            raise ValueError(
                f"{method} compares box distributions, and {role} {spec.name} has none, or none in the student's "
                f"cells because its images are of another size: use {instead} instead."
            )
    if student.bins != teacher.bins:
        raise ValueError(
            f"{method} compares box distributions bin by bin, but student {student.name} has {student.bins} bins and "
            f"teacher {teacher.name} has {teacher.bins}: use {instead} instead."
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
