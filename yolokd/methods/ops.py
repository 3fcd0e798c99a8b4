"""Functions that at least two methods share. None of them changes its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from yolokd.views import Spec, View

T = TypeVar("T")
TINY_AREA = 1e-7  # square pixels: below it a union or an enclosing box counts as empty
CANDIDATES = 1000  # boxes per image that enter NMS
TINY_ENERGY = 1e-12  # mean square of a map: below it the map counts as dead and offers no scale


# Checks, so that a wrong pair or option ends in one sentence when a method is built


def check_number(name: str, value: object, above: float = 0.0, inclusive: bool = False) -> None:
    """Refuse an option that is not a finite number above (or at least) a bound."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if abs(number) <= torch.finfo(torch.float64).max and (
        number > above or (inclusive and number == above)
    ):  # an int has no end
        return
    bound = f"{above:g} or above" if inclusive else f"above {above:g}"
    raise ValueError(f"{name}={value!r} is not allowed: it must be a finite number, {bound}.")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse an option that is not one of its choices (1 does not count as True)."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(map(repr, choices))}.")


def check_classes(method: str, student: Spec, teacher: Spec) -> None:
    """Refuse a pair whose class scores cannot be compared one to one."""
    if student.classes != teacher.classes:
        raise ValueError(
            f"{method} compares scores class by class, but student {student.name} has {student.classes} classes "
            f"and teacher {teacher.name} has {teacher.classes}."
        )


def widths(method: str, student: Spec, teacher: Spec, tap: str, taps: tuple[str, ...]) -> list[tuple[int, int]]:
    """Widths (student, teacher) of every map of a tap; ValueError says why if the pair lacks such maps."""
    check_choice(f"{method}.tap", tap, taps)
    for role, spec in (("student", student), ("teacher", teacher)):
        if not spec.channels.get(tap):
            raise ValueError(f"{method} on tap {tap!r} needs maps that {role} {spec.name} does not have.")
    s, t = student.channels[tap], teacher.channels[tap]
    if len(s) != len(t):
        raise ValueError(
            f"{method} on tap {tap!r} pairs maps level by level, but student {student.name} has {len(s)} "
            f"and teacher {teacher.name} has {len(t)}."
        )
    return list(zip(s, t, strict=True))


def required(value: T | None, name: str) -> T:
    """A view's field, which must not be None: the method declares that it needs it."""
    if value is None:
        raise ValueError(f"The view has no {name}, although the method declares that it needs them.")
    return value


# Maps


def adapters(pairs: Iterable[tuple[int, int]], bias: bool = True) -> nn.ModuleList:
    """One trainable 1x1 conv per map, (B, C_s, H, W) -> (B, C_t, H, W).

    Needed at equal widths too: two nets that were trained separately order their channels differently.
    """
    return nn.ModuleList(nn.Conv2d(s, t, kernel_size=1, bias=bias) for s, t in pairs)


def paired(student: View, teacher: View, tap: str, adapters: nn.ModuleList) -> list[tuple[Any, Tensor, Tensor]]:
    """(adapter, s, t) for every map of the tap: (B, C_s, H_s, W_s) and (B, C_t, H_s, W_s); t carries no gradient."""
    s_maps: tuple[Tensor, ...] = required(getattr(student, tap), tap)
    t_maps: tuple[Tensor, ...] = required(getattr(teacher, tap), tap)
    return [
        (adapter, wide(s), resize(wide(t.detach()), s)) for adapter, s, t in zip(adapters, s_maps, t_maps, strict=True)
    ]


def adapted(student: View, teacher: View, tap: str, adapters: nn.ModuleList) -> list[tuple[Tensor, Tensor]]:
    """Pairs (A(s), t) of equal shape (B, C_t, H_s, W_s), one per map of the tap; t carries no gradient."""
    return [(adapter(s), t) for adapter, s, t in paired(student, teacher, tap, adapters)]


def wide(x: Tensor) -> Tensor:
    """x in float32, or unchanged if it is float64: half precision overflows in sums of squares."""
    return x if x.dtype == torch.float64 else x.float()


def resize(x: Tensor, like: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W) by bilinear interpolation; like (., ., H, W). Unchanged at equal size."""
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def energy_or_one(energy: Tensor) -> Tensor:
    """A teacher's mean square as a divisor, () -> (): 1 for a dead map, whose relative error has no meaning."""
    return torch.where(energy > TINY_ENERGY, energy, torch.ones_like(energy))


def positive_or_one(x: Tensor) -> Tensor:
    """x as a divisor: x where it is above 0, else 1."""
    return torch.where(x > 0, x, torch.ones_like(x))


