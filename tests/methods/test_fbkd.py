"""FBKD against its equations in scalar loops, and its parts alone."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, make_pair, resize

from yolokd.methods import METHODS
from yolokd.methods.fbkd import FBKD


def attention(image: list, temperature: float) -> list:
    """S [y][x] of one image [c][y][x]."""
    height, width = len(image[0]), len(image[0][0])
    powers = [
        [math.exp(sum(abs(p[y][x]) for p in image) / len(image) / temperature) for x in range(width)]
        for y in range(height)
    ]
    total = sum(map(sum, powers))
    return [[height * width * power / total for power in row] for row in powers]


def relations(x: list, block) -> list:
    """x + W sum_j (theta x_i . phi x_j) g x_j / cells, by the double sum."""
    query, key, value = (conv1x1(x, conv) for conv in (block.theta, block.phi, block.g))
    inside, height, width = len(query[0]), len(x[0][0]), len(x[0][0][0])
    cells = [(y, j) for y in range(height) for j in range(width)]
    mixed = []
    for b in range(len(x)):
        out = [[[0.0] * width for _ in range(height)] for _ in range(inside)]
        for y, j in cells:
            for v, u in cells:
                alike = sum(query[b][c][y][j] * key[b][c][v][u] for c in range(inside)) / len(cells)
                for c in range(inside):
                    out[c][y][j] += alike * value[b][c][v][u]
        mixed.append(out)
    added = conv1x1(mixed, block.last)
    return [
        [[[p[y][j] + q[y][j] for j in range(width)] for y in range(height)] for p, q in zip(a, d, strict=True)]
        for a, d in zip(x, added, strict=True)
    ]


def reference(method: FBKD):
    o = method.options

    def one_level(i, s, t) -> float:
        height, width, channels = len(s[0][0]), len(s[0][0][0]), len(t[0])
        cells = [(y, x) for y in range(height) for x in range(width)]
        a = conv1x1(s, method.adapters[i])
        linear, kernel = method.channel[i], method.spatial[i]
        sums = dict.fromkeys(("mask", "mask_t", "channel", "channel_t", "spatial", "spatial_t", "rel", "t"), 0.0)
        r_s, r_t = relations(a, method.s_relations[i]), relations(t, method.t_relations[i])
        for b in range(len(t)):
            space_s, space_t = attention(s[b], o.temperature), attention(t[b], o.temperature)
            s_mean = [sum(plane[y][x] for y, x in cells) / len(cells) for plane in s[b]]
            for c in range(channels):
                t_mean = sum(t[b][c][y][x] for y, x in cells) / len(cells)
                got = linear.bias[c].item() + sum(w * m for w, m in zip(linear.weight[c].tolist(), s_mean, strict=True))
                sums["channel"] += (got - t_mean) ** 2
                sums["channel_t"] += t_mean**2
                for y, x in cells:
                    m = FIXED.get((i, b, y, x), (space_s[y][x] + space_t[y][x]) / 2)
                    FIXED[i, b, y, x] = m
                    sums["mask"] += m * (a[b][c][y][x] - t[b][c][y][x]) ** 2
                    sums["mask_t"] += m * t[b][c][y][x] ** 2
                    sums["rel"] += (r_s[b][c][y][x] - r_t[b][c][y][x]) ** 2
                    sums["t"] += t[b][c][y][x] ** 2
            flat = [[sum(p[y][x] for p in s[b]) / len(s[b]) for x in range(width)] for y in range(height)]
            for y, x in cells:
                got = kernel.bias.item()
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            got += kernel.weight[0, 0, dy + 1, dx + 1].item() * flat[y + dy][x + dx]
                t_flat = sum(p[y][x] for p in t[b]) / channels
                sums["spatial"] += (got - t_flat) ** 2
                sums["spatial_t"] += t_flat**2
        return (
            o.mask * sums["mask"] / sums["mask_t"]
            + o.channel * sums["channel"] / sums["channel_t"]
            + o.spatial * sums["spatial"] / sums["spatial_t"]
            + o.rel * sums["rel"] / sums["t"]
        )

    FIXED: dict = {}  # the mask has no gradient: differences are taken under that of the first call

    def loss(student, teacher) -> float:
        levels = []
        for i, (s, t) in enumerate(zip(getattr(student, method.tap), getattr(teacher, method.tap), strict=True)):
            levels.append(one_level(i, s, resize(t, len(s[0][0]), len(s[0][0][0]))))
        return sum(levels) / len(levels)

    return loss


def stirred(method: FBKD) -> FBKD:
    """With relations that have moved from their start."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in (*method.s_relations, *method.t_relations):
            block.last.weight.copy_(torch.randn(block.last.weight.shape, generator=random))
    return method


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.1, "rel": 0.0}, {"mask": 0.0, "channel": 2.0}, {"spatial": 0.0}], ids=str
)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(options, sizes):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 3), (3, 3))]):
        pair = make_pair(seed, batch=seed + 1, widths=widths, sizes=sizes)
        method = stirred(build("fbkd", pair, "neck", seed, **options))
        check(method, pair, reference(method), ["neck"], seed)


def test_the_teachers_scale_changes_nothing_but_the_mask():
    """A teacher of twice the size, and layers that follow it, cost the same where no cell is attended."""
    pair = make_pair()
    method = build("fbkd", pair, temperature=1e9)
    expected = method(pair.student, pair.teacher, {}).item()
    with torch.no_grad():
        for layers in (method.adapters, method.channel, method.spatial):
            for parameter in layers.parameters():
                parameter *= 2
    twice = change(pair.teacher, lambda x: 2 * x, ("neck",))
    assert method(pair.student, twice, {}).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("option", "value"), [("mask", -1), ("temperature", 0), ("rel", math.nan)])
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^fbkd\.{option}=.* is not allowed"):
        METHODS["fbkd"].Options(**{option: value})
