"""CrossKD against its equations in scalar loops: rescaled maps, the teacher's last convolutions, both box terms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import divergence, giou
from helpers.views import (
    BINS,
    SIZES,
    STRIDES,
    bce,
    build,
    change,
    check,
    conv1x1,
    entries,
    make_pair,
    sigmoid,
    soft_count,
    tensors,
    trainable,
)
from torch.autograd import gradcheck

from yolokd.methods import METHODS
from yolokd.methods.crosskd import EPS, CrossKD, rescale


def without_bins(pair):
    """The pair under a teacher whose head predicts box sides."""
    return replace(pair, teacher=replace(pair.teacher, bins=None), teacher_spec=replace(pair.teacher_spec, bins=0))


def moments(x: list, c: int) -> tuple[float, float]:
    """Mean and deviation of a channel over images and cells."""
    values = [v for image in x for v in entries(image[c])]
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + EPS)


def rescaled(s: list, t: list) -> list:
    both = [(moments(s, c), moments(t, c)) for c in range(len(t[0]))]
    return [
        [
            [[(v - m_s) / d_s * d_t + m_t for v in row] for row in plane]
            for plane, ((m_s, d_s), (m_t, d_t)) in zip(image, both, strict=True)
        ]
        for image in s
    ]


def cross_points(method: CrossKD, student, teacher) -> list:
    """Box channels and logits of every anchor point, [b][n] -> (4 R, K), from the student's maps."""
    maps = []
    both = zip(student.towers, teacher.towers, method.adapters, teacher.finish.convs, strict=True)
    for s, t, adapter, last in both:
        maps.append(conv1x1(rescaled(conv1x1(s, adapter), t), last))
    levels = len(maps) // 2
    points = []
    for b in range(len(maps[0])):
        points.append([])
        for level, (height, width) in enumerate(SIZES):
            for y in range(height):
                for x in range(width):
                    box, cls = ([c[y][x] for c in maps[i][b]] for i in (level, levels + level))
                    points[-1].append((box, cls))
    return points


def decoded(box: list[float], n: int) -> list[float]:
    """The box of anchor point n from its 4 R channels: the expected side in cells, around the centre."""
    place = [
        (x + 0.5, y + 0.5, s) for (h, w), s in zip(SIZES, STRIDES, strict=True) for y in range(h) for x in range(w)
    ]
    x, y, s = place[n]
    sides = []
    for e in range(4):
        part = [math.exp(v) for v in box[e * BINS : (e + 1) * BINS]]
        sides.append(sum(i * v for i, v in enumerate(part)) / sum(part))
    return [s * v for v in (x - sides[0], y - sides[1], x + sides[2], y + sides[3])]


def reference(method: CrossKD):
    options = method.options

    def loss(student, teacher) -> float:
        total = 0.0
        for b, points in enumerate(cross_points(method, student, teacher)):
            for n, (box, cls) in enumerate(points):
                scores = [sigmoid(z) for z in teacher.logits[b][n]]
                total += sum(abs(sigmoid(z) - p) ** options.beta * bce(z, p) for z, p in zip(cls, scores, strict=True))
                if teacher.bins is None:
                    total += options.giou * max(scores) * (1 - giou(decoded(box, n), teacher.boxes[b][n]))
                else:
                    edges = [box[e * BINS : (e + 1) * BINS] for e in range(4)]
                    total += options.bins * max(scores) * divergence(edges, teacher.bins[b][n], 1.0)
        return total / soft_count(teacher.logits)

    return loss


@pytest.mark.parametrize(
    "options", [{}, {"beta": 2.0}, {"bins": 0.5, "giou": 3.0}, {"bins": 0.0, "giou": 0.0}], ids=str
)
@pytest.mark.parametrize("bins", [True, False], ids=["bins", "boxes"])
def test_equals_reference(options, bins):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths)
        pair = pair if bins else without_bins(pair)
        method = build("crosskd", pair, seed=seed, **options)
        check(method, pair, reference(method), ["towers"], seed)


