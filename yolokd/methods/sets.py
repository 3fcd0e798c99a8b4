"""What methods on sets of predictions share: which predictions are matched, and the loss of a matched pair.

A set has no order, so predictions are matched by one-to-one assignment: of all ways to give every prediction of the
teacher its own prediction of the student, the one with the least total loss. Costs and losses are the same here, so a
method's value is the least that any assignment can reach: it does not depend on the order of either set, ties do not
change it, and equal sets have loss 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.views import Spec, View

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
WORST = 1e9  # cost of a pair where it is NaN: a student that diverged must not stop the assignment


@dataclass(frozen=True, slots=True)
class PairGains:
    """Gains of the parts of a pair's loss."""

    cls: float  # divergence of the class scores, summed over classes
    l1: float  # L1 distance of the boxes' centre, width and height in fractions of the image
    giou: float  # 1 - GIoU


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of D decoder layers for B images, Q per image; D is 1 for a head without a decoder."""

    logits: Tensor  # (D, B, Q, K)
    boxes: Tensor  # (D, B, Q, 4), xyxy in pixels

    def at(self, places: Tensor) -> Predictions:
        """The predictions at the given indices, (D, B, n)."""
        return Predictions(*(x.gather(2, places[..., None].expand(*places.shape, x.shape[-1])) for x in self.both))

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        return self.logits, self.boxes

    @property
    def score(self) -> Tensor:
        """Their highest class scores, (D, B, Q), without gradient."""
        return ops.confidence(self.logits)


@dataclass(frozen=True, slots=True)
class Targets(Predictions):
    """Predictions of the teacher, best first, to which the student's are matched."""

    weight: Tensor  # (D, B, n), weight of each one's box
    there: Tensor  # (D, B, n), true for an image's targets, which come first; false for padding

    def first(self, count: int) -> Targets:
        """The first count targets of each image."""
        return Targets(*(x[:, :, :count] for x in (*self.both, self.weight, self.there)))

    def repeated(self, layers: int) -> Targets:
        """The same targets for each of the given number of layers; D must be 1."""
        return Targets(*(x.expand(layers, *x.shape[1:]) for x in (*self.both, self.weight, self.there)))

    @property
    def count(self) -> Tensor:
        """A layer's soft count of targets, (D,), at least 1."""
        return (self.weight * self.there).sum((1, 2)).clamp(min=1)


def stacked(logits: tuple[Tensor, ...], boxes: tuple[Tensor, ...]) -> Predictions:
    """Predictions of several layers, (B, Q, K) and (B, Q, 4) each, as one, in float32 or wider."""
    return Predictions(torch.stack([ops.wide(z) for z in logits]), torch.stack([ops.wide(b) for b in boxes]))


def targets(t: Predictions) -> Targets:
    """All predictions as targets; the weight of each box is its score."""
    return Targets(*t.both, t.score, torch.ones_like(t.score, dtype=torch.bool))


def surest(t: Predictions, count: int) -> Tensor:
    """Indices of the most confident predictions of each layer and image, best first, (D, B, n) with n up to count."""
    return t.score.topk(min(count, t.score.shape[-1])).indices


def layer_pairs(student: int, teacher: int) -> list[int]:
    """For each of the student's decoder layers, the index of the teacher's layer that it learns from.

    It is the one at the same share of the depth, rounded up: a decoder refines its boxes from layer to layer, so a
    layer is paired with one that has as much left to refine. Every student layer has a partner, and the last layers
    are paired with each other.
    """
    return [ceil((i + 1) * teacher / student) - 1 for i in range(student)]


def assignment(s: Predictions, t: Targets, size: tuple[int, int], gains: PairGains) -> Tensor:
    """The index of the student's prediction for each target, (D, B, n); for padding it has no meaning.

    No image may have more targets than the student has predictions.
    """
    return assigned(pair_costs(s, t, size, gains), t.there)


def assigned(costs: Tensor, there: Tensor) -> Tensor:
    """The indices of least total cost, (D, B, n, Q) -> (D, B, n); there (D, B, n): true for targets, then false."""
    matrices = costs.flatten(0, 1).nan_to_num(WORST, WORST, -WORST).cpu().double().numpy()
    places = np.zeros(matrices.shape[:2], dtype=np.int64)
    for place, matrix, count in zip(places, matrices, there.flatten(0, 1).sum(-1).tolist(), strict=True):
        place[:count] = cheapest(matrix[:count])
    return torch.from_numpy(places).to(there.device).reshape(there.shape)


def pair_costs(s: Predictions, t: Targets, size: tuple[int, int], gains: PairGains) -> Tensor:
    """`pair_losses` of every target with every prediction of the student, (D, B, n, Q), without gradient.

    The entropy of the target's scores is left out: it is the same for all of the student's predictions.
    """
    z_s, b_s = s.logits.detach(), s.boxes.detach()
    cross = F.softplus(z_s).sum(-1)[:, :, None] - t.logits.sigmoid() @ z_s.mT
    l1 = torch.cdist(fractions(t.boxes, size), fractions(b_s, size), p=1)
    giou = 1 - ops.paired_giou(t.boxes[:, :, :, None], b_s[:, :, None])
    return gains.cls * cross + t.weight[..., None] * (gains.l1 * l1 + gains.giou * giou)


