"""KD-DETR against its equation in scalar loops, and its random queries."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import answer, bce, build, change, check, make_pair, sigmoid

from yolokd.methods import METHODS
from yolokd.methods.kddetr import KDDETROptions


def kl(zs: list[float], zt: list[float], tau: float) -> float:
    p = [sigmoid(z / tau) for z in zt]
    parts = zip(zs, p, strict=True)
    return tau**2 * sum(bce(z / tau, q) + q * math.log(q) + (1 - q) * math.log(1 - q) for z, q in parts)


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


def part(found, wanted_logits, wanted_boxes, size, o) -> float:
    total, depth = 0.0, len(found["layer_logits"])
    count = max(1.0, sum(max(map(sigmoid, z)) for image in wanted_logits for z in image))
    for logits, boxes in zip(found["layer_logits"], found["layer_boxes"], strict=True):
        for i, image in enumerate(wanted_logits):
            for m, z in enumerate(image):
                each = o.cls * kl(logits[i][m], z, o.tau) + box_loss(boxes[i][m], wanted_boxes[i][m], size, o)
                total += max(map(sigmoid, z)) * each
    return total / count / depth


def reference(method, pair, o, general=()):
    content, size = method.adapter(pair.teacher.content), image_size(pair)

    def loss(student, teacher) -> float:
        value = part(answer(student, content, pair.teacher.references), teacher.logits, teacher.boxes, size, o)
        if general:
            wanted = answer(pair.teacher, *general)
            found = answer(student, method.adapter(general[0]), general[1])
            value += o.general * part(found, wanted["layer_logits"][-1], wanted["layer_boxes"][-1], size, o)
        return value

    return loss


OPTIONS = [{}, {"tau": 3.0}, {"cls": 0.0}, {"l1": 0.0, "giou": 0.5, "general": 0.3, "queries": 3}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_equals_reference(options, training):
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1, heads="set/set")
        method = build("kd_detr", pair, **options).train(training)
        general = method.drawn(pair.teacher.content, pair.teacher.references, image_size(pair)) if training else ()
        method.calls = 0
        check(method, pair, reference(method, pair, KDDETROptions(**options), general), ["decode"], seed)


@pytest.mark.parametrize("queries", [(5, 1), (1, 7)])
def test_any_numbers_of_queries(queries):
    pair = make_pair(heads="set/set", queries=queries, batch=1)
    method = build("kd_detr", pair).eval()
    check(method, pair, reference(method, pair, KDDETROptions()), ["decode"])
    assert method.train()(pair.student, pair.teacher, pair.batch).isfinite()


def test_is_zero_when_the_student_is_the_teacher():
    pair = make_pair(heads="set/set", layers=(1, 1), query_widths=(6, 6))
    pair = replace(pair, student=pair.teacher)
    method = build("kd_detr", pair)
    with torch.no_grad():
        method.adapter.weight.copy_(torch.eye(6))
        method.adapter.bias.zero_()
    assert method(pair.student, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-12)


def test_is_blind_to_the_order_of_the_teachers_queries():
    pair = make_pair(heads="set/set")
    flipped = change(pair.teacher, lambda x: x.flip(1), ("content", "references", "logits", "boxes"))
    method = build("kd_detr", pair).eval()
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(pair.student, flipped, pair.batch).item() == pytest.approx(expected, rel=1e-12)


def test_random_queries_are_like_the_teachers_new_every_time_and_the_students_numbers_stay():
    pair = make_pair(heads="set/set", batch=1, queries=(5, 40))
    content, references, size = 3 * pair.teacher.content + 2, pair.teacher.references, image_size(pair)
    method = build("kd_detr", pair, queries=1000)
    before = torch.random.get_rng_state()
    draws = [method.drawn(content, references, size) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][1], draws[1][1])
    drawn, boxes = draws[0]
    assert drawn.mean((0, 1)).tolist() == pytest.approx(content.mean((0, 1)).tolist(), abs=0.4)
    assert drawn.std((0, 1)).tolist() == pytest.approx(content.std((0, 1)).tolist(), rel=0.15)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / torch.tensor([size[1], size[0]])
    assert centre.min() >= 0 and centre.max() <= 1 and centre.mean().item() == pytest.approx(0.5, abs=0.05)
    resumed = build("kd_detr", pair, queries=1000)
    method.calls = 1
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.drawn(content, references, size)[0], draws[1][0])


def test_without_random_queries_the_teacher_decodes_nothing():
    pair = make_pair(heads="set/set")
    deaf = replace(pair.teacher, decode=None)
    assert build("kd_detr", pair, general=0.0)(pair.student, deaf, pair.batch).isfinite()
    with pytest.raises(ValueError, match="decode"):
        build("kd_detr", pair)(pair.student, deaf, pair.batch)


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"queries": 0}, {"general": -1.0}, {"cls": math.nan}])
def test_refuses_odd_options(options):
    with pytest.raises(ValueError, match=rf"^kd_detr\.{next(iter(options))}=.* is not allowed"):
        METHODS["kd_detr"].Options(**options)
