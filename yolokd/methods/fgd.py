"""FGD: focal distillation by objects, background and the teacher's attention; global distillation of relations.

Z. Yang, Z. Li, X. Jiang, Y. Gong, Z. Yuan, D. Zhao, C. Yuan: "Focal and Global Knowledge Distillation for Detectors",
2022, arXiv:2111.11837; code: https://github.com/yzd-v/FGD.

At one level, s adapted to C channels, i over the H W cells and c over the channels of image b:

    S(x)_bi = H W softmax_i(mean_c |x_bci| / T)            spatial attention, of mean 1
    C(x)_bc = C softmax_c(mean_i |x_bci| / T)              channel attention, of mean 1
    O_bi    = 1 / (cells of the smallest box that touches cell i), 0 without one
    N_bi    = 1 / (cells of image b without a box) in these, 0 elsewhere
    e(x)_bi = S(t)_bi mean_c C(t)_bc x_bci^2
    fg      = sum_bi O_bi e(s - t)_bi / sum_bi O_bi        0 without objects; bg: the same with N
    at      = mean_bi |S(s) - S(t)| + mean_bc |C(s) - C(t)|
    R(x)    = x + V2 relu(layernorm(V1 sum_i softmax_i(k.x_bi) x_bi))     V1, V2, k trained, for s and t each
    rel     = mean_bci (R(s) - R(t))^2
    loss    = alpha fg + beta bg + gamma at + lam rel, then the mean over levels

With `relative` (default) s and t are first divided by r, the root of the teacher's mean square at that level, and fg
and bg by the same weighted mean of e(t): an adapter that returns 0 then has fg = bg = 1 and, at first, rel = 1, and
the scale of the teacher's maps changes neither the loss nor the attention. `relative=False` is the paper's form.

Where the authors' code departs from this, or we from it, and why:
- Paper and code have sums where we have means. Per image, theirs are fg C sum O / B, bg C, H W and C times the two
  parts of at, and rel C H W, with alpha = 1e-3, beta = gamma = 5e-4, lambda = 5e-6 (one-stage). At C = 256, strides of
  8 to 32 at 640 px and 7 objects an image (COCO's mean) these are 1.8 fg, 0.13 bg, 1.4 at (spatial part) and 3.6 rel.
  The defaults have this ratio, scaled so that alpha + beta + lam = 1. The channels' part of at is a
  tenth of the spatial part in theirs and has equal weight in ours.
- The code extends a box by one row and one column beyond what it touches, in mask and in count.
- The code has a bias in k, which a softmax ignores; we have none. As there, V2 starts at 0, so that R(x) = x.
- The inner width of R is C / 2, but at least 4: a layer norm over two channels or fewer passes no gradient.
- The code has an adapter only where the widths differ; we always have one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class FGDOptions:
    """Options of FGD."""

    alpha: float = 0.33  # weight of objects (fg)
    beta: float = 0.02  # weight of background (bg)
    gamma: float = 0.25  # weight of the distance of attentions (at)
    lam: float = 0.65  # weight of relations (rel), the paper's lambda
    temperature: float = 0.5  # T: the lower, the more the teacher's strongest cells and channels count
    relative: bool = True  # relative to the teacher's maps; False: the paper's plain form, with means instead of sums

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma", "lam"):
            ops.check_number(f"fgd.{name}", getattr(self, name), inclusive=True)
        ops.check_number("fgd.temperature", self.temperature)
        ops.check_choice("fgd.relative", self.relative, (True, False))


class FGD(Method):
    """Focal errors on objects and background, distance of attentions, and relations between cells."""

    taxonomy_level = "neck"
    term = "fgd"
    paper = "Yang et al., Focal and Global Knowledge Distillation for Detectors, 2022, arXiv:2111.11837"
    reported = "RetinaNet X101 -> R50 37.4 -> 40.7 COCO AP (authors' repository)"
    unit = 10.0  # measured 0.035 at unit 1; paper: 1e-3, 5e-4, 5e-4, 5e-6 on sums
    taps = ("neck", "backbone")
    truth = True
    Options: ClassVar[type] = FGDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: FGDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs = ops.widths("fgd", student, teacher, tap, self.taps)
        self.adapters = ops.adapters(pairs)
        self.s_relations = nn.ModuleList(Relation(t) for _, t in pairs)
        self.t_relations = nn.ModuleList(Relation(t) for _, t in pairs)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        boxes, index = ops.ground_truth(batch)
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        narrow: tuple[Tensor, ...] = ops.required(getattr(student, self.tap), self.tap)
        losses = []
        for i, ((s, t), stride) in enumerate(zip(pairs, student.strides, strict=True)):
            objects, rest = (m.to(s.dtype) for m in ops.objects_and_rest(boxes, index, s, stride))
            losses.append(self.one_level(i, ops.wide(narrow[i]), s, t, objects, rest))
        return ops.level_mean(losses)

    def one_level(self, i: int, narrow: Tensor, s: Tensor, t: Tensor, objects: Tensor, rest: Tensor) -> Tensor:
        """Weighted sum of the four parts at level i; maps (B, C_s, H, W), (B, C, H, W) twice, masks (B, H, W) -> ()."""
        o: FGDOptions = self.options
        square_t = t.flatten(2).square()
        unit = ops.energy_or_one(square_t.mean()).sqrt() if o.relative else t.new_ones(())
        space_s, channel_s = attentions(s, o.temperature * unit)
        space_t, channel_t = attentions(t, o.temperature * unit)
        at = (space_s - space_t).abs().mean() + (channel_s - channel_t).abs().mean()
        # fg, bg and the mean of (s - t)^2 / r^2 are one sum over (s - t)^2, with weights from the teacher
        energy = channel_t[:, None].bmm(square_t)[:, 0] / (t.shape[1] * unit.square())
        fg, bg = (share(space_t, mask.flatten(1), energy, o.relative) for mask in (objects, rest))
        cells = (o.alpha * fg + o.beta * bg) / (t.shape[1] * unit.square())
        everywhere = o.lam / (t.numel() * unit.square())
        weight = torch.baddbmm(everywhere, channel_t[:, :, None], cells[:, None])
        error = ops.SquaredError.apply(s, t, weight.reshape(s.shape))
        # R adds the same offset to every cell, so the mean of (s - t + offset)^2 needs no further map
        adapter: Any = self.adapters[i]
        mean_s, offset_s = self.s_relations[i](narrow, unit, adapter.weight.flatten(1), adapter.bias)
        mean_t, offset_t = self.t_relations[i](t, unit)
        offset = offset_s - offset_t
        rest_of_rel = (2 * offset * (mean_s - mean_t) + offset.square()).mean()
        loss: Tensor = error + o.gamma * at + o.lam * rest_of_rel
        return loss.clamp(min=0)  # < 0 by rounding only


class Relation(nn.Module):
    """Mean of x over the cells, and R(x) - x, which is the same in all cells; (B, C, H, W), () -> (B, C) twice.

    R is the context block of arXiv:1904.11492. With weight (C, C_x) and bias (C,), x is their linear map of
    the given (B, C_x, H, W): all that is computed from x is linear, and costs less on fewer channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = max(4, channels // 2)
        self.key = nn.Linear(channels, 1, bias=False)
        last = nn.Linear(inside, channels)
        self.transform = nn.Sequential(nn.Linear(channels, inside), nn.LayerNorm(inside), nn.ReLU(), last)
        nn.init.kaiming_normal_(self.key.weight)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, x: Tensor, unit: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = x.flatten(2)
        key = self.key.weight if weight is None else self.key.weight @ weight  # softmax ignores a bias
        share = torch.softmax(key.expand(len(x), 1, -1).bmm(x) / unit, 2)  # (B, 1, H W)
        shares = torch.cat((torch.full_like(share, 1 / x.shape[2]), share), 1)
        pooled = shares.bmm(x.mT)  # (B, 2, C_x)
        mean, context = ((pooled if weight is None else F.linear(pooled, weight, bias)) / unit).unbind(1)
        return mean, self.transform(context)


def share(space: Tensor, mask: Tensor, energy: Tensor, relative: bool) -> Tensor:
    """Weight of e(s - t) of every cell in fg or bg; attention, O or N, and e(t) / S(t), all (B, H W) -> (B, H W)."""
    weight = space * mask
    total = ops.positive_or_one(mask.sum())
    return weight / total / (ops.energy_or_one((weight * energy).sum() / total) if relative else 1)


# Means over a map's cells or channels are written as a sum and a division: the derivative of `mean` fills another map.


def attentions(x: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """S(x), C(x) of the module's docstring, (B, C, H, W) -> (B, H W), (B, C)."""
    strength = x.flatten(2).abs()
    channels, cells = strength.shape[1:]
    space = torch.softmax(strength.sum(1) / (channels * temperature), 1)
    channel = torch.softmax(strength.sum(2) / (cells * temperature), 1)
    return cells * space, channels * channel
