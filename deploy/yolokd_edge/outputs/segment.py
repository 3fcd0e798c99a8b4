"""Masks: coefficients of each detection, and prototypes of the image that they are a sum of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolokd_edge.boxes import Letterbox
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import Contract
from yolokd_edge.outputs.base import Limits
from yolokd_edge.outputs.yolo import Raw

FREE = 4  # pixels in which two masks may differ without being apart: rounding decides those at a mask's border


def _cut(masks: np.ndarray, boxes: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Masks (n, h, w) without what lies outside their boxes (n, 4), which are in pixels of an input of size hw."""
    height, width = masks.shape[1:]
    left, top, right, bottom = (boxes * (np.array([width, height] * 2) / np.array(hw[::-1] * 2))).T[..., None]
    columns, rows = np.arange(width)[None], np.arange(height)[None]
    inside_x, inside_y = (columns >= left) & (columns < right), (rows >= top) & (rows < bottom)
    cut: np.ndarray = masks & inside_y[:, :, None] & inside_x[:, None, :]
    return cut


class Masks(Raw):
    """(1, 4 + nc + M, A): centre, size, scores and M coefficients; and (1, M, h, w): prototypes. The masks of the
    latest frame's detections, which have no further columns, are in `masks`, (n, H, W) of 0 and 1 in pixels of the
    input.
    """

    adds = "masks"

    def __init__(self, contract: Contract, path: Path) -> None:
        super().__init__(contract, path)
        self.shapes = (("1", "channels", "anchors"), ("1", "masks", "height", "width"))
        self.masks = np.zeros((0,) + contract.hw, np.uint8)
        self.box = Letterbox(contract.hw, (1.0, 1.0), (0, 0))

    def check_shapes(self, shapes: Sequence[Sequence[Any]]) -> None:
        """Refuse outputs that do not fit together."""
        super().check_shapes(shapes)
        channels, self.more = shapes[0][1], shapes[1][1]
        if (
            not isinstance(channels, int)
            or not isinstance(self.more, int)
            or channels != 4 + self.contract.nc + self.more
        ):
            raise EdgeError(
                f"{self.path} declares {self.contract.output} with {self.contract.nc} classes, but its outputs "
                f"{tuple(shapes[0])} and {tuple(shapes[1])} do not fit together."
            )

    def decode(self, outputs: Sequence[np.ndarray], limits: Limits) -> tuple[np.ndarray, int]:
        """Detections (n, 6) in input pixels, after NMS, without those whose mask is empty. Validating, all count, with
        masks of the prototypes' size.
        """
        rows, candidates = super().decode(outputs, limits)
        boxes = rows[:, :6].copy()
        prototypes = outputs[1]
        small = (rows[:, 6:] @ prototypes.reshape(self.more, -1)).reshape((-1,) + prototypes.shape[1:])
        height, width = self.contract.hw
        if limits.validating:
            self.masks = _cut(small > 0, boxes[:, :4], (height, width))
            return boxes, candidates
        masks = np.zeros((len(rows), height, width), np.uint8)
        for mask, values, box in zip(masks, small, boxes.tolist()):  # noqa: B905
            left, top, right, bottom = (max(math.ceil(v), 0) for v in box[:4])
            whole = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
            mask[top:bottom, left:right] = whole[top:bottom, left:right] > 0
        there = masks.any((1, 2))
        self.masks = masks[there]
        return boxes[there], candidates

    def to_frame(self, rows: np.ndarray, box: Letterbox, limits: Limits) -> np.ndarray:
        """Boxes in pixels of the frame; the masks stay in the input's."""
        self.box = box
        return super().to_frame(rows, box, limits)

    def added(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The outlines of each mask in pixels of the frame, one for each of its parts."""
        return [{"polygons": [p.tolist() for p in self._outlines(mask)]} for mask in self.masks]

    def _outlines(self, mask: np.ndarray) -> list[np.ndarray]:
        height, width = self.box.frame_hw
        found = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        points = [(line.reshape(-1, 2) - np.array(self.box.pad)) / np.array(self.box.gain) for line in found]
        return [p.clip(0, [width, height]).round(3) for p in points if len(p) >= 3]

    def things(self, rows: np.ndarray) -> np.ndarray:
        """The masks."""
        return self.masks

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """Pixels (H, W) in which two masks differ, as a share of those that either has; a few count for nothing."""
        differ, either = int(((a > 0) != (b > 0)).sum()), int(((a > 0) | (b > 0)).sum())
        return max(differ - FREE, 0) / max(either, 1)
