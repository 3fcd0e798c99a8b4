"""CLoCKDistill's queries against their equation in scalar loops, and where the queries are put."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, giou, iou_and_diou
from helpers.regions import exact
from helpers.views import answer, bce, build, change, check, make_pair, sigmoid

from yolokd.methods import METHODS
from yolokd.methods.clock import on_objects
from yolokd.methods.sets import layer_pairs


def best_queries(references: list, objects: list) -> tuple[int, ...]:
    """A query of its own for each object, by trying all ways."""

    def overlap(chosen) -> float:
        return sum(iou_and_diou(references[m], g)[0] for m, g in zip(chosen, objects, strict=True))

    return max(itertools.permutations(range(len(references)), len(objects)), key=overlap)


def reference(method, pair):
    o = method.options
    height, width = pair.batch["img"].shape[-2:]
    moved, chosen = pair.teacher.references.clone(), []
    for image in range(len(moved)):
        objects = boxes_of(pair.batch, image)
        for m, g in zip(best_queries(pair.teacher.references[image].tolist(), objects), objects, strict=True):
            moved[image, m] = torch.tensor(g, dtype=moved.dtype)
            chosen.append((image, m))
    assert chosen
    content = method.adapter(pair.teacher.content)

    def centred(box) -> list[float]:
        return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]

    def loss(student, teacher) -> float:
        got, wanted = answer(student, content, moved), answer(pair.teacher, pair.teacher.content, moved)
        depth, total = len(got["layer_logits"]), 0.0
        for d, partner in enumerate(layer_pairs(depth, len(wanted["layer_logits"]))):
            for i, m in chosen:
                for zs, zt in zip(got["layer_logits"][d][i][m], wanted["layer_logits"][partner][i][m], strict=True):
                    p = sigmoid(zt)
                    total += o.cls * (bce(zs, p) + p * math.log(p) + (1 - p) * math.log(1 - p))
                a, b = got["layer_boxes"][d][i][m], wanted["layer_boxes"][partner][i][m]
                sides = zip(centred(a), centred(b), [width, height] * 2, strict=True)
                total += o.l1 * sum(abs(p - q) / s for p, q, s in sides) + o.giou * (1 - giou(a, b))
        return total / len(chosen) / depth

    return loss


@pytest.mark.parametrize("options", [{}, {"cls": 0.0}, {"l1": 0.0, "giou": 0.5}], ids=str)
def test_equals_reference(options):
    for seed in range(2):
        pair = exact(make_pair(seed, batch=seed + 1, heads="set/set"))
        method = build("clock", pair, **options)
        check(method, pair, reference(method, pair), ["decode"], seed)


def test_queries_move_onto_objects_and_the_others_stay():
    pair = exact(make_pair(heads="set/set"))
    moved, image, query = on_objects(pair.teacher.references, pair.batch)
    assert len(set(zip(image.tolist(), query.tolist(), strict=True))) == len(query) == 3
    boxes = torch.tensor(boxes_of(pair.batch, 0) + boxes_of(pair.batch, 1), dtype=moved.dtype)
    torch.testing.assert_close(moved[image, query], boxes)
    assert (moved != pair.teacher.references).any(-1).sum() == 3


def test_more_objects_than_queries_and_none():
    pair = exact(make_pair(heads="set/set", queries=(5, 1)))
    _, image, query = on_objects(pair.teacher.references, pair.batch)
    assert image.tolist() == [0, 1] and query.tolist() == [0, 0]
    bare = {**pair.batch, **{key: pair.batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}}
    assert build("clock", pair)(pair.student, pair.teacher, bare).item() == 0


def test_is_zero_when_the_student_is_the_teacher():
    pair = make_pair(heads="set/set", layers=(2, 2), query_widths=(6, 6))
    pair = replace(pair, student=pair.teacher)
    method = build("clock", pair)
    with torch.no_grad():
        method.adapter.weight.copy_(torch.eye(6))
        method.adapter.bias.zero_()
    assert method(pair.student, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-12)


def test_is_blind_to_the_order_of_the_teachers_queries():
    pair = exact(make_pair(heads="set/set"))
    flipped = change(pair.teacher, lambda x: x.flip(1), ("content", "references"))
    method = build("clock", pair)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(pair.student, flipped, pair.batch).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("option", "value"), [("cls", -1), ("l1", math.inf), ("giou", "2")])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^clock\.{option}=.* is not allowed"):
        METHODS["clock"].Options(**{option: value})
