"""ICD against its equations in scalar loops, and what its instances are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of
from helpers.regions import exact
from helpers.views import bce, build, check, conv1x1, make_pair, sigmoid, without_objects

from yolokd.methods import METHODS
from yolokd.methods.icd import EPS, INSTANCES, JITTER, Instances

SMALL = {"width": 8, "heads": 2}


def linear(x: list[float], layer) -> list[float]:
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * len(layer.weight)
    return [
        b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def mlp(x: list[float], layers) -> list[float]:
    for i in (0, 2):
        x = [max(v, 0.0) for v in linear(x, layers[i])]
    return linear(x, layers[4])


def layer_norm(x: list[float], eps: float) -> list[float]:
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + eps)
    return [(v - mean) / spread for v in x]


def waves(place: list[float], width: int) -> list[float]:
    half = width // 2
    out = []
    for coordinate in place:
        for i in range(half):
            angle = 2 * math.pi * coordinate / 10000 ** (2 * (i // 2) / half)
            out.append(math.cos(angle) if i % 2 else math.sin(angle))
    return out


def sequence(maps: list, convs, image: int) -> list[list[float]]:
    """The cells of all levels, row by row."""
    cells = []
    for x, conv in zip(maps, convs, strict=True):
        found = conv1x1([x[image]], conv)[0]
        cells += [[plane[i][j] for plane in found] for i in range(len(found[0])) for j in range(len(found[0][0]))]
    return cells


def places(maps: list) -> list[list[float]]:
    sizes = [(len(x[0][0]), len(x[0][0][0])) for x in maps]
    return [[(j + 0.5) / w, (i + 0.5) / h] for h, w in sizes for i in range(h) for j in range(w)]


def reference(method, batch, asked):
    """The loss for given instances: per image a list of (class, box, point, real), all in fractions."""
    o, (height, width) = method.options, batch["img"].shape[-2:]
    heads, d = o.heads, o.width // o.heads

    def loss(student, teacher) -> float:
        kd = conf = edges = 0.0
        real_count = sum(one[3] for image in asked for one in image)
        count = sum(map(len, asked))
        for b, image in enumerate(asked):
            t, s = sequence(teacher.neck, method.teacher_maps, b), sequence(student.neck, method.student_maps, b)
            keys = [
                linear(
                    [v + p for v, p in zip(cell, linear(waves(place, o.width), method.place), strict=True)], method.key
                )
                for cell, place in zip(t, places(student.neck), strict=True)
            ]
            v_t, v_s = [linear(cell, method.value) for cell in t], [linear(cell, method.value) for cell in s]
            for label, box, point, real in image:
                octaves = []
                for side in ((box[2] - box[0]) * width, (box[3] - box[1]) * height):
                    octave = min(max(int(math.log2(max(side, 1)) - 5), 0), 4)
                    octaves += [1.0 if k == octave else 0.0 for k in range(5)]
                y = mlp([float(k == label) for k in range(3)] + waves(point, o.width) + octaves, method.describe)
                q, seen = linear(y, method.query), []
                for h in range(heads):
                    part = slice(h * d, (h + 1) * d)
                    scores = [sum(a * c for a, c in zip(q[part], k[part], strict=True)) / math.sqrt(d) for k in keys]
                    total = sum(math.exp(x) for x in scores)
                    m = [math.exp(x) / total for x in scores]
                    seen += [sum(w * v[part][c] for w, v in zip(m, v_t, strict=True)) for c in range(d)]
                    if real:
                        for w, a, c in zip(m, v_s, v_t, strict=True):
                            pairs = zip(layer_norm(a[part], EPS), layer_norm(c[part], EPS), strict=True)
                            kd += w * sum((x - z) ** 2 for x, z in pairs) / d / heads / real_count
                g = [a + c for a, c in zip(y, linear(seen, method.out), strict=True)]
                g = [a + c for a, c in zip(g, mlp(layer_norm(g, method.norm.eps), method.ffn), strict=True)]
                p = mlp(g, method.predict)
                conf += bce(p[0], float(real)) / count
                if real:
                    true = [point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]]
                    sides = [box[2] - box[0], box[3] - box[1]] * 2
                    edges += (
                        sum(abs(sigmoid(z) - e) / w for z, e, w in zip(p[1:], true, sides, strict=True)) / real_count
                    )
        return kd + o.auxiliary * (conf + edges)

    return loss


def listed(asked: Instances) -> list:
    """The instances of each image as the reference takes them."""
    return [
        [
            (int(asked.label[b, k]), asked.box[b, k].tolist(), asked.point[b, k].tolist(), bool(asked.real[b, k]))
            for k in range(asked.there.shape[1])
            if asked.there[b, k]
        ]
        for b in range(len(asked.there))
    ]


@pytest.mark.parametrize("options", [{}, {"auxiliary": 1.0, "fakes": 2}, {"heads": 1, "fakes": 0}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_equals_reference(options, training):
    pair = exact(make_pair(3, batch=2))
    method = build("icd", pair, **{**SMALL, **options}).train(training)
    asked = listed(method.instances(pair.batch))
    method.calls = 0
    drawn = sum(not one[3] for image in asked for one in image)
    assert drawn == (method.options.fakes * 3 if training else 0)
    fixed = method.instances(pair.batch)
    method.instances = lambda batch: fixed
    check(method, pair, reference(method, pair.batch, asked), ["neck"], 3)


def test_real_instances_are_the_objects_and_their_points_are_near_the_centres():
    pair = exact(make_pair(batch=3))
    method = build("icd", pair, **SMALL)
    scale = torch.tensor([48.0, 32.0, 48.0, 32.0], dtype=torch.float64)
    for image, instances in enumerate(listed(method.instances(pair.batch))):
        real = [one for one in instances if one[3]]
        boxes = torch.tensor([one[1] for one in real], dtype=torch.float64) * scale
        torch.testing.assert_close(boxes, torch.tensor(boxes_of(pair.batch, image), dtype=torch.float64))
        assert len(instances) == 6 * len(real) and [one[3] for one in instances] == sorted(
            (one[3] for one in instances), reverse=True
        )
        for _, box, point, _ in instances:
            for axis in (0, 1):
                off = abs(point[axis] - (box[axis] + box[axis + 2]) / 2) / (box[axis + 2] - box[axis])
                assert off <= JITTER + 1e-9
    first, second = (method.instances(pair.batch).point for _ in range(2))
    assert not torch.equal(first, second), "drawn anew at each call"
    method.eval()
    middle = method.instances(pair.batch)
    torch.testing.assert_close(middle.point, (middle.box[..., :2] + middle.box[..., 2:]) / 2)


def test_the_student_learns_by_the_distance_only_and_the_decoder_by_its_own_task_only():
    pair = exact(make_pair())
    weak, strong = (build("icd", pair, **SMALL, auxiliary=w).eval() for w in (0.1, 10.0))
    neck = [x.clone().requires_grad_() for x in pair.student.neck]
    found = []
    for method in (weak, strong):
        value = method(replace(pair.student, neck=tuple(neck)), pair.teacher, pair.batch)
        grads = torch.autograd.grad(
            value, [*neck, method.key.weight, method.value.weight, method.student_maps[0].weight]
        )
        found.append(grads)
    for k in (0, 1, 4):
        torch.testing.assert_close(found[0][k], found[1][k])
    for k in (2, 3):
        torch.testing.assert_close(100 * found[0][k], found[1][k])


def test_many_objects_are_cut_and_none_are_worth_nothing():
    pair = make_pair()
    method = build("icd", pair, **SMALL)
    assert method(pair.student, pair.teacher, without_objects(pair.batch)).item() == 0
    many = {
        **pair.batch,
        **{key: pair.batch[key][:1].repeat_interleave(400, 0) for key in ("cls", "bboxes", "batch_idx")},
    }
    asked = method.instances(many)
    assert asked.there.sum(1).tolist() == [INSTANCES, 0] and asked.real.sum(1).tolist() == [100, 0]


def test_a_resumed_training_draws_what_an_uninterrupted_one_would():
    pair = make_pair()
    one, other = build("icd", pair, **SMALL), build("icd", pair, **SMALL, seed=5)
    one.instances(pair.batch)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.instances(pair.batch).point, other.instances(pair.batch).point)


@pytest.mark.parametrize(("option", "value"), [("width", 6), ("heads", 3), ("fakes", -1), ("auxiliary", 0)])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^icd\.{option}=.* is not allowed"):
        METHODS["icd"].Options(**{option: value})
