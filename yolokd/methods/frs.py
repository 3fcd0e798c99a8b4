"""FRS: imitate features and scores where the teacher's scores are high, inside objects or not.

Z. Du, R. Zhang, M. Chang, X. Zhang, S. Liu, T. Chen, Y. Chen: "Distilling Object Detectors with Feature Richness",
2021, arXiv:2111.00674; code: https://github.com/duzhixing/FRS (read at decd60c).

With i over the cells of all B images at one level, n over the anchor points of all levels, k over classes, z logits,
sigma the sigmoid:

    w_n      = max_k sigma(z_tnk)                                            the feature richness score
    plain    = sum_i w_i |A(s)_i - t_i|^2 / sum_i w_i                         frs, at one level
    relative = sum_i w_i |A(s)_i - t_i|^2 / sum_i w_i |t_i|^2
    frs      = mean over levels
    frs_cls  = sum_nk w_n [BCE(z_s, sigma(z_t)) - H(sigma(z_t))] / max(1, sum_n w_n)

Scores are aggregated over classes (and over a cell's anchors, of which a YOLO has one), not over levels: each level is
weighted by its own scores. The authors add frs and frs_cls to the task's loss with weights 0.005 and 0.02 (RetinaNet),
0.01 and 0.05 (FCOS), 0.1 and 0.05 (GFL), ramped up over 500 steps; here the distiller applies gains.

Ultralytics' own loss (sl2) is the feature part with another adapter: its projector has two layers, FRS's is linear.

Where we depart, and why:
- The code sums both parts over levels. We take the mean of frs over levels. frs_cls divides once by the scores of all
  levels, so a level is weighted by what the teacher sees on it, and an empty level does not count.
- The code's frs_cls is 0/0 for a teacher that sees nothing; we keep the divisor at 1 or more. The code has BCE only. H
  has no gradient; subtracting it makes 0 the optimum, so the number in the log can be interpreted.
- The code's adapter is a 3x3 conv, ours 1x1, with which the term adds a twentieth to a small student's step on a CPU.
- `relative` (default) divides by the teacher's own weighted mean square; False gives the authors' feature part.
- A teacher's map of another size is interpolated to the student's; scores are at the student's anchor points.
- On a dual head (YOLO26) the scores of frs are those of its one2many branch; frs_cls is taken of each branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, DENSE_TEACHER, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class FRSOptions:
    """Options of FRS's feature part."""

    relative: bool = True  # divide by the teacher's weighted mean square; False: the authors' loss

    def __post_init__(self) -> None:
        ops.check_choice("frs.relative", self.relative, (True, False))


@dataclass(frozen=True, slots=True)
class FRSClsOptions:
    """FRS's classification part has no options: its only symbols are the scores."""


class FRS(Method):
    """Squared error between adapted student maps and teacher maps, weighted by the teacher's scores."""

    taxonomy_level = "neck"
    term = "frs"
    paper = "Du et al., Distilling Object Detectors with Feature Richness, 2021, arXiv:2111.00674 (features)"
    reported = "RetinaNet R50 to 39.7 COCO AP, as frs.full (paper)"
    unit = 8.0  # measured 0.046 at unit 1; paper: 0.005 to 0.1 on sums over channels
    taps = ("neck", "backbone")
    needs = frozenset({"logits"})
    heads = DENSE_TEACHER
    Options: ClassVar[type] = FRSOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: FRSOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.relative = options.relative
        self.adapters = ops.adapters(ops.widths("frs", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        richness = ops.confidence(ops.required(teacher.logits, "logits"))
        weights = ops.level_maps(richness, ops.required(getattr(student, self.tap), self.tap))
        losses = []
        for (s, t), w in zip(ops.adapted(student, teacher, self.tap, self.adapters), weights, strict=True):
            scale = 1 if self.relative else t.shape[1]  # the authors' error is a sum over channels
            losses.append(scale * ops.weighted_error(s, t, w, self.relative))
        return ops.level_mean(losses)


class FRSCls(Method):
    """Binary divergence between class scores, weighted by the teacher's highest."""

    taxonomy_level = "head"
    term = "frsc"
    paper = "Du et al., Distilling Object Detectors with Feature Richness, 2021, arXiv:2111.00674 (classification)"
    reported = "RetinaNet R50 to 39.7 COCO AP, as frs.full (paper)"
    unit = 0.3  # measured 0.92 at unit 1; paper: 0.02 to 0.05
    needs = frozenset({"logits"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = FRSClsOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: FRSClsOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("frs_cls", student, teacher)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_s = ops.wide(ops.required(student.logits, "logits"))
        z_t = ops.wide(ops.required(teacher.logits, "logits")).detach()
        richness = ops.confidence(z_t)[..., None]
        return (richness * ops.divergence(z_s, z_t)).sum() / ops.soft_count(z_t)
