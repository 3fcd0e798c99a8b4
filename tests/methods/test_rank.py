"""Rank mimicking and prediction-guided feature imitation against their equations in scalar loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, cells, iou_and_diou, on_its_cells, softmax
from helpers.regions import exact
from helpers.views import (
    OTHER_SIZES,
    SIZES,
    build,
    change,
    check,
    conv1x1,
    make_pair,
    resize,
    sigmoid,
    trainable,
    without_objects,
)

from yolokd.methods import METHODS


def classes(batch, image: int) -> list[int]:
    return [int(c) for (c,), i in zip(batch["cls"].tolist(), batch["batch_idx"].tolist(), strict=True) if i == image]


def candidates(g, k: int, boxes: list, logits: list, batch, options) -> list[int]:
    """The object's points of highest alignment, of those whose centre is inside."""
    found = []
    for n, (x, y, _) in enumerate(point for level in cells(batch) for point in level):
        if g[0] < x < g[2] and g[1] < y < g[3]:
            b = boxes[n]
            iou = iou_and_diou(b, g)[0] if b[2] > b[0] and b[3] > b[1] else 0.0
            found.append((-(sigmoid(logits[n][k]) ** options.alpha) * iou**options.beta, n))
    return [n for _, n in sorted(found)[: options.topk]]


def rm_reference(options, batch):
    def loss(student, teacher) -> float:
        found = []
        for i in range(len(teacher.logits)):
            for g, k in zip(boxes_of(batch, i), classes(batch, i), strict=True):
                chosen = candidates(g, k, teacher.boxes[i], teacher.logits[i], batch, options)
                if len(chosen) < 2:
                    continue
                q_s, q_t = (softmax([v.logits[i][n][k] for n in chosen], options.tau) for v in (student, teacher))
                found.append(sum(t * math.log(t / s) for s, t in zip(q_s, q_t, strict=True)))
        assert found, "the check is empty without objects that have candidates"
        return options.tau**2 * sum(found) / len(found)

    return loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topk": 2},
        {"topk": 3, "tau": 2.0},
        {"alpha": 2.0, "beta": 0.5, "topk": 3},
        {"alpha": 0.0, "topk": 3},
        {"tau": 0.5},
    ],
    ids=str,
)
def test_rm_equals_reference(options):
    for seed in range(3):
        pair = exact(on_its_cells(make_pair(seed, batch=seed + 1)))
        method = build("rm", pair, **options)
        check(method, pair, rm_reference(method.options, pair.batch), ["logits"], seed)


def test_rm_candidates_are_the_teachers():
    """The student's boxes have no say, other classes' scores neither, and points outside stay untouched."""
    pair = on_its_cells(make_pair(seed=1))
    student = trainable(pair.student)
    method = build("rm", pair)
    value = method(student, pair.teacher, pair.batch)
    value.backward()
    assert student.boxes.grad is None
    touched = student.logits.grad.abs() > 0
    for i in range(2):
        expected = torch.zeros_like(touched[i])
        for g, k in zip(boxes_of(pair.batch, i), classes(pair.batch, i), strict=True):
            chosen = candidates(
                g, k, pair.teacher.boxes[i].tolist(), pair.teacher.logits[i].tolist(), pair.batch, method.options
            )
            expected[chosen, k] = len(chosen) > 1
        assert torch.equal(touched[i], expected)


def test_rm_sees_the_order_and_not_the_level():
    """A constant added to all logits of a side leaves every rank as it is."""
    pair = on_its_cells(make_pair())
    method = build("rm", pair)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    shifted = change(pair.student, lambda z: z + 3, ("logits",))
    assert method(shifted, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-9)
    equal = change(pair.teacher, lambda z: z - 5, ("logits",))
    assert method(equal, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-12)


