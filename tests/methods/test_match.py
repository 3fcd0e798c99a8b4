"""Matched responses against their equations in scalar loops that try every assignment and suppress every box."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.regions import iou
from helpers.views import SIZES, bce, build, change, check, make_pair, sigmoid, tensors, trainable

from yolokd.methods import METHODS
from yolokd.methods.base import ANY_HEADS
from yolokd.methods.match import MatchOptions

every_pair = pytest.mark.parametrize("heads", ANY_HEADS)


def entropy(p: float) -> float:
    return -sum(x * math.log(x) for x in (p, 1 - p) if x > 0)


def box_loss(a: list[float], b: list[float], size: tuple[int, int], o) -> float:
    def area(x1, y1, x2, y2) -> float:
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    inter = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = area(*a) + area(*b) - inter
    x, y, w, h = ((p - q) / s for p, q, s in zip(centred(a), centred(b), [size[1], size[0]] * 2, strict=True))
    return o.l1 * (abs(x) + abs(y) + abs(w) + abs(h)) + o.giou * (1 - inter / union + (hull - union) / hull)


def centred(box: list[float]) -> list[float]:
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def objects(logits: list, boxes: list, sets: bool, o) -> list:
    """(scores, box) of the objects that an image's predictions stand for, best first."""
    found = [([sigmoid(z) for z in zs], box) for zs, box in zip(logits, boxes, strict=True)]
    found = sorted((x for x in found if max(x[0]) > o.least), key=lambda x: -max(x[0]))
    if sets:
        return found[: o.objects]
    kept: list = []
    for scores, box in found:
        if min(box[2] - box[0], box[3] - box[1]) >= 1 and all(iou(box, other) <= o.nms for _, other in kept):
            kept.append((scores, box))
    return kept[: o.objects]


def on_set(layers: list, targets: list, size: tuple[int, int], o) -> float:
    """layers: [(logits [b][q][k], boxes [b][q])]; targets [b]."""
    total = 0.0
    for logits, boxes in layers:
        loss, count = 0.0, 0.0
        for zs, bs, all_wanted in zip(logits, boxes, targets, strict=True):
            wanted = all_wanted[: len(zs)]

            def pair(n, scores, box, zs=zs, bs=bs) -> float:
                kl = sum(bce(z, p) - entropy(p) for z, p in zip(zs[n], scores, strict=True))
                return o.cls * kl + max(scores) * box_loss(bs[n], box, size, o)

            pairs = [[pair(n, *target) for n in range(len(zs))] for target in wanted]
            ways = itertools.permutations(range(len(zs)), len(wanted))
            best = min(ways, key=lambda way: sum(row[n] for row, n in zip(pairs, way, strict=True)))
            loss += sum(row[n] for row, n in zip(pairs, best, strict=True))
            count += sum(max(scores) for scores, _ in wanted)
            for n in set(range(len(zs))) - set(best):
                loss += o.background * sum(sigmoid(z) ** 2 * bce(z, 0.0) for z in zs[n])
        total += loss / max(1.0, count)
    return total / len(layers)


def centres() -> list[tuple[float, float]]:
    return [
        ((x + 0.5) * s, (y + 0.5) * s)
        for (h, w), s in zip(SIZES, (8, 16), strict=True)
        for y in range(h)
        for x in range(w)
    ]


def aligned(logits: list, boxes: list, wanted: list, o) -> dict[int, tuple[int, float]]:
    """Point -> (its object, q) of one image."""
    score: list[dict[int, float]] = []
    for scores, (x1, y1, x2, y2) in wanted:
        k, (cx, cy, w, h) = scores.index(max(scores)), centred([x1, y1, x2, y2])
        near = [
            n for n, (x, y) in enumerate(centres()) if abs(x - cx) <= max(w, 8) / 2 and abs(y - cy) <= max(h, 8) / 2
        ]
        a = {
            n: sigmoid(logits[n][k]) ** o.alpha * iou(boxes[n], [x1, y1, x2, y2]) ** o.beta
            for n in near
            if iou(boxes[n], [x1, y1, x2, y2]) > 0
        }
        score.append({n: a[n] for n in sorted(a, key=lambda n: -a[n])[: o.topk]})
    owner = {
        n: max((m for m, a in enumerate(score) if n in a), key=lambda m: iou(boxes[n], wanted[m][1]))
        for a in score
        for n in a
    }
    found = {}
    for n, m in owner.items():
        own = [i for i in owner if owner[i] == m]
        found[n] = (m, score[m][n] / max(score[m][i] for i in own) * max(iou(boxes[i], wanted[m][1]) for i in own))
    return found


