"""Random views of two detectors, and what the scalar references share: plain loops on nested lists of floats."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from yolokd.methods import METHODS
from yolokd.methods.base import Method
from yolokd.views import AT_POINTS, FIELDS, MAPS, Spec, View

SIZES = ((4, 6), (2, 3))  # H, W a level, those of an image of 32 x 48 pixels
STRIDES = (8, 16)
OTHER_SIZES = [  # H, W a level of (student, teacher)
    (SIZES, SIZES),
    (SIZES, ((6, 8), (3, 5))),  # a teacher on larger images
    (((5, 4), (3, 2)), SIZES),
]
BINS = 4
JOINTS = 3  # keypoints of an object
OF_TASKS = {"rotated", "rotated_bins", "keypoints", "coefficients", "prototypes"}  # what no detection head shows
SET_FIELDS = frozenset(set(FIELDS) - {"towers", "bins", *OF_TASKS} | {"decode"})
HEAD = "head"  # stands for the tap of a method that has none
DENSE = "dense/dense"  # kinds of heads, student/teacher
QUERIES, LAYERS, QUERY_WIDTHS = (5, 7), (2, 3), (4, 6)  # of decoders, (student, teacher)


@dataclass(frozen=True)
class Pair:
    """A student and a teacher: their facts and what they show for one batch."""

    student_spec: Spec
    teacher_spec: Spec
    student: View
    teacher: View
    batch: dict[str, Any]  # as Ultralytics' trainer gives it: images and ground truth


def make_pair(
    seed: int = 0,
    batch: int = 2,
    widths: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 3), (4, 2)),
    sizes: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = (SIZES, SIZES),
    classes: tuple[int, int] = (3, 3),
    dtype: torch.dtype = torch.float64,
    heads: str = DENSE,
    queries: tuple[int, int] = QUERIES,
    layers: tuple[int, int] = LAYERS,
    query_widths: tuple[int, int] = QUERY_WIDTHS,
) -> Pair:
    """Both sides of everything: (student, teacher). Each side draws its own numbers."""
    images, specs, views = make_batch(seed, batch, sizes[0]), [], []
    for i, head in enumerate(heads.split("/")):
        view = make_view(2 * seed + i, batch, widths[i], sizes[i], classes[i], dtype)
        if sizes[i] != sizes[0]:  # what it shows at anchor points, it shows at the student's, whatever its maps' sizes
            there = make_view(2 * seed + i, batch, widths[i], sizes[0], classes[i], dtype)
            view = replace(view, **{field: getattr(there, field) for field in AT_POINTS})
        facts = {"bins": BINS, "keypoints": JOINTS, "name": ("small", "large")[i]}
        if head == "set":
            size = (images["img"].shape[-2], images["img"].shape[-1])
            decoder = Decoder(2 * seed + i, batch, layers[i], query_widths[i], classes[i], size, dtype)
            view = make_set(view, decoder, 2 * seed + i, queries[i])
            facts |= {"bins": 0, "dense": False, "layers": layers[i], "width": query_widths[i], "provides": SET_FIELDS}
        specs.append(Spec(STRIDES, channels(widths[i]), classes[i], **facts))
        views.append(view)
    return Pair(specs[0], specs[1], views[0], views[1], images)


def make_set(view: View, decoder: Decoder, seed: int, queries: int) -> View:
    """The view with the decoder's predictions in place of those at anchor points."""
    random = torch.Generator().manual_seed(100 + seed)
    batch, _, width = decoder.memory.shape
    content = torch.randn(batch, queries, width, generator=random, dtype=torch.float64).to(decoder.memory.dtype)
    centre, side = (torch.rand(batch, queries, 2, generator=random, dtype=torch.float64) for _ in range(2))
    centre, side = 0.2 + 0.6 * centre, 0.1 + 0.2 * side
    references = (torch.cat((centre - side, centre + side), -1) * decoder.scale).to(decoder.memory.dtype)
    found = decoder(content, references)
    predictions = {"logits": found["layer_logits"][-1], "boxes": found["layer_boxes"][-1]}
    queries_in = {"content": content, "references": references, "decode": decoder}
    absent = dict.fromkeys(("towers", "bins", "finish", *OF_TASKS))
    return replace(view, **absent, **predictions, **queries_in, **found)


