"""RoI mimic against its equation in scalar loops, and which regions it pools."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.regions import exact, image_size, objects, pooled, top_boxes
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, entries, make_pair, sigmoid, without_objects
from torchvision.ops import roi_align

from yolokd.methods import METHODS, ops
from yolokd.methods.roi import RoI, thinned


def regions(teacher, batch, options) -> list:
    """(image, box) of ground truth, then of the teacher."""
    found = objects(batch)
    for image, (points, boxes) in enumerate(zip(teacher.logits, teacher.boxes, strict=True)):
        scores = [max(sigmoid(z) for z in point) for point in points]
        best = top_boxes(boxes, scores, image_size(batch), options.boxes, options.nms, options.score)
        found += [(image, box) for box in best]
    return found


def reference(method: RoI, batch):
    options = method.options

    def loss(student, teacher) -> float:
        places, size = regions(teacher, batch, options), image_size(batch)
        levels = []
        maps = zip(getattr(student, method.tap), getattr(teacher, method.tap), method.adapters, strict=True)
        for s, t, conv in maps:
            u = entries(pooled(t, places, size, options.cells))
            v = entries(conv1x1(pooled(s, places, size, options.cells), conv))
            square = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
            levels.append(square / (sum(a * a for a in u) if options.relative else 2 * len(u)))  # len(u) = N m
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tap", RoI.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
@pytest.mark.parametrize(
    ("boxes", "score", "nms", "cells", "relative"),
    [(3, 0.25, 0.5, 2, True), (0, 0.25, 0.5, 3, False), (8, 0.9, 0.1, 1, True), (5, 0.5, 0.5, 1, False)],
)
def test_equals_reference(tap, sizes, boxes, score, nms, cells, relative):
    options = {"relative": relative, "boxes": boxes, "score": score, "nms": nms, "cells": cells}
    pair = exact(make_pair(boxes, batch=2, sizes=sizes, classes=(3, 5)))
    method = build("roi", pair, tap, **options)
    check(method, pair, reference(method, pair.batch), [tap])


@pytest.mark.parametrize(
    ("objects", "kept"),
    [(1, [3, 4]), (2, [1, 3, 4]), (3, [1, 2, 3, 4]), (4, [0, 1, 2, 3, 4]), (1000, [0, 1, 2, 3, 4])],
)
def test_of_many_objects_so_many_are_taken_evenly(objects, kept):
    boxes, index = torch.rand(5, 4), torch.tensor([2, 2, 2, 2, 0])
    got, image = thinned(boxes, index, objects)
    assert got.tolist() == boxes[kept].tolist() and image.tolist() == index[kept].tolist()


@pytest.mark.parametrize(("count", "iou", "least"), [(10, 0.5, 0.25), (4, 0.3, 0.0), (30, 0.0, 0.6), (30, 0.9, 0.0)])
def test_top_boxes_equal_reference(count, iou, least):
    dropped = 0
    for seed in range(6):
        pair = make_pair(seed, batch=3)
        size, score = image_size(pair.batch), ops.confidence(pair.teacher.logits)
        got, index = ops.top_boxes(pair.teacher.boxes, score, size, count, iou, least)
        expected = [
            top_boxes(boxes, scores, size, count, iou, least)
            for boxes, scores in zip(pair.teacher.boxes.tolist(), score.tolist(), strict=True)
        ]
        assert got.tolist() == [box for image in expected for box in image]
        assert index.tolist() == [i for i, image in enumerate(expected) for _ in image]
        dropped += score.numel() - len(got)
    assert dropped > 0


def test_boxes_outside_of_the_image_or_without_sides_are_no_regions():
    boxes = torch.tensor([[[0, 0, 8, 8], [50, 4, 60, 9], [9, 9, 4, 4], [3, 3, 3.5, 9], [40, 20, 90, 90.0]]])
    got, index = ops.top_boxes(boxes, torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]]), (32, 48), 10, 0.5)
    assert got.tolist() == [[0, 0, 8, 8], [40, 20, 48, 32]] and index.tolist() == [0, 0]


@pytest.mark.parametrize("cells", [1, 4])
def test_pooled_by_hand(cells):
    """A ramp in x pools to the ramp at the middle of each cell."""
    x = torch.arange(6.0).expand(2, 1, 4, 6)
    got = ops.pooled(x, torch.tensor([[8.0, 8, 40, 24]]), torch.tensor([1]), (32, 48), cells)
    middle = torch.tensor([1 + 4 * (k + 0.5) / cells - 0.5 for k in range(cells)])
    assert torch.allclose(got, middle.expand(1, 1, cells, cells))


@pytest.mark.parametrize("cells", [1, 3, 7])
def test_pooled_equals_torchvision(cells):
    """Also far outside of the map, and its gradient."""
    random = torch.Generator().manual_seed(cells)
    x = torch.randn(3, 4, 5, 7, generator=random, dtype=torch.float64)
    corner = 80 * torch.rand(20, 2, generator=random, dtype=torch.float64) - 20
    boxes = torch.cat((corner, corner + 60 * torch.rand(20, 2, generator=random, dtype=torch.float64)), -1)
    index = torch.randint(3, (20,), generator=random)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = ops.pooled(one, boxes, index, (40, 56), cells)
    expected = roi_align(other, torch.cat((index[:, None].double(), boxes), 1), cells, 1 / 8, 2, aligned=True)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(got.shape, generator=random, dtype=torch.float64)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_only_what_lies_in_regions_counts():
    pair = exact(make_pair())
    method = build("roi", pair, boxes=0)
    batch = {**pair.batch, "bboxes": torch.tensor([[0.25, 0.25, 0.3, 0.3]] * 3).double()}  # the upper left
    value = method(pair.student, pair.teacher, batch).item()
    for row, column, same in ((3, 5, True), (0, 1, False)):
        maps = tuple(m.clone() for m in pair.teacher.neck)
        maps[0][:, :, row, column] += 3
        got = method(pair.student, replace(pair.teacher, neck=maps), batch).item()
        assert (got == pytest.approx(value, rel=1e-12)) is same


def test_blind_to_pixels():
    """The same maps and boxes of images of twice the side: the same loss."""
    pair = exact(make_pair())
    method = build("roi", pair)
    # all with a side of 8 pixels: clipped to the border, some would fall below one pixel on the smaller image alone
    centre = pair.teacher.boxes.unflatten(-1, (2, 2)).mean(-2).clamp(4, 28)
    pair = replace(pair, teacher=replace(pair.teacher, boxes=torch.cat((centre - 4, centre + 4), -1)))
    teacher = change(pair.teacher, lambda b: 2 * b, ("boxes",))
    larger = {**pair.batch, "img": torch.zeros(2, 3, 64, 96)}
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(pair.student, teacher, larger).item() == pytest.approx(expected, rel=1e-12)


def test_zero_when_the_adapter_hits_the_teacher():
    pair = make_pair(widths=((2, 3), (2, 3)))
    method = build("roi", pair)
    for conv in method.adapters:
        torch.nn.init.dirac_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    assert method(pair.teacher, pair.teacher, pair.batch).item() == 0


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    pair = make_pair()
    method = build("roi", pair)
    for conv in method.adapters:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    for scale in (1, 1e-3, 1e3):
        teacher = change(pair.teacher, lambda t, scale=scale: scale * t, ("neck",))
        assert method(pair.student, teacher, pair.batch).item() == pytest.approx(1, rel=1e-9)


def test_without_regions_is_zero_and_every_weight_still_gets_a_gradient():
    pair = make_pair()
    method = build("roi", pair, boxes=0)
    value = method(pair.student, pair.teacher, without_objects(pair.batch))
    value.backward()
    assert value.item() == 0 and all((p.grad == 0).all() for p in method.parameters())


@pytest.mark.parametrize(
    ("option", "value"),
    [("boxes", -1), ("boxes", 2.0), ("score", -1), ("nms", "x"), ("cells", 0), ("cells", True), ("relative", 1)],
)
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^roi\.{option}=.* is not allowed: it must be "):
        METHODS["roi"].Options(**{option: value})
