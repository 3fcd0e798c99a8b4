"""DIST against its equations in scalar loops, and its invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import build, check, make_pair, sigmoid

from yolokd.methods import METHODS


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / len(a)
    var_a, var_b = (sum((x - m) ** 2 for x in v) / len(v) for v, m in ((a, mean_a), (b, mean_b)))
    return both / math.sqrt((var_a + 1e-12) * (var_b + 1e-12))


def reference(options):
    def loss(student, teacher) -> float:
        s, t = ([[sigmoid(z) for z in row] for image in view.logits for row in image] for view in (student, teacher))
        classes = range(len(s[0]))
        intra = sum(1 - correlation([row[k] for row in s], [row[k] for row in t]) for k in classes) / len(s[0])
        inter = 0.0
        if len(s[0]) > 1:
            inter = sum(max(y) * (1 - correlation(x, y)) for x, y in zip(s, t, strict=True)) / sum(map(max, t))
        return options.beta * inter + options.gamma * intra

    return loss


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"gamma": 0.5, "beta": 2.0}], ids=str)
@pytest.mark.parametrize("classes", [1, 3])
def test_equals_reference(options, classes):
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1, classes=(classes, classes))
        method = build("dist", pair, **options)
        check(method, pair, reference(method.options), ["logits"], seed)


def test_only_the_order_counts():
    """Scores that are a tenth of the teacher's everywhere are as good as equal ones; scores turned over are not."""
    pair = make_pair()
    method = build("dist", pair)
    tenth = replace(pair.student, logits=torch.logit(pair.teacher.logits.sigmoid() / 10))
    assert method(tenth, pair.teacher, {}).item() == pytest.approx(0, abs=1e-7)
    turned = replace(pair.student, logits=-pair.teacher.logits)
    assert method(turned, pair.teacher, {}).item() == pytest.approx(4, abs=1e-6)


@pytest.mark.parametrize(("option", "value"), [("beta", -1), ("gamma", "1")])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^dist\.{option}=.* is not allowed"):
        METHODS["dist"].Options(**{option: value})
