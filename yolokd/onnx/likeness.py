"""Do the calibration images look like those that the model is measured on?

Asked is whether a single number of an image, the mean or the contrast of a colour, tells which of the two sets it is
from. That needs no scale: what counts as far follows from how much the images of a set differ among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from ultralytics.utils import LOGGER

from yolokd_edge.images import read_image

FEATURES = tuple(f"{what} of {colour}" for what in ("mean", "contrast") for colour in ("blue", "green", "red"))
# The distance is Kolmogorov's and Smirnov's: the largest difference between the shares of the two sets that are below
# any one value. At 0.4 that value sorts 7 of 10 images into the right set, where guessing sorts 5.
FAR = 0.4
CHANCE = 0.01  # most of saying so of two sets of one kind, over all features: small sets need a larger distance


def warn_if_unlike(calibration: Sequence[Path], validation: Sequence[Path]) -> None:
    """Warn where the images that give INT8 its ranges look unlike those that it is measured on."""
    ours, theirs = (np.array([_look(path) for path in images]) for images in (calibration, validation))
    far = difference(ours, theirs)
    if far is None:
        return
    feature, distance = far
    k = FEATURES.index(feature)
    LOGGER.warning(
        f"The calibration images look unlike the validation images: the {feature} alone sorts "
        f"{(1 + distance) / 2:.0%} of the images into the right set ({np.median(ours[:, k]):.0f} against "
        f"{np.median(theirs[:, k]):.0f} of 255 grey levels, medians). INT8 needs training images such as it will see."
    )


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[str, float] | None:
    """The feature that tells two sets of images apart best, and its distance of 0 to 1; None where they look alike.

    Args:
        ours: (n, 6) features of one set, in the order of FEATURES.
        theirs: (m, 6) of the other.
    """
    found = {name: ks_distance(a, b) for name, a, b in zip(FEATURES, ours.T, theirs.T, strict=True)}
    name = max(found, key=lambda feature: found[feature])
    # Smirnov's limit for large samples: P(distance > d) < 2 exp(-2 d^2 n m / (n + m)); for small ones it errs upwards
    by_chance = math.sqrt(math.log(2 * len(FEATURES) / CHANCE) / 2 * (1 / len(ours) + 1 / len(theirs)))
    return (name, found[name]) if found[name] >= max(FAR, by_chance) else None


def ks_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Kolmogorov and Smirnov's distance of two samples (n,) and (m,)."""
    values = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (ours, theirs)]
    return float(np.abs(below[0] - below[1]).max())


def _look(path: Path) -> np.ndarray:
    """Mean and standard deviation of each colour (6,), in grey levels, of an image made small."""
    small = cv2.resize(read_image(path), (32, 32), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(np.float64)
    return np.concatenate([small.mean(0), small.std(0)])
