"""RT-DETR's output: final detections of a set of queries. It sees frames stretched to its input, as it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from yolokd_edge.boxes import Letterbox, stretch
from yolokd_edge.outputs.base import Limits, Output


class Queries(Output):
    """(1, queries, 6): centre and size as shares of the input, score and class, best first; a query may come with
    several classes. There is no NMS, and a box may reach beyond the frame.
    """

    fitting = "stretch"
    shapes = (("1", "queries", "6"),)

    def fit(self, frame: np.ndarray, validating: bool = False) -> tuple[np.ndarray, Letterbox]:
        """The frame (H, W, 3) stretched to the input's size, and the way back."""
        return stretch(frame, self.contract.hw)

    def decode(self, outputs: Sequence[np.ndarray], limits: Limits) -> tuple[np.ndarray, int]:
        """Detections (n, 6), corners as shares of the input."""
        rows, candidates = self.final(outputs[0], limits)
        half = rows[:, 2:4] / 2
        corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half, rows[:, 4:]], axis=1)
        return corners, candidates

    def to_frame(self, rows: np.ndarray, box: Letterbox, limits: Limits) -> np.ndarray:
        """Shares of the input are shares of the frame."""
        height, width = box.frame_hw
        rows[:, 0:4:2] *= width
        rows[:, 1:4:2] *= height
        return rows

    def in_pixels(self, outputs: Any) -> np.ndarray:
        """The output (1, n, 6) with boxes in pixels of the input."""
        height, width = self.contract.hw
        scale = np.array([width, height, width, height, 1, 1], np.float32)
        return super().in_pixels(outputs).astype(np.float32, copy=False) * scale
