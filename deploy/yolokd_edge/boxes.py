"""Boxes before and after the network: fitting frames into it, NMS, and the way back; matching of detections."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

PAD = 114  # grey of the letterbox border
CLASS_OFFSET = 7680  # pixels between classes, so that one NMS pass never mixes them
MAX_CANDIDATES = 30000  # boxes that enter NMS, best first
NMS_BLOCK = 128  # boxes compared at a time


class Letterbox(NamedTuple):
    """How a frame was fitted into the input, to map boxes back."""

    frame_hw: tuple[int, int]  # of the original frame
    gain: tuple[float, float]  # x, y: input pixels a frame pixel
    pad: tuple[int, int]  # left, top: border in input pixels


def letterbox(frame: np.ndarray, hw: tuple[int, int], up: bool = False) -> tuple[np.ndarray, Letterbox]:
    """Fit a frame (H, W, 3) into hw, aspect kept, centred on grey; scales up as well as down.

    The roundings are those of Ultralytics: half to even, and an odd border pixel goes to the bottom and the right. Its
    validation rounds the shorter side up.
    """
    height, width = frame.shape[:2]
    ratio, whole = min(hw[0] / height, hw[1] / width), math.ceil if up else round
    new_w, new_h = min(max(whole(width * ratio), 1), hw[1]), min(max(whole(height * ratio), 1), hw[0])
    half_w, half_h = (hw[1] - new_w) / 2, (hw[0] - new_h) / 2
    left, top = round(half_w - 0.1), round(half_h - 0.1)
    right, bottom = round(half_w + 0.1), round(half_h + 0.1)
    if (width, height) != (new_w, new_h):
        frame = cv2.resize(frame, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    frame = cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAD, PAD, PAD))
    return frame, Letterbox((height, width), (new_w / width, new_h / height), (left, top))


def stretch(frame: np.ndarray, hw: tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """Fit a frame (H, W, 3) into hw without a border; each axis has its own scale."""
    height, width = frame.shape[:2]
    if (height, width) != hw:
        frame = cv2.resize(frame, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
    return frame, Letterbox((height, width), (hw[1] / width, hw[0] / height), (0, 0))


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 4) and (m, 4) xyxy -> (n, m). Two empty boxes in one place: nan, which exceeds no threshold."""
    a, b = a.T[:, :, None], b.T[:, None]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = inter / union
    return ratio


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Indices of the boxes (n, 4) that greedy NMS keeps, best first, at most max_det.

    Overlaps are computed for a block of the best boxes at a time: several times faster than box by box.
    """
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while len(order) and len(keep) < max_det:
        best = order[:NMS_BLOCK]
        clash = box_iou(boxes[best], boxes[order]) > iou
        gone = np.zeros(len(order), bool)
        for i in range(len(best)):
            if not gone[i]:
                keep.append(best[i])
                gone |= clash[i]
        order = order[NMS_BLOCK:][~gone[NMS_BLOCK:]]
    return np.array(keep[:max_det], np.intp)


def unletterbox(detections: np.ndarray, box: Letterbox, clip: bool = True) -> np.ndarray:
    """Map boxes (n, 6) from input to frame pixels, in place; clipped to the frame unless told not to."""
    height, width = box.frame_hw
    for axis, limit in ((0, width), (1, height)):
        side = detections[:, axis : axis + 3 : 2]
        side -= box.pad[axis]
        side /= np.float32(box.gain[axis])
        if clip:
            np.clip(side, 0, limit, out=side)
    return detections


def match_detections(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs (row of a, row of b, IoU) of detections (n, 6) and (m, 6) of equal class and IoU >= 0.5, best first.

    Sides are taken one pixel longer: a box in the letterbox border, clipped to nothing, is still equal to itself.
    """
    longer = np.array([0, 0, 1, 1], np.float32)
    iou = box_iou(a[:, :4] + longer, b[:, :4] + longer)
    iou[a[:, None, 5] != b[None, :, 5]] = 0
    pairs = []
    while iou.size and iou.max() >= 0.5:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        pairs.append((int(i), int(j), float(iou[i, j])))
        iou[i], iou[:, j] = 0, 0
    return pairs
