"""ProbIoU against the paper's equations in scalars, against Ultralytics' own, and where boxes give no scale."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import build, change, check, make_pair, sigmoid, soft_count, trainable
from ultralytics.utils.metrics import probiou

from yolokd.methods.probiou import SMOOTH, distance


def covariance(box: list[float]) -> tuple[float, float, float]:
    """Entries xx, yy, xy of R diag(w^2 + 1, h^2 + 1) R^T / 12."""
    a, b, r = (box[2] ** 2 + 1) / 12, (box[3] ** 2 + 1) / 12, box[4]
    cos, sin = math.cos(r), math.sin(r)
    return a * cos**2 + b * sin**2, a * sin**2 + b * cos**2, (a - b) * cos * sin


def hellinger(s: list[float], t: list[float]) -> float:
    (s_xx, s_yy, s_xy), (t_xx, t_yy, t_xy) = covariance(s), covariance(t)
    xx, yy, xy = (s_xx + t_xx) / 2, (s_yy + t_yy) / 2, (s_xy + t_xy) / 2
    det = xx * yy - xy**2
    x, y = s[0] - t[0], s[1] - t[1]
    far = (yy * x * x - 2 * xy * x * y + xx * y * y) / det / 8
    shape = math.log(det / math.sqrt((s_xx * s_yy - s_xy**2) * (t_xx * t_yy - t_xy**2))) / 2
    return math.sqrt(1 - math.exp(-far - shape) + SMOOTH) - math.sqrt(SMOOTH)


def reference(student, teacher) -> float:
    total = 0.0
    for z, boxes_s, boxes_t in zip(teacher.logits, student.rotated, teacher.rotated, strict=True):
        total += sum(max(map(sigmoid, k)) * hellinger(s, t) for k, s, t in zip(z, boxes_s, boxes_t, strict=True))
    return total / soft_count(teacher.logits)


@pytest.mark.parametrize("shift", [0.0, -12.0])
def test_equals_reference(shift):
    """A negative shift makes a teacher that sees nothing, where the count is held at 1."""
    for seed in range(3):
        pair = make_pair(seed, batch=seed + 1)
        pair = replace(pair, teacher=change(pair.teacher, lambda z: z + shift, ("logits",)))
        check(build("probiou", pair), pair, reference, ["rotated"], seed)


def test_is_ultralytics_own_apart_from_the_blur_of_a_pixel():
    boxes = make_pair().student.rotated, make_pair(3).student.rotated
    a, b = (torch.cat((x[..., :2], 2 + x[..., 2:4].abs(), x[..., 4:]), -1).flatten(0, 1) for x in boxes)
    sharp = [torch.cat((x[:, :2], (x[:, 2:4].square() - 1).sqrt(), x[:, 4:]), -1) for x in (a, b)]
    torch.testing.assert_close(1 - distance(*sharp), probiou(a, b)[:, 0], rtol=0, atol=2e-3)  # two smoothings


def test_the_same_box_in_other_words_is_no_distance():
    box = torch.tensor([[30.0, 40, 60, 20, 0.3]], dtype=torch.float64)
    x, y, w, h, r = box.unbind(-1)
    for other in (box, torch.stack((x, y, w, h, r + math.pi), -1), torch.stack((x, y, h, w, r - math.pi / 2), -1)):
        assert distance(box, other).item() == pytest.approx(0, abs=1e-9)
    assert distance(box, torch.stack((x, y, h, w, r), -1)).item() > 0.5


def test_a_square_has_no_angle():
    a, b = (torch.tensor([[5.0, 5, 9, 9, r]], dtype=torch.float64) for r in (0.1, 1.2))
    assert distance(a, b).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("box", [(100, 100, 1000, 1, 0.7), (0, 0, 0, 0, 0), (320, 320, 5e4, 5e4, 1), (9, 9, -3, 4, 2)])
def test_single_precision_holds_for_boxes_of_any_shape(box):
    """By matrix entries a box of 1000 x 1 pixels has a determinant of rounding errors."""
    near = torch.tensor(box) + torch.tensor([2.0, -1, 3, 1, 0.01])
    exact = distance(torch.tensor([box]).double(), near[None].double())
    student = torch.tensor([box], dtype=torch.float32, requires_grad=True)
    found = distance(student, near[None])
    found.sum().backward()
    assert found.item() == pytest.approx(exact.item(), abs=1e-3)
    assert student.grad.isfinite().all()


def test_equal_boxes_are_worth_nothing_and_flat():
    pair = make_pair()
    student = trainable(replace(pair.student, rotated=pair.teacher.rotated))
    value = build("probiou", pair)(student, pair.teacher, {})
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert student.rotated.grad.abs().max() < 1e-9
