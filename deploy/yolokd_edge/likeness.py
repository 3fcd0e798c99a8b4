"""How alike detections and objects are beyond their boxes: keypoints, masks, rotated boxes, as Ultralytics validates.

Everything is compared in pixels of the model's input, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from yolokd_edge.boxes import Letterbox
from yolokd_edge.contract import OBB, POSE, SEGMENT
from yolokd_edge.detector import Detector
from yolokd_edge.ground_truth import Objects
from yolokd_edge.outputs.obb import probiou

# How far people place each of COCO's 17 keypoints apart, as a share of the object's size
# (https://cocodataset.org/#keypoints-eval).
COCO_SIGMAS = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)  # thousandths
AREA = 0.53  # of a box, the object's own
POINTS = 1000  # on an outline, so that its corners are rounded as in Ultralytics' masks
RATIO = 4  # pixels of the input for one of a mask
TINY = 1e-7


def place(points: np.ndarray, box: Letterbox) -> np.ndarray:
    """Points (..., 2) of the frame in pixels of the input."""
    return np.asarray(points * np.array(box.gain) + np.array(box.pad))


def keypoints(
    detector: Detector, rows: np.ndarray, objects: Objects, box: Letterbox, sigmas: Sequence[float] = ()
) -> np.ndarray:
    """Object keypoint similarity (detections, objects), over the keypoints that are labelled."""
    number, values = detector.contract.keypoints
    spread = np.array(sigmas) if len(sigmas) else default_sigmas(number, values)
    found = place(rows[:, 6:].reshape(-1, number, values)[..., :2], box)
    known = np.stack(objects.points) if objects.points else np.zeros((0, number, values))
    points = place(known[..., :2], box)
    # without a third value, a keypoint with a negative coordinate is one that nobody labelled
    seen = known[..., 2] != 0 if values == 3 else (known[..., :2] >= 0).all(-1)
    area = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1) * np.prod(box.gain) * AREA
    apart = ((found[:, None] - points[None]) ** 2).sum(-1)  # (detections, objects, keypoints)
    close = np.exp(-apart / ((2 * spread) ** 2 * (area[None, :, None] + TINY) * 2))
    return np.asarray((close * seen).sum(-1) / (seen.sum(-1) + TINY))


def default_sigmas(number: int, values: int) -> np.ndarray:
    """COCO's spread of each keypoint where there are as many, else the same of all."""
    return np.array(COCO_SIGMAS) / 1000 if (number, values) == (17, 3) else np.full(number, 1 / number)


def rotated(
    detector: Detector, rows: np.ndarray, objects: Objects, box: Letterbox, sigmas: Sequence[float] = ()
) -> np.ndarray:
    """ProbIoU (detections, objects) of rotated boxes; an object's is the smallest around its corners."""
    gain = np.array(box.gain)
    found = np.concatenate([place(rows[:, 6:8], box), rows[:, 8:10] * gain, rows[:, 10:]], axis=1)
    known = np.zeros((len(objects.points), 5))
    for k, points in enumerate(objects.points):
        (x, y), (width, height), angle = cv2.minAreaRect(place(points, box).astype(np.float32))
        known[k] = x, y, width, height, np.deg2rad(angle)
    return probiou(found, known) if len(found) and len(known) else np.zeros((len(found), len(known)))


def masks(
    detector: Detector, rows: np.ndarray, objects: Objects, box: Letterbox, sigmas: Sequence[float] = ()
) -> np.ndarray:
    """IoU (detections, objects) of masks at a quarter of the input's size."""
    found = detector.output.masks.reshape(len(rows), -1).astype(np.float32)  # type: ignore[attr-defined]
    known = object_masks([place(p, box) for p in objects.points], detector.contract.hw)
    known = known.reshape(len(objects.points), -1).astype(np.float32)
    both = found @ known.T
    # a ratio of whole numbers may be a threshold itself, such as 7 / 10, and then reaches it
    return np.asarray(both / np.maximum(found.sum(1)[:, None] + known.sum(1)[None] - both, 1) + TINY)


def object_masks(outlines: Sequence[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """Masks (n, h / 4, w / 4) of outlines (points, 2) in pixels of the input; where objects lie over each other the
    smaller one is seen.
    """
    small = (hw[1] // RATIO, hw[0] // RATIO)
    filled = np.zeros((len(outlines), small[1], small[0]), np.uint8)
    for mask, outline in zip(filled, outlines):  # noqa: B905
        whole = np.zeros(hw, np.uint8)
        cv2.fillPoly(whole, [_even(outline).astype(np.int32)], 1)
        mask[:] = cv2.resize(whole, small)
    owner = np.zeros((small[1], small[0]), int)
    order = np.argsort(-filled.sum((1, 2), dtype=int), kind="stable")
    for k in order:
        owner[filled[k] > 0] = k + 1
    return np.asarray(owner[None] == np.arange(1, len(outlines) + 1)[:, None, None])


def _even(outline: np.ndarray) -> np.ndarray:
    """Corners (n, 2) of a closed line with further points on it, about POINTS in all."""
    closed = np.concatenate([outline, outline[:1]])
    corners = np.arange(len(closed))
    between = np.linspace(0, len(outline), max(POINTS - len(closed), 2))
    at = np.unique(np.concatenate([corners, between])) if len(closed) < POINTS else corners
    return np.stack([np.interp(at, corners, closed[:, k]) for k in (0, 1)], axis=1)


class Kind(NamedTuple):
    """What a task is measured by."""

    alike: Callable[[Detector, np.ndarray, Objects, Letterbox, Sequence[float]], np.ndarray]
    name: str | None  # of the figures beside those of boxes; None where it takes their place


KINDS = {POSE: Kind(keypoints, "keypoints"), SEGMENT: Kind(masks, "masks"), OBB: Kind(rotated, None)}
