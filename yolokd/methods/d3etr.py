"""D3ETR: the decoder's predictions and self-attention, matched in two ways.

X. Chen, J. Chen, Y. Liu, J. Tang, G. Zeng: "D3ETR: Decoder Distillation for Detection Transformer", 2022,
arXiv:2211.09768. The authors published no code.

Adaptive matching: at each of the student's decoder layers, the teacher's queries m of the partner layer are matched to
the student's own so that the total loss is least. Fixed matching: the teacher's queries go through the student's
decoder as a separate group, and each is matched to itself. The loss of both, with c_m = max_k sigmoid(z_tm):

    pair_m = cls KL(p_m || s_n) + c_m (l1 |b_n - b_m|_1 + giou (1 - GIoU(b_n, b_m)))
    rows_m = c_m sum_j a_mj log(a_mj / a'_nj)       a, a' the self-attention, mean over heads, of teacher and student
    part   = mean over layers of sum_m (pair_m + attention rows_m) / max(1, sum_m c_m)
    loss   = adaptive part(adaptive) + fixed part(fixed)

The terms of pair_m are those of DETRDistill's predictions. In the adaptive part j runs over the matched queries only,
and each row is scaled to sum to 1 over them: the two models may have different numbers of queries.

Where we choose or depart, and why:
- The paper distils cross-attention too. An RT-DETR's cross-attention samples a few points of the image by offsets, so
  there is no attention map to compare.
- Attention rows are distributions, so their distance is the KL divergence. A row is weighted by the score of its query:
  the attention of a query that detects nothing teaches nothing. Without the authors' code this is our interpretation.
- A trained linear layer turns the teacher's queries into the student's.
- In adaptive matching the teacher's `queries` most confident queries of a layer take part, never more than the student
  has. In fixed matching all of them do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops, sets
from yolokd.methods.base import SET_HEADS, Method
from yolokd.views import Spec, View

TINY = 1e-8  # attention below it is raised to it, so that logarithms stay finite


@dataclass(frozen=True, slots=True)
class D3ETROptions:
    """Options of D3ETR."""

    adaptive: float = 1.0  # gain of the student's own queries, matched
    fixed: float = 1.0  # gain of the teacher's queries in the student's decoder
    attention: float = 1.0  # gain of self-attention within both
    queries: int = 30  # the teacher's most confident queries per layer that take part in adaptive matching
    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU

    def __post_init__(self) -> None:
        ops.check_choice("d3etr.queries", self.queries, tuple(range(1, 1001)))
        for name in ("adaptive", "fixed", "attention", "cls", "l1", "giou"):
            ops.check_number(f"d3etr.{name}", getattr(self, name), inclusive=True)
        if not self.adaptive and not self.fixed:
            raise ValueError("d3etr.adaptive=0 and d3etr.fixed=0 leave nothing to learn: set one of them above 0.")


class D3ETR(Method):
    """Divergence of predictions and self-attention, on matched queries and on the teacher's own."""

    taxonomy_level = "logit"
    term = "d3etr"
    paper = "Chen et al., D3ETR: Decoder Distillation for Detection Transformer, 2022, arXiv:2211.09768"
    reported = "Conditional DETR R50 +7.8 COCO AP in 12 epochs, +2.4 in 50 (paper)"
    unit = 0.6  # measured 0.46 at unit 1; paper: none at hand
    needs = frozenset({"layer_logits", "layer_boxes", "attention"})
    student_needs = frozenset({"decode"})
    teacher_needs = frozenset({"content", "references"})
    heads = SET_HEADS
    classwise = True
    Options: ClassVar[type] = D3ETROptions
    options: D3ETROptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: D3ETROptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("d3etr", student, teacher)
        self.adapter = sets.query_adapter(student, teacher)
        self.gains = sets.PairGains(options.cls, options.l1, options.giou)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        layers = {f: ops.required(getattr(student, f), f) for f in ("layer_logits", "layer_boxes", "attention")}
        s, attention = answers(layers)
        t, target_attention = self.partners(teacher, len(attention))
        loss = attention.new_zeros(())
        if self.options.adaptive:
            loss = loss + self.options.adaptive * self.adaptive(s, attention, t, target_attention, size)
        if self.options.fixed:
            content, references = (ops.required(getattr(teacher, f), f).detach() for f in ("content", "references"))
            s, attention = answers(sets.decoded(student, self.adapter(ops.wide(content)), references))
            loss = loss + self.options.fixed * self.part(s, attention, sets.targets(t), target_attention, size)
        return loss

    def partners(self, teacher: View, layers: int) -> tuple[sets.Predictions, Tensor]:
        """Predictions and self-attention of the teacher's layers from which this many student layers learn."""
        fields = {f: ops.required(getattr(teacher, f), f) for f in ("layer_logits", "layer_boxes", "attention")}
        places = sets.layer_pairs(layers, len(fields["layer_logits"]))
        return answers({f: tuple(x[i].detach() for i in places) for f, x in fields.items()})

    def adaptive(
        self,
        s: sets.Predictions,
        attention: Tensor,
        t: sets.Predictions,
        target_attention: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """The loss of the student's own queries, matched to the teacher's."""
        places = sets.surest(t, min(self.options.queries, s.logits.shape[2]))
        targets = sets.targets(t.at(places))
        matched = sets.assignment(s, targets, size, self.gains)
        return self.part(s.at(matched), among(attention, matched), targets, among(target_attention, places), size)

    def part(
        self, s: sets.Predictions, attention: Tensor, t: sets.Targets, target_attention: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """The loss of predictions and attentions (D, B, n, n) at equal indices."""
        rows = (target_attention * (target_attention / attention).log()).sum(-1)
        each = sets.pair_losses(s, t, size, self.gains) + self.options.attention * t.weight * rows
        return sets.per_target(each, t)


def answers(layers: dict[str, tuple[Tensor, ...]]) -> tuple[sets.Predictions, Tensor]:
    """Predictions of decoder layers and their self-attention (D, B, Q, Q), in float32 or wider and never 0."""
    attention = torch.stack([ops.wide(a) for a in layers["attention"]])
    return sets.stacked(layers["layer_logits"], layers["layer_boxes"]), scaled(attention)


def among(attention: Tensor, places: Tensor) -> Tensor:
    """The attention of the given queries to each other, (D, B, Q, Q), (D, B, n) -> (D, B, n, n); rows sum to 1."""
    rows = attention.gather(2, places[..., None].expand(*places.shape, attention.shape[-1]))
    return scaled(rows.gather(3, places[:, :, None].expand(*places.shape[:2], *places.shape[2:] * 2)))


def scaled(attention: Tensor) -> Tensor:
    """The rows scaled to sum to 1, without zeros."""
    attention = attention.clamp(min=TINY)
    return attention / attention.sum(-1, keepdim=True)
