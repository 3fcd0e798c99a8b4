"""FGD against its equation in scalar loops, part by part, and its masks and attentions."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.views import (
    OTHER_SIZES,
    STRIDES,
    build,
    change,
    check,
    conv1x1,
    entries,
    make_pair,
    objects,
    precise,
    resize,
    touches,
    without_objects,
)

from yolokd.methods import METHODS, ops
from yolokd.methods.fgd import FGD

PARTS = ("alpha", "beta", "gamma", "lam")


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def attentions(planes: list[list[float]], temperature: float) -> tuple[list[float], list[float]]:
    """Of one image, [c][cell]: over cells, and over channels."""
    channels, cells = len(planes), len(planes[0])
    space = softmax([sum(abs(p[i]) for p in planes) / channels / temperature for i in range(cells)])
    channel = softmax([sum(abs(x) for x in p) / cells / temperature for p in planes])
    return [cells * x for x in space], [channels * x for x in channel]


def linear(x: list[float], layer: torch.nn.Linear) -> list[float]:
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
    return [
        b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(layer.weight.tolist(), bias, strict=True)
    ]


def related(planes: list[list[float]], relation) -> list[list[float]]:
    """R of one image, [c][cell]."""
    cells = range(len(planes[0]))
    share = softmax([linear([p[i] for p in planes], relation.key)[0] for i in cells])
    first, norm, _, last = relation.transform
    hidden = linear([sum(share[i] * p[i] for i in cells) for p in planes], first)
    mean = sum(hidden) / len(hidden)
    variance = sum((h - mean) ** 2 for h in hidden) / len(hidden)
    hidden = [(h - mean) / math.sqrt(variance + norm.eps) for h in hidden]
    hidden = [max(w * h + b, 0) for h, w, b in zip(hidden, norm.weight.tolist(), norm.bias.tolist(), strict=True)]
    return [[x + v for x in p] for p, v in zip(planes, linear(hidden, last), strict=True)]


def masks(boxes: list, height: int, width: int, stride: int) -> tuple[list[float], list[float]]:
    """O and N of one image, by cell."""
    grid = [(y, x) for y in range(height) for x in range(width)]
    sizes = [sum(touches(box, y, x, stride) for y, x in grid) for box in boxes]
    smallest = [
        min((n for box, n in zip(boxes, sizes, strict=True) if touches(box, y, x, stride)), default=0) for y, x in grid
    ]
    free = smallest.count(0)
    return [1 / n if n else 0.0 for n in smallest], [0.0 if n else 1 / free for n in smallest]


def reference(method: FGD, batch):
    o, boxes = method.options, objects(batch)

    def level(i: int, s: list, t: list) -> float:
        height, width = len(s[0][0]), len(s[0][0][0])
        s, t = conv1x1(s, method.adapters[i]), resize(t, height, width)
        everything = entries(t)
        unit = math.sqrt(sum(x * x for x in everything) / len(everything)) if o.relative else 1.0
        error, energy, weight = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
        at_space, at_channel, rel = [], [], []
        for b in range(len(t)):
            a, c = ([[x / unit for x in entries(plane)] for plane in image] for image in (s[b], t[b]))
            (space_s, channel_s), (space_t, channel_t) = attentions(a, o.temperature), attentions(c, o.temperature)
            for k, mask in enumerate(masks(boxes[b], height, width, STRIDES[i])):
                weight[k] += sum(mask)
                for j, m in enumerate(mask):
                    for n in range(len(c)):
                        w = m * space_t[j] * channel_t[n] / len(c)
                        error[k] += w * (a[n][j] - c[n][j]) ** 2
                        energy[k] += w * c[n][j] ** 2
            at_space += [abs(x - y) for x, y in zip(space_s, space_t, strict=True)]
            at_channel += [abs(x - y) for x, y in zip(channel_s, channel_t, strict=True)]
            r_s, r_t = related(a, method.s_relations[i]), related(c, method.t_relations[i])
            rel += [(x - y) ** 2 for x, y in zip(entries(r_s), entries(r_t), strict=True)]
        divisor = energy if o.relative else weight
        fg, bg = (error[k] / divisor[k] if weight[k] else 0.0 for k in range(2))
        at = sum(at_space) / len(at_space) + sum(at_channel) / len(at_channel)
        return o.alpha * fg + o.beta * bg + o.gamma * at + o.lam * sum(rel) / len(rel)

    def loss(student, teacher) -> float:
        maps = zip(getattr(student, method.tap), getattr(teacher, method.tap), strict=True)
        levels = [level(i, s, t) for i, (s, t) in enumerate(maps)]
        return sum(levels) / len(levels)

    return loss


def moved(method: FGD) -> FGD:
    """With relations that have left their start, where they do nothing."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in method.parameters():
            p += 0.5 * torch.randn(p.shape, generator=random, dtype=p.dtype)
    return method


@pytest.mark.parametrize("tap", FGD.taps)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_equals_reference(tap, relative, sizes):
    for seed, temperature in enumerate([0.5, 1, 0.2]):
        pair = precise(make_pair(seed, batch=seed + 1, sizes=sizes))
        method = moved(build("fgd", pair, tap, seed, relative=relative, temperature=temperature))
        check(method, pair, reference(method, pair.batch), [tap], seed)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("relative", [True, False])
