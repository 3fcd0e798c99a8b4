"""What a head that needs no NMS starts from under a teacher that needs one, against NMS written out."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from helpers.models import build
from ultralytics.utils.metrics import batch_probiou

from yolokd.detectors import read
from yolokd.detectors.duplicates import IOU, LEAST, without_duplicates
from yolokd.init.layer_pairs import layer_pairs
from yolokd.init.teacher_statistics import TeacherStatistics
from yolokd.methods.ops import paired_iou
from yolokd.views import View

FLOOR = math.log(LEAST / (1 - LEAST))


def crowded(rotated: bool, images: int = 3, points: int = 40, classes: int = 3) -> View:
    """Many boxes around few places, partly outside the image, with scores from nothing to sure."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randint(0, 3, (images, points, 2), generator=generator) * 40.0
    centre += torch.rand(images, points, 2, generator=generator) * 4
    sides = 30 + torch.rand(images, points, 2, generator=generator) * 4
    logits = torch.randn(images, points, classes, generator=generator) * 3 - 3
    if rotated:
        angle = torch.rand(images, points, 1, generator=generator)
        return View((8,), logits=logits, rotated=torch.cat((centre, sides, angle), -1))
    return View((8,), logits=logits, boxes=torch.cat((centre - sides / 2, centre + sides / 2), -1))


@pytest.mark.parametrize("rotated", [False, True])
def test_scores_of_what_nms_drops_are_lowered_and_no_other(rotated):
    view = crowded(rotated)
    shown = without_duplicates(view).logits
    dropped = 0
    for image, point in product(*map(range, view.logits.shape[:2])):
        score, cls = view.logits[image].sigmoid().max(-1)

        def overlap(other, image=image, point=point):
            if rotated:
                return float(batch_probiou(view.rotated[image, other][None], view.rotated[image, point][None]))
            return float(paired_iou(view.boxes[image, other], view.boxes[image, point]))

        kept: list[int] = []  # greedy NMS among this point's class, best first
        for other in score.argsort(descending=True).tolist():
            if cls[other] == cls[point] and score[other] > LEAST:
                overlaps = [o for o in kept if suppresses(view, rotated, image, o, other)]
                if not overlaps:
                    kept.append(other)
        if score[point] <= LEAST or point in kept:
            assert torch.equal(shown[image, point], view.logits[image, point])
        else:
            assert any(overlap(other) > IOU for other in range(view.logits.shape[1]) if other != point)
            assert torch.equal(shown[image, point], view.logits[image, point].clamp(max=FLOOR))
            dropped += 1
    assert dropped > 20


def suppresses(view: View, rotated: bool, image: int, better: int, other: int) -> bool:
    if rotated:
        return float(batch_probiou(view.rotated[image, better][None], view.rotated[image, other][None])) > IOU
    return float(paired_iou(view.boxes[image, better], view.boxes[image, other])) > IOU


def test_a_start_solves_the_one2one_branch_for_scores_without_duplicates():
    student, teacher = build("yolo26n", 0, torch.float32), read(build("yolo11n", 1, torch.float32))
    with torch.no_grad():
        for tower in teacher.head.cv3:
            tower[-1].bias[0] += 4
    pairs = layer_pairs(student, teacher.model)
    marked = [p for p in pairs if p.once]
    assert marked and all("one2one" in p.name for p in marked)
    assert not any(p.once for p in layer_pairs(student, build("yolo26n", 1, torch.float32)))
    statistics = TeacherStatistics(teacher, pairs, torch.rand(2, 3, 64, 64))
    names = [p.name for p in marked if p.kind == "class"]
    once, many = (torch.cat([statistics.targets[n].amax(1) for n in of]) for of in (names, other_branch(names)))
    assert (once <= FLOOR + 1e-5).sum() > 50 and (many > FLOOR + 1).all()


def other_branch(names: list[str]) -> list[str]:
    return [name.replace("one2one_", "") for name in names]
