"""What methods on sets of predictions share: which prediction meets which, and what a pair is worth.

A set has no order, so predictions meet by one-to-one assignment: of all the ways to give every prediction of the
teacher an own one of the student, that of the least total loss. Costs and losses are the same number here, so that a
method's value is the least that any assignment can reach: it does not depend on the order of either side, ties change
nothing, and equal sets are worth 0.
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
WORST = 1e9  # cost of a pair of which it is not a number: a student that diverged must not stop the assignment


@dataclass(frozen=True, slots=True)
class PairGains:
    """Gains of the parts of a pair's loss."""

    cls: float  # divergence of the class scores, summed over classes
    l1: float  # L1 distance of the boxes' centre, width and height in fractions of the image
    giou: float  # 1 - GIoU


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of D decoder layers for B images, Q of an image; of a head without a decoder D is 1."""

    logits: Tensor  # (D, B, Q, K)
    boxes: Tensor  # (D, B, Q, 4), xyxy in pixels

    def at(self, places: Tensor) -> Predictions:
        """Those at some places (D, B, n)."""
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
    """Predictions of the teacher, best first, that the student's are to meet."""

    weight: Tensor  # (D, B, n), how much each one's box counts
    there: Tensor  # (D, B, n), true for the first so many of an image, which has no more

    def first(self, count: int) -> Targets:
        """The first so many of an image."""
        return Targets(*(x[:, :, :count] for x in (*self.both, self.weight, self.there)))

    def repeated(self, layers: int) -> Targets:
        """The same for so many layers; D must be 1."""
        return Targets(*(x.expand(layers, *x.shape[1:]) for x in (*self.both, self.weight, self.there)))

    @property
    def count(self) -> Tensor:
        """A layer's soft count of targets, (D,), at least 1."""
        return (self.weight * self.there).sum((1, 2)).clamp(min=1)


def stacked(logits: tuple[Tensor, ...], boxes: tuple[Tensor, ...]) -> Predictions:
    """Predictions of some layers, (B, Q, K) and (B, Q, 4) each, in float32 or wider."""
    return Predictions(torch.stack([ops.wide(z) for z in logits]), torch.stack([ops.wide(b) for b in boxes]))


def targets(t: Predictions) -> Targets:
    """All of them, each box as much as its score."""
    return Targets(*t.both, t.score, torch.ones_like(t.score, dtype=torch.bool))


def surest(t: Predictions, count: int) -> Tensor:
    """Places of an image's and layer's predictions of the highest scores, best first, (D, B, n) for n up to count."""
    return t.score.topk(min(count, t.score.shape[-1])).indices


def layer_pairs(student: int, teacher: int) -> list[int]:
    """For each of the student's decoder layers, the teacher's that it learns from.

    At the same share of the depth, rounded up: a decoder refines its boxes from layer to layer, so a layer meets the
    one that has as much left to refine, every student layer has a partner, and the last meets the last.
    """
    return [ceil((i + 1) * teacher / student) - 1 for i in range(student)]


def assignment(s: Predictions, t: Targets, size: tuple[int, int], gains: PairGains) -> Tensor:
    """The place of the student's prediction for each target, (D, B, n); where there is none it means nothing.

    No image may have more targets than the student has predictions.
    """
    return assigned(pair_costs(s, t, size, gains), t.there)


def assigned(costs: Tensor, there: Tensor) -> Tensor:
    """The places that cost least in all, (D, B, n, Q) -> (D, B, n); there (D, B, n), true for the first so many."""
    matrices = costs.flatten(0, 1).nan_to_num(WORST, WORST, -WORST).cpu().double().numpy()
    places = np.zeros(matrices.shape[:2], dtype=np.int64)
    for place, matrix, count in zip(places, matrices, there.flatten(0, 1).sum(-1).tolist(), strict=True):
        place[:count] = cheapest(matrix[:count])
    return torch.from_numpy(places).to(there.device).reshape(there.shape)


