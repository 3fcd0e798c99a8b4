"""FitNet: regress the teacher's feature maps.

A. Romero, N. Ballas, S. E. Kahou, C. Chassang, C. Gatta, Y. Bengio: "FitNets: Hints for Thin Deep Nets", 2015,
arXiv:1412.6550.

At one level, with s (B, C_s, H, W), t (B, C_t, H, W) and a trained adapter A:

    plain    = mean (A(s) - t)^2                 mean over B, C_t, H, W
    relative = mean (A(s) - t)^2 / mean t^2
    loss     = mean over levels

Where we depart, and why:
- The paper writes half the squared norm, at one hint layer, which it trains alone before the rest. Detection
  works (and we) use the mean at every level, next to the task's loss, from the first step.
- The paper's regressor may have larger kernels; detection code uses a 1x1 conv, which computes each cell from the
  same cell of the student's map.
- `relative` (default) divides by the teacher's own mean square, because the maps of different detectors, and
  of different levels of one detector, differ by orders of magnitude. A gain of 1 then means the same for all of them:
  an adapter that returns 0 has loss 1. `relative=False` is the paper's mean square.
- A teacher's map of another size is interpolated to the student's, and its mean square is taken after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class FitNetOptions:
    """Options of FitNet."""

    relative: bool = True  # divide by mean t^2 at each level; False: the paper's plain mean square

    def __post_init__(self) -> None:
        ops.check_choice("fitnet.relative", self.relative, (True, False))


class FitNet(Method):
    """Mean squared error between adapted student maps and teacher maps."""

    taxonomy_level = "backbone"
    term = "fit"
    paper = "Romero et al., FitNets: Hints for Thin Deep Nets, 2015, arXiv:1412.6550"
    reported = "GFL R101 -> R50 40.1 -> 40.7 COCO AP (LD's repository)"
    unit = 5.0  # measured 0.065 at unit 1; paper: 2 on the mean square (LD's code)
    taps = ("backbone", "neck", "towers")
    Options: ClassVar[type] = FitNetOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: FitNetOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.relative = options.relative
        self.adapters = ops.adapters(ops.widths("fitnet", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        return ops.level_mean([error(s, t, self.relative) for s, t in pairs])


def error(s: Tensor, t: Tensor, relative: bool) -> Tensor:
    """Mean square of s - t, divided by that of t if relative; (B, C, H, W) twice -> ()."""
    plain = (s - t).square().mean()
    return plain / ops.energy_or_one(t.square().mean()) if relative else plain