def test_the_count_is_held_at_one():
    pair = make_pair()
    pair = replace(pair, teacher=change(pair.teacher, lambda z: z - 12, ("logits",)))
    method = build("crosskd", pair)
    check(method, pair, reference(method), ["towers"])


def test_zero_when_the_cross_predictions_are_the_teachers():
    """Equal maps and an identity as adapter: what the teacher's last layers say is what the teacher says."""
    pair = make_pair(widths=((3, 2), (3, 2)))
    own = pair.teacher.finish(pair.teacher.towers)
    for teacher in (replace(pair.teacher, **own), replace(pair.teacher, **{**own, "bins": None})):
        case = replace(pair, teacher=teacher)
        method = build("crosskd", case if teacher.bins is not None else without_bins(case))
        for adapter in method.adapters:
            torch.nn.init.dirac_(adapter.weight)
        student = trainable(replace(pair.student, towers=pair.teacher.towers))
        assert method(student, teacher, pair.batch).item() == pytest.approx(0, abs=1e-10)


def test_blind_to_offset_and_positive_scale_of_the_adapted_channels():
    pair = make_pair()
    method = build("crosskd", pair)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    for adapter in method.adapters:
        adapter.weight.data *= torch.arange(2.0, 2 + len(adapter.weight), dtype=torch.float64)[:, None, None, None]
    assert method(pair.student, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-6)


def test_rescaled_maps_have_the_teachers_moments():
    pair = make_pair(seed=2, batch=3, widths=((3,) * 2, (3,) * 2))
    got, t = rescale(pair.student.neck[0], pair.teacher.neck[0]), pair.teacher.neck[0]
    torch.testing.assert_close(got.mean((0, 2, 3)), t.mean((0, 2, 3)))
    torch.testing.assert_close(got.std((0, 2, 3)), t.std((0, 2, 3)), rtol=1e-6, atol=0)
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: rescale(s, t[:2, :2, :2, :2]), (x,))


def test_gradient_passes_the_frozen_convolutions_and_stays_out_of_them():
    pair = make_pair()
    student, teacher, method = trainable(pair.student), trainable(pair.teacher), build("crosskd", pair)
    method(student, teacher, pair.batch).backward()
    assert all(p.grad is None for conv in pair.teacher.finish.convs for p in conv.parameters())
    assert all(x.grad is None for field in ("towers", "logits", "bins", "boxes") for x in tensors(teacher, field))
    assert all(x.grad.abs().max() > 0 for x in [*student.towers, *(a.weight for a in method.adapters)])
    assert student.logits.grad is None and student.bins.grad is None and student.boxes.grad is None


def test_needs_follow_the_teachers_head():
    """The student's head does not matter: a YOLO26 learns from bins, and teaches by boxes."""
    pair = make_pair()
    assert build("crosskd", pair).needs == METHODS["crosskd"].needs == {"towers", "finish", "logits", "bins"}
    sides = without_bins(pair)
    assert build("crosskd", sides).needs == {"towers", "finish", "logits", "boxes"}
    blind = replace(pair, student_spec=replace(pair.student_spec, bins=0), student=replace(pair.student, bins=None))
    assert build("crosskd", blind)(blind.student, blind.teacher, {}).isfinite()
    poor = replace(sides.teacher, boxes=None)
    with pytest.raises(ValueError, match="has no boxes"):
        build("crosskd", sides)(sides.student, poor, {})


def test_refuses_pairs_without_matching_towers_or_classes():
    pair = make_pair()
    channels = pair.teacher_spec.channels
    for changed, message in [
        ({"channels": {**channels, "towers": channels["towers"][:2]}}, "small has 4 and teacher large has 2"),
        ({"channels": {}}, "crosskd on tap 'towers' needs maps that teacher large does not have"),
        ({"classes": 7}, "small has 3 classes and teacher large has 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("crosskd", replace(pair, teacher_spec=replace(pair.teacher_spec, **changed)))


@pytest.mark.parametrize(("option", "value"), [("beta", 0.5), ("beta", "1"), ("bins", -1), ("giou", math.inf)])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^crosskd\.{option}=.* is not allowed"):
        METHODS["crosskd"].Options(**{option: value})
