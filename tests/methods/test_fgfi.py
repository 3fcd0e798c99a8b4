"""FGFI against its equation in scalar loops, and which cells it keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.regions import exact, iou, objects
from helpers.views import (
    OTHER_SIZES,
    SIZES,
    STRIDES,
    build,
    change,
    check,
    conv1x1,
    make_pair,
    resize,
    without_objects,
)

from yolokd.methods import METHODS
from yolokd.methods.fgfi import FGFI, masks


def anchors(row: int, column: int, stride: int, side: float, shapes: int) -> list[list[float]]:
    y, x = (row + 0.5) * stride, (column + 0.5) * stride
    found = []
    for ratio in (1.0, 2.0, 0.5)[:shapes]:  # height over width
        w, h = side * stride / math.sqrt(ratio), side * stride * math.sqrt(ratio)
        found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return found


def kept(batch, sizes, options) -> list:
    """[level][image][y][x]: whether a cell is imitated."""
    found = objects(batch)
    best = []  # [level][y][x][object]
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        best.append(
            [
                [
                    [
                        max(iou(a, box) for a in anchors(y, x, stride, options.anchor, options.shapes))
                        for _, box in found
                    ]
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
    most = [[max(cell[g] for row in level for cell in row) for g in range(len(found))] for level in best]
    if options.scope == "all":
        most = [[max(level[g] for level in most) for g in range(len(found))]] * len(most)
    return [
        [
            [
                [
                    any(cell[g] > options.psi * limit[g] for g, (of, _) in enumerate(found) if of == image)
                    for cell in row
                ]
                for row in level
            ]
            for image in range(len(batch["img"]))
        ]
        for level, limit in zip(best, most, strict=True)
    ]


def conv3x3_relu(x: list, conv: torch.nn.Conv2d) -> list:
    weight, bias = conv.weight.tolist(), conv.bias.tolist()

    def at(plane: list, row: int, column: int) -> float:
        inside = 0 <= row < len(plane) and 0 <= column < len(plane[0])
        return plane[row][column] if inside else 0.0

    def out(image: list, o: int, y: int, column: int) -> float:
        total = bias[o]
        for c, plane in enumerate(image):
            for i in range(3):
                for j in range(3):
                    total += weight[o][c][i][j] * at(plane, y + i - 1, column + j - 1)
        return max(total, 0.0)

    return [
        [
            [[out(image, o, y, u) for u in range(len(image[0][0]))] for y in range(len(image[0]))]
            for o in range(len(weight))
        ]
        for image in x
    ]


def reference(method: FGFI, batch):
    options = method.options

    def loss(student, teacher) -> float:
        s_maps = getattr(student, method.tap)
        masks = kept(batch, [(len(s[0][0]), len(s[0][0][0])) for s in s_maps], options)
        levels = []
        for s, t, adapter, mask in zip(s_maps, getattr(teacher, method.tap), method.adapters, masks, strict=True):
            a = conv1x1(s, adapter) if options.adapter == "1x1" else conv3x3_relu(s, adapter[0])
            b = resize(t, len(s[0][0]), len(s[0][0][0]))
            square = energy = count = 0.0
            for i, image in enumerate(mask):
                for y, row in enumerate(image):
                    for x, keep in enumerate(row):
                        if keep:
                            count += 1
                            square += sum((a[i][c][y][x] - b[i][c][y][x]) ** 2 for c in range(len(b[i])))
                            energy += sum(b[i][c][y][x] ** 2 for c in range(len(b[i])))
            levels.append(square / energy if options.relative else square / (2 * count))
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("adapter", ["1x1", "3x3"])
@pytest.mark.parametrize(("psi", "anchor", "shapes"), [(0.5, 2.0, 1), (0.8, 1.0, 3), (0.0, 1.5, 3)])
def test_equals_reference(relative, adapter, psi, anchor, shapes):
    options = {"relative": relative, "adapter": adapter, "psi": psi, "anchor": anchor, "shapes": shapes}
    for seed, sizes in enumerate([OTHER_SIZES[0], OTHER_SIZES[1]]):
        pair = exact(make_pair(seed, batch=seed + 1, sizes=sizes))
        method = build("fgfi", pair, seed=seed, **options)
        check(method, pair, reference(method, pair.batch), ["neck"], seed)


@pytest.mark.parametrize("tap", FGFI.taps)
def test_default_equals_reference_on_every_tap(tap):
    pair = exact(make_pair(3, batch=3))
    method = build("fgfi", pair, tap)
    check(method, pair, reference(method, pair.batch), [tap])


@pytest.mark.parametrize("scope", ["level", "all"])
@pytest.mark.parametrize("shapes", [1, 3])
def test_masks_equal_reference(scope, shapes):
    some = 0
    for seed in range(8):
        batch = exact(make_pair(seed, batch=3)).batch
        options = METHODS["fgfi"].Options(scope=scope, shapes=shapes, anchor=1.5)
        got = masks(batch, list(SIZES), STRIDES, options)
        expected = kept(batch, SIZES, options)
        assert [m[:, 0].bool().tolist() for m in got] == expected
        some += sum(m.sum().item() for m in got)
    assert 0 < some < 8 * 3 * 30


def test_small_objects_are_left_to_the_fine_level_when_levels_compete():
    batch = {"img": torch.zeros(1, 3, 32, 48), "bboxes": torch.tensor([[0.25, 0.375, 8 / 48, 8 / 32]])}
    batch["batch_idx"] = torch.zeros(1)
    kept_by = {}
    for scope in ("level", "all"):
        fine, coarse = masks(batch, list(SIZES), STRIDES, METHODS["fgfi"].Options(scope=scope, anchor=1.0))
        kept_by[scope] = fine.sum().item(), coarse.sum().item()
    assert kept_by["all"] == (1, 0)  # the box is the anchor of the cell in row 1, column 1
    assert kept_by["level"][0] == 1 and kept_by["level"][1] > 0


def test_only_kept_cells_count():
    pair = exact(make_pair())
    method = build("fgfi", pair, anchor=1.0)
    keep = masks(pair.batch, list(SIZES), STRIDES, method.options)
    assert all(0 < m.sum() < m.numel() for m in keep)
    value = method(pair.student, pair.teacher, pair.batch).item()
    for chosen, same in ((lambda m: 1 - m, True), (lambda m: m, False)):
        moved = tuple(t + 3 * chosen(m) for t, m in zip(pair.teacher.neck, keep, strict=True))
        got = method(pair.student, replace(pair.teacher, neck=moved), pair.batch).item()
        assert (got == pytest.approx(value, rel=1e-12)) is same


def test_one_pixel_scale_for_images_and_strides():
    """Twice the pixels a cell on an image of twice the side: the same cells, the same loss."""
    pair = exact(make_pair())
    method = build("fgfi", pair, anchor=1.5)
    larger = {**pair.batch, "img": torch.zeros(2, 3, 64, 96)}
    coarse = [replace(v, strides=tuple(2 * s for s in v.strides)) for v in (pair.student, pair.teacher)]
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(*coarse, larger).item() == pytest.approx(expected, rel=1e-12)


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    pair = make_pair()
    method = build("fgfi", pair)
    for conv in method.adapters:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    for scale in (1, 1e-3, 1e3):
        teacher = change(pair.teacher, lambda t, scale=scale: scale * t, ("neck",))
        assert method(pair.student, teacher, pair.batch).item() == pytest.approx(1, rel=1e-6)


def test_without_objects_is_zero_and_every_weight_still_gets_a_gradient():
    pair = make_pair()
    method = build("fgfi", pair)
    value = method(pair.student, pair.teacher, without_objects(pair.batch))
    value.backward()
    assert value.item() == 0 and all((p.grad == 0).all() for p in method.parameters())


@pytest.mark.parametrize(
    ("option", "value"),
    [("psi", -0.1), ("psi", 1.0), ("anchor", 0), ("shapes", 2), ("scope", "box"), ("adapter", "5x5"), ("relative", 1)],
)
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^fgfi\.{option}=.* is not allowed: it must be "):
        METHODS["fgfi"].Options(**{option: value})