class Decoder:
    """A small stand-in for a decoder: layers of self-attention and an image's memory, boxes refined layer by layer."""

    def __init__(
        self, seed: int, batch: int, layers: int, width: int, classes: int, size: tuple[int, int], dtype: torch.dtype
    ) -> None:
        random = torch.Generator().manual_seed(200 + seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        self.memory, self.layers = normal(batch, 1, width), layers
        self.place, self.classify, self.shift = normal(4, width), 2 * normal(width, classes), 0.5 * normal(width, 4)
        self.scale = torch.tensor([size[1], size[0]] * 2, dtype=dtype)

    def __call__(self, content: Tensor, references: Tensor) -> dict[str, tuple[Tensor, ...]]:
        found: dict[str, list[Tensor]] = {"layer_queries": [], "layer_logits": [], "layer_boxes": [], "attention": []}
        dtype = self.place.dtype
        x, boxes = content.to(dtype), box_convert(references.to(dtype) / self.scale, "xyxy", "cxcywh")
        for _ in range(self.layers):
            x = x + boxes @ self.place
            attention = (x @ x.mT / x.shape[-1]).softmax(-1)
            x = (attention @ x + self.memory.to(dtype)).tanh()
            boxes = (torch.logit(boxes, eps=1e-4) + x @ self.shift).sigmoid()
            found["attention"].append(attention)
            found["layer_queries"].append(x)
            found["layer_logits"].append(x @ self.classify)
            found["layer_boxes"].append(box_convert(boxes, "cxcywh", "xyxy") * self.scale)
        return {name: tuple(value) for name, value in found.items()}

    def changed(self, change_one: Callable[[Tensor], Tensor]) -> Decoder:
        """With another memory, as of other images."""
        other = copy.copy(self)
        other.memory = change_one(self.memory)
        return other


def make_batch(seed: int, images: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> dict[str, Any]:
    """Two objects on every image whose number is even, one on the others; boxes are xywh as fractions of the image."""
    random = torch.Generator().manual_seed(1000 + seed)
    height, width = (max(size[axis] * s for size, s in zip(sizes, STRIDES, strict=False)) for axis in (0, 1))
    index = torch.tensor([i for i in range(images) for _ in range(2 - i % 2)], dtype=torch.float32)
    centre, size = torch.rand(len(index), 2, generator=random), torch.rand(len(index), 2, generator=random)
    return {
        "img": torch.rand(images, 3, height, width, generator=random),
        "cls": torch.randint(3, (len(index), 1), generator=random).float(),
        "bboxes": torch.cat((0.25 + 0.5 * centre, 0.1 + 0.4 * size), -1),
        "batch_idx": index,
    }


def without_objects(batch: dict[str, Any]) -> dict[str, Any]:
    """The same images with nothing on them."""
    return {**batch, **{key: batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}}


def channels(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"backbone": widths, "neck": widths, "towers": widths + widths}


def make_view(
    seed: int, batch: int, widths: tuple[int, ...], sizes: tuple[tuple[int, int], ...], classes: int, dtype: torch.dtype
) -> View:
    """A view with every field filled; boxes of both sides overlap often but not always."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    def maps() -> tuple[Tensor, ...]:
        return tuple(normal(batch, c, h, w) for c, (h, w) in zip(widths, sizes, strict=True))

    points = sum(h * w for h, w in sizes)
    centres, sides = 12 * normal(batch, points, 2), 4 + 6 * normal(batch, points, 2).abs()
    prototypes = widths[0] + 1
    finish = Finish([normal(out, c, 1, 1) for out in (4 * BINS, classes) for c in widths])
    return View(
        strides=STRIDES,
        backbone=maps(),
        neck=maps(),
        towers=maps() + maps(),
        logits=2 * normal(batch, points, classes),
        boxes=torch.cat((centres - sides, centres + sides), -1),
        bins=normal(batch, points, 4, BINS),
        finish=finish,
        rotated=torch.cat((centres, 2 * sides, normal(batch, points, 1)), -1),
        rotated_bins=normal(batch, points, 4, BINS),
        keypoints=normal(batch, points, JOINTS, 3) * normal(3).new_tensor([12, 12, 1]),
        coefficients=normal(batch, points, prototypes),
        prototypes=normal(batch, prototypes, *(2 * side for side in sizes[0])),
    )


class Finish:
    """Last head convolutions, box then class, level by level; boxes are decoded around the cells' centres."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.convs = [torch.nn.Conv2d(w.shape[1], len(w), 1, dtype=w.dtype).requires_grad_(False) for w in weights]
        for i, (conv, weight) in enumerate(zip(self.convs, weights, strict=True)):
            conv.weight.copy_(weight)
            conv.bias.fill_(0.1 * i)

    def __call__(self, towers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        maps = [conv(x) for conv, x in zip(self.convs, towers, strict=True)]
        half = len(maps) // 2
        sides, logits = (torch.cat([m.flatten(2) for m in part], -1).mT for part in (maps[:half], maps[half:]))
        bins = sides.unflatten(-1, (4, BINS))
        return {"logits": logits, "bins": bins, "boxes": decode(bins, [m.shape[-2:] for m in maps[:half]])}


def decode(bins: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Boxes (B, N, 4) from the expected side in cells; bins (B, N, 4, R)."""
    centres = [
        torch.tensor([(x + 0.5, y + 0.5) for y in range(h) for x in range(w)], dtype=bins.dtype) for h, w in sizes
    ]
    strides = torch.cat([torch.full((h * w, 1), s, dtype=bins.dtype) for s, (h, w) in zip(STRIDES, sizes, strict=True)])
    sides = bins.softmax(-1) @ torch.arange(BINS, dtype=bins.dtype)
    return torch.cat((torch.cat(centres) - sides[..., :2], torch.cat(centres) + sides[..., 2:]), -1) * strides


def build(
    name: str, pair: Pair, tap: str = "", seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any
) -> Method:
    """A method for the pair; its first weights depend on the seed alone."""
    cls = METHODS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = cls(pair.student_spec, pair.teacher_spec, tap or next(iter(cls.taps), HEAD), cls.Options(**options))
    return method.to(dtype)


def change(view: View, change_one: Callable[[Tensor], Any], only: tuple[str, ...] = (*FIELDS, "decode")) -> View:
    """The view with every tensor of some fields changed, and a decoder's memory with them."""
    return replace(view, **{name: each(getattr(view, name), change_one) for name in only})


def each(field: Any, change_one: Callable[[Tensor], Tensor]) -> Any:
    if field is None:
        return None
    if isinstance(field, Decoder):
        return field.changed(change_one)
    return tuple(map(change_one, field)) if isinstance(field, tuple) else change_one(field)


def trainable(view: View) -> View:
    """The view as leaves that collect gradients."""
    return change(view, lambda x: x.detach().clone().requires_grad_())


def tensors(view: View, field: str) -> list[Tensor]:
    """A field's tensors: one a map or layer, or the one; of a decoder its memory, and none of another function."""
    value = getattr(view, field)
    if isinstance(value, Decoder):
        return [value.memory]
    return list(value) if isinstance(value, tuple) else [value] if isinstance(value, Tensor) else []


def reads(method: Method) -> list[str]:
    """Fields of a view that a method says it reads."""
    return sorted(method.needs | method.student_needs | method.teacher_needs | ({method.tap} & set(MAPS)))


def answer(view: View, content: Tensor, references: Tensor) -> dict[str, Any]:
    """What a view of lists has its decoder make of queries, as lists."""
    decoder = (
        view.decode.changed(lambda x: torch.tensor(x, dtype=torch.float64))
        if isinstance(view.decode.memory, list)
        else view.decode
    )
    return {name: [x.tolist() for x in value] for name, value in decoder(content, references).items()}


# For the scalar references. A map is a list [b][c][y][x] of floats.


def conv1x1(x: list, conv: torch.nn.Conv2d) -> list:
    """sum_c weight_oc x_c + bias_o, cell by cell."""
    weight = [[entry[0][0] for entry in row] for row in conv.weight.tolist()]
    bias = conv.bias.tolist() if conv.bias is not None else [0.0] * len(weight)
    return [
        [
            [
                [bias[o] + sum(row[c] * image[c][y][x] for c in range(len(row))) for x in range(len(image[0][0]))]
                for y in range(len(image[0]))
            ]
            for o, row in enumerate(weight)
        ]
        for image in x
    ]


def resize(x: list, height: int, width: int) -> list:
    """Bilinear, cell centres at half integers, clamped at the border."""
    return [[resize_plane(plane, height, width) for plane in image] for image in x]


def resize_plane(plane: list, height: int, width: int) -> list:
    def at(i: int, new: int, old: int) -> tuple[int, int, float]:
        place = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(int(place), old - 1)
        return low, min(low + 1, old - 1), place - low

    out = []
    for i in range(height):
        top, bottom, v = at(i, height, len(plane))
        row = []
        for j in range(width):
            left, right, u = at(j, width, len(plane[0]))
            upper = plane[top][left] * (1 - u) + plane[top][right] * u
            lower = plane[bottom][left] * (1 - u) + plane[bottom][right] * u
            row.append(upper * (1 - v) + lower * v)
        out.append(row)
    return out


def objects(batch: dict[str, Any]) -> list[list[list[float]]]:
    """Every image's boxes, xyxy in pixels."""
    images, _, height, width = batch["img"].shape
    found: list[list[list[float]]] = [[] for _ in range(images)]
    for image, (x, y, w, h) in zip(batch["batch_idx"].tolist(), batch["bboxes"].tolist(), strict=True):
        found[int(image)].append([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
    return found


def touches(box: list[float], y: int, x: int, stride: int) -> bool:
    """Whether box and cell share an area."""
    return box[0] < (x + 1) * stride and box[2] > x * stride and box[1] < (y + 1) * stride and box[3] > y * stride


def precise(pair: Pair) -> Pair:
    """The pair with its boxes in float64."""
    return replace(pair, batch={**pair.batch, "bboxes": pair.batch["bboxes"].double()})


def entries(x: list) -> list[float]:
    """All floats of a nested list."""
    return [value for part in x for value in entries(part)] if isinstance(x, list) else [x]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def bce(z: float, p: float) -> float:
    """-p log sigmoid(z) - (1 - p) log(1 - sigmoid(z))."""
    return -p * math.log(sigmoid(z)) - (1 - p) * math.log(1 - sigmoid(z))


def soft_count(logits: list) -> float:
    """max(1, sum over images and points of the highest score), logits [b][n][k]."""
    return max(1.0, sum(max(sigmoid(z) for z in point) for image in logits for point in image))


def check(
    method: Method, pair: Pair, reference: Callable[[View, View], float], fields: list[str], seed: int = 0
) -> None:
    """Value to 1e-9 and a few gradient entries of every tensor of the fields, against the reference's differences.

    The reference gets views whose fields hold nested lists.
    """
    student = trainable(pair.student)
    value = method(student, pair.teacher, pair.batch)
    s_lists, t_lists = (change(view, Tensor.tolist) for view in (pair.student, pair.teacher))  # type: ignore[arg-type]
    assert value.item() == pytest.approx(reference(s_lists, t_lists), rel=1e-9, abs=0)
    value.backward()
    random = torch.Generator().manual_seed(seed)
    for field in fields:
        for i, tensor in enumerate(tensors(student, field)):
            for flat in torch.randint(tensor.numel(), (3,), generator=random).tolist():
                index = tuple(int(k) for k in torch.unravel_index(torch.tensor(flat), tensor.shape))
                slope = difference(reference, s_lists, t_lists, field, i, index)
                got = 0.0 if tensor.grad is None else tensor.grad[index].item()
                assert got == pytest.approx(slope, rel=1e-5, abs=1e-7), (field, i, index)


def difference(reference: Callable, student: View, teacher: View, field: str, i: int, index: tuple[int, ...]) -> float:
    """Central difference of the reference with respect to one entry of the student."""
    step, ends = 1e-5, []
    for sign in (1, -1):
        value = copy.deepcopy(getattr(student, field))
        place = value.memory if isinstance(value, Decoder) else value[i] if isinstance(value, tuple) else value
        for k in index[:-1]:
            place = place[k]
        place[index[-1]] += sign * step
        ends.append(reference(replace(student, **{field: value}), teacher))
    return (ends[0] - ends[1]) / (2 * step)
