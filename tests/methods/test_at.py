"""Attention transfer against its equation in scalar loops, and what it is blind to."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, entries, make_pair, resize, trainable

from yolokd.methods import METHODS
from yolokd.methods.at import AT


def attention(image: list, p: float) -> list[float]:
    """q of one image, [c][y][x] -> cells."""
    planes = [entries(plane) for plane in image]
    strength = [sum(abs(plane[i]) ** p for plane in planes) / len(planes) for i in range(len(planes[0]))]
    length = math.sqrt(sum(a * a for a in strength))
    return [a / length for a in strength]


def reference(method: AT):
    def loss(student, teacher) -> float:
        levels = []
        for s, t in zip(getattr(student, method.tap), getattr(teacher, method.tap), strict=True):
            t, images = resize(t, len(s[0][0]), len(s[0][0][0])), []
            for a, b in zip(s, t, strict=True):
                both = zip(attention(a, method.p), attention(b, method.p), strict=True)
                square = sum((x - y) ** 2 for x, y in both)
                images.append((square if method.form == "square" else math.sqrt(square)) / 2)
            levels.append(sum(images) / len(images))
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tap", AT.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
@pytest.mark.parametrize("form", ["square", "norm"])
def test_equals_reference(tap, sizes, form):
    for seed, p in enumerate([2, 1, 4, 2.5]):
        pair = make_pair(seed, batch=1 + seed % 2, sizes=sizes)
        method = build("at", pair, tap, p=p, form=form)
        check(method, pair, reference(method), [tap], seed)


def test_square_is_one_minus_the_cosine():
    pair = make_pair()
    levels = []
    for s, t in zip(pair.student.backbone, pair.teacher.backbone, strict=True):
        a, b = (x.square().mean(1).flatten(1) for x in (s, t))
        levels.append((1 - torch.cosine_similarity(a, b)).mean().item())
    got = build("at", pair)(pair.student, pair.teacher, pair.batch).item()
    assert got == pytest.approx(sum(levels) / len(levels), rel=1e-9)


@pytest.mark.parametrize("form", ["square", "norm"])
def test_blind_to_scale_sign_and_order_of_channels(form):
    pair = make_pair()
    method = build("at", pair, form=form)
    value = method(pair.student, pair.teacher, pair.batch).item()
    for blind in (lambda x: 1e-3 * x, lambda x: 1e5 * x, torch.neg, lambda x: x.flip(1)):
        for student, teacher in (
            (change(pair.student, blind), pair.teacher),
            (pair.student, change(pair.teacher, blind)),
        ):
            assert method(student, teacher, pair.batch).item() == pytest.approx(value, rel=1e-9)
    moved = change(pair.student, lambda x: x.flip(3), ("backbone",))
    assert method(moved, pair.teacher, pair.batch).item() != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("form", ["square", "norm"])
def test_zero_without_gradient_at_equal_maps(form):
    pair = make_pair(widths=((3, 2), (3, 2)))
    student = trainable(pair.teacher)
    value = build("at", pair, form=form)(student, pair.teacher, pair.batch)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert all(x.grad.abs().max() < 1e-12 for x in student.backbone)


@pytest.mark.parametrize("form", ["square", "norm"])
def test_one_dead_image_is_finite_and_costs_half(form):
    pair = make_pair(batch=1)
    dead = trainable(change(pair.student, torch.zeros_like))
    value = build("at", pair, form=form)(dead, pair.teacher, pair.batch)
    value.backward()
    assert value.item() == pytest.approx(0.5, rel=1e-9)
    assert all(x.grad.isfinite().all() for x in dead.backbone)


def test_tiny_activations_of_a_high_power_do_not_vanish():
    pair = make_pair(dtype=torch.float32)
    method = build("at", pair, dtype=torch.float32, p=8)
    tiny = change(pair.student, lambda x: 1e-6 * x)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(tiny, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("option", "value"), [("p", 0.5), ("p", 0), ("p", "2"), ("form", "cosine"), ("form", None)])
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^at\.{option}=.* is not allowed"):
        METHODS["at"].Options(**{option: value})
