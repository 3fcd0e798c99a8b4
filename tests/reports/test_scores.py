"""Average precision by class and size, against loops written from COCO's definition."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.training import ASSETS
from ultralytics import YOLO

from yolokd.reports import images
from yolokd.reports.images import as_boxes, judged
from yolokd.reports.scores import as_validation, score
from yolokd_edge.scores import IOUS, SIZES, Boxes, overlaps, tally, validated

AREAS = {**SIZES, "all": (0.0, np.inf)}


def composed(seed: int, images: int = 4, classes: int = 3) -> tuple[list[Boxes], list[Boxes]]:
    """Objects of all sizes, and detections near some of them; every confidence differs."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(images):
        n = int(random.integers(0, 7))
        low, side = (
            random.uniform(0, 200, (n, 2)),
            random.choice([20, 60, 150], (n, 1)) * random.uniform(0.8, 1.2, (n, 2)),
        )
        truth = Boxes(np.concatenate((low, low + side), 1), random.integers(0, classes, n), np.ones(n))
        near = np.repeat(truth.xyxy, 2, 0) + random.normal(0, 5, (2 * n, 4))
        stray = random.uniform(0, 100, (3, 2))
        boxes = np.concatenate((near, np.concatenate((stray, stray + random.uniform(10, 120, (3, 2))), 1)))
        cls = np.concatenate((np.repeat(truth.cls, 2), random.integers(0, classes, 3)))
        truths.append(truth)
        found.append(Boxes(boxes, cls, random.permutation(len(cls)) / 100 + random.uniform(0, 0.005, len(cls))))
    return truths, found


def iou(a, b) -> float:
    inner = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def area(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def average_precision(truths, found, k: int, least: float, low: float, high: float) -> float | None:
    """Loops over detections, as pycocotools' evaluateImg and accumulate."""
    judgements, objects = [], 0
    for truth, boxes in zip(truths, found, strict=True):
        own = [b for b, c in zip(truth.xyxy, truth.cls, strict=True) if c == k]
        ignored = [not low <= area(b) < high for b in own]
        objects += ignored.count(False)
        free = [True] * len(own)
        order = sorted(range(len(boxes.cls)), key=lambda i: -boxes.conf[i])
        for i in (i for i in order if boxes.cls[i] == k):
            box, best, place = boxes.xyxy[i], 0.0, None
            for wanted in (False, True):  # objects that count come first
                for j, b in enumerate(own):
                    if free[j] and ignored[j] == wanted and iou(box, b) >= least and iou(box, b) > best:
                        best, place = iou(box, b), j
                if place is not None:
                    break
            if place is not None:
                free[place] = False
                if not ignored[place]:
                    judgements.append((boxes.conf[i], True))
            elif low <= area(box) < high:
                judgements.append((boxes.conf[i], False))
    if not objects:
        return None
    points, hits = [], 0
    for n, (_, right) in enumerate(sorted(judgements, key=lambda j: -j[0]), 1):
        hits += right
        points.append((hits / objects, hits / n))
    total = sum(max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0) for k in range(101))
    return total / 101


@pytest.mark.parametrize("seed", range(4))
def test_it_is_cocos_average_precision(seed):
    truths, found = composed(seed)
    for low, high in AREAS.values():
        tallies = tally(truths, found, (low, high))
        for k in range(3):
            for t, least in enumerate(IOUS):
                expected = average_precision(truths, found, k, least, low, high)
                assert (k in tallies) == (expected is not None)
                if expected is not None:
                    assert tallies[k].precisions(t).mean() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "single"), [("teacher", False), ("teacher", True)])
