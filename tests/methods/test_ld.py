"""LD against its equations in scalar loops, the two regions by hand, and the pairs it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.boxes import boxes_of, cells, divergence, iou_and_diou
from helpers.regions import exact
from helpers.views import STRIDES, build, change, make_pair, sigmoid, trainable
from helpers.views import check as check_against

from yolokd.methods import METHODS, ops
from yolokd.methods.ld import (
    SATURATED,
    LDOptions,
    RotatedLDOptions,
    any_object,
    around,
    distributions,
    regions,
    two_bins,
)

SMALL = {"side": 2.0, "topk": 4}  # anchors and candidates that suit images of a few cells


def region_weights(batch, image: int, options: LDOptions) -> tuple[list[bool], list[float]]:
    """Whether each anchor point is positive, and its weight in the region around (0 outside)."""
    levels = cells(batch)
    points = [point for level in levels for point in level]
    positive, around = [False] * len(points), [0.0] * len(points)
    for g in boxes_of(batch, image):
        middle = ((g[0] + g[2]) / 2, (g[1] + g[3]) / 2)
        both, nearest, start = [], [], 0
        for x, y, s in points:
            half = options.side * s / 2
            both.append(iou_and_diou((x - half, y - half, x + half, y + half), g))
        for level in levels:
            far = [math.hypot(x - middle[0], y - middle[1]) for x, y, _ in level]
            nearest += [start + i for i in sorted(range(len(level)), key=far.__getitem__)[: options.topk]]
            start += len(level)
        values = [both[n][0] for n in nearest]
        mean = sum(values) / len(values)
        theta = mean + math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        for n in nearest:
            x, y, _ = points[n]
            positive[n] |= both[n][0] >= theta and g[0] < x < g[2] and g[1] < y < g[3]
        for n, (iou, diou) in enumerate(both):
            if options.gamma * theta <= diou < theta:
                around[n] = max(around[n], iou)
    return positive, around


def reference(options: LDOptions, batch):
    def loss(student, teacher) -> float:
        main, vlr, classes = [], [], []  # (weight, divergence) twice, divergence
        for image, (s, t) in enumerate(zip(student.bins, teacher.bins, strict=True)):
            logits = (student if options.weight == "student" else teacher).logits[image]
            positive, around = region_weights(batch, image, options)
            for n, z in enumerate(logits):
                d = divergence(s[n], t[n], options.tau) if positive[n] or around[n] else 0.0
                main.append((max(map(sigmoid, z)) * positive[n], d))
                vlr.append((around[n], d))
                if positive[n] and options.cls:
                    classes.append(divergence([student.logits[image][n]], [teacher.logits[image][n]], options.cls_tau))
        assert any(w for w, _ in main) and any(w for w, _ in vlr), "the check is empty without the regions"
        means = [sum(w * d for w, d in region) / sum(w for w, _ in region) for region in (main, vlr)]
        cls = options.cls * sum(classes) / len(classes) if classes else 0.0
        return options.main * means[0] + options.vlr * means[1] + cls

    return loss


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {**SMALL, "tau": 1.0, "vlr": 0.0},
        {**SMALL, "main": 0.0, "gamma": 0.5},
        {**SMALL, "weight": "teacher", "main": 0.25, "vlr": 0.5},
        {"side": 3.0, "topk": 9, "gamma": 0.0},
        {"side": 1.0, "topk": 2},
        {**SMALL, "cls": 8.5},
        {**SMALL, "cls": 1.0, "cls_tau": 0.7, "main": 0.0, "vlr": 0.0, "weight": "teacher"},
    ],
    ids=str,
)
def test_equals_reference(options):
    for seed in range(3):
        pair = exact(make_pair(seed, batch=seed + 1, classes=(3, 3 if options.get("cls") else 5)))
        method = build("ld", pair, **options)
        fields = ["bins", "logits"] if options.get("weight") == "teacher" else ["bins"]  # u_n has no gradient
        check_against(method, pair, reference(method.options, pair.batch), fields, seed)


def test_anchors_at_their_papers_size_equal_reference():
    pair = exact(make_pair(4))
    method = build("ld", pair, vlr=1.0)
    main, vlr = method.regions(STRIDES, pair.student.logits, pair.batch)
    ours = (main > 0) | (vlr > 0)
    for image in range(2):
        positive, around = region_weights(pair.batch, image, method.options)
        assert ours[image].tolist() == [p or v > 0 for p, v in zip(positive, around, strict=True)]


def test_regions_by_hand():
    """One object of 16 px on 8 x 8 cells of 8 px and anchors of its size: the only perfect fit is no cell's centre."""
    image = {"img": torch.zeros(1, 3, 64, 64)}
    centres, sizes = ops.points(image, (8,), torch.zeros(1, 64, 1))
    box = torch.tensor([[20.0, 20.0, 36.0, 36.0]])  # centred on the cell at row 3, column 3
    main, vlr = regions(box, centres, sizes, LDOptions(side=2.0))
    assert main.reshape(8, 8).nonzero().tolist() == [[3, 3]]
    # candidates: IoU 1 (once), 1/3 (beside, four) and 1/7 (diagonal, four): theta = 0.32 + 0.27 = 0.59;
    # DIoU beside is 1/3 - 64 / (24^2 + 16^2) = 0.26, at the diagonal 1/7 - 128 / (2 * 24^2) = 0.03
    expected = torch.zeros(8, 8)
    for row, column in [(2, 3), (4, 3), (3, 2), (3, 4)]:
        expected[row, column] = 1 / 3
    torch.testing.assert_close(vlr.reshape(8, 8), expected)


