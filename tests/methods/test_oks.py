"""OKS between keypoints against its equation in scalars, and heads with and without visibility."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import bce, build, change, check, make_pair, sigmoid, soft_count, trainable

from yolokd.methods import METHODS


def reference(spread: float, visibility: float = 0.1):
    def loss(student, teacher) -> float:
        total = 0.0
        for z, boxes, s, t in zip(teacher.logits, teacher.boxes, student.keypoints, teacher.keypoints, strict=True):
            for n, scores in enumerate(z):
                left, top, right, bottom = boxes[n]
                area = max(max(right - left, 0) * max(bottom - top, 0), 1)
                total += max(map(sigmoid, scores)) * (place(s[n], t[n], area, spread) + visibility * seen(s[n], t[n]))
        return total / soft_count(teacher.logits)

    return loss


def place(s: list, t: list, area: float, spread: float) -> float:
    weights = [sigmoid(j[2]) if len(j) == 3 else 1.0 for j in t]
    far = [(a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 for a, b in zip(s, t, strict=True)]
    wrong = [1 - math.exp(-d / (2 * area * (2 * spread) ** 2)) for d in far]
    return sum(w * e for w, e in zip(weights, wrong, strict=True)) / sum(weights)


def seen(s: list, t: list) -> float:
    if len(s[0]) < 3 or len(t[0]) < 3:
        return 0.0
    return sum(bce(a[2], sigmoid(b[2])) - bce(b[2], sigmoid(b[2])) for a, b in zip(s, t, strict=True)) / len(s)


@pytest.mark.parametrize("spread", [0.07, 0.5])
@pytest.mark.parametrize("shown", [(3, 3), (2, 3), (3, 2), (2, 2)])
def test_equals_reference(spread, shown):
    """Also where one of the heads, or both, predict places only."""
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1)
        student, teacher = (
            change(view, lambda x, n=n: x[..., :n], ("keypoints",))
            for view, n in zip((pair.student, pair.teacher), shown, strict=True)
        )
        pair = replace(pair, student=student, teacher=teacher)
        check(build("oks", pair, spread=spread), pair, reference(spread), ["keypoints"], seed)


def test_equal_keypoints_are_worth_nothing_and_flat():
    pair = make_pair()
    student = trainable(replace(pair.student, keypoints=pair.teacher.keypoints))
    value = build("oks", pair)(student, pair.teacher, {})
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert student.keypoints.grad.abs().max() < 1e-15


def test_a_keypoint_that_the_teacher_cannot_see_may_lie_anywhere():
    pair = make_pair()
    hidden = pair.teacher.keypoints.clone()
    hidden[..., 1, 2] = -1000
    teacher = replace(pair.teacher, keypoints=hidden)
    student = replace(pair.student, keypoints=pair.student.keypoints.clone())
    first = build("oks", pair)(student, teacher, {})
    student.keypoints[..., 1, :2] += 50
    assert torch.equal(build("oks", pair)(student, teacher, {}), first)


def test_twice_the_picture_is_worth_the_same():
    pair = make_pair()
    larger = [
        change(change(view, lambda b: 2 * b, ("boxes",)), lambda p: p * p.new_tensor([2, 2, 1]), ("keypoints",))
        for view in (pair.student, pair.teacher)
    ]
    method = build("oks", pair)
    assert method(*larger, {}).item() == pytest.approx(method(pair.student, pair.teacher, {}).item(), rel=1e-9)


def test_other_numbers_of_keypoints_are_refused():
    pair = make_pair()
    with pytest.raises(ValueError, match="student small has 3 and teacher large has 17"):
        METHODS["oks"](pair.student_spec, replace(pair.teacher_spec, keypoints=17), "", METHODS["oks"].Options())


@pytest.mark.parametrize("visibility", [0, 2])
def test_visibility_weighs(visibility):
    pair = make_pair()
    check(build("oks", pair, visibility=visibility), pair, reference(0.07, visibility), ["keypoints"])


@pytest.mark.parametrize("value", [0, -1, math.inf, "1", True])
def test_refuses_what_is_no_spread(value):
    with pytest.raises(ValueError, match=r"^oks\.spread=.* must be a finite number, above 0\.$"):
        METHODS["oks"].Options(spread=value)
