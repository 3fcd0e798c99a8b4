"""GID's parts against their equations in scalar loops, and which instances it picks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.regions import exact, image_size, pooled, top_boxes, touched_points
from helpers.views import SIZES, bce, build, change, check, conv1x1, entries, make_pair, sigmoid, trainable

from yolokd.methods import METHODS
from yolokd.methods.gid import GID, instances

ALONE = [{"feature": 1.0, "relation": 0.0, "response": 0.0}, {"feature": 0.0, "relation": 1.0, "response": 0.0}]
ALONE.append({"feature": 0.0, "relation": 0.0, "response": 1.0})


def general(student, teacher, size, options) -> list:
    """(image, box) of the general instances."""
    found = []
    for image, points in enumerate(teacher.logits):
        boxes, scores = [], []
        for n, z_t in enumerate(points):
            p_t, p_s = ([sigmoid(z) for z in logits] for logits in (z_t, student.logits[image][n]))
            scores.append(max(abs(t - s) for t, s in zip(p_t, p_s, strict=True)))
            boxes.append((teacher if max(p_t) > max(p_s) else student).boxes[image][n])
        best = top_boxes(boxes, scores, size, options.instances, options.nms)
        found += [(image, box) for box in best]
    return found


def giou(a: list[float], b: list[float]) -> float:
    def area(x1, y1, x2, y2) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    inter = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = area(*a) + area(*b) - inter
    return inter / union - (hull - union) / hull


def smooth_l1(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def relation(u: list, v: list, images: list[int]) -> float:
    """Over ordered pairs of instances of one image, of features as flat lists."""
    total, count = 0.0, 0
    for image in set(images):
        own = [i for i, of in enumerate(images) if of == image]
        pairs = [(i, j) for i in own for j in own if i != j]
        if not pairs:
            continue
        d_u, d_v = ([math.dist(x[i], x[j]) for i, j in pairs] for x in (u, v))
        phi_u, phi_v = (sum(d) / len(d) for d in (d_u, d_v))
        total += sum(smooth_l1(b / phi_v - a / phi_u) for a, b in zip(d_u, d_v, strict=True))
        count += len(pairs)
    return total / max(count, 1)


def response(student, teacher, places: list, cls: float) -> float:
    total, count = 0.0, 0
    for image in range(len(teacher.logits)):
        for n, inside in enumerate(touched_points(places, image, SIZES, teacher.strides)):
            if not inside:
                continue
            count += 1
            for z_s, z_t in zip(student.logits[image][n], teacher.logits[image][n], strict=True):
                p = sigmoid(z_t)
                total += cls * (bce(z_s, p) + p * math.log(p) + (1 - p) * math.log(1 - p))
            total += 1 - giou(student.boxes[image][n], teacher.boxes[image][n])
    return total / max(count, 1)


def reference(method: GID, pair):
    """With the instances of the pair as it is: they carry no gradient."""
    options, size = method.options, image_size(pair.batch)
    lists = [change(v, torch.Tensor.tolist) for v in (pair.student, pair.teacher)]
    places = general(*lists, size, options)
    images = [image for image, _ in places]

    def loss(student, teacher) -> float:
        features, relations = [], []
        maps = zip(getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True)
        for s, t, conv in maps:
            u, v = pooled(t, places, size, options.cells), pooled(s, places, size, options.cells)
            relations.append(relation([entries(x) for x in u], [entries(x) for x in v], images))
            flat_u, flat_v = entries(u), entries(conv1x1(v, conv))
            square = sum((a - b) ** 2 for a, b in zip(flat_u, flat_v, strict=True))
            plain = len(places) * options.cells**2
            features.append(square / (sum(a * a for a in flat_u) if options.relative else plain))
        parts = options.feature * sum(features) / len(features) + options.relation * sum(relations) / len(relations)
        return parts + options.response * response(student, teacher, places, options.cls)

    return loss


@pytest.mark.parametrize("weights", [{}, *ALONE, {"feature": 5e-4, "cls": 1.0}])
@pytest.mark.parametrize(
    ("count", "nms", "cells", "relative"), [(5, 0.3, 2, True), (3, 0.0, 1, False), (12, 0.7, 1, True)]
)
def test_equals_reference(weights, count, nms, cells, relative):
    pair = exact(make_pair(count, batch=2))
    method = build("gid", pair, relative=relative, instances=count, nms=nms, cells=cells, **weights)
    check(method, pair, reference(method, pair), ["neck", "logits", "boxes"])


def test_equals_reference_on_the_backbone_with_one_class():
    pair = exact(make_pair(7, batch=3, classes=(1, 1)))
    method = build("gid", pair, "backbone", cells=2)
    check(method, pair, reference(method, pair), ["backbone", "logits", "boxes"])


def test_instances_equal_reference():
    for seed in range(10):
        pair = make_pair(seed, batch=3)
        options = METHODS["gid"].Options(instances=4)
        lists = [change(v, torch.Tensor.tolist) for v in (pair.student, pair.teacher)]
        expected = general(*lists, image_size(pair.batch), options)
        boxes, index = instances(pair.student, pair.teacher, image_size(pair.batch), options)
        assert list(zip(index.tolist(), boxes.tolist(), strict=True)) == expected


def test_an_instance_is_where_classes_differ_with_the_box_of_the_surer():
    """Both are as sure, of different classes, at point 3; the student alone is sure at point 20."""
    pair = make_pair(batch=1)
    z = torch.full((1, 30, 3), -6.0, dtype=torch.float64)
    z_s, z_t = z.clone(), z.clone()
    z_t[0, 3, 0], z_s[0, 3, 1], z_s[0, 20, 2] = 3, 2.9, 2
    b_t = torch.tensor([[1.0, 1, 9, 9]]).double().repeat(30, 1)[None]
    b_s = b_t + 20
    student, teacher = replace(pair.student, logits=z_s, boxes=b_s), replace(pair.teacher, logits=z_t, boxes=b_t)
    boxes, _ = instances(student, teacher, (32, 48), METHODS["gid"].Options(instances=2))
    assert boxes.tolist() == [[1, 1, 9, 9], [21, 21, 29, 29]]


def test_blind_to_ground_truth():
    pair = make_pair()
    method = build("gid", pair)
    other = {key: x if key == "img" else x[:0] for key, x in pair.batch.items()}
    assert method(pair.student, pair.teacher, other) == method(pair.student, pair.teacher, pair.batch)


def test_equal_views_have_no_instances():
    pair = make_pair(widths=((2, 3), (2, 3)))
    student = trainable(pair.teacher)
    method = build("gid", pair)
    value = method(student, pair.teacher, pair.batch)
    value.backward()
    assert value.item() == 0
    assert all((p.grad == 0).all() for p in method.parameters())


def test_relation_is_blind_to_scale_and_offset_of_both_sides():
    pair = make_pair()
    method = build("gid", pair, **ALONE[1])
    value = method(pair.student, pair.teacher, pair.batch).item()
    student, teacher = (change(v, lambda x: 3 * x + 5, ("neck",)) for v in (pair.student, pair.teacher))
    assert value > 1e-4
    assert method(student, teacher, pair.batch).item() == pytest.approx(value, rel=1e-9)


def test_features_lie_where_the_instances_are():
    pair = make_pair(batch=1)
    method = build("gid", pair, **ALONE[0])
    z = torch.full((1, 30, 3), -6.0, dtype=torch.float64)
    logits = z.clone()
    logits[0, 3, 0] = 3
    boxes = torch.tensor([[1.0, 1, 9, 9]]).double().repeat(30, 1)[None]
    student = replace(pair.student, logits=z, boxes=boxes)
    teacher = replace(pair.teacher, logits=logits, boxes=boxes)
    value = method(student, teacher, pair.batch).item()
    for row, column, same in ((3, 5, True), (0, 0, False)):
        maps = tuple(m.clone() for m in teacher.neck)
        maps[0][:, :, row, column] += 3
        got = method(student, replace(teacher, neck=maps), pair.batch).item()
        assert (got == pytest.approx(value, rel=1e-12)) is same


def test_refuses_unequal_classes():
    with pytest.raises(ValueError, match="gid compares scores class by class, but student small has 3 classes"):
        build("gid", make_pair(classes=(3, 5)))


def test_refuses_images_of_another_size():
    pair = make_pair()
    batch = {**pair.batch, "img": torch.zeros(2, 3, 64, 96)}
    with pytest.raises(ValueError, match=r"64 x 96 has 120 anchor points, but the view has 30"):
        build("gid", pair)(pair.student, pair.teacher, batch)


@pytest.mark.parametrize("option", ["feature", "relation", "response", "cls", "nms", "instances", "cells", "relative"])
@pytest.mark.parametrize("value", [-1, math.nan, "1", None])
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^gid\.{option}=.* is not allowed: it must be "):
        METHODS["gid"].Options(**{option: value})
