"""CLoCKDistill's two parts against their equations in scalar loops, and where the queries are put."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, giou, iou_and_diou
from helpers.regions import exact, touched
from helpers.views import STRIDES, answer, bce, build, change, check, make_pair, sigmoid

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


# --- the memory -----------------------------------------------------------------------------------------------------


def memory_reference(method, batch):
    o = method.options

    def loss(student, teacher) -> float:
        levels = []
        for adapter, stride, s_map, t_map in zip(method.adapters, STRIDES, student.neck, teacher.neck, strict=True):
            weight, bias = adapter.weight.flatten(1).tolist(), adapter.bias.tolist()
            fg, bg = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]  # weights, weighted error, weighted energy
            for b, (s, t) in enumerate(zip(s_map, t_map, strict=True)):
                places = [(y, x) for y in range(len(s[0])) for x in range(len(s[0][0]))]
                boxes = boxes_of(batch, b)
                size = {i: sum(touched([g], y, x, stride) for y, x in places) for i, g in enumerate(boxes)}
                on = {p: [size[i] for i, g in enumerate(boxes) if touched([g], *p, stride)] for p in places}
                free = sum(not found for found in on.values())
                for y, x in places:
                    column = [plane[y][x] for plane in s]
                    adapted = [
                        sum(w * v for w, v in zip(r, column, strict=True)) + c
                        for r, c in zip(weight, bias, strict=True)
                    ]
                    error = sum((a - plane[y][x]) ** 2 for a, plane in zip(adapted, t, strict=True)) / len(t)
                    energy = sum(plane[y][x] ** 2 for plane in t) / len(t)
                    part, w = (fg, 1 / min(on[y, x])) if on[y, x] else (bg, 1 / free)
                    for i, v in enumerate((w, w * error, w * energy)):
                        part[i] += v
            parts = [p[1] / (p[2] if o.relative else p[0]) if p[0] else 0.0 for p in (fg, bg)]
            levels.append(o.alpha * parts[0] + o.beta * parts[1])
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("options", [{}, {"relative": False}, {"alpha": 0.5, "beta": 2.0}, {"alpha": 0.0, "beta": 1.0}])
def test_memory_equals_reference(options):
    for seed in range(3):
        pair = exact(make_pair(seed, batch=seed + 1))
        method = build("clock_mem", pair, "neck", seed, **options)
        check(method, pair, memory_reference(method, pair.batch), ["neck"], seed)


def test_memory_of_a_small_object_weighs_as_that_of_a_large_one():
    pair = exact(make_pair(batch=1, widths=((1, 1), (1, 1))))
    pair.batch.update(img=torch.zeros(1, 3, 32, 48), cls=torch.zeros(2, 1), batch_idx=torch.zeros(2))
    pair.batch["bboxes"] = torch.tensor([[4 / 48, 4 / 32, 0.1, 0.1], [0.7, 0.5, 0.5, 0.9]], dtype=torch.float64)
    method = build("clock_mem", pair, relative=False, beta=0.0)
    with torch.no_grad():
        for adapter in method.adapters:
            adapter.weight.fill_(1.0)
            adapter.bias.zero_()

    def value(columns) -> float:
        neck = tuple(t.clone() for t in pair.teacher.neck)
        neck[0][..., columns] += 1.0
        return method(replace(pair.student, neck=neck), pair.teacher, pair.batch).item()

    small = value(slice(0, 1)), value(slice(2, 6))  # the columns of the one and of the other at stride 8
    assert small[0] == pytest.approx(small[1], rel=1e-6) == pytest.approx(0.25, rel=1e-6)


def test_memory_without_objects_is_the_background_alone():
    pair = exact(make_pair())
    bare = {**pair.batch, **{key: pair.batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}}
    method = build("clock_mem", pair, alpha=9.0, beta=1.0)
    expected = build("fitnet", pair, "neck")
    expected.load_state_dict(method.state_dict())
    assert method(pair.student, pair.teacher, bare).item() == pytest.approx(
        expected(pair.student, pair.teacher, bare).item(), rel=1e-9
    )


@pytest.mark.parametrize(("option", "value"), [("alpha", -1), ("beta", math.inf), ("relative", 2)])
def test_memory_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^clock_mem\.{option}=.* is not allowed"):
        METHODS["clock_mem"].Options(**{option: value})
