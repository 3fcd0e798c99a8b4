"""ReviewKD: a level of the teacher teaches the student's level and all coarser ones, fused from coarse to fine.

P. Chen, S. Liu, H. Zhao, J. Jia: "Distilling Knowledge via Knowledge Review", 2021, arXiv:2104.09044;
code: https://github.com/dvlab-research/ReviewKD (read at commit cede6ea, Detection/).

With s_1 ... s_L the student's maps, fine to coarse, of W channels after a 1x1 conv a_l, up(.) to the size of the map
above by nearest cells, [.,.] side by side and z_1, z_2 the two maps of sigmoid(conv1x1([a_l(s_l), up(x_l+1)])):

    x_L  = a_L(s_L)
    x_l  = z_1 a_l(s_l) + z_2 up(x_l+1)                                 attention-based fusion
    y_l  = conv3x3(x_l), as wide as t_l
    d_l  = sum_p 2^-p mean (pool_p(y_l) - pool_p(t_l))^2 / sum_p 2^-p   p = 0: the map; 1, 2, 3: 4 x 4, 2 x 2, 1 cells
    plain    = mean_l d_l
    relative = mean_l d_l / mean t_l^2

Where we depart, and why:
- The paper sums over levels; we take the mean, and divide by the teacher's mean square (`relative`, default) so that a
  gain means the same for any teacher.
- The authors' convs are followed by batch norms; ours are not: a term must not depend on what else is in the batch, nor
  on running statistics that a short training has not settled.
- Their code leaves out a pooling that is no smaller than the map; such a map has less than 5 x 5 cells.
- W is theirs, 256, or the widest map of the teacher if that is less.
- A teacher's map of another size is interpolated to the student's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View

WIDTH = 256  # channels at most in which levels are fused
POOLS = (4, 2, 1)  # cells a side


@dataclass(frozen=True, slots=True)
class ReviewKDOptions:
    """Options of knowledge review."""

    relative: bool = True  # divide by mean t^2 at each level; False: the paper's plain mean squares

    def __post_init__(self) -> None:
        ops.check_choice("reviewkd.relative", self.relative, (True, False))


class ReviewKD(Method):
    """Mean squared error between teacher maps and student maps into which all coarser ones are fused."""

    taxonomy_level = "neck"
    term = "revi"
    paper = "Chen et al., Distilling Knowledge via Knowledge Review, 2021, arXiv:2104.09044"
    reported = "figures not at hand"
    unit = 8.0  # measured 0.037 at unit 1; paper: 0.8 to 2 on the plain form's sum over levels
    taps = ("neck", "backbone")
    Options: ClassVar[type] = ReviewKDOptions
    options: ReviewKDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: ReviewKDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs = ops.widths("reviewkd", student, teacher, tap, self.taps)
        width = min(WIDTH, max(t for _, t in pairs))
        self.laterals = nn.ModuleList(nn.Conv2d(s, width, 1) for s, _ in pairs)
        self.gates = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in pairs[1:])
        self.outputs = nn.ModuleList(nn.Conv2d(width, t, 3, padding=1) for _, t in pairs)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        s_maps: tuple[Tensor, ...] = ops.required(getattr(student, self.tap), self.tap)
        t_maps: tuple[Tensor, ...] = ops.required(getattr(teacher, self.tap), self.tap)
        losses = []
        for fused, output, t in zip(self.fused(s_maps), self.outputs, t_maps, strict=True):
            t = ops.resize(ops.wide(t.detach()), fused)
            distance = hierarchical(output(fused), t)
            losses.append(distance / ops.energy_or_one(t.square().mean()) if self.options.relative else distance)
        return ops.level_mean(losses)

    def fused(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """x of every level, fine to coarse."""
        x: Tensor | None = None
        found: list[Tensor] = []
        gates = [*self.gates, None]
        for adapter, gate, s in reversed(list(zip(self.laterals, gates, maps, strict=True))):
            own = adapter(ops.wide(s))
            if gate is not None and x is not None:
                coarser = F.interpolate(x, own.shape[-2:], mode="nearest")
                z = gate(torch.cat((own, coarser), 1)).sigmoid()
                own = z[:, :1] * own + z[:, 1:] * coarser
            x = own
            found.insert(0, own)
        return found


def hierarchical(y: Tensor, t: Tensor) -> Tensor:
    """d of the module's docstring, (B, C, H, W) twice -> ()."""
    total, weights = (y - t).square().mean(), 1.0
    for p, cells in enumerate(POOLS, 1):
        pooled = F.adaptive_avg_pool2d(y - t, cells)  # of the difference: pooling is linear
        total = total + pooled.square().mean() / 2**p
        weights += 2**-p
    return total / weights