def on_points(logits: list, boxes: list, chosen: list, targets: list, size: tuple[int, int], o) -> float:
    """chosen: what `aligned` says of each image, for the student as it is: q carries no gradient."""
    loss, count = 0.0, 0.0
    for zs, bs, points, wanted in zip(logits, boxes, chosen, targets, strict=True):
        for n, (m, q) in points.items():
            scores, box = wanted[m]
            loss += o.cls * sum(bce(z, q * p) - entropy(q * p) for z, p in zip(zs[n], scores, strict=True))
            loss += q * max(scores) * box_loss(bs[n], box, size, o)
            count += q * max(scores)
        rest = [z for n in range(len(zs)) if n not in points for z in zs[n]]
        loss += o.background * sum(sigmoid(z) ** 2 * bce(z, 0.0) for z in rest)
    return loss / max(1.0, count)


def reference(pair, o, bare=False):
    size = (pair.batch["img"].shape[-2], pair.batch["img"].shape[-1])
    s = change(pair.student, torch.Tensor.tolist, ("logits", "boxes"))
    t = change(pair.teacher, torch.Tensor.tolist, ("logits", "boxes"))
    sets = not (pair.teacher_spec.dense or pair.student_spec.dense)
    targets = [objects(zs, bs, sets, o) for zs, bs in zip(t.logits, t.boxes, strict=True)]
    if pair.student_spec.dense:
        chosen = [aligned(*image, o) for image in zip(s.logits, s.boxes, targets, strict=True)]
        return lambda student, _: on_points(student.logits, student.boxes, chosen, targets, size, o)
    if bare:
        return lambda student, _: on_set([(student.logits, student.boxes)], targets, size, o)
    return lambda student, _: on_set(
        list(zip(student.layer_logits, student.layer_boxes, strict=True)), targets, size, o
    )


OPTIONS = [
    {},
    {"least": 0.0, "objects": 3, "nms": 0.3, "topk": 2},
    {"alpha": 1.0, "beta": 1.0, "cls": 0.5, "background": 0.7, "objects": 4},
    {"cls": 0.0, "l1": 1.0, "giou": 0.0, "least": 0.7},
    {"alpha": 0.0, "beta": 0.0, "topk": 100, "l1": 0.0, "background": 2.0, "objects": 5},
]


@every_pair
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_reference(heads, options):
    """In value and gradient; some of the points are not matched, and some objects are not."""
    for seed in range(2):
        pair = wider(make_pair(seed, batch=seed + 1, heads=heads))
        fields = ["logits", "boxes"] if pair.student_spec.dense else ["layer_logits", "layer_boxes"]
        check(build("match", pair, **options), pair, reference(pair, MatchOptions(**options)), fields, seed)


def wider(pair):
    """With the dense boxes over the image instead of around its corner."""
    sides = {
        side: change(getattr(pair, side), lambda b: (b + 12).clamp(-3, 50), ("boxes",))
        for side in ("student", "teacher")
        if getattr(pair, f"{side}_spec").dense
    }
    return replace(pair, **sides)


@pytest.mark.parametrize("queries", [(2, 7), (7, 2), (1, 1)])
def test_any_numbers_of_queries(queries):
    for heads in ("set/set", "set/dense", "dense/set"):
        pair = wider(make_pair(heads=heads, queries=queries))
        check(build("match", pair, objects=4), pair, reference(pair, MatchOptions(objects=4)), [])


@pytest.mark.parametrize("heads", ["set/set", "set/dense"])
def test_a_student_without_layers_shows_its_predictions(heads):
    pair = make_pair(heads=heads)
    spec = replace(pair.student_spec, layers=0, provides=frozenset({"logits", "boxes"}))
    view = replace(pair.student, layer_logits=None, layer_boxes=None)
    pair = wider(replace(pair, student_spec=spec, student=view))
    check(
        build("match", pair, objects=4), pair, reference(pair, MatchOptions(objects=4), bare=True), ["logits", "boxes"]
    )


@every_pair
def test_no_object_is_worth_nothing_and_trains_nothing(heads):
    pair = make_pair(heads=heads)
    blind = replace(pair, teacher=change(pair.teacher, lambda z: z - 50, ("logits",)))
    student = trainable(pair.student)
    value = build("match", pair)(student, blind.teacher, pair.batch)
    value.backward()
    assert value.item() == 0
    assert all(x.grad is None or x.grad.abs().max() == 0 for x in (student.logits, *(student.layer_logits or ())))
    assert build("match", pair, background=1.0)(student, blind.teacher, pair.batch) > 0


@every_pair
def test_images_with_fewer_objects_than_others(heads):
    pair = wider(make_pair(heads=heads))
    seen = torch.tensor([0.0, -50.0], dtype=torch.float64)[:, None, None]
    pair = replace(pair, teacher=change(pair.teacher, lambda z: z + seen, ("logits",)))
    options = {"background": 0.7, "objects": 3}
    fields = ["logits", "boxes"] if pair.student_spec.dense else ["layer_logits", "layer_boxes"]
    check(build("match", pair, **options), pair, reference(pair, MatchOptions(**options)), fields)


