"""DETRDistill: predictions matched by the Hungarian method, target-aware features, and the teacher's queries.

J. Chang, S. Wang, H.-M. Xu, Z. Chen, C. Yang, F. Zhao: "DETRDistill: A Universal Knowledge Distillation Framework for
DETR-families", 2022, arXiv:2211.10156; code: https://github.com/BIVLab-USTC/DETRDistill (read at b5ee33d).

Predictions (`detr_logit`). With m over the teacher's queries at decoder layer d', n over the student's at layer d, p =
sigmoid(z_t), s = sigmoid(z_s), c_m = max_k p_mk, KL the sum over classes of the binary divergences:

    loss_d = min over one-to-one n(m) of sum_m [cls KL(p_m || s_n) + c_m (l1 |b_n - b_m|_1 + giou (1 - GIoU(b_n, b_m)))]
             / max(1, sum_m c_m)
    loss   = mean over d,     |.|_1 over centre, width and height in fractions of the image

Layer d' is at the same share of the depth as d, see `sets.layer_pairs`.

Where the authors' code departs from this, or we from it, and why:
- It takes the mean over pairs of BCE + 5 L1 + 2 (1 - GIoU) with equal weights, whether or not the teacher sees an
  object there. Few of 300 queries see one, so boxes without an object, which mean nothing, would dominate. We weight
  boxes by the teacher's score and divide by the soft count of objects; weight="one" is the authors' form.
- It gives the student's unmatched queries the class count as their target score, which has no effect with equal numbers
  of queries. We leave unmatched queries out.
- All of the teacher's queries take part there. Here the `queries` most confident ones of a layer do, never more than
  the student has: the others are background, for which all compete for the same queries of the student, and the
  assignment's time grows with the square of their number. Use more for images with more objects.
- It sums over decoder layers, we take the mean: its loss grows with the decoder.
- We subtract the entropy of p, which has no gradient, so that 0 is the optimum.
- A contrastive head on the queries, which the authors' scripts turn on (weight 0.2), is left out of all three parts.

Features (`detr_feat`). With F the teacher's map at one level, b_m the box of the teacher's query m at its layer d, q_m
the map's own feature at the centre of b_m (by="centre") or the query's embedding (by="query", the paper's), u_m the
highest IoU of b_m with an object of the image (1 on an image without), A a trained 1x1 conv:

    M_di = max(0.01, sum_m c_m u_m cos(q_m, F_i)) / max_j of the same
    W_i  = mean_d M_di^2
    loss = sum_i W_i |A(s) - F|_i^2 / sum_i W_i |F|_i^2         relative=True
           mean_ic W_i (A(s) - F)_ic^2                          relative=False, the authors' form apart from sums
    and the mean over levels.

- Theirs are the 100 best pairs of query and class, so that a query may count twice; ours the 100 best queries.
- By linearity the queries are summed before they are compared with the map, so no map per query is stored.
- An RT-DETR projects its neck's maps before its decoder reads them, so the channels of queries and maps mean different
  things, and their numbers may differ. The feature at the box's centre represents the same target in the map's own
  channels.
- They sum over levels and layers; we take means. They have no adapter, which requires equal widths.

Query priors (`detr_query`). The teacher's queries go through the student's decoder as a separate group. At
the student's layer d, an object g is assigned to the query whose teacher prediction at the partner layer matches g
(least 2 focal cost + 5 L1 + 2 (1 - GIoU), as in DETRs), and the loss is that of a DETR:

    loss_d = (cls sum_nk focal(z_nk, [n has an object of class k]) + sum_g box(b_n(g), g)) / max(1, objects)
    focal(z, y) = alpha_y |y - sigmoid(z)|^2 BCE(z, y), alpha_1 = 0.25, alpha_0 = 0.75;  box as above
    and the mean over layers, where the authors sum.

- A trained linear layer turns the teacher's queries into the student's. The authors' queries are parameters of equal
  width; an RT-DETR's come from its encoder and have their own channels.
- If there are more objects than queries, the last objects are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from yolokd.methods import ops, sets
from yolokd.methods.base import SET_HEADS, SET_TEACHER, Method
from yolokd.views import Spec, View

LAYERS = frozenset({"layer_logits", "layer_boxes"})
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (arXiv:1708.02002)
MIN_SIMILARITY = 0.01  # the authors raise a cell's similarity to this; below it the cell does not belong to the target
PAPER = "Chang et al., DETRDistill: A Universal Knowledge Distillation Framework for DETR-families, 2022"
REPORTED = (
    "Deformable DETR R101 -> R50 44.1 -> 46.6 COCO AP, as detrdistill.full and a contrastive head (authors' repository)"
)


@dataclass(frozen=True, slots=True)
class DETRLogitOptions:
    """Options of Hungarian-matched predictions; the gains are the authors'."""

    queries: int = 30  # the teacher's most confident queries per layer that take part
    cls: float = 1.0  # gain of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU
    weight: str = "score"  # of a box: the teacher's highest "score", or "one" for all (the authors')

    def __post_init__(self) -> None:
        ops.check_choice("detr_logit.weight", self.weight, ("score", "one"))
        ops.check_choice("detr_logit.queries", self.queries, tuple(range(1, 1001)))
        for name in ("cls", "l1", "giou"):
            ops.check_number(f"detr_logit.{name}", getattr(self, name), inclusive=True)


