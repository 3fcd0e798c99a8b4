"""Logit distillation against its equation in scalar loops, and its optimum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import bce, build, change, check, make_pair, sigmoid, soft_count, trainable

from yolokd.methods import METHODS


def reference(tau: float):
    def loss(student, teacher) -> float:
        total = 0.0
        for image_s, image_t in zip(student.logits, teacher.logits, strict=True):
            for point_s, point_t in zip(image_s, image_t, strict=True):
                for z_s, z_t in zip(point_s, point_t, strict=True):
                    p = sigmoid(z_t / tau)
                    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
                    total += bce(z_s / tau, p) - entropy
        return tau * tau * total / soft_count(teacher.logits)

    return loss


@pytest.mark.parametrize("tau", [0.7, 1.0, 3])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shift", [0.0, -12.0])  # -12: a teacher that sees nothing, where the count is held at 1
def test_equals_reference(tau, classes, shift):
    for seed in range(3):
        pair = make_pair(seed, batch=seed + 1, classes=(classes, classes))
        teacher = change(pair.teacher, lambda z: z + shift, ("logits",))
        assert (soft_count(teacher.logits.tolist()) == 1) == (shift < 0)
        pair = replace(pair, teacher=teacher)
        check(build("logit", pair, tau=tau), pair, reference(tau), ["logits"], seed)


@pytest.mark.parametrize("scale", [1, 25])
def test_zero_with_zero_gradient_if_and_only_if_equal(scale):
    pair = make_pair(seed=1)
    teacher = change(pair.teacher, lambda z: z * scale, ("logits",))
    method = build("logit", pair, tau=2.0)
    student = trainable(teacher)
    value = method(student, teacher, {})
    value.backward()
    assert value.item() == 0
    assert student.logits.grad.abs().max() < 1e-15
    for sign in (1, -1):
        moved = teacher.logits.clone()
        moved[0, 2, 1] += sign * 0.1
        assert method(change(teacher, lambda _, z=moved: z, ("logits",)), teacher, {}).item() > 0


def test_tau_squared_keeps_the_gradient_near_the_optimum():
    """For a small step d from score 1/2 the term is d^2 / 8, whatever tau."""
    pair = make_pair()
    teacher = change(pair.teacher, torch.zeros_like, ("logits",))
    student = change(teacher, lambda z: z + 1e-3, ("logits",))
    for tau in (1.0, 5.0):
        batch, points, classes = teacher.logits.shape
        value = method_value(pair, tau, student, teacher)
        assert value == pytest.approx(1e-6 / 8 * classes / 0.5, rel=1e-3)


def method_value(pair, tau, student, teacher) -> float:
    return build("logit", pair, tau=tau)(student, teacher, {}).item()


def test_refuses_unequal_classes():
    with pytest.raises(ValueError, match="small has 3 classes and teacher large has 5"):
        build("logit", make_pair(classes=(3, 5)))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True, None])
def test_refuses_what_is_no_temperature(value):
    with pytest.raises(ValueError, match=r"^logit\.tau=.* must be a finite number, above 0\.$"):
        METHODS["logit"].Options(tau=value)