@pytest.mark.parametrize("heads", ["set/set", "set/dense"])
def test_what_is_not_matched_gets_no_gradient(heads):
    pair = wider(make_pair(heads=heads, queries=(9, 7)))
    for background, moved in ((0.0, 2), (0.5, 9)):
        student = trainable(pair.student)
        build("match", pair, objects=2, background=background)(student, pair.teacher, pair.batch).backward()
        for z in student.layer_logits:
            assert ((z.grad.abs().amax(-1) > 0).sum(-1) == moved).all()


def test_equal_sets_are_worth_nothing():
    pair = make_pair(heads="set/set", queries=(7, 7), layers=(2, 2))
    last = {f"layer_{x}": (getattr(pair.teacher, x),) * 2 for x in ("logits", "boxes")}
    value = build("match", pair)(replace(pair.student, **last), pair.teacher, pair.batch)
    assert value.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("teacher", ["dense", "set"])
def test_points_that_say_what_the_teacher_says_are_worth_nothing(teacher):
    """One point an object, apart enough from the others, whose box holds the point's centre."""
    pair = make_pair(heads=f"dense/{teacher}", queries=(5, 3))
    boxes = torch.tensor([[0, 0, 16, 16], [20, 0, 40, 20], [8, 20, 24, 32]], dtype=torch.float64)
    logits = torch.tensor([[3.0, -4, -5], [-6, 2, -4], [-3, -3, 1]], dtype=torch.float64)
    s = {"logits": torch.full_like(pair.student.logits, -9), "boxes": torch.zeros_like(pair.student.boxes) + 1}
    points = [1, 3, 20]  # rows of 6 points 8 pixels apart
    for field, wanted in (("logits", logits), ("boxes", boxes)):
        s[field][:, points] = wanted
    shown = s if teacher == "dense" else {"logits": logits.expand(2, -1, -1), "boxes": boxes.expand(2, -1, -1)}
    points_view = replace(pair.student, **s)
    value = build("match", pair, topk=1)(points_view, replace(pair.teacher, **shown), pair.batch)
    assert value.item() == pytest.approx(0, abs=1e-12)
    moved = change(points_view, lambda b: b + 1, ("boxes",))
    assert build("match", pair, topk=1)(moved, replace(pair.teacher, **shown), pair.batch) > 0.1


@every_pair
def test_order_within_a_set_does_not_matter(heads):
    pair = wider(make_pair(heads=heads))
    expected = build("match", pair)(pair.student, pair.teacher, pair.batch).item()
    for side in ("student", "teacher"):
        if not getattr(pair, f"{side}_spec").dense:
            fields = ("logits", "boxes", "layer_logits", "layer_boxes")
            pair = replace(pair, **{side: change(getattr(pair, side), lambda x: x.flip(1), fields)})
    assert build("match", pair)(pair.student, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-12)


@every_pair
def test_the_size_of_the_image_does_not_matter_to_a_set(heads):
    """Boxes and image twice as large; anchor points are at other places then."""
    pair = make_pair(heads=heads)
    if pair.student_spec.dense:
        return
    fields = ("boxes", "layer_boxes")
    sides = {side: change(getattr(pair, side), lambda b: 2 * b, fields) for side in ("student", "teacher")}
    larger = replace(pair, **sides, batch={**pair.batch, "img": pair.batch["img"].repeat(1, 1, 2, 2)})
    values = [build("match", p, objects=5)(p.student, p.teacher, p.batch).item() for p in (pair, larger)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@every_pair
def test_a_student_learns_the_detections(heads):
    """Descent alone brings the student's predictions to the teacher's."""
    pair = wider(make_pair(heads=heads, dtype=torch.float32))
    student, method = trainable(pair.student), build("match", pair, dtype=torch.float32)
    fields = ("logits", "boxes") if pair.student_spec.dense else ("layer_logits", "layer_boxes")
    groups = [{"params": tensors(student, f), "lr": lr} for f, lr in zip(fields, (0.1, 0.5), strict=True)]
    optimizer, first = torch.optim.Adam(groups), method(student, pair.teacher, pair.batch).item()
    for _ in range(100):
        optimizer.zero_grad()
        method(student, pair.teacher, pair.batch).backward()
        optimizer.step()
    assert method(student, pair.teacher, pair.batch).item() < 0.3 * first


@pytest.mark.parametrize("name", ["least", "nms", "alpha", "beta", "cls", "l1", "giou", "background"])
@pytest.mark.parametrize("value", [-0.1, math.inf, "1"])
def test_refuses_what_is_no_number(name, value):
    with pytest.raises(ValueError, match=rf"^match\.{name}=.* must be a finite number, 0 or above\.$"):
        METHODS["match"].Options(**{name: value})


def test_refuses_unequal_classes_and_odd_counts():
    with pytest.raises(ValueError, match="small has 3 classes and teacher large has 5"):
        build("match", make_pair(classes=(3, 5), heads="dense/set"))
    for name in ("objects", "topk"):
        with pytest.raises(ValueError, match=rf"^match\.{name}=0 is not allowed"):
            METHODS["match"].Options(**{name: 0})
