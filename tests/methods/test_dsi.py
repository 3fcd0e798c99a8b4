"""DSI against its equation in scalar loops, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, make_pair, resize, trainable

from yolokd.methods.dsi import DSI


def reference(method: DSI):
    def loss(student, teacher) -> float:
        levels = []
        for s, t, conv in zip(getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True):
            a, b = conv1x1(s, conv), resize(t, len(s[0][0]), len(s[0][0][0]))
            cells = []
            for i in range(len(b)):
                for y in range(len(b[0][0])):
                    for x in range(len(b[0][0][0])):
                        p, q = ([plane[y][x] for plane in image] for image in (a[i], b[i]))
                        dot = sum(u * v for u, v in zip(p, q, strict=True))
                        cells.append(1 - dot / (math.hypot(*p) * math.hypot(*q)))
            levels.append(sum(cells) / len(cells))
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tap", DSI.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(tap, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = build("dsi", pair, tap, seed)
        check(method, pair, reference(method), [tap], seed)


def test_only_directions_count():
    """Each of the teacher's cells may be as long as it likes, and opposite maps are the farthest apart."""
    pair = make_pair()
    method = build("dsi", pair)
    expected = method(pair.student, pair.teacher, {}).item()
    longer = change(pair.teacher, lambda x: x * (1 + torch.arange(x.shape[-1], dtype=x.dtype)), ("backbone",))
    assert method(pair.student, longer, {}).item() == pytest.approx(expected, rel=1e-12)
    opposite = change(pair.teacher, torch.neg, ("backbone",))
    assert method(pair.student, opposite, {}).item() == pytest.approx(2 - expected, rel=1e-12)


def test_zero_with_zero_gradient_when_the_adapter_reproduces_the_teacher():
    pair = make_pair(widths=((3, 2), (3, 2)))
    method = build("dsi", pair)
    for adapter in method.adapters:
        torch.nn.init.dirac_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    student = trainable(pair.teacher)
    value = method(student, pair.teacher, {})
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert all(x.grad.abs().max() < 1e-15 for x in student.backbone)
