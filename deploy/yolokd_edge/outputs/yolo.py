"""YOLO's outputs: every anchor point's box and scores, or final detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolokd_edge.boxes import CLASS_OFFSET, MAX_CANDIDATES, nms
from yolokd_edge.contract import Contract
from yolokd_edge.outputs.base import Limits, Output


class Raw(Output):
    """(1, 4 + nc + more, A): centre, size, a score per class and what the task adds, for each anchor point; NMS follows
    here. A row of `decode` has what the task adds behind the class.
    """

    per_anchor = True
    more = 0

    def __init__(self, contract: Contract, path: Path) -> None:
        super().__init__(contract, path)
        self.shapes = (("1", str(4 + contract.nc + self.more), "anchors"),)

    def decode(self, outputs: Sequence[np.ndarray], limits: Limits) -> tuple[np.ndarray, int]:
        """Detections in input pixels, after NMS."""
        of_scores = slice(4, 4 + self.contract.nc)
        pred = outputs[0][:, outputs[0][of_scores].max(0) > limits.conf].T
        if limits.validating:
            places, classes = np.nonzero(pred[:, of_scores] > limits.conf)
        else:
            places, classes = np.arange(len(pred)), pred[:, of_scores].argmax(1)
        pred = pred[places]
        rows = np.empty((len(pred), 6 + self.more), np.float32)
        rows[:, :4] = self.boxes(pred)
        rows[:, 4], rows[:, 5] = pred[np.arange(len(pred)), 4 + classes], classes
        rows[:, 6:] = pred[:, of_scores.stop :]
        if len(rows) > MAX_CANDIDATES:
            rows = rows[np.argsort(-rows[:, 4], kind="stable")[:MAX_CANDIDATES]]
        return rows[self.suppress(rows, limits)], len(pred)

    def units(self) -> np.ndarray:
        """One."""
        return np.ones(self.more)

    def boxes(self, pred: np.ndarray) -> np.ndarray:
        """Corners (n, 4) of anchor points (n, 4 or more)."""
        half = pred[:, 2:4] / 2
        return np.concatenate([pred[:, :2] - half, pred[:, :2] + half], axis=1)

    def suppress(self, rows: np.ndarray, limits: Limits) -> np.ndarray:
        """The places of the rows that NMS keeps, best first."""
        # float32 on purpose: far offsets round the boxes, and the reference rounds them the same way
        return nms(rows[:, :4] + rows[:, 5:6] * CLASS_OFFSET, rows[:, 4], limits.iou, limits.max_det)


class Final(Output):
    """(1, n, 6): corners, score and class of final detections, best first."""

    shapes = (("1", "detections", "6"),)

    def decode(self, outputs: Sequence[np.ndarray], limits: Limits) -> tuple[np.ndarray, int]:
        """Detections (n, 6) in input pixels."""
        return self.final(outputs[0], limits)
