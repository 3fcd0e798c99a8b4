"""Keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.boxes import Letterbox
from yolokd_edge.contract import Contract
from yolokd_edge.outputs.base import Limits
from yolokd_edge.outputs.yolo import Raw

VISIBLE = 0.5  # a keypoint that scores less is not compared: where it is, nobody knows


class Keypoints(Raw):
    """(1, 4 + nc + K * D, A): centre, size, scores, and x, y and (with D = 3) a score of each of K keypoints."""

    adds = "points"

    def __init__(self, contract: Contract, path: Path) -> None:
        self.more = contract.keypoints[0] * contract.keypoints[1]
        self.columns = 6 + self.more
        super().__init__(contract, path)

    def to_frame(self, rows: np.ndarray, box: Letterbox, limits: Limits) -> np.ndarray:
        """Boxes and keypoints in pixels of the frame, cut at its border unless validating."""
        rows = super().to_frame(rows, box, limits)
        height, width = box.frame_hw
        for axis, limit in ((0, width), (1, height)):
            along = rows[:, 6 + axis :: self.contract.keypoints[1]]
            along -= box.pad[axis]
            along /= np.float32(box.gain[axis])
            if not limits.validating:
                np.clip(along, 0, limit, out=along)
        return rows

    def units(self) -> np.ndarray:
        """A hundred pixels, and one for a score."""
        return np.tile([100.0, 100.0, 1.0][: self.contract.keypoints[1]], self.contract.keypoints[0])

    def _points(self, rows: np.ndarray) -> np.ndarray:
        return rows[..., 6:].reshape(rows.shape[:-1] + self.contract.keypoints)

    def added(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The keypoints of each: x, y and, where the model says so, a score."""
        return [{"keypoints": np.round(p.astype(np.float64), 3).tolist()} for p in self._points(rows)]

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """The farthest keypoint that both see, pixels."""
        one, other = self._points(a), self._points(b)
        gap = np.abs(one[:, :2] - other[:, :2]).max(1)
        if one.shape[1] == 3:
            gap = gap[(one[:, 2] >= VISIBLE) & (other[:, 2] >= VISIBLE)]
        return float(gap.max(initial=0))
