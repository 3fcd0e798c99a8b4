"""MGD against its equation in scalar loops, its masks, and whose random numbers they are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.views import OTHER_SIZES, build, change, check, conv1x1, entries, make_pair, resize

from yolokd.methods import METHODS
from yolokd.methods.mgd import MGD


def conv3x3(x: list, conv: torch.nn.Conv2d) -> list:
    """sum over c, or the one channel of a conv by channels, and the 3 x 3 neighbours, which are 0 outside the map."""
    weight = conv.weight.tolist()
    bias = conv.bias.tolist() if conv.bias is not None else [0.0] * len(weight)
    if conv.groups > 1:
        zero = [[0.0] * 3] * 3
        weight = [[weight[o][0] if c == o else zero for c in range(len(weight))] for o in range(len(weight))]
    height, width = len(x[0][0]), len(x[0][0][0])

    def cell(image: list, o: int, y: int, column: int) -> float:
        total = bias[o]
        for c, plane in enumerate(image):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < height and 0 <= column + dx < width:
                        total += weight[o][c][dy + 1][dx + 1] * plane[y + dy][column + dx]
        return total

    return [
        [[[cell(image, o, y, column) for column in range(width)] for y in range(height)] for o in range(len(bias))]
        for image in x
    ]


def each_cell(function, *maps: list) -> list:
    """The function of equally placed numbers of nested lists."""
    if not isinstance(maps[0], list):
        return function(*maps)
    return [each_cell(function, *parts) for parts in zip(*maps, strict=True)]


def run(x: list, layer: torch.nn.Module) -> list:
    """One layer of a generator, or an adapter."""
    if isinstance(layer, torch.nn.Conv2d):
        return (conv3x3 if layer.kernel_size == (3, 3) else conv1x1)(x, layer)
    return each_cell(lambda v: max(v, 0.0), x) if isinstance(layer, torch.nn.ReLU) else x


def reference(method: MGD, masks: list | None):
    def loss(student, teacher) -> float:
        levels = []
        maps = zip(getattr(student, method.tap), getattr(teacher, method.tap), strict=True)
        for i, (s, t) in enumerate(maps):
            seen, t = run(s, method.adapters[i]), resize(t, len(s[0][0]), len(s[0][0][0]))
            if masks is not None:  # one mask an image, for every channel
                seen = [
                    [each_cell(lambda x, m: x * m, plane, m[0]) for plane in image]
                    for image, m in zip(seen, masks[i], strict=True)
                ]
            for layer in method.generators[i]:
                seen = run(seen, layer)
            error = sum(entries(each_cell(lambda x, y: (x - y) ** 2, seen, t)))
            scale = sum(x * x for x in entries(t)) if method.options.relative else len(entries(t))
            levels.append(error / scale)
        return sum(levels) / len(levels)

    return loss


@pytest.mark.parametrize("tap", MGD.taps)
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    ("form", "ratio", "width"),
    [("full", 0.65, 1.0), ("full", 0.3, 0.5), ("full", 0, 2), ("separable", 0.65, 0.25), ("separable", 0.3, 1.5)],
)
def test_equals_reference(tap, relative, form, ratio, width):
    for seed, sizes in enumerate(OTHER_SIZES[1:]):
        pair = make_pair(seed, batch=seed + 1, sizes=sizes)
        method = build("mgd", pair, tap, seed, relative=relative, form=form, ratio=ratio, width=width)
        masks = [m.tolist() for m in copy.deepcopy(method).masks(list(pair.student.neck))]
        check(method, pair, reference(method, masks), [tap], seed)
    check(method.eval(), pair, reference(method, None), [tap], seed)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.65])
def test_share_of_hidden_cells(ratio):
    pair = make_pair()
    method = build("mgd", pair, ratio=ratio)
    maps = [torch.zeros(8, 5, 40, 40), torch.zeros(8, 2, 20, 20)]
    first, second = method.masks(maps), method.masks(maps)
    for mask, other, like in zip(first, second, maps, strict=True):
        assert mask.shape == (8, 1, *like.shape[2:]) and set(mask.unique().tolist()) <= {0.0, 1.0}
        spread = math.sqrt(ratio * (1 - ratio) / mask.numel())
        assert 1 - mask.mean().item() == pytest.approx(ratio, abs=5 * spread)
        agreement = (mask == other).double().mean().item()  # of independent draws
        assert agreement == pytest.approx(ratio**2 + (1 - ratio) ** 2, abs=0.05)
        images = (mask[0] == mask[1]).double().mean().item()
        assert images == pytest.approx(ratio**2 + (1 - ratio) ** 2, abs=0.15)


def test_draws_no_number_of_the_student():
    pair = make_pair()
    method = build("mgd", pair)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    method(pair.student, pair.teacher, pair.batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_call_has_its_own_masks_and_a_resumed_one_goes_on():
    pair = make_pair()

    def values(method, calls: int) -> list[float]:
        return [method(pair.student, pair.teacher, pair.batch).item() for _ in range(calls)]

    first = build("mgd", pair)
    whole = values(first, 6)
    assert len(set(whole)) == 6
    assert values(build("mgd", pair), 6) == whole
    interrupted = build("mgd", pair)
    assert values(interrupted, 4) == whole[:4]
    resumed = build("mgd", pair, seed=9)
    resumed.load_state_dict({k: v.detach().cpu() for k, v in interrupted.state_dict().items()})
    assert values(resumed, 2) == whole[4:]


def test_eval_mode_hides_nothing_and_counts_nothing():
    pair = make_pair()
    method, whole = build("mgd", pair).eval(), build("mgd", pair, ratio=0)
    values = [method(pair.student, pair.teacher, pair.batch).item() for _ in range(2)]
    assert values == [whole(pair.student, pair.teacher, pair.batch).item()] * 2 and method.calls == 0


def test_relative_means_the_same_at_any_scale_of_the_teacher():
    """A generator that returns 0 has loss 1."""
    pair = make_pair()
    for scale in (1e-3, 1.0, 1e3):
        method = build("mgd", pair)
        for generate in method.generators:
            torch.nn.init.zeros_(generate[-1].weight)
            torch.nn.init.zeros_(generate[-1].bias)
        teacher = change(pair.teacher, lambda x, scale=scale: scale * x)
        assert method(pair.student, teacher, pair.batch).item() == pytest.approx(1, rel=1e-12)


def test_generators_have_the_papers_form_or_a_lighter_one():
    pair = make_pair(widths=((2, 3), (8, 6)))
    for form, forms in (
        ("full", lambda s, t, w: [(t, w, 3, 1), (w, t, 3, 1)]),
        ("separable", lambda s, t, w: [(s, s, 3, s), (s, w, 1, 1), (w, w, 3, w), (w, t, 1, 1)]),
    ):
        for width, inside in ((1.0, [8, 6]), (0.25, [2, 2]), (0.01, [1, 1])):
            method = build("mgd", pair, form=form, width=width)
            for s, t, w, layers in zip((2, 3), (8, 6), inside, method.generators, strict=True):
                convs = [m for m in layers if isinstance(m, torch.nn.Conv2d)]
                assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs] == forms(s, t, w)
            assert all(isinstance(a, torch.nn.Conv2d) == (form == "full") for a in method.adapters)


def test_the_default_generator_is_light():
    """At the widths of YOLO11n and YOLO11s, fewer multiplications a cell than one 1x1 adapter and a half."""
    pair = make_pair(widths=((64, 128), (128, 256)))
    for s, t, generate in zip((64, 128), (128, 256), build("mgd", pair).generators, strict=True):
        assert sum(p.numel() for p in generate.parameters()) < 1.5 * s * t


@pytest.mark.parametrize(
    ("option", "value"),
    [("ratio", 1), ("ratio", -0.1), ("ratio", math.nan), ("width", 0), ("form", "half"), ("relative", 1)],
)
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^mgd\.{option}=.* is not allowed"):
        METHODS["mgd"].Options(**{option: value})
