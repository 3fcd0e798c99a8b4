"""ReviewKD against its equations in scalar loops, and what reaches which level."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.views import OTHER_SIZES, build, check, conv1x1, make_pair, resize, sigmoid, trainable

from yolokd.methods import METHODS
from yolokd.methods.reviewkd import ReviewKD


def conv3x3(x: list, conv) -> list:
    weight, bias = conv.weight.tolist(), conv.bias.tolist()
    height, width = len(x[0][0]), len(x[0][0][0])

    def at(image, o, y, j) -> float:
        total = bias[o]
        for c, plane in enumerate(image):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < height and 0 <= j + dx < width:
                        total += weight[o][c][dy + 1][dx + 1] * plane[y + dy][j + dx]
        return total

    return [
        [[[at(image, o, y, j) for j in range(width)] for y in range(height)] for o in range(len(bias))] for image in x
    ]


def pooled(plane: list, cells: int) -> list[float]:
    """Means of the plane's parts, which may overlap, as adaptive pooling has them."""

    def ends(i: int, length: int) -> range:
        return range(i * length // cells, math.ceil((i + 1) * length / cells))

    means = []
    for i in range(cells):
        for j in range(cells):
            values = [plane[y][x] for y in ends(i, len(plane)) for x in ends(j, len(plane[0]))]
            means.append(sum(values) / len(values))
    return means


def mean_square(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def hierarchical(y: list, t: list) -> float:
    pairs = [(p, q) for image_y, image_t in zip(y, t, strict=True) for p, q in zip(image_y, image_t, strict=True)]
    whole = [mean_square([v for row in p for v in row], [v for row in q for v in row]) for p, q in pairs]
    total, weights = sum(whole) / len(whole), 1.0
    for power, cells in ((0.5, 4), (0.25, 2), (0.125, 1)):
        parts = [mean_square(pooled(p, cells), pooled(q, cells)) for p, q in pairs]
        total += power * sum(parts) / len(parts)
        weights += power
    return total / weights


def fuse(own: list, coarser: list, gate) -> list:
    """One level's x from its own adapted map and the x below it."""
    height, width = len(own[0][0]), len(own[0][0][0])
    rows, columns = len(coarser[0][0]), len(coarser[0][0][0])
    out = []
    for image, below in zip(own, coarser, strict=True):
        up = [
            [[p[y * rows // height][x * columns // width] for x in range(width)] for y in range(height)] for p in below
        ]
        z = [[[sigmoid(v) for v in row] for row in plane] for plane in conv1x1([[*image, *up]], gate)[0]]
        out.append(
            [
                [[z[0][y][x] * a[y][x] + z[1][y][x] * b[y][x] for x in range(width)] for y in range(height)]
                for a, b in zip(image, up, strict=True)
            ]
        )
    return out


def reference(method: ReviewKD):
    def loss(student, teacher) -> float:
        s_maps, t_maps = getattr(student, method.tap), getattr(teacher, method.tap)
        x, losses = None, []
        for level in reversed(range(len(s_maps))):
            own = conv1x1(s_maps[level], method.laterals[level])
            x = own if x is None else fuse(own, x, method.gates[level])
            t = resize(t_maps[level], len(x[0][0]), len(x[0][0][0]))
            values = [v for image in t for plane in image for row in plane for v in row]
            energy = sum(v * v for v in values) / len(values) if method.options.relative else 1.0
            losses.append(hierarchical(conv3x3(x, method.outputs[level]), t) / energy)
        return sum(losses) / len(losses)

    return loss


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("tap", ReviewKD.taps)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(relative, tap, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = build("reviewkd", pair, tap, seed, relative=relative)
        check(method, pair, reference(method), [tap], seed)


def test_a_coarse_level_learns_from_the_fine_teacher_and_not_the_other_way_round():
    pair = make_pair()
    for silent, reached in ((0, 1), (1, 1)):  # the teacher's level that is left out; the student's that still learns
        student, method = trainable(pair.student), build("reviewkd", pair)
        fused = method.fused(student.neck)
        method.outputs[1 - silent](fused[1 - silent]).square().sum().backward()
        assert student.neck[reached].grad.abs().max() > 0
        assert (student.neck[0].grad is not None) == (silent == 1)


def test_width_is_bounded():
    pair = make_pair()
    large = replace(pair.teacher_spec, channels={"neck": (300, 512), "backbone": (300, 512)})
    method = ReviewKD(pair.student_spec, large, "neck", ReviewKD.Options())
    assert [conv.out_channels for conv in method.laterals] == [256, 256]
    assert [conv.out_channels for conv in method.outputs] == [300, 512]


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_refuses_what_is_no_switch(value):
    with pytest.raises(ValueError, match=r"^reviewkd\.relative=.* must be one of True, False\.$"):
        METHODS["reviewkd"].Options(relative=value)


def test_equal_maps_cost_nothing_if_the_convs_reproduce_them():
    pair = make_pair(widths=((3, 3), (3, 3)))
    method = build("reviewkd", pair)
    with torch.no_grad():
        for conv in (*method.laterals, *method.outputs):
            torch.nn.init.dirac_(conv.weight)
            torch.nn.init.zeros_(conv.bias)
        for gate in method.gates:  # the own map only
            torch.nn.init.zeros_(gate.weight)
            gate.bias.copy_(torch.tensor([50.0, -50.0]))
    assert method(pair.teacher, pair.teacher, {}).item() == pytest.approx(0, abs=1e-12)