def test_rm_is_zero_without_two_candidates():
    pair = on_its_cells(make_pair())
    small = {**pair.batch, "bboxes": torch.tensor([[0.5, 0.5, 1e-3, 1e-3]]).repeat(3, 1)}
    for batch in (small, without_objects(pair.batch)):
        student = trainable(pair.student)
        value = build("rm", pair)(student, pair.teacher, batch)
        value.backward()
        assert value.item() == 0 and student.logits.grad.abs().max() == 0


def test_rm_on_more_candidates_than_points():
    pair = on_its_cells(make_pair())
    one = build("rm", pair, topk=30)(pair.student, pair.teacher, pair.batch).item()
    assert build("rm", pair, topk=500)(pair.student, pair.teacher, pair.batch).item() == one


def plane(logits: list, level: int, sizes) -> list:
    """Scores of a level's points as [b][k][y][x]."""
    start = sum(h * w for h, w in sizes[:level])
    height, width = sizes[level]
    return [
        [
            [[sigmoid(image[start + y * width + x][k]) for x in range(width)] for y in range(height)]
            for k in range(len(image[0]))
        ]
        for image in logits
    ]


def pfi_reference(method, sizes):
    def loss(student, teacher) -> float:
        losses = []
        for level, (s, t, conv) in enumerate(zip(student.neck, teacher.neck, method.adapters, strict=True)):
            height, width = sizes[0][level]
            a, b = conv1x1(s, conv), resize(t, height, width)
            p_s = plane(student.logits, level, sizes[0])
            p_t = plane(teacher.logits, level, sizes[0])
            error = energy = total = 0.0
            for i in range(len(a)):
                for y in range(height):
                    for x in range(width):
                        gaps = [(m[y][x] - n[y][x]) ** 2 for m, n in zip(p_s[i], p_t[i], strict=True)]
                        gap = sum(gaps) / len(gaps)
                        error += gap * sum((m[y][x] - n[y][x]) ** 2 for m, n in zip(a[i], b[i], strict=True))
                        energy += gap * sum(n[y][x] ** 2 for n in b[i])
                        total += gap
            cells = len(a) * height * width * len(b[0])
            losses.append(error / energy if method.relative else error / cells)
        return sum(losses) / len(losses)

    return loss


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_pfi_equals_reference(relative, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = build("pfi", pair, seed=seed, relative=relative)
        check(method, pair, pfi_reference(method, sizes), ["neck"], seed)


def test_pfi_looks_only_where_predictions_differ():
    pair = make_pair()
    level = SIZES[0][0] * SIZES[0][1]
    logits = pair.teacher.logits.clone()
    logits[1, 5] += 1  # one cell of the fine level
    student = trainable(replace(pair.student, logits=logits))
    build("pfi", pair)(student, pair.teacher, pair.batch).backward()
    grad = student.neck[0].grad.abs().sum(1)
    assert grad.flatten(1).nonzero().tolist() == [[1, 5]] and level > 5
    assert student.neck[1].grad.abs().max() == 0
    assert student.logits.grad is None  # the gap weighs and does not learn


def test_pfi_relative_is_blind_to_scale_and_one_for_a_silent_adapter():
    pair = make_pair(widths=((2, 3), (2, 3)))
    method = build("pfi", pair)
    for adapter in method.adapters:
        adapter.weight.data.zero_()
        adapter.bias.data.zero_()
    for scale in (1, 1e-2, 1e3):
        teacher = change(pair.teacher, lambda x, scale=scale: scale * x, ("neck",))
        assert method(pair.student, teacher, {}).item() == pytest.approx(1, rel=1e-6)


def test_refuses_other_classes():
    for name in ("rm", "pfi"):
        with pytest.raises(ValueError, match="small has 3 classes and teacher large has 5"):
            build(name, make_pair(classes=(3, 5)))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("rm", "topk", 1), ("rm", "topk", 2.5), ("rm", "tau", 0), ("rm", "alpha", -1), ("rm", "beta", math.nan)]
    + [("pfi", "relative", 1)],
)
def test_refuses_options_out_of_range(name, option, value):
    with pytest.raises(ValueError, match=rf"^{name}\.{option}=.* is not allowed"):
        METHODS[name].Options(**{option: value})