@dataclass(frozen=True, slots=True)
class DETRFeatOptions:
    """Options of target-aware features."""

    queries: int = 100  # the teacher's most confident queries per layer that take part
    by: str = "centre"  # a cell is compared to the map at the "centre" of a query's box, or to the "query" (paper)
    relative: bool = True  # divide by the teacher's mean square under the same weights; False: the authors'

    def __post_init__(self) -> None:
        ops.check_choice("detr_feat.queries", self.queries, tuple(range(1, 1001)))
        ops.check_choice("detr_feat.by", self.by, ("query", "centre"))
        ops.check_choice("detr_feat.relative", self.relative, (True, False))


@dataclass(frozen=True, slots=True)
class DETRQueryOptions:
    """Options of query priors; the gains are the authors'."""

    cls: float = 2.0  # gain of the focal loss of class scores
    l1: float = 5.0  # gain of the boxes' L1 distance
    giou: float = 2.0  # gain of the boxes' 1 - GIoU

    def __post_init__(self) -> None:
        for name in ("cls", "l1", "giou"):
            ops.check_number(f"detr_query.{name}", getattr(self, name), inclusive=True)


class DETRLogit(Method):
    """Divergence of the predictions of every decoder layer from the teacher's, after matching."""

    taxonomy_level = "logit"
    term = "dlogi"
    paper = f"{PAPER}, arXiv:2211.10156 (predictions)"
    reported = REPORTED
    unit = 1.0  # measured 0.37 at unit 1; paper: 1
    needs = LAYERS
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
        s, candidates = layer_predictions(student, teacher)
        t = sets.targets(candidates.at(sets.surest(candidates, min(self.options.queries, s.logits.shape[2]))))
        if self.options.weight == "one":
            t = replace(t, weight=torch.ones_like(t.weight))
        places = sets.assignment(s, t, size, self.gains)
        return sets.per_target(sets.pair_losses(s.at(places), t, size, self.gains), t)


class DETRFeat(Method):
    """Squared error of feature maps, weighted by how similar a cell is to the objects of the teacher's queries."""

    taxonomy_level = "feature"
    term = "dfeat"
    paper = f"{PAPER}, arXiv:2211.10156 (features)"
    reported = REPORTED
    unit = 0.12  # measured 2.4 at unit 1; paper: 1 on plain sums
    taps = ("neck",)
    teacher_needs = LAYERS
    heads = SET_TEACHER
    Options: ClassVar[type] = DETRFeatOptions
    options: DETRFeatOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: DETRFeatOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs = ops.widths("detr_feat", student, teacher, tap, self.taps)
        if options.by == "query":
            if any(t != teacher.width for _, t in pairs):
                raise ValueError(
                    f"detr_feat.by='query' compares queries of width {teacher.width} with maps of widths "
                    f"{', '.join(str(t) for _, t in pairs)} of teacher {teacher.name}: use detr_feat.by=centre."
                )
            self.teacher_needs = self.teacher_needs | {"layer_queries"}
        self.adapters = ops.adapters(pairs)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        all_queries = predictions(teacher)
        places = sets.surest(all_queries, self.options.queries)
        surest = all_queries.at(places)
        quality = surest.score * overlaps(surest.boxes, batch)
        size, losses = (batch["img"].shape[-2], batch["img"].shape[-1]), []
        for s, t in ops.adapted(student, teacher, self.tap, self.adapters):
            q = at_centres(t, surest.boxes, size) if self.options.by == "centre" else embeddings(teacher, places)
            weight = resemblance(t, q, quality)
            if self.options.relative:
                losses.append(ops.weighted_error(s, t, weight, relative=True))
            else:
                losses.append((weight * (s - t).square()).mean())
        return ops.level_mean(losses)


