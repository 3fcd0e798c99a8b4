"""From which confidence on a class of the teacher's is believed: where F1 on the validation split is highest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

SAME = 0.5  # IoU of the boxes from which on a detection is the object
Box = Sequence[float]  # x1, y1, x2, y2
Detection = tuple[int, float, Box]  # class, confidence, box


@dataclass(frozen=True)
class Threshold:
    """What was chosen for a class; the figures are None where the validation split could not decide."""

    conf: float
    validation_objects: int = 0
    precision: float | None = None
    recall: float | None = None
    f: float | None = None


def match(found: Sequence[Detection], truth: Sequence[tuple[int, Box]]) -> list[bool]:
    """Whether each detection of an image is an object of its class, the surest first; an object is found once."""
    hits = [False] * len(found)
    if not found or not truth:
        return hits
    overlaps = box_iou(torch.tensor([d[2] for d in found]).float(), torch.tensor([t[1] for t in truth]).float())
    taken: set[int] = set()
    for i in sorted(range(len(found)), key=lambda i: -found[i][1]):
        free = [j for j, (cls, _) in enumerate(truth) if cls == found[i][0] and j not in taken]
        best = max(free, key=lambda j: float(overlaps[i, j]), default=None)
        if best is not None and overlaps[i, best] >= SAME:
            hits[i] = True
            taken.add(best)
    return hits


def best_threshold(scores: Iterable[float], hits: Iterable[bool], objects: int, beta: float, floor: float) -> Threshold:
    """The confidence with the highest F-beta, half-way to the next lower detection; of equal ones the highest.

    Args:
        scores, hits: of all detections of the class, and whether each is an object.
        objects: how many there are.
        beta: how much more recall counts than precision.
        floor: the lowest confidence that was looked at.
    """
    given, right = np.array(list(scores), dtype=float), np.array(list(hits), dtype=float)
    order = np.argsort(-given, kind="stable")
    score, tp, count = given[order], right[order].cumsum(), np.arange(1, len(given) + 1)
    f = (1 + beta**2) * tp / (beta**2 * objects + count)
    last = np.append(score[1:] < score[:-1], True)  # equal scores are believed together
    k = int(np.where(last, f, -1).argmax())
    below = score[k + 1] if k + 1 < len(score) else min(floor, score[k])
    middle = float(score[k] + below) / 2
    return Threshold(middle, objects, float(tp[k] / count[k]), float(tp[k] / objects), float(f[k]))


def choose(
    images: Iterable[tuple[Sequence[Detection], Sequence[tuple[int, Box]]]],
    classes: Iterable[int],
    beta: float,
    floor: float,
    fallback: float,
) -> dict[int, Threshold]:
    """A threshold for each class; the fallback for one without an object in these images, or that was never found.

    Args:
        images: detections and objects of each.
        classes: all of the data.
        beta, floor: as of `best_threshold`.
        fallback: the threshold where nothing can be measured.
    """
    scores: dict[int, list[float]] = {k: [] for k in classes}
    hits: dict[int, list[bool]] = {k: [] for k in scores}
    objects = dict.fromkeys(scores, 0)
    for found, truth in images:
        for (cls, conf, _), hit in zip(found, match(found, truth), strict=True):
            scores[cls].append(conf)
            hits[cls].append(hit)
        for cls, _ in truth:
            objects[cls] += 1
    return {
        k: best_threshold(scores[k], hits[k], objects[k], beta, floor)
        if objects[k] and any(hits[k])
        else Threshold(fallback, objects[k])
        for k in scores
    }