def test_each_part_equals_reference(part, relative):
    for seed, widths in enumerate([((2, 3), (4, 2)), ((3, 2), (9, 10))]):
        pair = precise(make_pair(seed, widths=widths))
        method = moved(build("fgd", pair, seed=seed, relative=relative, **{p: float(p == part) for p in PARTS}))
        check(method, pair, reference(method, pair.batch), ["neck"], seed)


def test_without_objects_equals_reference():
    pair = precise(make_pair())
    pair = type(pair)(pair.student_spec, pair.teacher_spec, pair.student, pair.teacher, without_objects(pair.batch))
    method = moved(build("fgd", pair))
    check(method, pair, reference(method, pair.batch), ["neck"])
    assert build("fgd", pair, alpha=1, beta=0, gamma=0, lam=0)(pair.student, pair.teacher, pair.batch).item() == 0


def test_masks_by_hand():
    """The smaller of two boxes on one place counts; a box that touches no edge of a cell from inside keeps its own."""
    boxes = torch.tensor([[0.0, 0, 24, 16], [9, 9, 10, 10], [8, 0, 16, 8]], dtype=torch.float64)
    found, free = ops.objects_and_rest(boxes, torch.tensor([0, 0, 2]), torch.zeros(3, 1, 3, 4), 8)
    assert found[0].tolist() == [[1 / 6, 1 / 6, 1 / 6, 0], [1 / 6, 1, 1 / 6, 0], [0, 0, 0, 0]]
    assert found[1].sum() == 0 and found[2].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert free[0].tolist() == [[0, 0, 0, 1 / 6], [0, 0, 0, 1 / 6], [1 / 6] * 4]
    assert free[1].tolist() == [[1 / 12] * 4] * 3
    everywhere, nowhere = ops.objects_and_rest(
        torch.tensor([[-5.0, -5, 99, 99]]), torch.tensor([0]), torch.zeros(1, 1, 2, 2), 8
    )
    assert everywhere.tolist() == [[[0.25] * 2] * 2] and nowhere.sum() == 0


def test_a_mean_of_objects_not_of_cells():
    """An object of one cell and one of many count the same, if the teacher looks at both alike."""
    pair = precise(make_pair(batch=1, widths=((1, 1), (1, 1))))
    pair.batch.update(
        img=torch.zeros(1, 3, 32, 48), bboxes=torch.tensor([[4 / 48, 0.125, 0.1, 0.1], [0.7, 0.5, 0.5, 0.9]])
    )
    ones = change(pair.teacher, torch.ones_like, ("neck",))
    method = build("fgd", pair, alpha=1, beta=0, gamma=0, lam=0)
    for adapter in method.adapters:
        torch.nn.init.dirac_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    boxes, index = ops.ground_truth(pair.batch)
    for box in range(2):
        off = tuple(
            m + ops.foreground(boxes[box : box + 1], index[:1], m, stride)[:, None].to(m)
            for m, stride in zip(ones.neck, STRIDES, strict=True)
        )
        student = change(ones, lambda x: x, ())
        student = type(student)(**{**{f: getattr(student, f) for f in student.__slots__}, "neck": off})
        assert method(student, ones, pair.batch).item() == pytest.approx(0.5, rel=1e-6)


def test_relations_do_nothing_at_first():
    pair = make_pair()
    method, plain = build("fgd", pair, alpha=0, beta=0, gamma=0, lam=1), build("fitnet", pair, "neck")
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if k.startswith("adapters")})
    expected = plain(pair.student, pair.teacher, pair.batch).item()
    assert method(pair.student, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-9)


def test_zero_at_equal_maps():
    pair = make_pair(widths=((2, 3), (2, 3)))
    method = build("fgd", pair)
    for adapter in method.adapters:
        torch.nn.init.dirac_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    assert method(pair.teacher, pair.teacher, pair.batch).item() == pytest.approx(0, abs=1e-15)


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    pair = make_pair()
    method = moved(build("fgd", pair))
    expected = method(pair.student, pair.teacher, pair.batch).item()
    for scale in (1e-4, 1e4):
        scaled = moved(build("fgd", pair))
        for adapter in scaled.adapters:
            adapter.weight.data *= scale
            adapter.bias.data *= scale
        teacher = change(pair.teacher, lambda x, scale=scale: scale * x)
        assert scaled(pair.student, teacher, pair.batch).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("part", ["alpha", "beta", "lam"])
def test_a_student_of_zeros_has_loss_1(part):
    pair = make_pair()
    method = build("fgd", pair, **{p: float(p == part) for p in PARTS})
    for adapter in method.adapters:
        torch.nn.init.zeros_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    assert method(pair.student, pair.teacher, pair.batch).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("value", [-1, math.nan, "1", None])
@pytest.mark.parametrize("option", [*PARTS, "temperature"])
def test_refuses_what_is_no_weight(option, value):
    with pytest.raises(ValueError, match=rf"^fgd\.{option}=.* is not allowed"):
        METHODS["fgd"].Options(**{option: value})


@pytest.mark.parametrize(("option", "value"), [("temperature", 0), ("relative", 1)])
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^fgd\.{option}=.* is not allowed"):
        METHODS["fgd"].Options(**{option: value})