def pair_losses(s: Predictions, t: Targets, size: tuple[int, int], gains: PairGains) -> Tensor:
    """The loss of predictions at equal indices, (D, B, n); the target's weight applies to the box only.

    Where a teacher sees no object its box has no meaning, but its low class scores do.
    """
    cls = ops.divergence(s.logits, t.logits).sum(-1)
    return gains.cls * cls + t.weight * box_losses(s.boxes, t.boxes, size, gains)


def box_losses(b_s: Tensor, b_t: Tensor, size: tuple[int, int], gains: PairGains) -> Tensor:
    """The loss of boxes at equal indices, (..., 4) twice -> (...)."""
    l1 = (fractions(b_s, size) - fractions(b_t, size)).abs().sum(-1)
    return gains.l1 * l1 + gains.giou * (1 - ops.paired_giou(b_s, b_t))


def per_target(losses: Tensor, t: Targets) -> Tensor:
    """A layer's sum of losses divided by its soft count of targets, mean over layers; (D, B, n) -> ()."""
    return ((losses * t.there).sum((1, 2)) / t.count).mean()


def objects(batch: dict[str, Tensor], t: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's objects, padded: boxes (B, G, 4), classes (B, G), and which of them are real, (D, B, G)."""
    (layers, images, queries), (boxes, index) = t.logits.shape[:3], ops.ground_truth(batch)
    count = torch.bincount(index, minlength=images)
    order = index.argsort(stable=True)
    rank = torch.empty_like(index)
    rank[order] = torch.arange(len(index), device=index.device) - (count.cumsum(0) - count)[index[order]]
    slots = min(max(int(count.max()), 1), queries)
    kept = rank < slots
    place = (index[kept], rank[kept])
    padded = boxes.new_zeros(images, slots, 4).index_put(place, boxes[kept]).to(t.boxes.dtype)
    label = index.new_zeros(images, slots).index_put(place, batch["cls"].to(index.device).reshape(-1).long()[kept])
    there = torch.arange(slots, device=index.device) < count[:, None]
    return padded, label, there.expand(layers, -1, -1)


def query_adapter(student: Spec, teacher: Spec) -> nn.Linear:
    """A layer that turns a teacher's queries (B, Q, W_t) into queries for the student's decoder, (B, Q, W_s).

    Needed at equal widths too: two decoders that were trained separately order their channels differently.
    """
    return nn.Linear(teacher.width, student.width)


def decoded(view: View, content: Tensor, references: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """The predictions that a view's decoder makes from queries."""
    return ops.required(view.decode, "decode")(content, references)


def fractions(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """xyxy in pixels of an image of H, W -> centre, width and height in fractions of it, (..., 4)."""
    boxes = boxes / boxes.new_tensor([size[1], size[0]]).repeat(2)
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def cheapest(cost: Array) -> Array:
    """Column of each row in the one-to-one assignment of least total cost, (n, Q) -> (n,) for n <= Q.

    Shortest augmenting paths (D. F. Crouse: "On implementing 2D rectangular assignment algorithms", 2016), started from
    the rows whose cheapest column is not also an earlier row's: few predictions compete for a box, so few paths are
    searched.
    """
    rows, columns = cost.shape
    column_of, row_of = np.full(rows, -1), np.full(columns, -1)
    if rows == 0:
        return column_of
    u, v = cost.min(1), np.zeros(columns)  # dual variables: cost - u - v >= 0, and 0 where assigned
    cheapest_columns, first = np.unique(cost.argmin(1), return_index=True)
    row_of[cheapest_columns], column_of[first] = first, cheapest_columns
    for row in np.flatnonzero(column_of < 0):
        _augment(cost, u, v, row_of, column_of, int(row))
    return column_of


def _augment(cost: Array, u: Array, v: Array, row_of: Array, column_of: Array, start: int) -> None:
    """Assign one more row along the shortest path to a free column, and update the dual variables."""
    shortest, came_from = np.full(len(v), np.inf), np.full(len(v), -1)
    price = v.copy()  # -inf where a path has been followed already
    followed: list[int] = []
    lengths: list[float] = []
    row, length = start, 0.0
    while True:
        reached = cost[row] - price
        reached += length - u[row]
        better = reached < shortest
        shortest[better], came_from[better] = reached[better], row
        column = int(shortest.argmin())
        length = shortest[column]
        if row_of[column] < 0:
            break
        followed.append(column)
        lengths.append(length)
        shortest[column], price[column] = np.inf, -np.inf
        row = row_of[column]
    saved = length - np.array(lengths)
    u[start] += length
    u[row_of[followed]] += saved
    v[followed] -= saved
    while True:  # back along the path: each column is assigned to the row from which it was reached
        row = came_from[column]
        row_of[column] = row
        column, column_of[row] = column_of[row], column
        if row == start:
            return
