"""PKD against Pearson's coefficient in scalar loops, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, entries, make_pair, resize, trainable
from torch.autograd import gradcheck

from yolokd.methods.pkd import EPS, PKD, centred, decorrelation


def standardised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / len(values)
    return [(x - mean) / math.sqrt(variance + EPS) for x in values]


def channel(x: list, c: int) -> list[float]:
    return [value for image in x for value in entries(image[c])]


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    cov = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return cov / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def reference(method: PKD):
    def loss(student, teacher) -> float:
        levels = []
        for s, t, conv in zip(getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True):
            a, b = conv1x1(s, conv), resize(t, len(s[0][0]), len(s[0][0][0]))
            squares = []
            for c in range(len(b[0])):
                both = zip(standardised(channel(a, c)), standardised(channel(b, c)), strict=True)
                squares += [(x - y) ** 2 for x, y in both]
            levels.append(sum(squares) / len(squares) / 2)
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tap", PKD.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(tap, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = build("pkd", pair, tap, seed)
        check(method, pair, reference(method), [tap], seed)


def test_is_one_minus_pearson_averaged_over_channels():
    pair = make_pair(seed=3, batch=3)
    method = build("pkd", pair)
    levels = []
    for s, t, conv in zip(pair.student.neck, pair.teacher.neck, method.adapters, strict=True):
        a, b = conv1x1(s.tolist(), conv), t.tolist()
        levels.append(sum(1 - pearson(channel(a, c), channel(b, c)) for c in range(len(b[0]))) / len(b[0]))
    assert method(pair.student, pair.teacher, {}).item() == pytest.approx(sum(levels) / len(levels), rel=1e-6)


def test_blind_to_offset_and_positive_scale_of_every_channel():
    def affine(x):
        c = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None, None]
        return x * (0.5 + c) - 7 * c

    pair = make_pair(widths=((3, 2), (3, 2)))
    method = build("pkd", pair)
    value = method(pair.student, pair.teacher, {}).item()
    assert method(pair.student, change(pair.teacher, affine, ("neck",)), {}).item() == pytest.approx(value, rel=1e-6)
    for adapter in method.adapters:  # the student's side: scale rows of the adapter, its output channels
        adapter.weight.data *= torch.arange(2.0, 2 + len(adapter.weight), dtype=torch.float64)[:, None, None, None]
    assert method(pair.student, pair.teacher, {}).item() == pytest.approx(value, rel=1e-6)
    for adapter in method.adapters:
        torch.nn.init.dirac_(adapter.weight)
    assert method(change(pair.teacher, affine, ("neck",)), pair.teacher, {}).item() == pytest.approx(0, abs=1e-12)
    assert method(change(pair.teacher, lambda x: -x), pair.teacher, {}).item() == pytest.approx(2, rel=1e-6)


def test_constant_channel_is_finite():
    pair = make_pair(dtype=torch.float32)
    constant = change(pair.student, lambda x: torch.full_like(x, 3.7), ("neck",))
    method = build("pkd", pair, dtype=torch.float32)
    for student, teacher in [(constant, pair.teacher), (pair.teacher, constant)]:
        pair_method = method if student is constant else build("pkd", swapped(pair), dtype=torch.float32)
        student = trainable(student)
        value = pair_method(student, teacher, {})
        value.backward()
        assert value.isfinite() and 0 <= value <= 2
        assert all(x.grad.isfinite().all() for x in student.neck)


def swapped(pair):
    return type(pair)(pair.teacher_spec, pair.student_spec, pair.teacher, pair.student, pair.batch)


def test_gradient_of_decorrelation():
    generator = torch.Generator().manual_seed(0)
    w, s, t = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((3, 2), (2, 2, 2, 3), (2, 3, 2, 3))
    )
    assert gradcheck(lambda w, s: decorrelation(w, s, t), (w.requires_grad_(), s.requires_grad_()))


def test_channels_that_cancel_do_not_leave_the_range():
    """Rounding in float32 must not make a loss of minus thousands, to which descent would be drawn, where the adapter
    takes away a common mode ten thousand times as strong as the rest."""
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(1, 32, 24, 24, dtype=torch.float64, generator=generator)
    common = torch.randn(1, 1, 24, 24, dtype=torch.float64, generator=generator)
    t = rest[:, :8] + 0.5 * torch.randn(1, 8, 24, 24, dtype=torch.float64, generator=generator)
    for strength in (1.0, 100.0, 1e4):
        s = rest + strength * common + 100 * strength
        w = torch.linalg.lstsq(centred(s), centred(t)).solution.T
        exact = decorrelation(w, s, t).item()
        value = decorrelation(w.float(), s.float(), t.float()).item()
        assert -1e-6 <= value <= 2
        assert strength > 100 or value == pytest.approx(exact, abs=5e-3)