class DETRQuery(Method):
    """The task's loss on the teacher's queries in the student's decoder, assigned to objects as in the teacher."""

    taxonomy_level = "query"
    term = "dquer"
    paper = f"{PAPER}, arXiv:2211.10156 (query priors)"
    reported = REPORTED
    unit = 2.0  # measured 0.15 at unit 1; paper: 1
    student_needs = frozenset({"decode"})
    teacher_needs = frozenset({"content", "references", *LAYERS})
    heads = SET_HEADS
    classwise = True
    truth = True
    Options: ClassVar[type] = DETRQueryOptions
    options: DETRQueryOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: DETRQueryOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("detr_query", student, teacher)
        self.adapter = sets.query_adapter(student, teacher)
        self.gains = sets.PairGains(options.cls, options.l1, options.giou)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        content, references = (ops.required(getattr(teacher, f), f).detach() for f in ("content", "references"))
        decoded = sets.decoded(student, self.adapter(ops.wide(content)), references)
        s, teacher_layers = sets.stacked(decoded["layer_logits"], decoded["layer_boxes"]), predictions(teacher)
        partners = sets.layer_pairs(len(s.logits), len(teacher_layers.logits))
        t = sets.Predictions(teacher_layers.logits[partners], teacher_layers.boxes[partners])
        size = (batch["img"].shape[-2], batch["img"].shape[-1])
        boxes, label, there = sets.objects(batch, t)
        places = sets.assigned(object_costs(t, boxes, label, size), there)
        layer, image, g = there.nonzero(as_tuple=True)
        n, count = places[layer, image, g], max(int(there[0].sum()), 1)
        target = torch.zeros_like(s.logits).index_put(
            (layer, image, n, label[image, g]), torch.ones((), dtype=s.logits.dtype, device=n.device)
        )
        box = sets.box_losses(s.boxes[layer, image, n], boxes[image, g], size, self.gains)
        return (self.gains.cls * focal(s.logits, target).sum() + box.sum()) / (count * len(s.logits))


def resemblance(t: Tensor, queries: Tensor, quality: Tensor) -> Tensor:
    """W of a map (B, C, H, W), from queries (D, B, n, C) and their weights (D, B, n) -> (B, 1, H, W)."""
    target = (F.normalize(queries, dim=-1) * quality[..., None]).sum(2)
    mask = torch.einsum("dbc,bchw->dbhw", target, F.normalize(t, dim=1)).clamp(min=MIN_SIMILARITY)
    return (mask / mask.amax((2, 3), keepdim=True)).square().mean(0)[:, None]


def embeddings(teacher: View, places: Tensor) -> Tensor:
    """The teacher's queries at the given indices of every layer, without gradient, (D, B, n) -> (D, B, n, W)."""
    queries = torch.stack([ops.wide(q.detach()) for q in ops.required(teacher.layer_queries, "layer_queries")])
    return queries.gather(2, places[..., None].expand(*places.shape, queries.shape[-1]))


def overlaps(b: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The highest IoU of boxes (D, B, n, 4) with an object of their image, 1 where the image has none; (D, B, n)."""
    boxes, index = ops.ground_truth(batch)
    iou = ops.paired_iou(b[:, index], boxes[:, None].to(b.dtype))
    empty = torch.bincount(index, minlength=b.shape[1]) == 0
    floor = empty[:, None].to(b.dtype).expand(b.shape[:3])
    return floor.scatter_reduce(1, index[None, :, None].expand_as(iou), iou, "amax")


def at_centres(t: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The map's features in the cells that hold the centres of boxes, (B, C, H, W), (D, B, n, 4) -> (D, B, n, C)."""
    height, width = t.shape[-2:]
    x, y, _, _ = sets.fractions(boxes, size).unbind(-1)
    column, row = (x * width).long().clamp(0, width - 1), (y * height).long().clamp(0, height - 1)
    images = torch.arange(len(t), device=t.device)[:, None]
    return t.permute(0, 2, 3, 1)[images, row, column]


def object_costs(t: sets.Predictions, boxes: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """The cost by which DETRs match objects (B, G) to predictions, (D, B, G, Q)."""
    z = t.logits.mT.gather(2, label[None, :, :, None].expand(len(t.logits), -1, -1, t.logits.shape[2]))
    cls = focal(z, torch.ones_like(z)) - focal(z, torch.zeros_like(z))
    l1 = torch.cdist(sets.fractions(boxes, size).expand(len(z), -1, -1, -1), sets.fractions(t.boxes, size), p=1)
    return 2 * cls + 5 * l1 + 2 * (1 - ops.paired_giou(boxes[:, :, None], t.boxes[:, :, None]))


def focal(z: Tensor, y: Tensor) -> Tensor:
    """The focal loss of logits to labels 0 or 1, (...) twice -> (...)."""
    cross = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return (ALPHA * y + (1 - ALPHA) * (1 - y)) * (y - z.sigmoid()).abs().pow(GAMMA) * cross


def predictions(view: View) -> sets.Predictions:
    """A teacher's predictions of every layer, without gradient."""
    z, b = ops.required(view.layer_logits, "layer_logits"), ops.required(view.layer_boxes, "layer_boxes")
    return sets.stacked(tuple(x.detach() for x in z), tuple(x.detach() for x in b))


def layer_predictions(student: View, teacher: View) -> tuple[sets.Predictions, sets.Predictions]:
    """Predictions of every student layer, and of the teacher's layers that they learn from."""
    z_s, b_s = (ops.required(getattr(student, name), name) for name in ("layer_logits", "layer_boxes"))
    t = predictions(teacher)
    partners = sets.layer_pairs(len(z_s), len(t.logits))
    return sets.stacked(z_s, b_s), sets.Predictions(t.logits[partners], t.boxes[partners])
