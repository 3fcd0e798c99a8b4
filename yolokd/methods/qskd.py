"""QSKD: teach what the teacher's queries near the objects predict, also those that it does not count as detections.

Y. Liu, L. Wang, Z. Tang, Y. Liao, Y. Sun, L. Zhang, S. Liu: "Knowledge Distillation via Query Selection for Detection
Transformer", 2024, arXiv:2409.06443 (predictions). We could read only the abstract: it groups queries by their GIoU
with the objects and finds that negatives close to objects teach most. How they are then aligned is our choice.

With m over the teacher's queries at the decoder layer d' that the student's layer d learns from, b_m its box, g over
the objects of the image, KL the sum over classes of the binary divergences:

    h_m    = max_g GIoU(b_m, g)
    M      = the queries with h_m > low, at most `queries` of highest h (positives and hard negatives alike)
    pair   = cls KL(p_m || s_n) + l1 |b_n - b_m|_1 + giou (1 - GIoU(b_n, b_m))
    loss_d = min over one-to-one n(m) of sum_{m in M} pair / max(1, number of m in M)
    loss   = mean over d          |.|_1 over centre, width and height in fractions of the image

- detr_logit chooses queries by the teacher's confidence and weighs boxes by it; here the objects choose, and a box near
  an object counts in full, whether or not the teacher is sure of it.
- The other half, feature distillation guided by the decoder's attention, needs attention maps over the image, which
  RT-DETR's deformable attention does not have: left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from yolokd.methods import ops, sets
from yolokd.methods.base import SET_HEADS, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class QSKDOptions:
    """Options of query selection."""

    low: float = 0.0  # GIoU with an object above which a query takes part, from -1 (all) to 1
    queries: int = 30  # queries per layer and image that take part at most
    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU

    def __post_init__(self) -> None:
        ops.check_number("qskd.low", self.low, above=-1.0, inclusive=True)
        if self.low >= 1:
            raise ValueError(f"qskd.low={self.low!r} is not allowed: it must be below 1.")
        ops.check_choice("qskd.queries", self.queries, tuple(range(1, 1001)))
        for name in ("cls", "l1", "giou"):
            ops.check_number(f"qskd.{name}", getattr(self, name), inclusive=True)


class QSKD(Method):
    """Divergence of every decoder layer's predictions from the teacher's near the objects, after matching."""

    taxonomy_level = "logit"
    term = "qskd"
    paper = "Liu et al., Knowledge Distillation via Query Selection for Detection Transformer, 2024, arXiv:2409.06443"
    reported = "Conditional DETR R18 35.8 -> 39.9 COCO AP, with the features' part (abstract)"
    unit = 5.0  # measured 0.062 at unit 1; paper: none at hand
    needs = frozenset({"layer_logits", "layer_boxes"})
    heads = SET_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = QSKDOptions
    options: QSKDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: QSKDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("qskd", student, teacher)
        self.gains = sets.PairGains(options.cls, options.l1, options.giou)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        z_s, b_s, z_t, b_t = (
            ops.required(getattr(view, name), name)
            for view in (student, teacher)
            for name in ("layer_logits", "layer_boxes")
        )
        s, t = sets.stacked(z_s, b_s), sets.stacked(tuple(z.detach() for z in z_t), tuple(b.detach() for b in b_t))
        partners = sets.layer_pairs(len(s.logits), len(t.logits))
        chosen = self.near_objects(sets.Predictions(t.logits[partners], t.boxes[partners]), s.logits.shape[2], batch)
        places = sets.assignment(s, chosen, size, self.gains)
        return sets.per_target(sets.pair_losses(s.at(places), chosen, size, self.gains), chosen)

    def near_objects(self, t: sets.Predictions, most: int, batch: dict[str, Tensor]) -> sets.Targets:
        """The queries M of every layer and image, nearest first; never more than the student has."""
        boxes, index = ops.ground_truth(batch)
        giou = ops.paired_giou(t.boxes[:, index], boxes[:, None].to(t.boxes.dtype))  # (D, M, Q)
        nearest = giou.new_full(t.boxes.shape[:3], -1.0)
        nearest = nearest.scatter_reduce(1, index[None, :, None].expand_as(giou), giou, "amax")
        best, places = nearest.topk(min(self.options.queries, most, nearest.shape[2]))
        found = t.at(places)
        return sets.Targets(*found.both, torch.ones_like(best), best > self.options.low)
