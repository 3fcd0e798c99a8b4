"""BCKD's two terms against their equations in scalar loops, and what each weight lets through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import giou
from helpers.views import bce, build, change, check, make_pair, sigmoid, soft_count, trainable

from yolokd.methods import METHODS, ops


def cls_reference(beta: float):
    def loss(student, teacher) -> float:
        total = 0.0
        for image_s, image_t in zip(student.logits, teacher.logits, strict=True):
            for point_s, point_t in zip(image_s, image_t, strict=True):
                for z_s, z_t in zip(point_s, point_t, strict=True):
                    total += abs(sigmoid(z_t) - sigmoid(z_s)) ** beta * bce(z_s, sigmoid(z_t))
        return total / soft_count(teacher.logits)

    return loss


def box_reference(weight: str):
    def loss(student, teacher) -> float:
        total = 0.0
        for i, points in enumerate(teacher.logits):
            for n, z_t in enumerate(points):
                if weight == "gap":
                    w = max(abs(sigmoid(t) - sigmoid(s)) for s, t in zip(student.logits[i][n], z_t, strict=True))
                else:
                    w = max(sigmoid(t) for t in z_t)
                total += w * (1 - giou(student.boxes[i][n], teacher.boxes[i][n]))
        return total / soft_count(teacher.logits)

    return loss


@pytest.mark.parametrize("beta", [1, 1.5, 2.0])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shift", [0.0, -12.0])
def test_cls_equals_reference(beta, classes, shift):
    """Also its gradient, to which the weight contributes."""
    for seed in range(2):
        pair = dimmed(make_pair(seed, batch=seed + 1, classes=(classes, classes)), shift)
        check(build("bckd_cls", pair, beta=beta), pair, cls_reference(beta), ["logits"], seed)


@pytest.mark.parametrize("weight", ["gap", "teacher"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shift", [0.0, -12.0])
def test_box_equals_reference(weight, classes, shift):
    for seed in range(3):
        pair = dimmed(make_pair(seed, batch=seed + 1, classes=(classes, classes)), shift)
        check(build("bckd_box", pair, weight=weight), pair, box_reference(weight), ["boxes"], seed)


def dimmed(pair, shift):
    """A negative shift makes a teacher that sees nothing, where the count is held at 1."""
    return replace(pair, teacher=change(pair.teacher, lambda z: z + shift, ("logits",)))


def test_cls_is_zero_without_gradient_when_equal():
    pair = make_pair()
    student = trainable(pair.teacher)
    value = build("bckd_cls", pair)(student, pair.teacher, {})
    value.backward()
    assert value.item() == 0
    assert student.logits.grad.abs().max() == 0


@pytest.mark.parametrize("weight", ["gap", "teacher"])
def test_box_weight_sends_no_gradient_to_the_scores(weight):
    pair = make_pair()
    student = trainable(pair.student)
    build("bckd_box", pair, weight=weight)(student, pair.teacher, {}).backward()
    assert student.logits.grad is None
    assert student.boxes.grad.abs().max() > 0


def test_box_counts_where_scores_agree_only_by_the_teacher_weight():
    pair = make_pair()
    agreeing = replace(pair.student, logits=pair.teacher.logits)
    assert build("bckd_box", pair, weight="gap")(agreeing, pair.teacher, {}).item() == 0
    assert build("bckd_box", pair, weight="teacher")(agreeing, pair.teacher, {}).item() > 0


@pytest.mark.parametrize("weight", ["gap", "teacher"])
def test_box_is_zero_at_equal_boxes(weight):
    pair = make_pair()
    student = replace(pair.student, boxes=pair.teacher.boxes)
    assert build("bckd_box", pair, weight=weight)(student, pair.teacher, {}).item() == pytest.approx(0, abs=1e-15)


def test_box_is_blind_to_where_and_how_large():
    pair = make_pair()
    method = build("bckd_box", pair)
    moved = [change(v, lambda b: 3 * b + 40, ("boxes",)) for v in (pair.student, pair.teacher)]
    assert method(*moved, {}).item() == pytest.approx(method(pair.student, pair.teacher, {}).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 2 / 6),
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),
        ((0, 0, 4, 4), (1, 1, 2, 2), 1 / 16),
        ((0, 0, 2, 2), (1, 1, 1, 1), 0),  # a point inside
        ((0, 0, 2, 2), (9, 9, 8, 8), -60 / 64),  # negative sides: no area
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),  # nothing to compare
    ],
)
def test_giou_by_hand(a, b, value):
    boxes = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (a, b)]
    for first, second in (boxes, boxes[::-1]):
        got = ops.paired_giou(first, second)
        assert got.item() == pytest.approx(value, abs=1e-12)
        assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), [first, second]))


def test_unequal_classes_need_the_teacher_weight():
    pair = make_pair(classes=(3, 5))
    for name in ("bckd_cls", "bckd_box"):
        with pytest.raises(ValueError, match="small has 3 classes and teacher large has 5"):
            build(name, pair)
    assert build("bckd_box", pair, weight="teacher")(pair.student, pair.teacher, {}).isfinite()


@pytest.mark.parametrize("value", [0, 0.5, -1, math.nan, "1", True])
def test_refuses_what_is_no_exponent(value):
    with pytest.raises(ValueError, match=r"^bckd_cls\.beta=.* must be a finite number, 1 or above\.$"):
        METHODS["bckd_cls"].Options(beta=value)


@pytest.mark.parametrize("value", ["student", "", None, 1])
def test_refuses_an_unknown_weight(value):
    with pytest.raises(ValueError, match=r"^bckd_box\.weight=.* must be one of 'gap', 'teacher'\.$"):
        METHODS["bckd_box"].Options(weight=value)