def pair_costs(s: Predictions, t: Targets, size: tuple[int, int], gains: PairGains) -> Tensor:
    """`pair_losses` of every target with every prediction of the student, (D, B, n, Q), without gradient.

    Without the entropy of the target's scores, which is the same for all of the student's.
    """
    z_s, b_s = s.logits.detach(), s.boxes.detach()
    cross = F.softplus(z_s).sum(-1)[:, :, None] - t.logits.sigmoid() @ z_s.mT
    l1 = torch.cdist(fractions(t.boxes, size), fractions(b_s, size), p=1)
    giou = 1 - ops.paired_giou(t.boxes[:, :, :, None], b_s[:, :, None])
    return gains.cls * cross + t.weight[..., None] * (gains.l1 * l1 + gains.giou * giou)


def pair_losses(s: Predictions, t: Targets, size: tuple[int, int], gains: PairGains) -> Tensor:
    """What predictions at equal places are apart, (D, B, n); the weight is that of the box alone.

    Where a teacher is sure of nothing its box means nothing, but that there is nothing does.
    """
    cls = ops.divergence(s.logits, t.logits).sum(-1)
    return gains.cls * cls + t.weight * box_losses(s.boxes, t.boxes, size, gains)


def box_losses(b_s: Tensor, b_t: Tensor, size: tuple[int, int], gains: PairGains) -> Tensor:
    """What boxes at equal places are apart, (..., 4) twice -> (...)."""
    l1 = (fractions(b_s, size) - fractions(b_t, size)).abs().sum(-1)
    return gains.l1 * l1 + gains.giou * (1 - ops.paired_giou(b_s, b_t))


def per_target(losses: Tensor, t: Targets) -> Tensor:
    """Sum of a layer's losses over its soft count of targets, mean over layers; (D, B, n) -> ()."""
    return ((losses * t.there).sum((1, 2)) / t.count).mean()


def query_adapter(student: Spec, teacher: Spec) -> nn.Linear:
    """What turns a teacher's queries (B, Q, W_t) into some that the student's decoder can learn to read, (B, Q, W_s).

    Also at equal widths: two decoders that were trained apart share no order of channels.
    """
    return nn.Linear(teacher.width, student.width)


def decoded(view: View, content: Tensor, references: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What a view's decoder makes of queries."""
    return ops.required(view.decode, "decode")(content, references)


def fractions(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """xyxy in pixels of an image of H, W -> centre, width and height in fractions of it, (..., 4)."""
    boxes = boxes / boxes.new_tensor([size[1], size[0]]).repeat(2)
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def cheapest(cost: Array) -> Array:
    """Column of each row in the one-to-one assignment of least total cost, (n, Q) -> (n,) for n <= Q.

    Shortest augmenting paths (D. F. Crouse: "On implementing 2D rectangular assignment algorithms", 2016), started from
    the rows whose cheapest column no earlier row wants: few predictions compete for a box, so few paths are searched.
    """
    rows, columns = cost.shape
    column_of, row_of = np.full(rows, -1), np.full(columns, -1)
    if rows == 0:
        return column_of
    u, v = cost.min(1), np.zeros(columns)  # prices: cost - u - v >= 0, and 0 where assigned
    cheapest_columns, first = np.unique(cost.argmin(1), return_index=True)
    row_of[cheapest_columns], column_of[first] = first, cheapest_columns
    for row in np.flatnonzero(column_of < 0):
        _augment(cost, u, v, row_of, column_of, int(row))
    return column_of


def _augment(cost: Array, u: Array, v: Array, row_of: Array, column_of: Array, start: int) -> None:
    """Assign one more row along the shortest path to a free column, and adapt the prices."""
    shortest, came_from = np.full(len(v), np.inf), np.full(len(v), -1)
    price = v.copy()  # and -inf where a path has been followed already
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
    while True:  # back along the path, each column goes to the row that it was reached from
        row = came_from[column]
        row_of[column] = row
        column, column_of[row] = column_of[row], column
        if row == start:
            return
