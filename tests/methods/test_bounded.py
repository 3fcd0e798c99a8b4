"""Bounded regression against its equations in scalar loops, and where it stops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, cells, iou_and_diou, on_its_cells
from helpers.regions import exact
from helpers.views import build, check, make_pair, sigmoid, trainable

from yolokd.methods import METHODS


def labels(batch, image: int) -> list[int]:
    return [int(c) for (c,), i in zip(batch["cls"].tolist(), batch["batch_idx"].tolist(), strict=True) if i == image]


def error(b, g) -> float:
    width, height = max(g[2] - g[0], 1), max(g[3] - g[1], 1)
    return sum(((b[i] - g[i]) / (width, height)[i % 2]) ** 2 for i in range(4))


def reference(options, batch):
    def loss(student, teacher) -> float:
        total, count, bounded = 0.0, 0, 0
        for image in range(len(teacher.boxes)):
            for g, k in zip(boxes_of(batch, image), labels(batch, image), strict=True):
                found = []
                for n, (x, y, _) in enumerate(point for level in cells(batch) for point in level):
                    if g[0] < x < g[2] and g[1] < y < g[3]:
                        b = teacher.boxes[image][n]
                        iou = iou_and_diou(b, g)[0] if b[2] > b[0] and b[3] > b[1] else 0.0
                        found.append((sigmoid(teacher.logits[image][n][k]) ** 0.5 * iou**6, n))
                for q, n in sorted(found, reverse=True)[: options.topk]:
                    if q > 0:
                        e_s, e_t = error(student.boxes[image][n], g), error(teacher.boxes[image][n], g)
                        count += 1
                        bounded += e_s + options.margin <= e_t
                        total += e_s if e_s + options.margin > e_t else 0.0
        assert count > bounded, "the check is empty without points that count"
        return total / count

    return loss


@pytest.mark.parametrize("options", [{}, {"margin": 0.5}, {"topk": 2}], ids=str)
def test_equals_reference(options):
    for seed in range(3):
        pair = exact(on_its_cells(make_pair(seed, batch=seed + 1)))
        method = build("bounded", pair, **options)
        check(method, pair, reference(method.options, pair.batch), ["boxes"], seed)


def test_a_student_as_good_as_its_teacher_is_left_alone():
    """Equal boxes cost nothing without a margin and are pulled to the objects with one, inverted boxes too."""
    pair = on_its_cells(make_pair())
    equal = trainable(replace(pair.student, boxes=pair.teacher.boxes))
    method = build("bounded", pair)
    assert method(equal, pair.teacher, pair.batch).item() == 0
    value = build("bounded", pair, margin=0.1)(equal, pair.teacher, pair.batch)
    value.backward()
    assert value > 0 and equal.boxes.grad.abs().max() > 0
    inverted = trainable(replace(pair.student, boxes=pair.student.boxes[..., [2, 3, 0, 1]]))
    method(inverted, pair.teacher, pair.batch).backward()
    assert inverted.boxes.grad.abs().max() > 0


@pytest.mark.parametrize(("option", "value"), [("margin", -0.1), ("margin", math.inf), ("topk", 0), ("topk", 1.5)])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^bounded\.{option}=.* is not allowed"):
        METHODS["bounded"].Options(**{option: value})


def test_boxes_of_the_student_alone_have_a_gradient():
    pair = on_its_cells(make_pair())
    student = trainable(pair.student)
    build("bounded", pair)(student, pair.teacher, pair.batch).backward()
    assert student.logits.grad is None and torch.isfinite(student.boxes.grad).all()
