"""FRS's two parts against their equations in scalar loops, and what the score weighs."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import (
    OTHER_SIZES,
    bce,
    build,
    change,
    check,
    conv1x1,
    make_pair,
    resize,
    sigmoid,
    soft_count,
    trainable,
)

from yolokd.methods import METHODS
from yolokd.methods.frs import FRS


def richness(logits: list, maps: tuple) -> list:
    """[level][b][0][y][x]: the highest score of each cell."""
    levels, start = [], 0
    for m in maps:
        height, width = len(m[0][0]), len(m[0][0][0])
        level = []
        for image in logits:
            points = [max(sigmoid(z) for z in point) for point in image[start : start + height * width]]
            level.append([[points[y * width : (y + 1) * width] for y in range(height)]])
        levels.append(level)
        start += height * width
    return levels


def reference(method: FRS):
    def loss(student, teacher) -> float:
        s_maps, t_maps = getattr(student, method.tap), getattr(teacher, method.tap)
        weights = richness(teacher.logits, s_maps)
        levels = []
        for s, t, w, conv in zip(s_maps, t_maps, weights, method.adapters, strict=True):
            height, width = len(s[0][0]), len(s[0][0][0])
            a, b = conv1x1(s, conv), resize(t, height, width)
            square = energy = total = 0.0
            for i in range(len(b)):
                for y in range(height):
                    for x in range(width):
                        r = w[i][0][y][x]
                        total += r
                        square += r * sum((a[i][c][y][x] - b[i][c][y][x]) ** 2 for c in range(len(b[i])))
                        energy += r * sum(b[i][c][y][x] ** 2 for c in range(len(b[i])))
            levels.append(square / (energy if method.relative else total))
        return sum(levels) / len(levels)

    return loss


def cls_reference(student, teacher) -> float:
    total = 0.0
    for image_s, image_t in zip(student.logits, teacher.logits, strict=True):
        for point_s, point_t in zip(image_s, image_t, strict=True):
            rich = max(sigmoid(z) for z in point_t)
            for z_s, z_t in zip(point_s, point_t, strict=True):
                p = sigmoid(z_t)
                total += rich * (bce(z_s, p) + p * math.log(p) + (1 - p) * math.log(1 - p))
    return total / soft_count(teacher.logits)


@pytest.mark.parametrize("tap", FRS.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
@pytest.mark.parametrize("relative", [True, False])
def test_equals_reference(tap, sizes, relative):
    for seed, classes in enumerate([(3, 3), (2, 5)]):
        pair = make_pair(seed, batch=seed + 1, sizes=sizes, classes=classes)
        method = build("frs", pair, tap, seed, relative=relative)
        if relative:
            check(method, pair, reference(method), [tap], seed)
        else:  # the weights' sum has 1e-9 added
            lists = [change(v, torch.Tensor.tolist) for v in (pair.student, pair.teacher)]
            got = method(pair.student, pair.teacher, {}).item()
            assert got == pytest.approx(reference(method)(*lists), rel=1e-8)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shift", [0.0, -12.0])
def test_cls_equals_reference(classes, shift):
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1, classes=(classes, classes))
        teacher = change(pair.teacher, lambda z, shift=shift: z + shift, ("logits",))
        pair = type(pair)(pair.student_spec, pair.teacher_spec, pair.student, teacher, pair.batch)
        check(build("frs_cls", pair), pair, cls_reference, ["logits"], seed)


def test_cls_is_zero_without_gradient_when_equal():
    pair = make_pair()
    student = trainable(pair.teacher)
    value = build("frs_cls", pair)(student, pair.teacher, {})
    value.backward()
    assert value.item() == 0 and student.logits.grad.abs().max() == 0


def test_what_the_teacher_does_not_believe_in_does_not_count():
    pair = make_pair()
    logits = pair.teacher.logits.clone()
    logits[:, 7] = -1000  # level 0, row 1, column 1
    teacher = change(pair.teacher, lambda _: logits, ("logits",))
    student = change(pair.student, lambda z: z + 5 * (torch.arange(z.shape[1]) == 7)[None, :, None], ("logits",))
    assert build("frs_cls", pair)(student, teacher, {}) == build("frs_cls", pair)(pair.student, teacher, {})
    maps = tuple(m.clone() for m in teacher.neck)
    maps[0][:, :, 1, 1] += 3
    moved = type(teacher)(teacher.strides, neck=maps, logits=logits)
    method = build("frs", pair)
    assert method(pair.student, moved, {}).item() == method(pair.student, teacher, {}).item()
    maps[0][:, :, 1, 2] += 3
    assert method(pair.student, moved, {}).item() != pytest.approx(method(pair.student, teacher, {}).item(), rel=1e-3)


def test_features_are_the_ultralytics_loss_with_a_linear_adapter():
    pair = make_pair()
    frs, sl2 = build("frs", pair), build("sl2", pair, width=1.0)
    for conv, layers in zip(frs.adapters, sl2.adapters, strict=True):
        layers[0], layers[1] = conv, torch.nn.Identity()
        torch.nn.init.dirac_(layers[2].weight)
        torch.nn.init.zeros_(layers[2].bias)
    expected = sl2(pair.student, pair.teacher, {}).item()
    assert frs(pair.student, pair.teacher, {}).item() == pytest.approx(expected, rel=1e-12)


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    pair = make_pair()
    method = build("frs", pair)
    for conv in method.adapters:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    for scale in (1, 1e-3, 1e3):
        teacher = change(pair.teacher, lambda t, scale=scale: scale * t, ("neck",))
        assert method(pair.student, teacher, {}).item() == pytest.approx(1, rel=1e-6)


def test_cls_refuses_unequal_classes():
    pair = make_pair(classes=(3, 5))
    with pytest.raises(ValueError, match="frs_cls compares scores class by class, but student small has 3 classes"):
        build("frs_cls", pair)


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_refuses_what_is_neither_true_nor_false(value):
    with pytest.raises(ValueError, match=r"^frs\.relative=.* must be one of True, False\.$"):
        METHODS["frs"].Options(relative=value)