def test_the_figures_are_those_of_ultralytics_own_validation(name, single, scenes, tmp_path):
    """On the same images: overall, and of each class."""
    file = str(ASSETS / f"{name}.pt")
    given = images.sample({"data": str(scenes), "imgsz": 64, "single_cls": single}, "detect")
    ours = score(given.truths, images.detections(images.open_any(file, "model", False), given, None, "cpu"))
    theirs = (
        YOLO(file)
        .val(data=str(scenes), imgsz=64, device="cpu", workers=0, plots=False, project=str(tmp_path), single_cls=single)
        .box
    )
    assert theirs.map50 > 0.02 and ours["map50"] == pytest.approx(theirs.map50, abs=1e-3)
    assert ours["map50_95"] == pytest.approx(theirs.map, abs=5e-3), "boxes are rounded elsewhere"
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs.mp, theirs.mr), abs=5e-3)
    by_class = {str(k): float(ap) for k, ap in zip(theirs.ap_class_index, theirs.ap50, strict=True)}
    assert {k: c["map50"] for k, c in ours["classes"].items()} == pytest.approx(by_class, abs=5e-3)


def test_figures_are_means_over_classes_and_count_every_object():
    truths, found = composed(1)
    scores = score(truths, found)
    assert scores["map50"] == pytest.approx(np.mean([c["map50"] for c in scores["classes"].values()]))
    assert sum(c["objects"] for c in scores["classes"].values()) == sum(len(t.cls) for t in truths)
    assert sum(s["objects"] for s in scores["sizes"].values()) == sum(len(t.cls) for t in truths)


def test_all_right_and_nothing_found():
    truths, _ = composed(2)
    none = [t.only(np.zeros(len(t.cls), bool)) for t in truths]
    perfect, empty = score(truths, truths), score(truths, none)
    assert perfect["precision"] == pytest.approx(1) and perfect["recall"] == 1.0 and min(perfect["curve"][:-1]) == 1.0
    assert perfect["map50_95"] == pytest.approx(0.995), "Ultralytics' area under a curve that ends in 0"
    assert all(s["map50_95"] == 1.0 for s in perfect["sizes"].values() if s["objects"])
    assert empty["map50"] == empty["recall"] == 0.0
    assert score(none, none)["map50"] is None and score(none, truths)["precision"] is None


def test_the_operating_point_balances_precision_and_recall():
    """Two objects; a sure hit, a less sure miss, an unsure hit: 0.9 alone has F1 2/3, all three 4/5."""
    box = np.array([[0, 0, 10, 10], [50, 50, 70, 70], [200, 200, 220, 220]], float)
    truth = Boxes(box[:2], np.zeros(2, int), np.ones(2))
    found = Boxes(box[[0, 2, 1]], np.zeros(3, int), np.array([0.9, 0.5, 0.3]))
    point = as_validation(tally([truth], [found]))
    assert point["precision"] == pytest.approx(2 / 3) and point["recall"] == 1.0 and point["conf"] <= 0.3


def test_what_is_drawn_as_right_wrong_and_missed():
    truth = as_boxes(np.array([[0, 0.25, 0.25, 0.2, 0.2], [1, 0.75, 0.75, 0.2, 0.2]]), 100, 200)
    assert truth.xyxy[0].tolist() == [15, 30, 35, 70]
    found = Boxes(np.concatenate((truth.xyxy, truth.xyxy[:1])), np.array([0, 0, 0]), np.array([0.9, 0.8, 0.1]))
    sure, right, hit = judged(truth, found, 0.25)
    assert len(sure.cls) == 2 and right.tolist() == [True, False] and hit.tolist() == [True, False]
    assert overlaps(truth.xyxy, truth.xyxy).diagonal().tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_the_boards_own_average_precision_is_ultralytics(seed):
    """Without Ultralytics, the same to rounding; classes without a detection too."""
    truths, found = composed(seed)
    tallies = tally(truths, found)
    tallies[99] = tally(
        [Boxes(np.ones((1, 4)), np.full(1, 99), np.ones(1))], [Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))]
    )[99]
    theirs = as_validation(tallies)["classes"]
    for k, (ap50, ap) in validated(tallies).items():
        assert (ap50, ap) == pytest.approx((theirs[str(k)]["map50"], theirs[str(k)]["map50_95"]), abs=1e-12)
