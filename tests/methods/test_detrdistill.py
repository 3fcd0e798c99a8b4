"""DETRDistill against its equations in scalar loops that try every assignment."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.regions import iou
from helpers.views import (
    answer,
    bce,
    build,
    change,
    check,
    conv1x1,
    make_pair,
    objects,
    precise,
    resize,
    sigmoid,
    without_objects,
)

from yolokd.methods import METHODS, sets
from yolokd.methods.detrdistill import DETRFeatOptions, DETRLogitOptions, DETRQueryOptions

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


def feat_reference(method, pair, o):
    found, size, ground = change(pair.teacher, torch.Tensor.tolist), image_size(pair), objects(pair.batch)

    def cosine(a, b) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    def weights(plane: list, image: int) -> list[list[float]]:
        """W of one image's map [c][y][x]."""
        height, width, total = len(plane[0]), len(plane[0][0]), None
        for logits, boxes, queries in zip(found.layer_logits, found.layer_boxes, found.layer_queries, strict=True):
            order = sorted(range(len(logits[image])), key=lambda m: -max(logits[image][m]))[: o.queries]
            sums = [[0.0] * width for _ in range(height)]
            for m in order:
                box = boxes[image][m]
                u = max((iou(box, g) for g in ground[image]), default=1.0)
                x, y = (box[0] + box[2]) / 2 / size[1], (box[1] + box[3]) / 2 / size[0]
                row, column = int(y * height), int(x * width)
                centre = [c[min(max(row, 0), height - 1)][min(max(column, 0), width - 1)] for c in plane]
                q = centre if o.by == "centre" else queries[image][m]
                for j in range(height):
                    for i in range(width):
                        cell = [c[j][i] for c in plane]
                        sums[j][i] += max(sigmoid(z) for z in logits[image][m]) * u * cosine(q, cell)
            mask = [[max(0.01, x) for x in row] for row in sums]
            top = max(map(max, mask))
            total = total or [[0.0] * width for _ in range(height)]
            total = [
                [a + (x / top) ** 2 for a, x in zip(r, row, strict=True)] for r, row in zip(total, mask, strict=True)
            ]
        return [[x / len(found.layer_logits) for x in row] for row in total]

    def loss(student, teacher) -> float:
        levels = []
        for adapter, s, t in zip(method.adapters, student.neck, teacher.neck, strict=True):
            s = conv1x1(s, adapter)
            t = resize(t, len(s[0][0]), len(s[0][0][0]))
            error, energy, cells = 0.0, 0.0, 0
            for image, (own, wanted) in enumerate(zip(s, t, strict=True)):
                w = weights(wanted, image)
                for a, b in zip(own, wanted, strict=True):
                    for j, row in enumerate(w):
                        for i, weight in enumerate(row):
                            error += weight * (a[j][i] - b[j][i]) ** 2
                            energy += weight * b[j][i] ** 2
                            cells += 1
            levels.append(error / energy if o.relative else error / cells)
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("options", [{}, {"relative": False}, {"queries": 2}, {"by": "query"}])
@pytest.mark.parametrize("heads", ["set/set", "dense/set"])
def test_feat_equals_reference(options, heads):
    for seed in range(2):
        pair = precise(make_pair(seed, batch=seed + 1, heads=heads, widths=((2, 3), (6, 6))))
        method = build("detr_feat", pair, **options)
        check(method, pair, feat_reference(method, pair, DETRFeatOptions(**options)), ["neck"], seed)


def test_feat_on_images_without_objects_and_with_maps_of_another_size():
    sizes = (((4, 6), (2, 3)), ((6, 8), (3, 5)))
    pair = precise(make_pair(heads="set/set", sizes=sizes))
    pair = replace(pair, batch=without_objects(pair.batch))
    method = build("detr_feat", pair)
    check(method, pair, feat_reference(method, pair, DETRFeatOptions()), ["neck"])


def test_feat_refuses_queries_of_another_width_than_the_maps():
    with pytest.raises(ValueError, match="width 6 with maps of widths 4, 2 of teacher large: use detr_feat.by=centre"):
        build("detr_feat", make_pair(heads="set/set"), by="query")


@pytest.mark.parametrize("by", ["centre", "query"])
def test_feat_is_blind_to_the_order_of_the_teachers_queries(by):
    pair = make_pair(heads="set/set", widths=((2, 3), (6, 6)))
    flipped = change(pair.teacher, lambda x: x.flip(1), (*LAYER_FIELDS, "layer_queries"))
    method = build("detr_feat", pair, by=by)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(pair.student, flipped, pair.batch).item() == pytest.approx(expected, rel=1e-12)


