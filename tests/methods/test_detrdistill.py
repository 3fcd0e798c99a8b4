"""DETRDistill against its equations in scalar loops that try every assignment."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from views_for_tests import bce, build, change, check, make_pair, sigmoid

from yolokd.methods import METHODS, sets
from yolokd.methods.detrdistill import DETRLogitOptions

LAYER_FIELDS = ("layer_logits", "layer_boxes")


def kl(zs: list[float], zt: list[float]) -> float:
    p = [sigmoid(z) for z in zt]
    return sum(bce(z, q) + q * math.log(q) + (1 - q) * math.log(1 - q) for z, q in zip(zs, p, strict=True))


def box_loss(a: list[float], b: list[float], size: tuple[int, int], o) -> float:
    def area(x1, y1, x2, y2) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    def centred(box) -> list[float]:
        return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]

    inter = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = area(*a) + area(*b) - inter
    l1 = sum(abs(p - q) / s for p, q, s in zip(centred(a), centred(b), [size[1], size[0]] * 2, strict=True))
    return o.l1 * l1 + o.giou * (1 - inter / union + (hull - union) / hull)


def image_size(pair) -> tuple[int, int]:
    return pair.batch["img"].shape[-2], pair.batch["img"].shape[-1]


def logit_reference(size: tuple[int, int], o):
    def loss(student, teacher) -> float:
        depth, total = len(student.layer_logits), 0.0
        for d in range(depth):
            partner = math.ceil((d + 1) * len(teacher.layer_logits) / depth) - 1
            value, count = 0.0, 0.0
            for i, (zs, bs) in enumerate(zip(student.layer_logits[d], student.layer_boxes[d], strict=True)):
                zt, bt = teacher.layer_logits[partner][i], teacher.layer_boxes[partner][i]
                best = sorted(range(len(zt)), key=lambda m: -max(zt[m]))[: min(o.queries, len(zs))]
                weight = {m: max(sigmoid(z) for z in zt[m]) if o.weight == "score" else 1.0 for m in best}
                pairs = [
                    [o.cls * kl(zs[n], zt[m]) + weight[m] * box_loss(bs[n], bt[m], size, o) for n in range(len(zs))]
                    for m in best
                ]
                ways = itertools.permutations(range(len(zs)), len(best))
                value += min(sum(row[n] for row, n in zip(pairs, way, strict=True)) for way in ways)
                count += sum(weight.values())
            total += value / max(1.0, count)
        return total / depth

    return loss


@pytest.mark.parametrize("options", [{}, {"queries": 3}, {"weight": "one", "cls": 0.5}, {"l1": 0.0}, {"giou": 0.0}])
@pytest.mark.parametrize("layers", [(2, 3), (3, 2), (1, 1)])
def test_logit_equals_reference(options, layers):
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1, heads="set/set", layers=layers)
        reference = logit_reference(image_size(pair), DETRLogitOptions(**options))
        check(build("detr_logit", pair, **options), pair, reference, list(LAYER_FIELDS), seed)


@pytest.mark.parametrize("queries", [(2, 6), (6, 2), (1, 1)])
def test_logit_with_any_numbers_of_queries(queries):
    pair = make_pair(heads="set/set", queries=queries)
    check(build("detr_logit", pair), pair, logit_reference(image_size(pair), DETRLogitOptions()), list(LAYER_FIELDS))


def test_logit_is_zero_at_equal_sets_in_any_order():
    pair = make_pair(heads="set/set", queries=(7, 7), layers=(3, 3))
    student = change(pair.teacher, lambda x: x.flip(1), LAYER_FIELDS)
    assert build("detr_logit", pair)(student, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-12)


def test_logit_is_blind_to_the_order_of_both():
    pair = make_pair(heads="set/set")
    method = build("detr_logit", pair)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    flipped = [change(v, lambda x: x.flip(1), LAYER_FIELDS) for v in (pair.student, pair.teacher)]
    for student, teacher in ((flipped[0], pair.teacher), (pair.student, flipped[1]), flipped):
        assert method(student, teacher, pair.batch).item() == pytest.approx(expected, rel=1e-12)


def test_logit_is_blind_to_the_size_of_the_image():
    pair = make_pair(heads="set/set")
    larger = [change(v, lambda b: 2 * b, ("layer_boxes",)) for v in (pair.student, pair.teacher)]
    method, batch = build("detr_logit", pair), {"img": pair.batch["img"].repeat(1, 1, 2, 2)}
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(*larger, batch).item() == pytest.approx(expected, rel=1e-9)


def test_a_layer_twice_is_worth_the_same():
    pair = make_pair(heads="set/set", layers=(1, 1))
    twice = replace(pair.student, **{f: getattr(pair.student, f) * 2 for f in LAYER_FIELDS})
    method = build("detr_logit", pair)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(twice, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-12)


def test_layers_meet_at_the_same_share_of_the_depth():
    assert sets.layer_pairs(3, 6) == [1, 3, 5]
    assert sets.layer_pairs(6, 3) == [0, 0, 1, 1, 2, 2]
    assert sets.layer_pairs(4, 6) == [1, 2, 4, 5]
    assert sets.layer_pairs(1, 6) == [5] and sets.layer_pairs(6, 1) == [0] * 6


def test_the_assignment_is_the_cheapest_of_all():
    random = torch.Generator().manual_seed(0)
    for rows, columns in [(1, 1), (1, 4), (3, 3), (4, 6), (5, 5), (0, 3)]:
        for integers in (False, True):  # with ties
            for _ in range(20):
                cost = torch.randn(rows, columns, generator=random, dtype=torch.float64)
                cost = (2 * cost).round() if integers else cost
                chosen = sets.cheapest(cost.numpy())
                assert len(set(chosen.tolist())) == rows
                ways = itertools.permutations(range(columns), rows)
                least = min(sum(float(cost[m, n]) for m, n in enumerate(way)) for way in ways)
                assert sum(float(cost[m, n]) for m, n in enumerate(chosen)) == pytest.approx(least, abs=1e-12)


def test_a_large_assignment_is_proven_cheapest_by_its_prices():
    """Of a cost u_m + v_n plus something above 0 that is 0 at a hidden assignment, that is the cheapest."""
    random = torch.Generator().manual_seed(1)
    hidden = torch.randperm(300, generator=random)[:120]
    extra = torch.rand(120, 300, generator=random, dtype=torch.float64) + 0.1
    extra[torch.arange(120), hidden] = 0
    prices = torch.zeros(300, dtype=torch.float64)
    prices[hidden] = -3 * torch.rand(120, generator=random, dtype=torch.float64)
    cost = torch.randn(120, 1, generator=random, dtype=torch.float64) + prices + extra
    assert sets.cheapest(cost.numpy()).tolist() == hidden.tolist()


def test_a_student_that_diverged_is_still_assigned():
    pair = make_pair(heads="set/set", dtype=torch.float32)
    lost = change(pair.student, lambda z: z * math.nan, ("layer_logits",))
    assert build("detr_logit", pair, dtype=torch.float32)(lost, pair.teacher, pair.batch).isnan()


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_refuses_odd_counts(value):
    with pytest.raises(ValueError, match=r"^detr_logit\.queries=.* is not allowed"):
        METHODS["detr_logit"].Options(queries=value)
