"""Average precision of detections: of all objects and by class as Ultralytics validates, by object size as COCO does.

Detections of a class are matched in the order of their confidence, each with the free object of its class that it
overlaps most, from an overlap (IoU) on. COCO's average precision is the mean over 101 recalls of the best precision at
that recall or a larger one; Ultralytics' is the area under a line through these points, see `area_under`. Sizes are
COCO's: areas of boxes in pixels of the image, small below 32 x 32, large from 96 x 96 on. For one size, objects of the
others count neither for nor against a detection, and detections of another size without an object neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
ALL = (-np.inf, np.inf)  # a detection whose sides are turned round counts, too
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Boxes:
    """Objects or detections of one image: boxes (n, 4) as xyxy in its pixels, classes (n,), confidences (n,)."""

    xyxy: np.ndarray
    cls: np.ndarray
    conf: np.ndarray

    def only(self, keep: np.ndarray) -> Boxes:
        """Some of them."""
        return Boxes(self.xyxy[keep], self.cls[keep], self.conf[keep])

    @property
    def areas(self) -> np.ndarray:
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return np.asarray(sides.prod(1))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes; 0 between two empty ones."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = (high - low).clip(0).prod(2)
    outer = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - inner
    return np.asarray(inner / np.maximum(outer, 1e-12))


def matched(iou: np.ndarray, least: float, counted: np.ndarray) -> np.ndarray:
    """For detections in the order of their confidence the object that each takes, -1 for none.

    Args:
        iou: (detections, objects) of one class.
        least: overlap from which on a detection is one of the object.
        counted: (objects,) whether an object counts; one that does is taken before one that does not.
    """
    taken = np.full(len(iou), -1)
    free = np.ones(iou.shape[1], bool)
    for i in np.flatnonzero(iou.max(1, initial=0) >= least):
        fits = free & (iou[i] >= least)
        if fits.any():
            choice = fits & counted if (fits & counted).any() else fits
            taken[i] = int(np.where(choice, iou[i], -1).argmax())
            free[taken[i]] = False
    return taken


@dataclass
class Tally:
    """Detections of one class over all images: confidences, and at each overlap 1 for right, 0 for wrong, -1 for
    neither; and how many objects there are.
    """

    conf: list[np.ndarray]
    right: list[np.ndarray]
    objects: int = 0

    def curve(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recall, precision and confidence at the k-th overlap, after each detection that counts."""
        conf, right = np.concatenate(self.conf), np.concatenate(self.right)[:, k]
        order = np.argsort(-conf, kind="stable")
        order = order[right[order] >= 0]
        hits = right[order].cumsum()
        return hits / max(self.objects, 1), hits / np.arange(1, len(order) + 1), conf[order]

    def precisions(self, k: int) -> np.ndarray:
        """The best precision at each of RECALLS or a larger recall."""
        recall, precision, _ = self.curve(k)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS - 1e-12)
        return np.array([best[p] if p < len(best) else 0.0 for p in places])


def tally(
    truths: Sequence[Boxes],
    found: Sequence[Boxes],
    area: tuple[float, float] = ALL,
    alike: Sequence[np.ndarray] | None = None,
) -> dict[int, Tally]:
    """What becomes of the detections of each class that has an object, of one size or of all.

    Args:
        truths: the objects of each image.
        found: its detections.
        area: from and below which an object counts.
        alike: for each image how alike detections and objects are, (detections, objects); overlaps of boxes without.
    """
    tallies: dict[int, Tally] = {}
    for image, (truth, boxes) in enumerate(zip(truths, found)):  # noqa: B905
        for k in np.unique(np.concatenate((truth.cls, boxes.cls))).astype(int):
            own, rows = np.flatnonzero(truth.cls == k), np.flatnonzero(boxes.cls == k)
            rows = rows[np.argsort(-boxes.conf[rows], kind="stable")]
            objects, detections = truth.only(own), boxes.only(rows)
            counted = (objects.areas >= area[0]) & (objects.areas < area[1])
            inside = (detections.areas >= area[0]) & (detections.areas < area[1])
            iou = alike[image][np.ix_(rows, own)] if alike is not None else overlaps(detections.xyxy, objects.xyxy)
            right = np.zeros((len(detections.cls), len(IOUS)), int)
            for t, least in enumerate(IOUS):
                taken = matched(iou, least, counted)
                hit = taken >= 0
                right[hit, t] = np.where(counted[taken[hit]], 1, -1)
                right[~hit & ~inside, t] = -1
            one = tallies.setdefault(int(k), Tally([], []))
            one.conf.append(detections.conf)
            one.right.append(right)
            one.objects += int(counted.sum())
    return {k: t for k, t in sorted(tallies.items()) if t.objects}


def precision_of(tallies: Mapping[int, Tally]) -> dict[int, tuple[float, float]]:
    """COCO's AP at an overlap of 0.5, and its mean over all overlaps, of each class."""
    table = {k: [float(t.precisions(i).mean()) for i in range(len(IOUS))] for k, t in tallies.items()}
    return {k: (values[0], float(np.mean(values))) for k, values in table.items()}


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """Ultralytics' AP of a curve: the area, by 101 recalls, under the line through the best precisions from each point
    on; it begins at precision 1 and falls to 0 behind the last point.
    """
    if not len(recall):
        return 0.0
    at = np.concatenate(([0.0], recall, [recall[-1], 1.0]))
    best = np.maximum.accumulate(np.concatenate(([1.0], precision, [0.0, 0.0]))[::-1])[::-1]
    height = np.interp(RECALLS, at, best)
    return float(((height[1:] + height[:-1]) / 2 * np.diff(RECALLS)).sum())


def validated(tallies: Mapping[int, Tally]) -> dict[int, tuple[float, float]]:
    """Ultralytics' AP at an overlap of 0.5, and its mean over all overlaps, of each class."""
    table = {k: [area_under(*t.curve(i)[:2]) for i in range(len(IOUS))] for k, t in tallies.items()}
    return {k: (values[0], float(np.mean(values))) for k, values in table.items()}


def by_size(
    truths: Sequence[Boxes], found: Sequence[Boxes], alike: Sequence[np.ndarray] | None = None
) -> dict[str, dict[str, Any]]:
    """Number of objects and COCO's accuracies for each size; `alike` as in `tally`."""
    sizes = {}
    for size, area in SIZES.items():
        own = tally(truths, found, area, alike)
        sizes[size] = {"objects": sum(t.objects for t in own.values()), **means(precision_of(own).values())}
    return sizes


def means(values: Iterable[tuple[float, float]]) -> dict[str, float | None]:
    """Mean accuracies over classes; None without any."""
    rows = list(values)
    if not rows:
        return {"map50": None, "map50_95": None}
    return {"map50": float(np.mean([a for a, _ in rows])), "map50_95": float(np.mean([b for _, b in rows]))}
