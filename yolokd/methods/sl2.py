"""SL2: score-weighted L2 on the neck, the distillation loss that Ultralytics ships.

Ultralytics: `DistillationModel.loss_sl2`, 2026, https://github.com/ultralytics/ultralytics (no paper). Closely related:
Z. Du et al.: "Distilling Object Detectors with Feature Richness", 2021, arXiv:2111.00674.

At one level, i over the cells of all B images, z_t the teacher's class logits, P the projector (1x1, ReLU, 1x1):

    w_i      = max_k sigmoid(z_tik)
    m(x)     = sum_i w_i |x_i|^2 / (C sum_i w_i + 1e-9)
    plain    = m(P(s) - t)
    relative = m(P(s) - t) / m(t)
    loss     = mean over levels

Where Ultralytics' code departs from this, or we from it, and why:
- It sums over the L levels and multiplies by 6 and by the batch size B: its term is 6 B L times our plain one. Here
  the distiller applies gain and batch factor; with the mean over levels a gain means the same for 3 and for 4 levels.
- `relative` (default) divides by the teacher's own weighted mean square: a projector that returns 0 then
  has loss 1, for any net and level.
- Its projector has C_t channels inside, which cost more than a tenth of a YOLO11n's own step under a YOLO11s at 640 px.
  Ours has `width` times as many.
- It averages the logits of a dual head's two branches. Our view holds one branch, and its logits give the weights.
- It accepts only necks of equal stride and size. A teacher's map of another size is interpolated to the student's; the
  scores are at the student's anchor points already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import DENSE_TEACHER, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class SL2Options:
    """Options of SL2."""

    relative: bool = True  # divide by the teacher's weighted mean square; False: Ultralytics' loss over 6 B L
    width: float = 0.5  # channels inside the projector, as a share of the teacher's: fewer cost less (Ultralytics: 1)

    def __post_init__(self) -> None:
        ops.check_choice("sl2.relative", self.relative, (True, False))
        ops.check_number("sl2.width", self.width)


class SL2(Method):
    """Squared error between projected student maps and teacher maps, weighted by the teacher's scores."""

    taxonomy_level = "neck"
    term = "sl2"
    paper = "Ultralytics, DistillationModel.loss_sl2, 2026 (no paper; cf. Du et al., 2021, arXiv:2111.00674)"
    reported = "YOLO26 s -> n 40.9 -> 41.5 COCO AP (Ultralytics' documentation)"
    unit = 15.0  # measured 0.027 at unit 1; paper: 6 on the sum over levels
    taps = ("neck", "backbone")
    needs = frozenset({"logits"})
    heads = DENSE_TEACHER
    Options: ClassVar[type] = SL2Options

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: SL2Options) -> None:
        super().__init__(student, teacher, tap, options)
        self.relative = options.relative
        pairs = ops.widths("sl2", student, teacher, tap, self.taps)
        self.adapters = nn.ModuleList(projector(s, t, max(1, round(options.width * t))) for s, t in pairs)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        score = ops.confidence(ops.required(teacher.logits, "logits"))
        weights = ops.level_maps(score, ops.required(getattr(student, self.tap), self.tap))
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        losses = [ops.weighted_error(s, t, w, self.relative) for (s, t), w in zip(pairs, weights, strict=True)]
        return ops.level_mean(losses)


def projector(student: int, teacher: int, inside: int) -> nn.Sequential:
    """(B, C_s, H, W) -> (B, C_t, H, W)."""
    return nn.Sequential(nn.Conv2d(student, inside, 1), nn.ReLU(), nn.Conv2d(inside, teacher, 1))
