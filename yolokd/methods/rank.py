"""RM and PFI: imitate the teacher's ranking of an object's boxes, and its features where predictions differ.

G. Li, X. Li, Y. Wang, S. Zhang, Y. Wu, D. Liang: "Knowledge Distillation for Object Detection via Rank Mimicking and
Prediction-guided Feature Imitation", 2021, arXiv:2112.04840. The authors published no code.

Rank mimicking, with z_n the logit of object g's class at anchor point n:

    a_n  = sigmoid(z_tn)^alpha IoU(b_tn, g)^beta            the teacher's alignment, for points n whose centre is in g
    P_g  = the topk such points of highest alignment
    q_n  = softmax over P_g of z_n / tau                    for teacher and student each
    rm   = tau^2 mean_g sum_{n in P_g} q_tn log(q_tn / q_sn)

Prediction-guided feature imitation, at one level, i over the cells of all B images:

    P_i  = mean_k (sigmoid(z_tik) - sigmoid(z_sik))^2
    plain    = mean_i P_i mean_c (A(s) - t)_ic^2
    relative = sum_i P_i |A(s) - t|_i^2 / sum_i P_i |t|_i^2
    pfi      = mean over levels

Where we depart, and why:
- The paper's candidates are the positives of the detector's assigner. The heads we read do not expose it, and a
  student's assignment early in training would be noise: we take the rule of the assigner that YOLO is trained with
  (task-aligned, alpha 0.5, beta 6, top 10; arXiv:2108.07755) and apply it to the teacher's predictions.
- The softmax is over logits. Over scores in [0, 1] it would be almost flat at tau = 1.
- The mean is over the objects that have at least two candidates: one candidate has no rank. tau^2 keeps the gradient's
  size when the temperature rises.
- P is a weight without gradient: otherwise cells would be made to agree only to reduce their weight.
- `relative` (default) divides by the teacher's own mean square under the same weights: the scale of P cancels, so
  the term does not fade as the scores get closer, and an adapter that returns 0 has loss 1.
- On a dual head (YOLO26) the scores of pfi are those of its one2many branch; rm is taken of each branch.
- If the teacher's map has another size, the map and its scores are interpolated to the student's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View

PAPER = (
    "Li et al., Knowledge Distillation for Object Detection via Rank Mimicking and Prediction-guided Feature "
    "Imitation, 2021, arXiv:2112.04840"
)


@dataclass(frozen=True, slots=True)
class RankMimickingOptions:
    """Options of rank mimicking."""

    topk: int = 10  # candidates per object
    tau: float = 1.0  # temperature of both softmaxes: above 1 lower ranks have more weight
    alpha: float = 0.5  # exponent of the score in the alignment
    beta: float = 6.0  # exponent of the IoU in the alignment

    def __post_init__(self) -> None:
        ops.check_number("rm.topk", self.topk, above=2, inclusive=True)
        if not isinstance(self.topk, int):
            raise ValueError(f"rm.topk={self.topk!r} is not allowed: it must be a whole number.")
        ops.check_number("rm.tau", self.tau)
        for name in ("alpha", "beta"):
            ops.check_number(f"rm.{name}", getattr(self, name), inclusive=True)


@dataclass(frozen=True, slots=True)
class PFIOptions:
    """Options of prediction-guided feature imitation."""

    relative: bool = True  # divide by the teacher's mean square under the same weights; False: the paper's plain form

    def __post_init__(self) -> None:
        ops.check_choice("pfi.relative", self.relative, (True, False))


class RankMimicking(Method):
    """Divergence of the softmax over an object's candidates."""

    taxonomy_level = "head"
    term = "rm"
    paper = f"{PAPER} (ranks)"
    reported = "RetinaNet R50 to 40.4 COCO AP (+3.5), as rm.full (paper)"
    unit = 0.3  # measured 0.75 at unit 1; paper: none at hand
    needs = frozenset({"logits", "boxes"})
    heads = DENSE_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = RankMimickingOptions
    options: RankMimickingOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: RankMimickingOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("rm", student, teacher)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        z_s = ops.wide(ops.required(student.logits, "logits"))
        z_t = ops.wide(ops.required(teacher.logits, "logits")).detach()
        place, ranked = self.candidates(z_t, teacher, batch)
        several = ranked.sum(-1) > 1
        place, ranked = (x[several] for x in (place, ranked))
        log_s, log_t = (log_softmax(z.flatten()[place] / self.options.tau, ranked) for z in (z_s, z_t))
        total = (log_t.exp() * (log_t - log_s)).sum()
        return self.options.tau**2 * total / max(len(place), 1)

    def candidates(self, z_t: Tensor, teacher: View, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each object's P_g, (M, topk) twice: indices of its class's logits in the flat z, and which are valid."""
        _, index = ops.ground_truth(batch)
        cls = batch["cls"].detach().reshape(-1).long()
        alignment, _ = ops.alignment(teacher, batch, self.options.alpha, self.options.beta)
        best, point = alignment.topk(min(self.options.topk, alignment.shape[1]), -1)
        return (index[:, None] * z_t.shape[1] + point) * z_t.shape[2] + cls[:, None], best >= 0


class PFI(Method):
    """Squared error between adapted student maps and teacher maps, weighted by the difference of scores."""

    taxonomy_level = "neck"
    term = "pfi"
    paper = f"{PAPER} (features)"
    reported = "RetinaNet R50 to 40.4 COCO AP (+3.5), as rm.full (paper)"
    unit = 5.0  # measured 0.064 at unit 1; paper: none at hand
    taps = ("neck",)
    needs = frozenset({"logits"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = PFIOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: PFIOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("pfi", student, teacher)
        self.relative = options.relative
        self.adapters = ops.adapters(ops.widths("pfi", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        maps = ops.required(getattr(student, self.tap), self.tap)
        scores = [score_maps(view, maps) for view in (student, teacher)]
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        losses = []
        for (s, t), p_s, p_t in zip(pairs, *scores, strict=True):
            gap = (p_s - p_t).square().mean(1, keepdim=True)
            plain = not self.relative  # the weighted mean would divide by the gaps, as the relative form does
            losses.append((gap * (s - t).square()).mean() if plain else ops.weighted_error(s, t, gap, True))
        return ops.level_mean(losses)


def log_softmax(z: Tensor, counts: Tensor) -> Tensor:
    """log softmax over a row's entries where counts is true, elsewhere finite (a probability of 0); (M, k) twice."""
    return z.masked_fill(~counts, torch.finfo(torch.float32).min / 4).log_softmax(-1)


def score_maps(view: View, like: Sequence[Tensor]) -> list[Tensor]:
    """Class scores as L maps (B, K, H, W), without gradient; like: the student's maps, whose cells are the points."""
    scores = ops.wide(ops.required(view.logits, "logits").detach()).sigmoid()
    maps = ops.level_maps(scores.mT.flatten(0, 1), like)
    return [m.reshape(len(scores), -1, *m.shape[-2:]) for m in maps]
