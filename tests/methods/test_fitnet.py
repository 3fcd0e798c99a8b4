"""FitNet against its equation in scalar loops, and its invariances."""

from __future__ import annotations

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, entries, make_pair, resize

from yolokd.methods import METHODS
from yolokd.methods.fitnet import FitNet


def reference(method: FitNet):
    def loss(student, teacher) -> float:
        levels = []
        for s, t, conv in zip(getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True):
            a = entries(conv1x1(s, conv))
            b = entries(resize(t, len(s[0][0]), len(s[0][0][0])))
            error = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(b)
            levels.append(error / (sum(y**2 for y in b) / len(b)) if method.options.relative else error)
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("tap", FitNet.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(relative, tap, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = build("fitnet", pair, tap, seed, relative=relative)
        check(method, pair, reference(method), [tap], seed)


def test_zero_when_the_adapter_reproduces_the_teacher():
    pair = make_pair(widths=((3, 2), (3, 2)))
    method = build("fitnet", pair)
    for adapter in method.adapters:
        torch.nn.init.dirac_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    assert method(pair.teacher, pair.teacher, {}).item() == 0
    assert method(pair.student, pair.teacher, {}).item() > 0


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    pair = make_pair()
    method = build("fitnet", pair)
    for adapter in method.adapters:
        torch.nn.init.zeros_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    for scale in (1e-3, 1.0, 1e3):
        teacher = change(pair.teacher, lambda x, k=scale: k * x)
        assert method(pair.student, teacher, {}).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_refuses_what_is_no_flag(value):
    with pytest.raises(ValueError, match=r"^fitnet\.relative=.* must be one of True, False\.$"):
        METHODS["fitnet"].Options(relative=value)
