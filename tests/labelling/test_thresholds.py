"""`yolokd label`: from which confidence on a class is believed."""

from __future__ import annotations

import numpy as np
import pytest

from yolokd.labelling.thresholds import Threshold, best_threshold, choose, match

BOX, FAR = (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_threshold_has_the_highest_f(seed, beta):
    """Against every threshold there is, one detection at a time."""
    random = np.random.default_rng(seed)
    scores = random.integers(1, 12, 15) / 12  # with equal ones
    hits = random.random(15) < 0.6
    objects = int(hits.sum()) + int(random.integers(0, 5))
    if not hits.any():
        hits[0], objects = True, objects + 1

    def f(threshold):
        right = sum(1 for s, h in zip(scores, hits, strict=True) if s >= threshold and h)
        wrong = sum(1 for s, h in zip(scores, hits, strict=True) if s >= threshold and not h)
        missed = objects - right
        return (1 + beta**2) * right / ((1 + beta**2) * right + beta**2 * missed + wrong)

    chosen = best_threshold(scores, hits, objects, beta, 0.01)
    assert f(chosen.conf) == pytest.approx(max(f(t) for t in scores)) == pytest.approx(chosen.f)
    believed = scores >= chosen.conf
    assert chosen.precision == pytest.approx(hits[believed].mean())
    assert chosen.recall == pytest.approx(hits[believed].sum() / objects)


def test_the_threshold_lies_between_two_detections():
    assert best_threshold([0.9, 0.5, 0.3], [True, True, False], 2, 1.0, 0.01).conf == pytest.approx(0.4)
    assert best_threshold([0.9], [True], 1, 1.0, 0.01).conf == pytest.approx(0.455), "down to what was looked at"


def test_an_object_is_found_once_and_by_its_class():
    found = [(0, 0.5, BOX), (0, 0.9, BOX), (1, 0.8, BOX), (0, 0.7, FAR)]
    assert match(found, [(0, BOX)]) == [False, True, False, False]
    assert match(found, [(0, BOX), (0, BOX)]) == [True, True, False, False]
    assert match([], [(0, BOX)]) == [] and match(found, []) == [False] * 4
    half = (0.1, 0.1, 0.3, 0.21)  # of the box, and a bit
    assert match([(0, 0.5, half)], [(0, BOX)]) == [True]
    assert match([(0, 0.5, (0.1, 0.1, 0.3, 0.19))], [(0, BOX)]) == [False]


def test_what_the_validation_split_cannot_say_falls_back():
    images = [([(0, 0.8, BOX), (1, 0.9, FAR)], [(0, BOX), (2, FAR)])]
    chosen = choose(images, range(4), 1.0, 0.01, 0.4)
    assert chosen[0].f == 1.0 and chosen[0].validation_objects == 1
    assert chosen[1] == Threshold(0.4), "found, where none is"
    assert chosen[2] == Threshold(0.4, 1), "there, and never found"
    assert chosen[3] == Threshold(0.4)
