"""CWD against its equation in scalar loops, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, entries, make_pair, resize, trainable

from yolokd.methods import METHODS
from yolokd.methods.cwd import CWD


def softmax(values: list[float], tau: float) -> list[float]:
    powers = [math.exp(x / tau) for x in values]
    return [p / sum(powers) for p in powers]


def standardised(x: list) -> list:
    """Every channel of [b][c][y][x] less its mean over images and cells, over its deviation there."""
    out = [[plane for plane in image] for image in x]
    for c in range(len(x[0])):
        values = entries([image[c] for image in x])
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        for image in out:
            image[c] = [[(v - mean) / deviation for v in row] for row in image[c]]
    return out


def reference(method: CWD):
    tau = method.options.tau

    def loss(student, teacher) -> float:
        levels = []
        for s, t, conv in zip(getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True):
            a, b = conv1x1(s, conv), resize(t, len(s[0][0]), len(s[0][0][0]))
            if method.options.norm:
                a, b = standardised(a), standardised(b)
            total = 0.0
            for i in range(len(b)):
                for c in range(len(b[0])):
                    p, q = softmax(entries(b[i][c]), tau), softmax(entries(a[i][c]), tau)
                    total += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
            levels.append(tau * tau * total / (len(b) * len(b[0])))
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tau", [0.5, 1.0, 4])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("tap", CWD.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(tau, norm, tap, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = build("cwd", pair, tap, seed, tau=tau, norm=norm)
        check(method, pair, reference(method), [tap], seed)


def test_blind_to_a_constant_added_to_a_channel():
    def offset(x):
        return x + 5 * torch.arange(x.shape[1], dtype=x.dtype)[:, None, None]

    pair = make_pair()
    method = build("cwd", pair)
    value = method(pair.student, pair.teacher, {}).item()
    assert method(pair.student, change(pair.teacher, offset, ("neck",)), {}).item() == pytest.approx(value, rel=1e-9)
    assert method(change(pair.student, offset, ("neck",)), pair.teacher, {}).item() == pytest.approx(value, rel=1e-9)
    # but not to one that differs between cells
    shaped = change(pair.student, lambda x: x + torch.arange(x.shape[-1], dtype=x.dtype), ("neck",))
    assert method(shaped, pair.teacher, {}).item() != pytest.approx(value, rel=1e-3)


def test_zero_with_zero_gradient_when_the_adapter_reproduces_the_teacher():
    pair = make_pair(widths=((3, 2), (3, 2)))
    method = build("cwd", pair)
    for adapter in method.adapters:
        torch.nn.init.dirac_(adapter.weight)
    student = trainable(pair.teacher)
    value = method(student, pair.teacher, {})
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert all(x.grad.abs().max() < 1e-15 for x in student.neck)


def test_normalised_channels_count_alike():
    """A teacher's channel a thousand times as large changes nothing with norm=True, and a dead one costs nothing."""

    def scaled(x):
        return x * torch.tensor([1e3, 1, 50, 7][: x.shape[1]], dtype=x.dtype)[:, None, None]

    pair = make_pair()
    method, plain = build("cwd", pair, norm=True), build("cwd", pair)
    larger = change(pair.teacher, scaled, ("neck",))
    expected = method(pair.student, pair.teacher, {}).item()
    assert method(pair.student, larger, {}).item() == pytest.approx(expected, rel=1e-3)
    assert plain(pair.student, larger, {}).item() > 2 * plain(pair.student, pair.teacher, {}).item()
    flat = change(pair.teacher, torch.zeros_like, ("neck",))
    student = trainable(pair.student)
    method(student, flat, {}).backward()
    assert all(x.grad.isfinite().all() for x in student.neck)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True, None])
def test_refuses_what_is_no_temperature(value):
    with pytest.raises(ValueError, match=r"^cwd\.tau=.* must be a finite number, above 0\.$"):
        METHODS["cwd"].Options(tau=value)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_refuses_what_is_no_switch(value):
    with pytest.raises(ValueError, match=r"^cwd\.norm=.* must be one of True, False\.$"):
        METHODS["cwd"].Options(norm=value)
