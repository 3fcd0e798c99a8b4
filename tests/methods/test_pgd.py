"""PGD against its equations in scalar loops, the Gaussian by hand, and options out of range."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, cells, iou_and_diou, on_its_cells
from helpers.regions import exact
from helpers.views import build, check, conv1x1, make_pair, sigmoid, trainable, without_objects

from yolokd.methods import METHODS
from yolokd.methods.pgd import PGD, gaussian


def labels(batch, image: int) -> list[int]:
    return [int(c) for (c,), i in zip(batch["cls"].tolist(), batch["batch_idx"].tolist(), strict=True) if i == image]


def masks(batch, image: int, logits, boxes, options) -> tuple[list[float], list[float]]:
    """w and v of every anchor point of an image."""
    points = [point for level in cells(batch) for point in level]
    w, v = [0.0] * len(points), [1.0] * len(points)
    for g, k in zip(boxes_of(batch, image), labels(batch, image), strict=True):
        found = []
        for n, (x, y, _) in enumerate(points):
            if g[0] < x < g[2] and g[1] < y < g[3]:
                v[n] = 0.0
                b = boxes[n]
                iou = iou_and_diou(b, g)[0] if b[2] > b[0] and b[3] > b[1] else 0.0
                found.append((sigmoid(logits[n][k]) ** (1 - options.xi) * iou**options.xi, n))
        chosen = [n for q, n in sorted(found, reverse=True)[: options.topk] if q > 0]
        if not chosen:
            continue
        mx, my = (sum(points[n][axis] for n in chosen) / len(chosen) for axis in (0, 1))
        xx = sum((points[n][0] - mx) ** 2 for n in chosen) / len(chosen) + 1 / 1200
        yy = sum((points[n][1] - my) ** 2 for n in chosen) / len(chosen) + 1 / 1200
        xy = sum((points[n][0] - mx) * (points[n][1] - my) for n in chosen) / len(chosen)
        for n in chosen:
            dx, dy = points[n][0] - mx, points[n][1] - my
            square = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / (xx * yy - xy * xy)
            w[n] = max(w[n], math.exp(-square / 2))
    return w, v


def attentions(x: list, temperature: float) -> tuple[list, list]:
    """S [y][x] and C [c][y][x] of one image [c][y][x]."""
    channels, height, width = len(x), len(x[0]), len(x[0][0])
    space = [
        [math.exp(sum(abs(p[y][j]) for p in x) / channels / temperature) for j in range(width)] for y in range(height)
    ]
    total = sum(map(sum, space))
    powers = [[[math.exp(abs(v) / temperature) for v in row] for row in plane] for plane in x]
    channel = [
        [
            [channels * powers[c][y][j] / sum(powers[d][y][j] for d in range(channels)) for j in range(width)]
            for y in range(height)
        ]
        for c in range(channels)
    ]
    return [[height * width * value / total for value in row] for row in space], channel


def reference(method: PGD, batch):
    o = method.options

    def loss(student, teacher) -> float:
        both = [masks(batch, i, teacher.logits[i], teacher.boxes[i], o) for i in range(len(teacher.logits))]
        assert any(any(w) for w, _ in both) and any(any(v) for _, v in both), "the check is empty without places"
        levels, start = [], 0
        s_maps, t_maps = getattr(student, method.tap), getattr(teacher, method.tap)
        for level, (s, t, conv) in enumerate(zip(s_maps, t_maps, method.adapters, strict=True)):
            start = 0 if level == 2 else start  # towers: the class maps begin at the first level again
            a = conv1x1(s, conv)
            channels, height, width = len(t[0]), len(t[0][0]), len(t[0][0][0])
            sums = {"w": [0.0, 0.0, 0], "v": [0.0, 0.0, 0]}
            space = channel = 0.0
            for i in range(len(t)):
                (space_s, channel_s), (space_t, channel_t) = (attentions(x[i], o.temperature) for x in (a, t))
                for y in range(height):
                    for x in range(width):
                        n = start + y * width + x
                        space += abs(space_s[y][x] - space_t[y][x])
                        for c in range(channels):
                            channel += abs(channel_s[c][y][x] - channel_t[c][y][x])
                            weight = space_t[y][x] * channel_t[c][y][x]
                            for name, mask in zip("wv", both[i], strict=True):
                                sums[name][0] += mask[n] * weight * (a[i][c][y][x] - t[i][c][y][x]) ** 2
                                sums[name][1] += mask[n] * weight * t[i][c][y][x] ** 2
                                sums[name][2] += mask[n] > 0
            parts = [
                0.0 if not count else error / (energy if o.relative else count)
                for error, energy, count in sums.values()
            ]
            count = len(t) * height * width
            at = space / count + channel / (count * channels)
            levels.append(o.alpha * parts[0] + o.beta * parts[1] + o.gamma * at)
            start += height * width
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize(
    "options",
    [{}, {"topk": 3, "xi": 0.6}, {"relative": False}, {"temperature": 0.3, "beta": 0.0}, {"alpha": 0.0, "gamma": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("tap", PGD.taps)
def test_equals_reference(options, tap):
    for seed in range(2):
        pair = exact(on_its_cells(make_pair(seed, batch=seed + 1)))
        method = build("pgd", pair, tap, seed, **options)
        check(method, pair, reference(method, pair.batch), [tap], seed)


def test_the_gaussian_by_hand():
    """Four places around a middle: equally likely; a fifth outside the best counts nothing."""
    centres = torch.tensor([[0.0, 0], [2, 0], [0, 2], [2, 2], [1, 1]], dtype=torch.float64)
    quality = torch.tensor([[0.9, 0.9, 0.9, 0.9, 0.1], [-1.0, -1, -1, -1, -1], [-1, -1, -1, 0.5, -1]]).double()
    got = gaussian(quality, centres, 4)
    assert got[0].tolist() == pytest.approx([math.exp(-1 / (1 + 1 / 1200))] * 4 + [0.0])  # unit variances
    assert got[1].tolist() == [0.0] * 5  # no place
    assert got[2].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]  # one place is its own mean


def test_without_objects_only_background_and_attention_teach():
    pair = make_pair()
    student, batch = trainable(pair.student), without_objects(pair.batch)
    whole = build("pgd", pair)(student, pair.teacher, batch)
    assert whole.item() == pytest.approx(build("pgd", pair, alpha=0.0)(student, pair.teacher, batch).item(), rel=1e-12)
    assert whole > 0


def test_better_predictions_of_the_teacher_move_the_mask():
    """The mask is the teacher's: its boxes decide, the student's do not."""
    pair = on_its_cells(make_pair())
    method = build("pgd", pair, topk=2)
    expected = method(pair.student, pair.teacher, pair.batch).item()
    other = replace(pair.student, boxes=pair.student.boxes + 5, logits=pair.student.logits.flip(1))
    assert method(other, pair.teacher, pair.batch).item() == expected
    moved = replace(pair.teacher, logits=pair.teacher.logits.flip(1))
    assert method(pair.student, moved, pair.batch).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("option", "value"), [("topk", 0), ("topk", 2.5), ("xi", 1.1), ("alpha", -1), ("temperature", 0), ("relative", 1)]
)
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^pgd\.{option}=.* is not allowed"):
        METHODS["pgd"].Options(**{option: value})
