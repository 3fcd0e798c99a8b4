"""DETRDistill: predictions that meet by Hungarian matching, target-aware features, and the teacher's queries.

J. Chang, S. Wang, H.-M. Xu, Z. Chen, C. Yang, F. Zhao: "DETRDistill: A Universal Knowledge Distillation Framework for
DETR-families", 2022, arXiv:2211.10156; code: https://github.com/BIVLab-USTC/DETRDistill (read at b5ee33d).

Predictions (`detr_logit`). With m over the teacher's queries at decoder layer d', n over the student's at layer d, p =
sigmoid(z_t), s = sigmoid(z_s), c_m = max_k p_mk, KL the sum over classes of the binary divergences:

    loss_d = min over one-to-one n(m) of sum_m [cls KL(p_m || s_n) + c_m (l1 |b_n - b_m|_1 + giou (1 - GIoU(b_n, b_m)))]
             / max(1, sum_m c_m)
    loss   = mean over d,     |.|_1 over centre, width and height in fractions of the image

Layer d' is that at d's share of the depth, see `sets.layer_pairs`.

Where the authors' code departs from this, or we from it, and why:
- It takes the mean over pairs of BCE + 5 L1 + 2 (1 - GIoU), every pair alike, whether the teacher sees an object there
  or not. Of 300 queries few do: boxes of nothing, which say nothing, would be most of it. We weight boxes by the
  teacher's score and divide by the soft count of objects; weight="one" is theirs.
- It gives queries of the student without a partner the class count as their target score, which equal numbers of
  queries hide. We leave them alone.
- All of the teacher's queries take part there. Here the `queries` surest of a layer do: what they leave out scores
  next to nothing, and the assignment's time grows with the cube. Never more than the student has.
- Less the entropy of p, which has no gradient: 0 is the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops, sets
from yolokd.methods.base import SET_HEADS, Method
from yolokd.views import Spec, View

PAPER = "Chang et al., DETRDistill: A Universal Knowledge Distillation Framework for DETR-families, 2022"


@dataclass(frozen=True, slots=True)
class DETRLogitOptions:
    """Options of Hungarian-matched predictions; the gains are the authors'."""

    queries: int = 100  # the teacher's surest queries of a layer take part
    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU
    weight: str = "score"  # a box counts by the teacher's highest "score", or as "one" (the authors')

    def __post_init__(self) -> None:
        ops.check_choice("detr_logit.weight", self.weight, ("score", "one"))
        ops.check_choice("detr_logit.queries", self.queries, tuple(range(1, 1001)))
        for name in ("cls", "l1", "giou"):
            ops.check_number(f"detr_logit.{name}", getattr(self, name), inclusive=True)


class DETRLogit(Method):
    """Divergence of the predictions of every decoder layer from the teacher's, after matching."""

    level = "logit"
    term = "dlogi"
    paper = f"{PAPER}, arXiv:2211.10156 (predictions)"
    needs = frozenset({"layer_logits", "layer_boxes"})
    heads = SET_HEADS
    classwise = True
    Options: ClassVar[type] = DETRLogitOptions
    options: DETRLogitOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: DETRLogitOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("detr_logit", student, teacher)
        self.gains = sets.PairGains(options.cls, options.l1, options.giou)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        s, found = layer_predictions(student, teacher)
        count = min(self.options.queries, s.logits.shape[2], found.logits.shape[2])
        best = found.at(found.score.topk(count).indices)
        weight = best.score if self.options.weight == "score" else torch.ones_like(best.score)
        t = sets.Targets(*best.both, weight, torch.ones_like(weight, dtype=torch.bool))
        places = sets.assignment(s, t, size, self.gains)
        return sets.per_target(sets.pair_losses(s.at(places), t, size, self.gains), t)


def layer_predictions(student: View, teacher: View) -> tuple[sets.Predictions, sets.Predictions]:
    """Those of every student layer, and of the teacher's layers that they learn from, without gradient."""
    (z_s, b_s), (z_t, b_t) = (
        (ops.shown(v.layer_logits, "layer_logits"), ops.shown(v.layer_boxes, "layer_boxes")) for v in (student, teacher)
    )
    partners = sets.layer_pairs(len(z_s), len(z_t))
    return sets.stacked(z_s, b_s), sets.stacked(*(tuple(x[i].detach() for i in partners) for x in (z_t, b_t)))
