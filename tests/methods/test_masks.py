"""Masks at the teacher's confident points against their equation in scalar loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.regions import image_size, iou
from helpers.views import bce, build, change, check, make_pair, resize, sigmoid

from yolokd.methods import METHODS
from yolokd.methods.masks import MasksOptions


def reference(batch, o: MasksOptions):
    size = image_size(batch)

    def loss(student, teacher) -> float:
        total = count = 0.0
        height, width = len(student.prototypes[0][0]), len(student.prototypes[0][0][0])
        models = resize(teacher.prototypes, height, width)
        for i, (z, boxes) in enumerate(zip(teacher.logits, teacher.boxes, strict=True)):
            scores = [max(map(sigmoid, k)) for k in z]
            for n in best(boxes, scores, o):
                box = boxes[n]
                s = mask(student.coefficients[i][n], student.prototypes[i])
                t = mask(teacher.coefficients[i][n], models[i])
                errors = [
                    bce(s[y][x], sigmoid(t[y][x])) - bce(t[y][x], sigmoid(t[y][x]))
                    for y in range(height)
                    for x in range(width)
                    if box[0] <= (x + 0.5) * size[1] / width < box[2]
                    and box[1] <= (y + 0.5) * size[0] / height < box[3]
                ]
                total += scores[n] * sum(errors) / max(len(errors), 1)
                count += scores[n]
        return total / max(count, 1)

    return loss


def best(boxes: list, scores: list, o: MasksOptions) -> list[int]:
    """Points of an image's objects, greedily without those whose box overlaps a better one's."""
    kept: list[int] = []
    for n in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        large = min(boxes[n][2] - boxes[n][0], boxes[n][3] - boxes[n][1]) >= 1
        if large and scores[n] > o.score and all(iou(boxes[n], boxes[k]) <= o.nms for k in kept):
            kept.append(n)
    return kept[: o.objects]


def mask(coefficients: list, prototypes: list) -> list:
    rows, columns = len(prototypes[0]), len(prototypes[0][0])
    return [
        [sum(c * p[y][x] for c, p in zip(coefficients, prototypes, strict=True)) for x in range(columns)]
        for y in range(rows)
    ]


@pytest.mark.parametrize("options", [{}, {"objects": 2, "score": 0.5, "nms": 0.2}])
@pytest.mark.parametrize("widths", [((2, 3), (2, 4)), ((2, 3), (5, 2))])
def test_equals_reference(options, widths):
    """Also with other numbers of prototypes than the teacher's."""
    for seed in range(2):
        pair = make_pair(seed, batch=seed + 1, widths=widths)
        method = build("masks", pair, **options)
        check(method, pair, reference(pair.batch, method.options), ["coefficients", "prototypes"], seed)


def test_a_teacher_that_sees_nothing_teaches_nothing():
    pair = make_pair()
    dark = replace(pair.teacher, logits=pair.teacher.logits - 20)
    assert build("masks", pair)(pair.student, dark, pair.batch).item() == 0


def test_prototypes_of_another_size_are_resized():
    pair = make_pair()
    large = change(pair.teacher, lambda p: p.repeat_interleave(2, -1).repeat_interleave(2, -2), ("prototypes",))
    check(build("masks", pair), replace(pair, teacher=large), reference(pair.batch, MasksOptions()), ["prototypes"])


def test_masks_are_compared_and_not_their_parts():
    """Prototypes in another order, sign and size make the same masks."""
    pair = make_pair()
    student = replace(
        pair.student,
        coefficients=-2 * pair.teacher.coefficients.flip(-1),
        prototypes=-pair.teacher.prototypes.flip(1) / 2,
    )
    assert build("masks", pair)(student, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-15)


def test_pixels_outside_the_boxes_count_for_nothing():
    pair = make_pair()
    boxes = torch.tensor([2.0, 2, 14, 10], dtype=torch.float64).expand_as(pair.teacher.boxes)
    teacher = replace(pair.teacher, boxes=boxes)
    prototypes = pair.student.prototypes.clone()
    method = build("masks", pair)
    first = method(pair.student, teacher, pair.batch)
    prototypes[..., 3:, :] += 5  # four pixels a row: 12 and below
    assert torch.equal(method(replace(pair.student, prototypes=prototypes), teacher, pair.batch), first)
    prototypes[..., 1, 1] += 5
    assert method(replace(pair.student, prototypes=prototypes), teacher, pair.batch) != first


@pytest.mark.parametrize(("option", "value"), [("objects", 0), ("objects", 2.5), ("score", -1), ("nms", "1")])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^masks\.{option}=.* is not allowed"):
        METHODS["masks"].Options(**{option: value})
