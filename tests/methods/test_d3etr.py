"""D3ETR against its equations in scalar loops that try every assignment."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.views import answer, bce, build, change, check, make_pair, sigmoid

from yolokd.methods import METHODS
from yolokd.methods.d3etr import D3ETROptions

READ = ("layer_logits", "layer_boxes", "attention")


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


def rows(look: list[float], looked: list[float]) -> float:
    a, b = ([x / sum(row) for x in row] for row in (look, looked))
    return sum(y * math.log(y / x) for x, y in zip(a, b, strict=True))


def image_size(pair) -> tuple[int, int]:
    return pair.batch["img"].shape[-2], pair.batch["img"].shape[-1]


def reference(method, pair, o):
    content, size = method.adapter(pair.teacher.content), image_size(pair)

    def layer(zs, bs, look, zt, bt, looked, fixed: bool) -> tuple[float, float]:
        """Of one image: the sum of its pairs, and its soft count."""
        order = sorted(range(len(zt)), key=lambda m: -max(zt[m]))
        order = order if fixed else order[: min(o.queries, len(zs))]
        c = {m: max(map(sigmoid, zt[m])) for m in order}
        cost = {
            (m, n): o.cls * kl(zs[n], zt[m]) + c[m] * box_loss(bs[n], bt[m], size, o)
            for m in order
            for n in range(len(zs))
        }
        ways = [tuple(order)] if fixed else itertools.permutations(range(len(zs)), len(order))
        way = min(ways, key=lambda w: sum(cost[pair] for pair in zip(order, w, strict=True)))
        total = sum(cost[pair] for pair in zip(order, way, strict=True))
        for m, n in zip(order, way, strict=True):
            total += o.attention * c[m] * rows([look[n][j] for j in way], [looked[m][j] for j in order])
        return total, sum(c.values())

    def part(found, teacher, fixed: bool) -> float:
        depth, total = len(found["layer_logits"]), 0.0
        for d in range(depth):
            partner = math.ceil((d + 1) * len(teacher.layer_logits) / depth) - 1
            images = [
                layer(*(found[f][d][i] for f in READ), *(getattr(teacher, f)[partner][i] for f in READ), fixed)
                for i in range(len(found["layer_logits"][d]))
            ]
            total += sum(x for x, _ in images) / max(1.0, sum(c for _, c in images))
        return total / depth

    def loss(student, teacher) -> float:
        own = {f: getattr(student, f) for f in READ}
        shared = answer(student, content, pair.teacher.references)
        return o.adaptive * part(own, teacher, False) + o.fixed * part(shared, teacher, True)

    return loss


OPTIONS = [
    {},
    {"adaptive": 0.0},
    {"fixed": 0.0, "queries": 3},
    {"attention": 5.0, "cls": 0.3, "l1": 0.0},
    {"attention": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layers", [(2, 3), (3, 2)])
def test_equals_reference(options, layers):
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1, heads="set/set", layers=layers)
        method = build("d3etr", pair, **options)
        check(method, pair, reference(method, pair, D3ETROptions(**options)), [*READ, "decode"], seed)


@pytest.mark.parametrize("queries", [(2, 6), (6, 2), (1, 1)])
def test_any_numbers_of_queries(queries):
    pair = make_pair(heads="set/set", queries=queries)
    method = build("d3etr", pair)
    check(method, pair, reference(method, pair, D3ETROptions()), [*READ, "decode"])


def test_is_zero_when_the_student_is_the_teacher_in_any_order():
    pair = make_pair(heads="set/set", layers=(3, 3), queries=(7, 7), query_widths=(6, 6))
    order = [3, 1, 6, 0, 2, 5, 4]
    student = change(pair.teacher, lambda x: x[:, order], ("layer_logits", "layer_boxes"))
    student = replace(student, attention=tuple(a[:, order][:, :, order] for a in pair.teacher.attention))
    method = build("d3etr", pair)
    with torch.no_grad():
        method.adapter.weight.copy_(torch.eye(6))
        method.adapter.bias.zero_()
    assert method(student, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-12)
    mixed = replace(student, attention=pair.teacher.attention)
    assert method(mixed, pair.teacher, pair.batch).item() > 1e-3


def test_refuses_to_learn_nothing():
    with pytest.raises(ValueError, match=r"^d3etr\.adaptive=0 and d3etr\.fixed=0 leave nothing to learn"):
        METHODS["d3etr"].Options(adaptive=0.0, fixed=0.0)
    with pytest.raises(ValueError, match=r"^d3etr\.attention=-1 is not allowed"):
        METHODS["d3etr"].Options(attention=-1)
