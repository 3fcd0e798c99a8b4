"""All accuracies of one model on a few images, as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ultralytics.utils.metrics import ap_per_class, smooth

from yolokd_edge.scores import RECALLS, Boxes, Tally, by_size, means, tally

Array = np.ndarray[Any, Any]


def score(truths: Sequence[Boxes], found: Sequence[Boxes]) -> dict[str, Any]:
    """All figures of one model on some images, in plain values; accuracies are fractions, None without objects."""
    return {**as_validation(tally(truths, found)), "sizes": by_size(truths, found)}


def as_validation(tallies: Mapping[int, Tally]) -> dict[str, Any]:
    """The figures of all objects and of each class, by the code with which Ultralytics validates.

    Precision and recall are means over the classes, at the confidence at which their harmonic mean is largest. `curve`
    is the mean precision at an overlap of 0.5, at recalls 0, 0.05 ... 1.
    """
    if not tallies:
        return {**means(()), "precision": None, "recall": None, "conf": None, "curve": None, "classes": {}}
    conf = [np.concatenate(t.conf) for t in tallies.values()]
    classes = list(tallies)
    _, _, p, r, _, ap, _, _, _, f1, at, precisions = ap_per_class(
        np.concatenate([np.concatenate(t.right) for t in tallies.values()]) == 1,
        np.concatenate(conf),
        np.repeat(classes, [len(c) for c in conf]),
        np.repeat(classes, [t.objects for t in tallies.values()]),
    )
    by_class = {k: (float(one[0]), float(one.mean())) for k, one in zip(classes, ap, strict=True)}
    return {
        **means(by_class.values()),
        "precision": float(p.mean()),
        "recall": float(r.mean()),
        "conf": round(float(at[smooth(f1.mean(0), 0.1).argmax()]), 2),
        "curve": np.interp(RECALLS[::5], at, precisions.mean(0)).tolist(),
        "classes": {
            str(k): {"objects": tallies[k].objects, "map50": ap50, "map50_95": ap} for k, (ap50, ap) in by_class.items()
        },
    }
