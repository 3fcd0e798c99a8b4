"""LAD against its equations in scalar loops, the assignment by hand, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, cells, giou, iou_and_diou, on_its_cells
from helpers.regions import exact
from helpers.views import bce, build, change, check, make_pair, sigmoid, trainable, without_objects

from yolokd.methods import METHODS


def labels(batch, image: int) -> list[int]:
    return [int(c) for (c,), i in zip(batch["cls"].tolist(), batch["batch_idx"].tolist(), strict=True) if i == image]


def assignment(batch, image: int, logits, boxes, options) -> dict[int, tuple[int, float]]:
    """Anchor point -> its object and target score."""
    points = [point for level in cells(batch) for point in level]
    claims: dict[int, list] = {}
    for g, (box, k) in enumerate(zip(boxes_of(batch, image), labels(batch, image), strict=True)):
        found = []
        for n, (x, y, _) in enumerate(points):
            if box[0] < x < box[2] and box[1] < y < box[3]:
                b = boxes[n]
                iou = iou_and_diou(b, box)[0] if b[2] > b[0] and b[3] > b[1] else 0.0
                found.append((sigmoid(logits[n][k]) ** options.alpha * iou**options.beta, n, iou))
        for a, n, iou in sorted(found, key=lambda entry: -entry[0])[: options.topk]:
            if a > 0:
                claims.setdefault(n, []).append((iou, g, a))
    own = {n: max(found, key=lambda claim: claim[0]) for n, found in claims.items()}
    target = {}
    for n, (_, g, a) in own.items():
        rivals = [(other_a, iou) for iou, other, other_a in own.values() if other == g]
        target[n] = (g, a / max(r for r, _ in rivals) * max(i for _, i in rivals))
    return target


def reference(options, batch):
    def loss(student, teacher) -> float:
        cls = box = total = 0.0
        for image, (z, b) in enumerate(zip(student.logits, student.boxes, strict=True)):
            target = assignment(batch, image, teacher.logits[image], teacher.boxes[image], options)
            truth, kind = boxes_of(batch, image), labels(batch, image)
            for n, row in enumerate(z):
                g, y = target.get(n, (None, 0.0))
                cls += sum(bce(value, y if g is not None and k == kind[g] else 0.0) for k, value in enumerate(row))
                if g is not None:
                    box += y * (1 - giou(b[n], truth[g]))
                    total += y
        assert total > 0, "the check is empty without assigned points"
        return (options.cls * cls + options.box * box) / max(total, len(student.logits))

    return loss


@pytest.mark.parametrize(
    "options",
    [{}, {"topk": 2}, {"alpha": 2.0, "beta": 0.5, "topk": 3}, {"cls": 0.0}, {"box": 0.0, "beta": 1.0}],
    ids=str,
)
def test_equals_reference(options):
    for seed in range(3):
        pair = exact(on_its_cells(make_pair(seed, batch=seed + 1)))
        method = build("lad", pair, **options)
        check(method, pair, reference(method.options, pair.batch), ["logits", "boxes"], seed)


def test_a_point_of_two_objects_belongs_to_the_better_fit():
    """Two objects over the same points, of which the teacher's boxes fit the second."""
    pair = on_its_cells(make_pair(batch=1))
    batch = {**pair.batch, "cls": torch.zeros(2, 1), "batch_idx": torch.zeros(2)}
    batch["bboxes"] = torch.tensor([[0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.4, 0.6]])
    width, height = batch["img"].shape[-1], batch["img"].shape[-2]
    fit = torch.tensor([0.3 * width, 0.2 * height, 0.7 * width, 0.8 * height], dtype=torch.float64)
    teacher = replace(pair.teacher, boxes=fit.expand_as(pair.teacher.boxes))
    g, n, weight = build("lad", pair, topk=40).assigned(teacher, batch)
    assert len(set(n.tolist())) == len(n)
    inside = g == 1
    assert inside.any() and (~inside).any()
    assert weight[inside].max() == pytest.approx(1.0, rel=1e-6) and weight[~inside].max() < 0.7
    # equal objects share nothing: the first has all points
    same = {**batch, "bboxes": batch["bboxes"][1:].repeat(2, 1)}
    g, n, _ = build("lad", pair, topk=40).assigned(teacher, same)
    assert set(g.tolist()) == {0} and len(set(n.tolist())) == len(n)


def test_the_assignment_is_the_teachers():
    """The student's predictions move no target, and the teacher's scores of other classes neither."""
    pair = on_its_cells(make_pair())
    method = build("lad", pair)
    expected = method.assigned(pair.teacher, pair.batch)
    student = change(pair.student, lambda x: x + 3, ("logits", "boxes"))
    method(student, pair.teacher, pair.batch)
    label = pair.batch["cls"].long().flatten()
    other = pair.teacher.logits.clone()
    other[0, :, [k for k in range(3) if k not in label[pair.batch["batch_idx"] == 0].tolist()]] += 5
    got = method.assigned(replace(pair.teacher, logits=other), pair.batch)
    assert all(map(torch.equal, got, expected))


def test_without_objects_all_scores_are_pushed_down():
    pair = make_pair()
    student = trainable(pair.student)
    build("lad", pair)(student, pair.teacher, without_objects(pair.batch)).backward()
    assert (student.logits.grad > 0).all() and (student.boxes.grad is None or not student.boxes.grad.any())


@pytest.mark.parametrize(
    ("option", "value"), [("topk", 0), ("topk", 1.5), ("alpha", -1), ("beta", math.nan), ("cls", "1"), ("box", -0.1)]
)
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^lad\.{option}=.* is not allowed"):
        METHODS["lad"].Options(**{option: value})


def test_refuses_to_do_nothing_and_other_classes():
    with pytest.raises(ValueError, match=r"lad\.cls and lad\.box are both 0"):
        METHODS["lad"].Options(cls=0, box=0)
    with pytest.raises(ValueError, match="lad compares scores class by class"):
        build("lad", make_pair(classes=(3, 5)))