def test_feat_weighs_the_cells_that_look_like_a_confident_target():
    """One query whose box's centre lies in a cell: an error there costs more than one in a cell unlike it."""
    pair = make_pair(heads="set/set", batch=1, widths=((2, 3), (2, 3)))
    like = torch.zeros(1, 2, 4, 6, dtype=torch.float64)
    like[0, 0], like[0, 0, :2, :3] = 1.0, -1.0  # the upper left part is the opposite
    # the centre is in row 3 and column 4
    boxes = tuple(torch.tensor([[[32.0, 16, 40, 32]]], dtype=torch.float64) for _ in range(3))
    one = {"layer_boxes": boxes, "layer_logits": tuple(z[:, :1] * 0 + 5 for z in pair.teacher.layer_logits)}
    teacher = replace(pair.teacher, neck=(like, pair.teacher.neck[1]), **one)
    method = build("detr_feat", pair)
    with torch.no_grad():
        for adapter in method.adapters:
            adapter.bias.zero_()
            adapter.weight.copy_(torch.eye(len(adapter.weight), dtype=torch.float64)[..., None, None])
    values = []
    for row, column in ((0, 0), (3, 4)):
        wrong = like.clone()
        wrong[0, :, row, column] += 1
        student = replace(pair.student, neck=(wrong, pair.teacher.neck[1]))
        values.append(method(student, teacher, without_objects(pair.batch)).item())
    assert values[1] > 1000 * values[0] > 0


def focal(z: float, y: float) -> float:
    return (0.25 if y else 0.75) * abs(y - sigmoid(z)) ** 2 * bce(z, y)


def query_reference(method, pair, o):
    size, ground = image_size(pair), objects(pair.batch)
    labels: list[list[int]] = [[] for _ in ground]
    for image, label in zip(pair.batch["batch_idx"].tolist(), pair.batch["cls"].flatten().tolist(), strict=True):
        labels[int(image)].append(int(label))
    content, matching = method.adapter(pair.teacher.content), DETRQueryOptions()

    def loss(student, teacher) -> float:
        found = answer(student, content, pair.teacher.references)
        depth, total = len(found["layer_logits"]), 0.0
        count = max(1, sum(map(len, ground)))
        for d in range(depth):
            partner = math.ceil((d + 1) * len(teacher.layer_logits) / depth) - 1
            for image, boxes in enumerate(ground):
                zt, bt = teacher.layer_logits[partner][image], teacher.layer_boxes[partner][image]
                zs, bs = found["layer_logits"][d][image], found["layer_boxes"][d][image]

                def cost(g, n, zt=zt, bt=bt, boxes=boxes, image=image) -> float:
                    z = zt[n][labels[image][g]]
                    return 2 * (focal(z, 1) - focal(z, 0)) + box_loss(bt[n], boxes[g], size, matching)

                ways = itertools.permutations(range(len(zt)), min(len(boxes), len(zt)))
                way = min(ways, key=lambda w: sum(cost(g, n) for g, n in enumerate(w)))
                wanted = {(n, labels[image][g]) for g, n in enumerate(way)}
                total += o.cls * sum(
                    focal(z, float((n, k) in wanted)) for n, row in enumerate(zs) for k, z in enumerate(row)
                )
                total += sum(box_loss(bs[n], boxes[g], size, o) for g, n in enumerate(way))
        return total / (count * depth)

    return loss


@pytest.mark.parametrize("options", [{}, {"cls": 0.5, "giou": 0.0}, {"l1": 0.0}])
@pytest.mark.parametrize("layers", [(2, 3), (3, 2)])
def test_query_equals_reference(options, layers):
    for seed in range(2):
        pair = precise(make_pair(seed, batch=seed + 2, heads="set/set", layers=layers))
        method = build("detr_query", pair, **options)
        check(method, pair, query_reference(method, pair, DETRQueryOptions(**options)), ["decode"], seed)


def test_query_with_no_objects_and_with_more_than_queries():
    for queries, empty in (((5, 7), True), ((5, 1), False)):
        pair = precise(make_pair(heads="set/set", queries=queries))
        pair = replace(pair, batch=without_objects(pair.batch)) if empty else pair
        method = build("detr_query", pair)
        if empty:
            check(method, pair, query_reference(method, pair, DETRQueryOptions()), ["decode"])
        else:
            assert method(pair.student, pair.teacher, pair.batch).isfinite()


def test_query_is_blind_to_the_order_of_the_teachers_queries():
    pair = make_pair(heads="set/set")
    flipped = change(pair.teacher, lambda x: x.flip(1), (*LAYER_FIELDS, "content", "references"))
    method = build("detr_query", pair)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(pair.student, flipped, pair.batch).item() == pytest.approx(expected, rel=1e-12)
