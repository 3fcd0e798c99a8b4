"""What the scalar references of methods on objects and regions share: plain loops on lists of floats."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any


def exact(pair: Any) -> Any:
    """The pair with its ground truth in float64, as the references compute."""
    return replace(pair, batch={**pair.batch, "bboxes": pair.batch["bboxes"].double()})


def image_size(batch: dict[str, Any]) -> tuple[int, int]:
    return batch["img"].shape[-2], batch["img"].shape[-1]


def objects(batch: dict[str, Any]) -> list[tuple[int, list[float]]]:
    """(image, xyxy in pixels) of every object."""
    height, width = image_size(batch)
    found = []
    for image, (x, y, w, h) in zip(batch["batch_idx"].tolist(), batch["bboxes"].tolist(), strict=True):
        found.append(
            (int(image), [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
        )
    return found


def touched(boxes: list[list[float]], row: int, column: int, stride: int) -> bool:
    """Whether any box shares an area with the cell."""
    left, top, right, bottom = column * stride, row * stride, (column + 1) * stride, (row + 1) * stride
    return any(min(x2, right) > max(x1, left) and min(y2, bottom) > max(y1, top) for x1, y1, x2, y2 in boxes)


def touched_points(
    regions: list[tuple[int, list[float]]], image: int, sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...]
) -> list[bool]:
    """The same for every anchor point of an image, level by level, row by row."""
    boxes = [box for of, box in regions if of == image]
    return [
        touched(boxes, row, column, stride)
        for (height, width), stride in zip(sizes, strides, strict=True)
        for row in range(height)
        for column in range(width)
    ]


def iou(a: list[float], b: list[float]) -> float:
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def top_boxes(
    boxes: list[list[float]], scores: list[float], size: tuple[int, int], count: int, most: float, least: float = 0.0
) -> list[list[float]]:
    """One image's best boxes, clipped, greedily without those that overlap a better one by more than `most`."""
    clipped = [[min(max(x, 0.0), size[1 - k % 2]) for k, x in enumerate(box)] for box in boxes]
    order = sorted(range(len(boxes)), key=lambda n: -scores[n])
    kept: list[list[float]] = []
    for n in order:
        box = clipped[n]
        large = box[2] - box[0] >= 1 and box[3] - box[1] >= 1
        if large and scores[n] > least and all(iou(box, other) <= most for other in kept):
            kept.append(box)
    return kept[:count]


def pooled(x: list, regions: list[tuple[int, list[float]]], size: tuple[int, int], cells: int) -> list:
    """RoIAlign of a map [b][c][y][x] that spans the image, 2 x 2 samples a cell -> [region][c][y][x]."""
    height, width = len(x[0][0]), len(x[0][0][0])
    found = []
    for image, box in regions:
        x1, y1, x2, y2 = (v * (height / size[0] if k % 2 else width / size[1]) for k, v in enumerate(box))
        places_x, places_y = (
            [low - 0.5 + (high - low) * (k + 0.5) / (2 * cells) for k in range(2 * cells)]
            for low, high in ((x1, x2), (y1, y2))
        )
        found.append(
            [
                [
                    [
                        sum(
                            bilinear(plane, v, u)
                            for v in places_y[2 * i : 2 * i + 2]
                            for u in places_x[2 * j : 2 * j + 2]
                        )
                        / 4
                        for j in range(cells)
                    ]
                    for i in range(cells)
                ]
                for plane in x[image]
            ]
        )
    return found


def bilinear(plane: list, y: float, x: float) -> float:
    """Value between cell centres, which lie at whole numbers; the border's value up to one cell outside, then 0."""
    height, width = len(plane), len(plane[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = plane[top][left] * (1 - u) + plane[top][right] * u
    return upper * (1 - v) + (plane[bottom][left] * (1 - u) + plane[bottom][right] * u) * v
