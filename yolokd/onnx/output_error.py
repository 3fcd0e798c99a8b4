"""How far a twin's detections are from those of the FP32 file: one number for any kind of output, without labels.

It is what a Dice coefficient lacks to 1, with scores in place of counts:

    error = 1 - 2 * sum over pairs of IoU * min(score, score') / (sum of all scores + sum of all scores')

over the detections of some images; a pair is two detections of one class that overlap by at least half. Equal
detections give 0, none in common 1. A box that is 1 % off, a score that is 1 % off and one detection of a hundred that
is missing each count about the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolokd_edge.boxes import match_detections
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image

LEAST_SCORE = 0.05  # of a detection that counts
IMAGES = 32  # that an error is measured on


class OutputError:
    """Measures twins against an FP32 file.

    Args:
        file: the FP32 file.
        images: to detect in; none of those that the twins' ranges come from.
    """

    def __init__(self, file: Path, images: Sequence[Path]) -> None:
        self.detector = Detector(file, threads=1, conf=LEAST_SCORE)
        self.inputs = [self.detector.preprocess(read_image(path)) for path in images]
        self.expected = [self._detections(self.detector, k) for k in range(len(images))]

    def __bool__(self) -> bool:
        """Whether anything was detected, to compare with."""
        return any(len(rows) for rows in self.expected)

    def of(self, file: Path) -> float:
        """The error of a twin, 0 to 1."""
        twin = Detector(file, threads=1, conf=LEAST_SCORE)
        return error(self.expected, [self._detections(twin, k) for k in range(len(self.inputs))])

    def relative_time(self, file: Path) -> float:
        """How long a twin takes for an input on this machine's CPU, as a share of the FP32 file's time."""
        twin, ratios = Detector(file, threads=1), []
        for blob, _ in self.inputs:  # one by one in turns, so that other work slows both
            times = [_seconds(detector, blob) for detector in (self.detector, twin)]
            ratios.append(times[1] / times[0])
        return float(np.median(ratios))

    def _detections(self, detector: Detector, k: int) -> np.ndarray:
        blob, box = self.inputs[k]
        return detector.postprocess(detector.infer(blob), box)


def _seconds(detector: Detector, blob: np.ndarray) -> float:
    begun = time.perf_counter()
    detector.infer(blob)
    return time.perf_counter() - begun


def error(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The error of detections (n, 6 or more: corners, score, class, ...), an array for each image.

    Raises:
        ZeroDivisionError: there are no detections at all.
    """
    common = total = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        pairs = match_detections(ours, theirs)
        common += sum(iou * min(float(ours[i, 4]), float(theirs[j, 4])) for i, j, iou in pairs)
        total += float(ours[:, 4].sum()) + float(theirs[:, 4].sum())
    return 1 - 2 * common / total