def pooled_error(s: Tensor, t: Tensor, relative: bool) -> Tensor:
    """Mean square of s - t, divided by that of t if relative; (M, C, R, R) twice -> (), 0 without regions."""
    count = max(t.numel(), 1)
    plain = (s - t).square().sum() / count
    return plain / energy_or_one(t.square().sum() / count) if relative else plain


def weighted_error(s: Tensor, t: Tensor, w: Tensor, relative: bool) -> Tensor:
    """Weighted mean square of s - t, divided by that of t if relative; (B, C, H, W) twice, (B, 1, H, W) -> ()."""
    plain = weighted_square(s - t, w)
    return plain / energy_or_one(weighted_square(t, w)) if relative else plain


def weighted_square(x: Tensor, w: Tensor) -> Tensor:
    """sum_i w_i |x_i|^2 / (C sum_i w_i + 1e-9) over cells i of all images; (B, C, H, W), (B, 1, H, W) -> ()."""
    return (w * x.square()).sum() / (x.shape[1] * w.sum() + 1e-9)


class SquaredError(torch.autograd.Function):
    """sum w (s - t)^2 for any w that broadcasts, with a gradient for s only.

    On a CPU the time of such sums is that of writing and reading maps: this keeps one map where autograd keeps three.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, w: Tensor) -> Tensor:
        difference = s - t
        weighted = difference * w
        ctx.save_for_backward(weighted)
        return difference.mul_(weighted).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weighted,) = ctx.saved_tensors
        return weighted * (2 * gradient), None, None


def level_maps(score: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """One score per cell, (B, N) -> L maps (B, 1, H, W); anchor points are in order of level, then of row."""
    sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
    parts = torch.split(score, [h * w for h, w in sizes], 1)
    return [part.reshape(-1, 1, h, w) for part, (h, w) in zip(parts, sizes, strict=True)]


def level_mean(losses: list[Tensor]) -> Tensor:
    """Mean over maps, L losses () -> (), so that a gain means the same for any number of levels."""
    return torch.stack(losses).mean()


# Ground truth


def ground_truth(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The batch's M objects: boxes (M, 4), xyxy in input pixels, and the index of each one's image, (M,)."""
    images = batch["img"]
    height, width = images.shape[-2:]
    boxes = wide(batch["bboxes"].detach().to(images.device))
    size = boxes.new_tensor([width, height])
    centre, half = boxes[:, :2] * size, boxes[:, 2:4] * size / 2
    if boxes.shape[1] == 5:  # rotated, with an angle in radians: take the upright box around it
        cos, sin = boxes[:, 4:].cos().abs(), boxes[:, 4:].sin().abs()
        half = half * cos + half.flip(-1) * sin
    return torch.cat((centre - half, centre + half), -1), batch["batch_idx"].detach().to(images.device).reshape(
        -1
    ).long()