def test_objects_that_offer_nothing():
    """Smaller than a cell and between centres, outside the image, without an area: no region, and no NaN."""
    image = {"img": torch.zeros(1, 3, 64, 64)}
    centres, sizes = ops.points(image, (8, 16), torch.zeros(1, 80, 1))
    boxes = torch.tensor([[9.0, 9.0, 11.0, 11.0], [100.0, 100.0, 120.0, 120.0], [30.0, 30.0, 30.0, 30.0]])
    for region in regions(boxes, centres, sizes, LDOptions()):
        assert region.shape == (3, 80) and (region == 0).all()


def test_a_point_counts_its_best_object_of_its_own_image():
    values = torch.tensor([[0.1, 0.5], [0.4, 0.2], [0.3, 0.3]])
    got = any_object(values, torch.tensor([1, 1, 2]), torch.zeros(3, 2))
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0], [0.4, 0.5], [0.3, 0.3]]))


def test_zero_at_equal_bins_and_blind_to_a_constant_of_an_edge():
    pair = make_pair()
    method = build("ld", pair)
    equal = trainable(replace(pair.student, bins=pair.teacher.bins))
    value = method(equal, pair.teacher, pair.batch)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and equal.bins.grad.abs().max() < 1e-12
    shifted = change(pair.student, lambda z: z + torch.arange(4.0)[:, None], ("bins",))
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(shifted, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-9)


def test_blind_to_the_unit_of_length():
    """Twice the pixels a cell on an image of twice the side is the same scene."""
    pair = make_pair()
    method = build("ld", pair, **SMALL)
    large = [replace(v, strides=tuple(2 * s for s in STRIDES)) for v in (pair.student, pair.teacher)]
    batch = {**pair.batch, "img": pair.batch["img"].repeat(1, 1, 2, 2)}
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(*large, batch).item() == pytest.approx(expected, rel=1e-9)


def test_the_score_only_weighs():
    pair = make_pair()
    student = trainable(pair.student)
    build("ld", pair)(student, pair.teacher, pair.batch).backward()
    assert student.logits.grad is None


@pytest.mark.parametrize(
    ("role", "bins", "message"),
    [
        ("student", 0, r"student small has none, or none in the student's cells .*: use bckd_box"),
        ("teacher", 0, r"teacher large has none, or none in the student's cells .*: use bckd_box"),
        ("teacher", 16, r"student small has 4 bins and teacher large has 16: use bckd_box"),
    ],
)
def test_refuses_other_heads_by_naming_the_substitute(role, bins, message):
    pair = make_pair()
    spec = replace(getattr(pair, f"{role}_spec"), bins=bins)
    with pytest.raises(ValueError, match=message):
        build("ld", replace(pair, **{f"{role}_spec": spec}))


def test_the_class_part_needs_classes_to_compare():
    with pytest.raises(ValueError, match="ld.cls compares scores class by class"):
        build("ld", make_pair(classes=(3, 5)), cls=1.0)
    with pytest.raises(ValueError, match="compares classes, and there is one: leave it at 0"):
        build("ld", make_pair(classes=(1, 1)), cls=1.0)
    assert build("ld", make_pair(), cls=1.0).classwise and not build("ld", make_pair()).classwise


def test_refuses_images_that_do_not_fit_the_view():
    pair = make_pair()
    batch = {**pair.batch, "img": torch.zeros(2, 3, 64, 64)}
    with pytest.raises(ValueError, match="An image of 64 x 64 has 80 anchor points, but the view has 30"):
        build("ld", pair)(pair.student, pair.teacher, batch)


@pytest.mark.parametrize(
    ("option", "value"),
    [("tau", 0), ("topk", 0), ("topk", 1.5), ("side", -1), ("gamma", -0.1), ("main", math.nan), ("weight", "both")],
)
def test_refuses_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"^ld\.{option}=.* is not allowed"):
        METHODS["ld"].Options(**{option: value})


def test_refuses_to_do_nothing():
    with pytest.raises(ValueError, match="ld.main, ld.vlr and ld.cls are all 0"):
        LDOptions(main=0, vlr=0)


