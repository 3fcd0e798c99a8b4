"""CLoCKDistill: the memory that decoders look at, by objects, and what both decoders answer to queries on the objects.

Q. Lan, Q. Tian: "CLoCKDistill: Consistent Location-and-Context-aware Knowledge Distillation for DETRs", 2025,
arXiv:2502.10683. We could read the abstract only. The equation of the memory's part (`clock_mem`) is the one that a
stranger's implementation quotes from the paper. Of the target-aware queries (`clock`) what follows is our reading of
"target-aware queries based on the ground truth, allowing both the student and teacher decoders to attend to consistent
and accurate parts of encoder memory", not the authors' equations.

The teacher's queries have contents and reference boxes r. Every object g gets a query m(g) of its own, so that the sum
of IoU(r_m(g), g) is as large as it can be, and r_m(g) is moved onto g. Both decoders answer all queries, the student's
with contents that a trained linear layer makes of the teacher's. With d over the student's decoder layers, d' the
teacher's layer at the same share of the depth, KL the sum over classes of the binary divergences:

    pair_g = cls KL(sigmoid(z_d'm(g)) || sigmoid(z_dm(g))) + l1 |b_dm(g) - b_d'm(g)|_1 + giou (1 - GIoU)
    loss   = mean_d sum_g pair_g / max(1, objects)          |.|_1 over centre, width, height in fractions of the image

- KD-DETR (kd_detr) asks where the teacher sees something, this only where something is.
- Queries without an object stay where they are: the decoders' self-attention sees them, the loss does not.
- If there are more objects than queries, the last objects are left out.
- The same implementation makes a query's content of a fixed random vector for its class, and weighs a pair by the
  teacher's confidence. Ours is the teacher's own content for the nearest place, and an object counts in full.

The memory, at one level, with s adapted to C channels and i over the cells of image b:

    O_bi    = 1 / (cells of the smallest box that touches cell i), 0 without one
    N_bi    = 1 / (cells of image b without a box) in these, 0 elsewhere
    e(x)_bi = mean_c x_bci^2
    fg      = sum_bi O_bi e(s - t)_bi / sum_bi O_bi        0 without objects; bg: the same with N
    loss    = alpha fg + beta bg, then the mean over levels

- Quoted are sums over cells and channels with alpha = 5e-5 and beta = 1e-7. We take means, as in FGD, whose masks these
  are: with 7 objects an image (COCO's mean) their ratio is our alpha = 1 and beta = 3e-4.
- `relative` (default) divides fg and bg by the same weighted mean of e(t), so that an adapter that returns 0 has 1.
- An RT-DETR's memory is a linear map of what its neck outputs, level by level; we compare the neck, so that a YOLO may
  learn from it too.
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
class CLoCKOptions:
    """Options of target-aware queries; the gains are those of a DETR's loss."""

    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU

    def __post_init__(self) -> None:
        for name in ("cls", "l1", "giou"):
            ops.check_number(f"clock.{name}", getattr(self, name), inclusive=True)


class CLoCK(Method):
    """Divergence between the two decoders' predictions from queries that lie on the objects."""

    taxonomy_level = "query"
    term = "clock"
    paper = "Lan, Tian, CLoCKDistill: Consistent Location-and-Context-aware KD, 2025, arXiv:2502.10683 (queries)"
    reported = "DETRs +2.2 to +6.4 KITTI and COCO AP, with the memory's part (abstract)"
    unit = 3.0  # measured 0.093 at unit 1; paper: none at hand
    student_needs = frozenset({"decode"})
    teacher_needs = frozenset({"content", "references", "decode"})
    heads = SET_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = CLoCKOptions
    options: CLoCKOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: CLoCKOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("clock", student, teacher)
        self.adapter = sets.query_adapter(student, teacher)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        content, references = (ops.required(getattr(teacher, f), f).detach() for f in ("content", "references"))
        references, image, query = on_objects(references, batch)
        answers = sets.decoded(student, self.adapter(ops.wide(content)), references)
        with torch.no_grad():
            wanted = sets.decoded(teacher, content, references)
        s, t = (sets.stacked(found["layer_logits"], found["layer_boxes"]) for found in (answers, wanted))
        partners = sets.layer_pairs(len(s.logits), len(t.logits))
        (z_s, b_s), (z_t, b_t) = (
            (p.logits[layers][:, image, query], p.boxes[layers][:, image, query])
            for p, layers in ((s, slice(None)), (t, partners))
        )
        cls = self.options.cls * ops.divergence(z_s, z_t).sum(-1)
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        box = sets.box_losses(b_s, b_t, size, sets.PairGains(0.0, self.options.l1, self.options.giou))
        return (cls + box).sum() / (max(len(query), 1) * len(s.logits))


def on_objects(references: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Reference boxes (B, Q, 4) with one on every object; and these queries' images and indices, (M,) twice."""
    known = ops.wide(references)
    boxes, _, there = sets.objects(batch, sets.Predictions(known[None], known[None]))
    costs = 1 - ops.paired_iou(boxes[:, :, None], known[:, None])
    places = sets.assigned(costs[None], there)[0]
    image, g = there[0].nonzero(as_tuple=True)
    query = places[image, g]
    return known.index_put((image, query), boxes[image, g]), image, query


@dataclass(frozen=True, slots=True)
class CLoCKMemoryOptions:
    """Options of the memory's part."""

    alpha: float = 1.0  # weight of the cells that an object touches; every object counts alike, whatever its size
    beta: float = 3e-4  # weight of the cells that no object touches
    relative: bool = True  # divide by the teacher's mean square in the same cells; False: the plain form, as means

    def __post_init__(self) -> None:
        ops.check_number("clock_mem.alpha", self.alpha, inclusive=True)
        ops.check_number("clock_mem.beta", self.beta, inclusive=True)
        ops.check_choice("clock_mem.relative", self.relative, (True, False))


class CLoCKMemory(Method):
    """Squared error of what the decoders look at, where every object has the same weight whatever its size."""

    taxonomy_level = "feature"
    term = "clkm"
    paper = "Lan, Tian, CLoCKDistill: Consistent Location-and-Context-aware KD, 2025, arXiv:2502.10683 (memory)"
    reported = "DETRs +2.2 to +6.4 KITTI and COCO AP, with the queries' part (abstract)"
    unit = 6.0  # measured 0.047 at unit 1 (5 steps, in which defeat has its 0.033); paper: 5e-5, 1e-7 on sums
    taps = ("neck", "backbone")
    truth = True
    Options: ClassVar[type] = CLoCKMemoryOptions
    options: CLoCKMemoryOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: CLoCKMemoryOptions) -> None:
        super().__init__(student, teacher, tap, options)
        self.adapters = ops.adapters(ops.widths("clock_mem", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        o, (boxes, index) = self.options, ops.ground_truth(batch)
        losses = []
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        for (s, t), stride in zip(pairs, student.strides, strict=True):
            error, energy = (s - t).square().mean(1), t.square().mean(1)
            masks = (m.to(error.dtype) for m in ops.objects_and_rest(boxes, index, s, stride))
            fg, bg = (ops.region_error(error, energy, mask, o.relative) for mask in masks)
            losses.append(o.alpha * fg + o.beta * bg)
        return ops.level_mean(losses)