def spans(boxes: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Rows (M, H) and columns (M, W) that each box overlaps; boxes (M, 4), size H and W, stride in pixels per cell.

    Any overlap counts, not only the cells' centres, so that an object smaller than a cell still has one on every level.
    """
    low, high = (boxes[:, :2] / stride).floor(), (boxes[:, 2:] / stride).ceil()
    rows, columns = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) for n in size)
    return (
        (rows >= low[:, 1:]) & (rows < high[:, 1:]),
        (columns >= low[:, :1]) & (columns < high[:, :1]),
    )


def foreground(boxes: Tensor, index: Tensor, like: Tensor, stride: int, value: Tensor | None = None) -> Tensor:
    """1 in cells that an object of the image touches, else 0; like (B, ., H, W) -> (B, H, W).

    With a value (M,) >= 0 for every object: the highest value among the objects that touch the cell, instead of 1.
    """
    rows, columns = (span.to(boxes.dtype) for span in spans(boxes, (like.shape[-2], like.shape[-1]), stride))
    values = (rows if value is None else rows * value[:, None])[:, :, None] * columns[:, None, :]
    mask = values.new_zeros(len(like), *values.shape[1:])
    return mask.scatter_reduce(0, index[:, None, None].expand_as(values), values, "amax")


def objects_and_rest(boxes: Tensor, index: Tensor, like: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Masks whose sums count objects: 1 / (cells of the smallest box that touches a cell), 0 without one; and the even
    share of the image's other cells, 0 on objects. Boxes (M, 4), (M,), map (B, ., H, W) -> (B, H, W) twice.
    """
    rows, columns = spans(boxes, (like.shape[-2], like.shape[-1]), stride)
    cells = rows.sum(1) * columns.sum(1)
    objects = foreground(boxes, index, like, stride, 1 / cells.clamp(min=1).to(boxes.dtype))
    free = (objects == 0).to(objects.dtype)
    return objects, free / free.sum((1, 2), keepdim=True).clamp(min=1)


def region_error(error: Tensor, energy: Tensor, weight: Tensor, relative: bool) -> Tensor:
    """Weighted mean of cells' squared errors, divided by that of the teacher's squares if relative; 0 without weight.

    All (B, H, W) -> (); error and energy are means over channels.
    """
    total = positive_or_one(weight.sum())
    plain = (weight * error).sum() / total
    return plain / energy_or_one((weight * energy).sum() / total) if relative else plain


def grids(batch: dict[str, Tensor], strides: Sequence[int], like: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of every level's anchor points on the batch's images; like (B, N, ...)."""
    height, width = batch["img"].shape[-2:]
    sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]
    count = sum(rows * columns for rows, columns in sizes)
    if count != like.shape[1]:
        raise ValueError(f"An image of {height} x {width} has {count} anchor points, but the view has {like.shape[1]}.")
    return sizes


def point_foreground(
    boxes: Tensor, index: Tensor, batch: dict[str, Tensor], strides: Sequence[int], like: Tensor
) -> Tensor:
    """`foreground` at the N anchor points, boxes (M, 4) and their images (M,), like (B, N, ...) -> (B, N)."""
    parts = []
    for size, stride in zip(grids(batch, strides, like), strides, strict=True):
        parts.append(foreground(boxes, index, boxes.new_empty(len(like), 0, *size), stride).flatten(1))
    return torch.cat(parts, 1)


def points(batch: dict[str, Tensor], strides: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Anchor points of the batch: centres (N, 2) in input pixels and pixels per cell (N,); like (B, N, ...)."""
    centres, sizes = [], []
    for grid, stride in zip(grids(batch, strides, like), strides, strict=True):
        rows, columns = (stride * (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) for n in grid)
        centres.append(torch.cartesian_prod(rows, columns).flip(-1))
        sizes.append(torch.full((len(rows) * len(columns),), stride, device=like.device, dtype=like.dtype))
    return torch.cat(centres), torch.cat(sizes)


# Regions of interest


def top_boxes(
    boxes: Tensor, score: Tensor, size: tuple[int, int], count: int, iou: float, min_score: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Each image's best boxes after NMS, (B, N, 4), (B, N) -> (M, 4) clipped to the image, and their images (M,).

    At most count per image, with a score above min_score, best first. Boxes with a side below one pixel are left out;
    size is the image's H and W.
    """
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    boxes = torch.minimum(boxes.detach().clamp(min=0), limit)
    places, there = top_places(boxes, score, count, iou, min_score)
    index, rank = there.nonzero(as_tuple=True)
    return boxes[index, places[index, rank]], index


def top_places(boxes: Tensor, score: Tensor, count: int, iou: float, min_score: float) -> tuple[Tensor, Tensor]:
    """Indices of each image's best boxes after NMS, (B, N, 4), (B, N) -> (B, M), and which of them are valid, (B, M).

    At most count per image, with a score above min_score, best first. Boxes with a side below one pixel are left out.
    """
    boxes = boxes.detach()
    large = ((boxes[..., 2:] - boxes[..., :2]) >= 1).all(-1)
    score, order = torch.where(large, score.detach(), -1.0).topk(min(CANDIDATES, score.shape[1]))
    image, rank = (score > min_score).nonzero(as_tuple=True)
    candidates = boxes[image, order[image, rank]]
    if len(candidates):
        # batched_nms separates images by an offset that assumes coordinates of 0 or more
        candidates = candidates - candidates.amin()
    kept = batched_nms(candidates, score[image, rank], image, iou)
    best = torch.full_like(score, -1.0).index_put((image[kept], rank[kept]), score[image[kept], rank[kept]])
    best, chosen = best.topk(min(count, best.shape[1]))
    return order.gather(1, chosen), best >= 0


def pooled(x: Tensor, boxes: Tensor, index: Tensor, size: tuple[int, int], cells: int) -> Tensor:
    """RoIAlign (arXiv:1703.06870) with 2 x 2 samples per cell, (B, C, h, w) -> (M, C, cells, cells).

    boxes (M, 4) are xyxy in pixels of images of size H, W; index (M,) gives their images. The map may have any size: it
    spans the image. A cell is a weighted sum over 16 positions of the map, which embedding_bag computes for all
    channels at once. On a CPU that takes half the time of torchvision's roi_align. The gradient on a GPU is not
    deterministic, nor is roi_align's.
    """
    height, width = x.shape[-2:]
    scale = boxes.new_tensor([width / size[1], height / size[0]]).repeat(2)
    left, top, right, bottom = (boxes * scale).to(x.dtype).unbind(-1)
    rows, w_rows = samples(top, bottom, height, cells)
    columns, w_columns = samples(left, right, width, cells)
    places = (index[:, None, None] * height + rows)[:, :, None, :, None] * width + columns[:, None, :, None, :]
    weights = w_rows[:, :, None, :, None] * w_columns[:, None, :, None, :]
    flat = x.permute(0, 2, 3, 1).flatten(0, 2)
    features = F.embedding_bag(places.reshape(-1, 16), flat, per_sample_weights=weights.reshape(-1, 16), mode="sum")
    return features.reshape(len(boxes), cells, cells, x.shape[1]).permute(0, 3, 1, 2)


def samples(low: Tensor, high: Tensor, length: int, cells: int) -> tuple[Tensor, Tensor]:
    """Positions along one axis from which each cell is computed, and weights; (M,) twice -> (M, cells, 4) twice.

    Two samples per cell, each interpolated between two neighbours; units are cells, whose centres are at half integers.
    """
    step = (torch.arange(2 * cells, device=low.device, dtype=low.dtype) + 0.5) / (2 * cells)
    at = low[:, None] - 0.5 + (high - low)[:, None] * step
    inside = (at >= -1) & (at <= length)  # further out the map counts as 0
    at = at.clamp(0, length - 1)
    share = at - at.floor()
    places = torch.stack((at.floor(), (at.floor() + 1).clamp(max=length - 1)), -1).long()
    weights = torch.stack((1 - share, share), -1) * inside[..., None] / 2
    return places.reshape(-1, cells, 4), weights.reshape(-1, cells, 4)


# Scores and boxes


def confidence(logits: Tensor) -> Tensor:
    """Highest class score, (B, N, K) -> (B, N), in [0, 1], without gradient."""
    return wide(logits.detach()).sigmoid().amax(-1)


def soft_count(logits: Tensor) -> Tensor:
    """The teacher's soft count of positives in the batch, sum_n max_k sigmoid(z), (B, N, K) -> (), at least 1."""
    return confidence(logits).sum().clamp(min=1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes at equal indices, (..., 4) and (..., 4) xyxy that broadcast -> (...), in [0, 1]."""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inter = sides.clamp(min=0).prod(-1)
    return inter / (area(a) + area(b) - inter).clamp(min=TINY_AREA)


def alignment(view: View, batch: dict[str, Tensor], alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """How well each anchor point predicts each object, score^alpha IoU^beta, and that IoU; (M, N) twice.

    The score is that of the object's class; a point whose centre is outside the object has -1 and IoU 0. No gradient.
    """
    z, boxes = (wide(required(getattr(view, name), name)).detach() for name in ("logits", "boxes"))
    objects, index = ground_truth(batch)
    cls = batch["cls"].detach().to(index.device).reshape(-1).long()
    centres, _ = points(batch, view.strides, z)
    inside = ((centres > objects[:, None, :2]) & (centres < objects[:, None, 2:])).all(-1)
    g, n = inside.nonzero(as_tuple=True)
    overlap = paired_iou(boxes[index[g], n], objects[g]).to(z.dtype)
    quality, iou = z.new_full(inside.shape, -1.0), z.new_zeros(inside.shape)
    quality[g, n] = z[index[g], n, cls[g]].sigmoid() ** alpha * overlap**beta
    iou[g, n] = overlap
    return quality, iou


def divergence(z_s: Tensor, z_t: Tensor) -> Tensor:
    """The binary KL(sigmoid(z_t) || sigmoid(z_s)) of every entry, (...) twice -> (...)."""
    p = z_t.sigmoid()
    cross = F.binary_cross_entropy_with_logits(z_s, p, reduction="none")
    # the entropy by the same kernel: the difference is exactly 0 at equal logits, and extreme ones give no log(0)
    return cross - F.binary_cross_entropy_with_logits(z_t, p, reduction="none")


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (arXiv:1902.09630) of boxes at equal indices, (..., 4) and (..., 4) xyxy -> (...), in [-1, 1].

    A box with a negative side has area 0: heads without box bins can decode such a box early in training. It has no
    gradient then.
    """
    inter = area(torch.cat((torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])), -1))
    hull = area(torch.cat((torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])), -1))
    union = area(a) + area(b) - inter
    # a floor instead of an added epsilon keeps equal boxes at exactly 1
    return inter / union.clamp(min=TINY_AREA) - (hull - union) / hull.clamp(min=TINY_AREA)


def area(boxes: Tensor) -> Tensor:
    """Area of xyxy boxes, (..., 4) -> (...)."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height
