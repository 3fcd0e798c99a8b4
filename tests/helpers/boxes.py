"""Scalar arithmetic of boxes, anchor points and box distributions, for slow references of several methods."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from helpers.views import STRIDES


def cells(batch) -> list[list[tuple[float, float, float]]]:
    """x, y and pixels a cell of every anchor point, level by level."""
    height, width = batch["img"].shape[-2:]
    return [[((i + 0.5) * s, (j + 0.5) * s, s) for j in range(height // s) for i in range(width // s)] for s in STRIDES]


def iou_and_diou(a, b) -> tuple[float, float]:
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    apart = (a[0] + a[2] - b[0] - b[2]) ** 2 / 4 + (a[1] + a[3] - b[1] - b[3]) ** 2 / 4
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    return inter / union, inter / union - apart / diagonal


def softmax(z: list[float], tau: float) -> list[float]:
    top = max(z)
    e = [math.exp((x - top) / tau) for x in z]
    return [x / sum(e) for x in e]


def divergence(z_s: list, z_t: list, tau: float) -> float:
    edges = []
    for s, t in zip(z_s, z_t, strict=True):
        both = zip(softmax(s, tau), softmax(t, tau), strict=True)
        edges.append(sum(q * math.log(q / p) for p, q in both))
    return tau**2 * sum(edges) / len(edges)


def giou(a: list[float], b: list[float]) -> float:
    def area(x1, y1, x2, y2) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    inter = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = area(*a) + area(*b) - inter
    return inter / union - (hull - union) / hull


def boxes_of(batch, image: int) -> list[tuple[float, float, float, float]]:
    """Ground-truth boxes of an image, xyxy in pixels."""
    height, width = batch["img"].shape[-2:]
    found = []
    for (x, y, w, h), i in zip(batch["bboxes"].tolist(), batch["batch_idx"].tolist(), strict=True):
        if i == image:
            found.append(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height))
    return found


def on_its_cells(pair):
    """Objects of many cells, and teacher boxes around their own cells, as a trained teacher has them."""
    batch = {**pair.batch, "bboxes": pair.batch["bboxes"] + torch.tensor([0, 0, 0.4, 0.4])}
    centre = torch.tensor([point[:2] for level in cells(batch) for point in level], dtype=torch.float64)
    half = (pair.teacher.boxes[..., 2:] - pair.teacher.boxes[..., :2]) / 2
    return replace(
        pair, batch=batch, teacher=replace(pair.teacher, boxes=torch.cat((centre - half, centre + half), -1))
    )
