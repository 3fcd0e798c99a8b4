"""QSKD's predictions against their equation in scalar loops, by trying all assignments."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, giou
from helpers.regions import exact
from helpers.views import bce, build, check, make_pair, sigmoid, without_objects

from yolokd.methods import METHODS
from yolokd.methods.sets import layer_pairs, stacked


def pair_loss(zs, zt, a, b, size, o) -> float:
    def centred(box) -> list[float]:
        return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]

    total = 0.0
    for z, w in zip(zs, zt, strict=True):
        p = sigmoid(w)
        total += o.cls * (bce(z, p) + p * math.log(p) + (1 - p) * math.log(1 - p))
    sides = zip(centred(a), centred(b), [size[1], size[0]] * 2, strict=True)
    return total + o.l1 * sum(abs(p - q) / s for p, q, s in sides) + o.giou * (1 - giou(a, b))


def reference(o, batch):
    size = batch["img"].shape[-2:]

    def loss(student, teacher) -> float:
        depth, layers = len(student.layer_logits), []
        for d, partner in enumerate(layer_pairs(depth, len(teacher.layer_logits))):
            total, count = 0.0, 0
            for i, (z_s, b_s) in enumerate(zip(student.layer_logits[d], student.layer_boxes[d], strict=True)):
                z_t, b_t = teacher.layer_logits[partner][i], teacher.layer_boxes[partner][i]
                h = [max((giou(b, g) for g in boxes_of(batch, i)), default=-1.0) for b in b_t]
                order = sorted(range(len(h)), key=lambda m: -h[m])[: min(o.queries, len(z_s))]
                chosen = [m for m in order if h[m] > o.low]
                count += len(chosen)
                cost = {
                    (m, n): pair_loss(z_s[n], z_t[m], b_s[n], b_t[m], size, o) for m in chosen for n in range(len(z_s))
                }
                ways = itertools.permutations(range(len(z_s)), len(chosen))
                total += min(sum(cost[m, n] for m, n in zip(chosen, way, strict=True)) for way in ways)
            assert count, "the check is empty without chosen queries"
            layers.append(total / max(1, count))
        return sum(layers) / depth

    return loss


@pytest.mark.parametrize(
    "options",
    [{"low": -0.5}, {"low": -1.0, "queries": 3}, {"low": -0.3, "cls": 0.0}, {"low": -0.5, "l1": 0.0}],
    ids=str,
)
def test_equals_reference(options):
    for seed in range(2):
        pair = exact(make_pair(seed, batch=seed + 1, heads="set/set"))
        method = build("qskd", pair, **options)
        check(method, pair, reference(method.options, pair.batch), ["layer_logits", "layer_boxes"], seed)


def test_the_objects_choose_and_not_the_teachers_confidence():
    pair = exact(make_pair(heads="set/set"))
    method = build("qskd", pair, low=-0.5)
    sure = replace(pair.teacher, layer_logits=tuple(torch.full_like(z, -9.0) for z in pair.teacher.layer_logits))
    chosen = [
        method.near_objects(stacked(view.layer_logits, view.layer_boxes), 5, pair.batch)
        for view in (pair.teacher, sure)
    ]
    assert torch.equal(chosen[0].boxes, chosen[1].boxes) and torch.equal(chosen[0].there, chosen[1].there)


def test_without_objects_nothing_is_chosen():
    pair = make_pair(heads="set/set")
    assert build("qskd", pair)(pair.student, pair.teacher, without_objects(pair.batch)).item() == 0


@pytest.mark.parametrize(
    ("option", "value"), [("low", -1.5), ("low", 1.0), ("queries", 0), ("cls", -1), ("giou", math.nan)]
)
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^qskd\.{option}=.* is not allowed"):
        METHODS["qskd"].Options(**{option: value})
