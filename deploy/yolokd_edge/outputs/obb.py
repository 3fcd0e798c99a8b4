"""Rotated boxes: corners, and an NMS that compares them by ProbIoU."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolokd_edge.boxes import CLASS_OFFSET, NMS_BLOCK, Letterbox
from yolokd_edge.outputs.base import Limits
from yolokd_edge.outputs.yolo import Raw

TINY = np.float32(1e-7)


def corners(rotated: np.ndarray) -> np.ndarray:
    """Corners (n, 4, 2) of rotated boxes (n, 5): centre, size and angle in radians, clockwise in an image."""
    angle = rotated[:, 4:5]
    along = rotated[:, 2:3] / 2 * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    across = rotated[:, 3:4] / 2 * np.concatenate([-np.sin(angle), np.cos(angle)], axis=1)
    mid = rotated[:, :2]
    return np.stack([mid + along + across, mid + along - across, mid - along - across, mid - along + across], 1)


def covariance(rotated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances along x and y and their covariance, each (n,), of the Gaussians that stand for rotated boxes (n, 5)."""
    width, height = (rotated[:, 2:4] ** 2 / 12).T
    cos, sin = np.cos(rotated[:, 4]), np.sin(rotated[:, 4])
    return width * cos**2 + height * sin**2, width * sin**2 + height * cos**2, (width - height) * cos * sin


def probiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ProbIoU (n, m) of rotated boxes (n, 5) and (m, 5): 1 - the Hellinger distance of their Gaussians (Llerena et al.,
    https://arxiv.org/abs/2106.06072).
    """
    (ax, ay, axy), (bx, by, bxy) = covariance(a), covariance(b)
    x, y, xy = ax[:, None] + bx, ay[:, None] + by, axy[:, None] + bxy
    dx, dy = b[:, 0] - a[:, None, 0], a[:, None, 1] - b[:, 1]
    whole = x * y - xy**2  # small differences of large numbers: the order of operations is the reference's
    along = (x * dy**2 + y * dx**2) / (whole + TINY) * np.float32(0.25)
    across = xy * dx * dy / (whole + TINY) * np.float32(0.5)
    areas = np.maximum(ax * ay - axy**2, 0)[:, None] * np.maximum(bx * by - bxy**2, 0)
    shape = np.log(whole / (4 * np.sqrt(areas) + TINY) + TINY) * np.float32(0.5)
    distance = np.clip(along + across + shape, TINY, 100)
    alike: np.ndarray = 1 - np.sqrt(1 - np.exp(-distance) + TINY)
    return alike


def rotated_nms(rotated: np.ndarray, scores: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Indices of the rotated boxes (n, 5) that no better one overlaps, best first, at most max_det.

    As Ultralytics does it for rotated boxes, one that goes still drops others (Fast NMS).
    """
    order = np.argsort(-scores, kind="stable")
    rotated = rotated[order]
    kept = np.empty(0, np.intp)
    for start in range(0, len(order), NMS_BLOCK):
        end = min(start + NMS_BLOCK, len(order))
        clash = probiou(rotated[:end], rotated[start:end]) > iou
        clash[start:] = np.triu(clash[start:], 1)
        kept = np.concatenate([kept, start + np.flatnonzero(~clash.any(0))])
        if len(kept) >= max_det:
            break
    return order[kept[:max_det]]


class Rotated(Raw):
    """(1, 4 + nc + 1, A): centre, size, scores and angle. A detection has eleven columns: the box around it,
    score, class, and centre, size and angle.
    """

    more = 1
    columns = 11
    adds = "points"

    def boxes(self, pred: np.ndarray) -> np.ndarray:
        """Centre and size, as they are."""
        return pred[:, :4]

    def suppress(self, rows: np.ndarray, limits: Limits) -> np.ndarray:
        """The places of the rows that NMS keeps, best first."""
        moved = np.concatenate([rows[:, :2] + rows[:, 5:6] * CLASS_OFFSET, rows[:, 2:4], rows[:, 6:7]], axis=1)
        return rotated_nms(moved, rows[:, 4], limits.iou, limits.max_det)

    def to_frame(self, rows: np.ndarray, box: Letterbox, limits: Limits) -> np.ndarray:
        """Centres and sizes in pixels of the frame; nothing is cut at its border."""
        gain = np.array(box.gain, np.float32)
        centres, sizes = (rows[:, :2] - np.array(box.pad, np.float32)) / gain, rows[:, 2:4] / gain
        rotated = np.concatenate([centres, sizes, rows[:, 6:7]], axis=1)
        points = corners(rotated)
        return np.concatenate([points.min(1), points.max(1), rows[:, 4:6], rotated], axis=1)

    def added(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Corners and angle of each."""
        points = np.round(corners(rows[:, 6:].astype(np.float64)), 3)
        return [{"corners": p.tolist(), "angle": round(float(a), 6)} for p, a in zip(points, rows[:, 10])]  # noqa: B905

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """The farthest corner, pixels."""
        one, other = corners(np.stack([a[6:], b[6:]]))
        return float(np.abs(one - other).max())