# --- rotated boxes --------------------------------------------------------------------------------------------------


def weights_around(batch, image: int, options) -> list[float]:
    """The weight of each anchor point in the region on and around the objects."""
    levels = cells(batch)
    points = [point for level in levels for point in level]
    weights = [0.0] * len(points)
    for g in boxes_of(batch, image):
        middle = ((g[0] + g[2]) / 2, (g[1] + g[3]) / 2)
        half = options.side / 2
        ious = [iou_and_diou((x - half * s, y - half * s, x + half * s, y + half * s), g)[0] for x, y, s in points]
        values, start = [], 0
        for level in levels:
            order = sorted(
                range(len(level)), key=lambda i: math.hypot(level[i][0] - middle[0], level[i][1] - middle[1])
            )
            values += [ious[start + i] for i in order[: options.topk]]
            start += len(level)
        mean = sum(values) / len(values)
        theta = mean + math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        weights = [max(w, v if v >= options.gamma * theta else 0.0) for w, v in zip(weights, ious, strict=True)]
    return weights


def share_of(angle: float) -> list[float]:
    """Two bins' logits whose mean the angle is."""
    p = min(max(angle / math.pi + 0.25, SATURATED), 1 - SATURATED)
    return [0.0, math.log(p / (1 - p))]


def rotated_reference(options, batch):
    def loss(student, teacher) -> float:
        total = sides = classes = 0.0
        for image in range(len(student.logits)):
            for n, w in enumerate(weights_around(batch, image, options)):
                s, t = ([*v.rotated_bins[image][n], share_of(v.rotated[image][n][4])] for v in (student, teacher))
                each = [divergence([a], [b], options.tau) for a, b in zip(s, t, strict=True)]
                total, sides = total + w, sides + w * sum(each) / 5
                if options.cls:
                    logits = ([v.logits[image][n]] for v in (student, teacher))
                    classes += w * divergence(*logits, options.cls_tau)
        assert total > 0, "the check is empty without the region"
        return (sides + options.cls * classes) / total

    return loss


@pytest.mark.parametrize(
    "options",
    [SMALL, {**SMALL, "tau": 1.0, "gamma": 0.9}, {"side": 1.0, "topk": 2, "gamma": 0.0}, {**SMALL, "cls": 0.24}],
)
def test_rotated_equals_reference(options):
    for seed in range(3):
        pair = exact(make_pair(seed, batch=seed + 1))
        angles = {"rotated": lambda x: torch.cat((x[..., :4], x[..., 4:].tanh() * 0.9), -1)}
        pair = replace(
            pair,
            student=change(pair.student, angles["rotated"], ("rotated",)),
            teacher=change(pair.teacher, angles["rotated"], ("rotated",)),
        )
        method = build("ld_rotated", pair, **options)
        fields = ["rotated_bins", "rotated", *(["logits"] if "cls" in options else [])]
        check_against(method, pair, rotated_reference(method.options, pair.batch), fields, seed)


def test_the_angle_is_the_mean_of_its_two_bins():
    view = make_pair().student
    angle = torch.linspace(-0.7, 2.3, view.rotated.shape[1], dtype=torch.float64)
    turned = replace(view, rotated=torch.cat((view.rotated[..., :4], angle.expand(2, -1)[..., None]), -1))
    weights = two_bins(distributions(turned)[1][0]).softmax(-1)[:, 0]
    torch.testing.assert_close(weights @ torch.tensor([-math.pi / 4, 3 * math.pi / 4], dtype=torch.float64), angle)


def test_rotated_regions_are_those_of_the_box_around_a_turned_object():
    image = {"img": torch.zeros(1, 3, 64, 64), "batch_idx": torch.tensor([0.0])}
    turned = {**image, "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.125, math.pi / 2]])}
    upright = {**image, "bboxes": torch.tensor([[0.5, 0.5, 0.125, 0.5]])}
    centres, sizes = ops.points(image, (8,), torch.zeros(1, 64, 1))
    found = [
        around(ops.ground_truth(batch)[0], centres, sizes, RotatedLDOptions(side=2.0)) for batch in (turned, upright)
    ]
    assert found[0].count_nonzero() > 0
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tau": 0}, "ld_rotated.tau=0 "), ({"topk": 2.5}, "ld_rotated.topk=2.5"), ({"cls": -1}, "ld_rotated.cls=-1")],
)
def test_rotated_refuses_options_out_of_range(options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        METHODS["ld_rotated"].Options(**options)


def test_rotated_refuses_heads_without_distributions():
    pair = make_pair()
    with pytest.raises(ValueError, match="ld_rotated compares box distributions, and teacher large has none.*probiou"):
        build("ld_rotated", replace(pair, teacher_spec=replace(pair.teacher_spec, bins=0)))
