"""Average precision of detections by class and by object size, on a few images, as COCO defines it.

Detections of a class are matched in the order of their confidence, each with the free object of its class that it
overlaps most, from an overlap (IoU) on. Average precision is the mean over 101 recalls of the best precision at that
recall or a larger one. Sizes are COCO's: areas of boxes in pixels of the image, small below 32 x 32, large from
96 x 96 on. For one size, objects of the others count neither for nor against a detection, and detections of another
size without an object neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
IOUS = np.linspace(0.5, 0.95, 10)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
ALL = (0.0, np.inf)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Boxes:
    """Objects or detections of one image: boxes (n, 4) as xyxy in its pixels, classes (n,), confidences (n,)."""

    xyxy: Array
    cls: Array
    conf: Array

    def only(self, keep: Array) -> Boxes:
        """Some of them."""
        return Boxes(self.xyxy[keep], self.cls[keep], self.conf[keep])

    @property
    def areas(self) -> Array:
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return np.asarray(sides.prod(1))


def overlaps(a: Array, b: Array) -> Array:
    """IoU (n, m) of boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = (high - low).clip(0).prod(2)
    outer = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - inner
    return np.asarray(inner / np.maximum(outer, 1e-12))


def matched(iou: Array, least: float, counted: Array) -> Array:
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

    conf: list[Array]
    right: list[Array]
    objects: int = 0

    def curve(self, k: int) -> tuple[Array, Array, Array]:
        """Recall, precision and confidence at the k-th overlap, after each detection that counts."""
        conf, right = np.concatenate(self.conf), np.concatenate(self.right)[:, k]
        order = np.argsort(-conf, kind="stable")
        order = order[right[order] >= 0]
        hits = right[order].cumsum()
        return hits / max(self.objects, 1), hits / np.arange(1, len(order) + 1), conf[order]

    def precisions(self, k: int) -> Array:
        """The best precision at each of RECALLS or a larger recall."""
        recall, precision, _ = self.curve(k)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS - 1e-12)
        return np.array([best[p] if p < len(best) else 0.0 for p in places])


def tally(truths: Sequence[Boxes], found: Sequence[Boxes], area: tuple[float, float] = ALL) -> dict[int, Tally]:
    """What becomes of the detections of each class that has an object, of one size or of all."""
    tallies: dict[int, Tally] = {}
    for truth, boxes in zip(truths, found, strict=True):
        for k in np.unique(np.concatenate((truth.cls, boxes.cls))).astype(int):
            objects, detections = truth.only(truth.cls == k), boxes.only(boxes.cls == k)
            detections = detections.only(np.argsort(-detections.conf, kind="stable"))
            counted = (objects.areas >= area[0]) & (objects.areas < area[1])
            inside = (detections.areas >= area[0]) & (detections.areas < area[1])
            iou = overlaps(detections.xyxy, objects.xyxy)
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
    """AP at an overlap of 0.5, and its mean over all overlaps, of each class."""
    table = {k: [float(t.precisions(i).mean()) for i in range(len(IOUS))] for k, t in tallies.items()}
    return {k: (values[0], float(np.mean(values))) for k, values in table.items()}


def score(truths: Sequence[Boxes], found: Sequence[Boxes]) -> dict[str, Any]:
    """All figures of one model on some images, in plain values; accuracies are fractions, None without objects."""
    everything = tally(truths, found)
    by_class = precision_of(everything)
    sizes = {}
    for size, area in SIZES.items():
        own = tally(truths, found, area)
        ap = precision_of(own)
        sizes[size] = {"objects": sum(t.objects for t in own.values()), **means(ap.values())}
    return {
        **means(by_class.values()),
        **operating_point(everything),
        "curve": _curve(everything),
        "classes": {
            str(k): {"objects": everything[k].objects, "map50": ap50, "map50_95": ap}
            for k, (ap50, ap) in by_class.items()
        },
        "sizes": sizes,
    }


def means(values: Iterable[tuple[float, float]]) -> dict[str, float | None]:
    rows = list(values)
    if not rows:
        return {"map50": None, "map50_95": None}
    return {"map50": float(np.mean([a for a, _ in rows])), "map50_95": float(np.mean([b for _, b in rows]))}


def _curve(tallies: Mapping[int, Tally]) -> list[float] | None:
    """Mean precision over the classes at recalls 0, 0.05 ... 1."""
    if not tallies:
        return None
    return [float(v) for v in np.mean([t.precisions(0) for t in tallies.values()], 0)[::5]]


def operating_point(tallies: Mapping[int, Tally]) -> dict[str, float | None]:
    """Precision and recall, means over the classes, at the confidence at which their harmonic mean is largest."""
    best: dict[str, float | None] = {"precision": None, "recall": None, "conf": None}
    largest = -1.0
    curves = [t.curve(0) for t in tallies.values()]
    for conf in np.linspace(0.01, 0.99, 99) if curves else ():
        points = []
        for recall, precision, confidences in curves:
            n = int((confidences >= conf).sum())
            points.append((float(precision[n - 1]), float(recall[n - 1])) if n else (0.0, 0.0))
        p, r = np.mean(points, 0)
        if (f1 := 2 * p * r / max(p + r, 1e-12)) > largest:
            largest, best = f1, {"precision": float(p), "recall": float(r), "conf": round(float(conf), 2)}
    return best
