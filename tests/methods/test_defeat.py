"""DeFeat's neck part against its equation in scalar loops, and where objects are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import (
    OTHER_SIZES,
    STRIDES,
    build,
    change,
    check,
    conv1x1,
    make_pair,
    objects,
    precise,
    resize,
    touches,
    without_objects,
)

from yolokd.methods import METHODS, defeat
from yolokd.methods.defeat import DeFeat


def reference(method: DeFeat, batch, cells: float = 14):
    o, boxes = method.options, objects(batch)

    def belongs(box: list[float], level: int) -> bool:
        root = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        fitting = max([0] + [k for k, stride in enumerate(STRIDES) if root >= cells * stride])
        return o.levels == "all" or fitting == level

    def loss(student, teacher) -> float:
        levels = []
        for i, (s, t) in enumerate(zip(getattr(student, method.tap), getattr(teacher, method.tap), strict=True)):
            a, t = conv1x1(s, method.adapters[i]), resize(t, len(s[0][0]), len(s[0][0][0]))
            count, error, energy = ({True: 0.0, False: 0.0} for _ in range(3))
            for b in range(len(t)):
                for y in range(len(t[0][0])):
                    for x in range(len(t[0][0][0])):
                        inside = any(touches(box, y, x, STRIDES[i]) for box in boxes[b] if belongs(box, i))
                        for c in range(len(t[0])):
                            count[inside] += 1
                            error[inside] += (a[b][c][y][x] - t[b][c][y][x]) ** 2
                            energy[inside] += t[b][c][y][x] ** 2
            total = 0.0
            for inside, weight in ((True, o.w_f), (False, o.w_b)):
                if count[inside]:
                    total += weight * error[inside] / (energy[inside] if o.relative else count[inside])
            levels.append(total)
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tap", DeFeat.taps)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("w_f", "w_b"), [(0.2, 0.8), (3, 12), (1, 0), (0, 1)])
def test_equals_reference(tap, relative, w_f, w_b):
    for seed, sizes in enumerate(OTHER_SIZES):
        pair = precise(make_pair(seed, batch=seed + 1, sizes=sizes))
        method = build("defeat", pair, tap, seed, relative=relative, w_f=w_f, w_b=w_b)
        check(method, pair, reference(method, pair.batch), [tap], seed)


def test_one_level_a_box_equals_reference(monkeypatch):
    """With a smaller limit between levels, which images of 32 px never reach."""
    monkeypatch.setattr(defeat, "CELLS", 0.5)
    counts = set()
    for seed in range(4):
        pair = precise(make_pair(seed))
        method = build("defeat", pair, levels="size", relative=False)
        check(method, pair, reference(method, pair.batch, 0.5), ["neck"], seed)
        counts |= set(defeat.level_of(defeat.ops.ground_truth(pair.batch)[0], STRIDES).tolist())
    assert counts == {0, 1}


@pytest.mark.parametrize(
    ("side", "strides", "level"),
    [(1, (8, 16, 32), 0), (223, (8, 16, 32), 0), (225, (8, 16, 32), 1), (447, (8, 16, 32), 1), (449, (8, 16, 32), 2),
     (5000, (8, 16, 32), 2), (5000, (8,), 0), (113, (4, 8), 1), (111, (4, 8), 0)],
)  # fmt: skip
def test_level_by_hand(side, strides, level):
    box = torch.tensor([[10.0, 20, 10 + 2 * side, 20 + side / 2]])
    assert defeat.level_of(box, strides).tolist() == [level]


@pytest.mark.parametrize("images", [1, 2])
def test_without_objects_everything_is_background(images):
    pair = make_pair(batch=images)
    empty = without_objects(pair.batch)
    method, all_rest = build("defeat", pair), build("fitnet", pair, "neck")
    all_rest.load_state_dict(method.state_dict())
    expected = 0.8 * all_rest(pair.student, pair.teacher, empty).item()
    assert method(pair.student, pair.teacher, empty).item() == pytest.approx(expected, rel=1e-9)


def test_only_objects_cells_count_without_a_weight_of_the_background():
    pair = make_pair(batch=1)
    image, box = torch.zeros(1, 3, 32, 32), [0.3, 0.3, 0.2, 0.2]  # 6.4 to 12.8 px
    pair = replace(pair, batch={**pair.batch, "img": image, "bboxes": torch.tensor([box, box])})
    method = build("defeat", pair, w_f=1, w_b=0)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    for level, (y, x), matters in [(0, (0, 0), True), (0, (1, 1), True), (0, (2, 1), False), (1, (0, 0), True),
                                   (1, (0, 1), False), (0, (0, 2), False)]:  # fmt: skip
        maps = [m.clone() for m in pair.student.neck]
        maps[level][:, :, y, x] += 1
        got = method(replace(pair.student, neck=tuple(maps)), pair.teacher, pair.batch).item()
        assert (got != pytest.approx(expected, rel=1e-6)) == matters, (level, y, x)


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    """An adapter that returns 0 has the loss w_f + w_b."""
    pair = make_pair()
    method = build("defeat", pair)
    for p in method.parameters():
        torch.nn.init.zeros_(p)
    for scale in (1e-3, 1.0, 1e3):
        teacher = change(pair.teacher, lambda x, scale=scale: scale * x)
        assert method(pair.student, teacher, pair.batch).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("option", "value"), [("w_f", -1), ("w_b", math.inf), ("levels", "fpn"), ("relative", 0)])
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^defeat\.{option}=.* is not allowed"):
        METHODS["defeat"].Options(**{option: value})
