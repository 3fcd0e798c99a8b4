"""PGD: the teacher's maps where its predictions of an object are best, as a Gaussian over those few places.

C. Yang, M. Ochal, A. Storkey, E. J. Crowley: "Prediction-Guided Distillation for Dense Object Detection", 2022,
arXiv:2203.05469; code: https://github.com/ChenhongyiYang/PGD (read at commit 81c54d5).

With x_n the centre of anchor point n in pixels, g over the objects, s adapted to C channels; at one level i over the
cells of all images (a cell is its anchor point):

    q_gn = sigmoid(z_tnk_g)^(1 - xi) IoU(b_tn, g)^xi                    for points n whose centre is in g
    T_g  = the topk such points of highest q, of all levels together
    m, V = mean and covariance of x_n over T_g, with 1/1200 added to both variances
    w_n  = max_g exp(-(x_n - m)^T V^-1 (x_n - m) / 2) for n in T_g, else 0
    v_n  = 1 for points in no object, else 0
    S_i  = H W softmax_i(mean_c |t_ic| / T)      C_ic = C softmax_c(|t_ic| / T)
    e(x)_i = S_i mean_c C_ic x_ic^2
    fg   = sum_i w_i e(s - t)_i / sum_i w_i e(t)_i          bg: the same with v
    at   = mean_i |S(s) - S(t)| + mean_ic |C(s) - C(t)|
    loss = alpha fg + beta bg + gamma at, then the mean over levels

`relative=False` divides by the number of cells with w > 0 (or v > 0) instead of e(t), as the paper does.

Where we depart, and why:
- The paper distils the towers of the head, the class towers with xi = 0.8, the box towers with xi = 0.6, objects only
  and without S. One term has one tap and one xi: the default is the neck with 0.8, the paper's mask for classes; the
  options make it the other. With tap "towers" both kinds of towers use it.
- Its sums over channels and cells are means here, so alpha, beta and gamma have the ratios of its sums at C = 256 and
  640 px (0.04 and 0.02 x 256 channels; 0.0008 x 2,800 cells) scaled to alpha = 1.
- Its code divides fg by each image's own count; we by that of the batch, so one with many objects counts more.
- In its code the mask of each image is multiplied with the maps of all images of the batch (their shapes broadcast to
  images x images); ours with its own.
- Its code adds noise of 0.1 px to the centres, so that V can be inverted; we add the variance of that noise.
- Its code looks for T_g in the whole image and drops what is outside the object afterwards; the paper looks inside.
- On a dual head (YOLO26) the predictions are those of the teacher's one2many branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

NOISE = 0.1**2 / 12  # square pixels, the variance of the authors' noise


@dataclass(frozen=True, slots=True)
class PGDOptions:
    """Options of prediction-guided distillation."""

    topk: int = 30  # places per object
    xi: float = 0.8  # exponent of the IoU in a prediction's quality; that of the score is 1 - xi
    alpha: float = 1.0  # weight of the objects' best places (fg)
    beta: float = 0.5  # weight of the background (bg)
    gamma: float = 0.2  # weight of the distance of attentions (at)
    temperature: float = 0.8  # T: the lower, the more the teacher's strongest cells and channels count
    relative: bool = True  # relative to the teacher's maps; False: the paper's plain form, with means over channels

    def __post_init__(self) -> None:
        for name in ("topk", "temperature"):
            ops.check_number(f"pgd.{name}", getattr(self, name))
        if not isinstance(self.topk, int):
            raise ValueError(f"pgd.topk={self.topk!r} is not allowed: it must be a whole number.")
        for name in ("xi", "alpha", "beta", "gamma"):
            ops.check_number(f"pgd.{name}", getattr(self, name), inclusive=True)
        if self.xi > 1:
            raise ValueError(f"pgd.xi={self.xi!r} is not allowed: it must be from 0 to 1.")
        ops.check_choice("pgd.relative", self.relative, (True, False))


class PGD(Method):
    """Squared error weighted by a Gaussian over the places of each object that the teacher predicts best."""

    taxonomy_level = "neck"
    term = "pgd"
    paper = "Yang et al., Prediction-Guided Distillation for Dense Object Detection, 2022, arXiv:2203.05469"
    reported = "figures not at hand"
    unit = 2.5  # measured 0.12 at unit 1; paper: 10 on means over channels
    taps = ("neck", "backbone", "towers")
    teacher_needs = frozenset({"logits", "boxes"})
    heads = DENSE_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = PGDOptions
    options: PGDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: PGDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("pgd", student, teacher)
        self.adapters = ops.adapters(ops.widths("pgd", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        masks = self.masks(teacher, batch, pairs)
        return ops.level_mean([self.one_level(s, t, w, v) for (s, t), (w, v) in zip(pairs, masks, strict=True)])

    def one_level(self, s: Tensor, t: Tensor, w: Tensor, v: Tensor) -> Tensor:
        """Weighted sum of the three parts; maps (B, C, H, W) twice, masks (B, 1, H, W) twice -> ()."""
        o = self.options
        (space_s, channel_s), (space_t, channel_t) = (attentions(x, o.temperature) for x in (s, t))
        error, energy = (channel_t * x.square() for x in (s - t, t))
        fg, bg = (share(space_t * mask, mask, error, energy, o.relative) for mask in (w, v))
        at = (space_s - space_t).abs().mean() + (channel_s - channel_t).abs().mean()
        return o.alpha * fg + o.beta * bg + o.gamma * at

    def masks(
        self, teacher: View, batch: dict[str, Tensor], pairs: list[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """w and v at every map, (B, 1, H, W) twice; towers are L box maps, then L class maps."""
        quality, _ = ops.alignment(teacher, batch, 1 - self.options.xi, self.options.xi)
        _, index = ops.ground_truth(batch)
        logits = ops.required(teacher.logits, "logits")
        centres, _ = ops.points(batch, teacher.strides, logits.new_empty(logits.shape, dtype=quality.dtype))
        w = gaussian(quality, centres, self.options.topk)
        like = w.new_zeros(len(logits), w.shape[1])
        w = like.scatter_reduce(0, index[:, None].expand_as(w), w, "amax")
        inside = like.scatter_reduce(0, index[:, None].expand_as(quality), (quality >= 0).to(like.dtype), "amax")
        levels = [s for s, _ in pairs[: len(teacher.strides)]]
        parts = zip(ops.level_maps(w, levels), ops.level_maps(1 - inside, levels), strict=True)
        return list(parts) * (len(pairs) // len(levels))


def gaussian(quality: Tensor, centres: Tensor, topk: int) -> Tensor:
    """w of every object, (M, N), from q (M, N), below 0 outside the object, and centres (N, 2)."""
    best, place = quality.topk(min(topk, quality.shape[1]), 1)
    chosen = (best > 0).to(quality.dtype)[..., None]
    x = centres[place]
    x = x - (x * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp(min=1)
    cover = (x * chosen).mT @ x / chosen.sum(1, keepdim=True).clamp(min=1)
    cover = cover + NOISE * torch.eye(2, dtype=x.dtype, device=x.device)
    distance = (x @ torch.linalg.inv(cover) * x).sum(-1)
    return torch.zeros_like(quality).scatter(1, place, (-distance / 2).exp() * chosen[..., 0])


def share(weight: Tensor, mask: Tensor, error: Tensor, energy: Tensor, relative: bool) -> Tensor:
    """The mask's mean error, relative to that of the teacher's map or plain; 0 for an empty mask."""
    count = ops.positive_or_one((mask > 0).sum().to(mask.dtype) * error.shape[1])
    plain = (weight * error).sum() / count
    return plain / ops.energy_or_one((weight * energy).sum() / count) if relative else plain


def attentions(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """S and C of the module's docstring, (B, C, H, W) -> (B, 1, H, W), (B, C, H, W)."""
    channels, rows, columns = x.shape[1:]
    strength = x.abs() / temperature
    space = strength.mean(1).flatten(1).softmax(1).reshape(-1, 1, rows, columns)
    return rows * columns * space, channels * strength.softmax(1)
