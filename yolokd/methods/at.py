"""AT: attention transfer: where a map is strong, regardless of its channels.

S. Zagoruyko, N. Komodakis: "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
Networks via Attention Transfer", 2017, arXiv:1612.03928; code: https://github.com/szagoruyko/attention-transfer.

At one level, for every image b, with i over its H W cells:

    a(F)_i  = mean_c |F_ci|^p
    q(F)    = a(F) / |a(F)|_2
    norm    = 1/2 mean_b |q(s) - q(t)|_2          (the paper's)
    square  = 1/2 mean_b |q(s) - q(t)|_2^2        (the authors' code's) = mean_b (1 - cos(a(s), a(t)))
    loss    = mean over levels

so the value is between 0 and 1 (square) or 0.71 (norm). No adapter is needed: a has no channels and q no scale.

Where the authors' code departs from the paper, or we from them, and why:
- The code takes the mean of (q(s) - q(t))^2 over B, H, W, that is 2 / (H W) times `square`: the same maps on an image
  of twice the side weigh a quarter. The paper takes the norm, whose gradient does not fade near its zero.
  `form="square"` is the default: it is the form that was measured, and it is flat at its zero.
- Both sum over levels; we take the mean. The code's weight of 1e3 is 2e3 / (H W) for `square`: 2 at 32 x 32 cells.
- The code has p = 2 only; the paper also tries 1 and 4.
- A teacher's map of another size is interpolated to the student's.
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
class ATOptions:
    """Options of attention transfer."""

    p: float = 2.0  # exponent of the activations: the higher, the more the strongest channels and cells count
    form: str = "square"  # "square" of the distance (authors' code), or its "norm" (paper)

    def __post_init__(self) -> None:
        # below 1 the derivative is infinite at an activation of 0
        ops.check_number("at.p", self.p, above=1.0, inclusive=True)
        ops.check_choice("at.form", self.form, ("square", "norm"))


class AT(Method):
    """Distance between normalised maps of activation strength."""

    taxonomy_level = "backbone"
    term = "at"
    paper = "Zagoruyko, Komodakis, Paying More Attention to Attention, 2017, arXiv:1612.03928"
    reported = "none published for detection"
    unit = 5.0  # measured 0.053 at unit 1; paper: 1e3 on the code's mean, 2e3 / (H W) on ours
    taps = ("backbone", "neck", "towers")
    Options: ClassVar[type] = ATOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: ATOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.widths("at", student, teacher, tap, self.taps)  # widths may differ, the number of maps may not
        self.p, self.form = options.p, options.form

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        s_maps: tuple[Tensor, ...] = ops.required(getattr(student, self.tap), self.tap)
        t_maps: tuple[Tensor, ...] = ops.required(getattr(teacher, self.tap), self.tap)
        losses = []
        for s, t in zip(s_maps, t_maps, strict=True):
            t = ops.resize(ops.wide(t.detach()), s)
            losses.append(distance(attention(ops.wide(s), self.p) - attention(t, self.p), self.form))
        return ops.level_mean(losses)


def attention(x: Tensor, p: float) -> Tensor:
    """q(F) of the module's docstring, (B, C, H, W) -> (B, H W); 0 for an empty map."""
    # q has no scale, so divide by the largest entry: then no power overflows, and not all of them vanish
    x = x / ops.positive_or_one(x.detach().abs().amax((1, 2, 3), keepdim=True))
    strength = x.square() if p == 2 else x.abs().pow(p)
    return F.normalize(strength.mean(1).flatten(1))


def distance(difference: Tensor, form: str) -> Tensor:
    """Half the mean of the rows' norms, or of their squares; (B, H W) -> ()."""
    square = difference.square().sum(1)
    if form == "square":
        return square.mean() / 2
    # the root's derivative is infinite at 0: use the square there, whose derivative is 0
    return square.where(square == 0, ops.positive_or_one(square).sqrt()).mean() / 2
