"""The proposal analogue against its equation in scalar loops, and the split by ground truth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.regions import exact, objects, touched_points
from helpers.views import SIZES, build, change, check, make_pair, sigmoid, trainable, without_objects

from yolokd.methods import METHODS
from yolokd.methods.rpn import RPN


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def reference(options, batch):
    def loss(student, teacher) -> float:
        sides = {True: [], False: []}
        for image in range(len(teacher.logits)):
            for n, on in enumerate(touched_points(objects(batch), image, SIZES, teacher.strides)):
                o_s, o_t = (max(v.logits[image][n]) / options.tau for v in (student, teacher))
                sides[on].append(options.tau**2 * kl(sigmoid(o_t), sigmoid(o_s)))
        fg, bg = (sum(side) / max(len(side), 1) for side in (sides[True], sides[False]))
        return options.foreground * fg + options.background * bg

    return loss


@pytest.mark.parametrize("tau", [1.0, 2, 0.5])
@pytest.mark.parametrize(("foreground", "background"), [(1.0, 1.0), (2, 0), (0, 3.0)])
@pytest.mark.parametrize("classes", [(3, 3), (1, 4)])
def test_equals_reference(tau, foreground, background, classes):
    for seed in range(3):
        pair = exact(make_pair(seed, batch=seed + 1, classes=classes))
        method = build("rpn", pair, tau=tau, foreground=foreground, background=background)
        check(method, pair, reference(method.options, pair.batch), ["logits"], seed)


def test_without_objects_is_the_background_part():
    pair = make_pair()
    empty = replace(pair, batch=without_objects(pair.batch))
    check(build("rpn", empty), empty, reference(RPN.Options(), empty.batch), ["logits"])
    assert build("rpn", empty, background=0)(empty.student, empty.teacher, empty.batch).item() == 0


def test_each_part_is_a_mean_of_its_own_points():
    """However small its share: the object's points weigh as much as all others."""
    pair = make_pair(batch=1)
    tiny = {"img": pair.batch["img"], "batch_idx": torch.zeros(1), "bboxes": torch.tensor([[0.25, 0.375, 0.1, 0.1]])}
    off = change(pair.student, torch.zeros_like, ("logits",))
    teacher = change(pair.teacher, torch.zeros_like, ("logits",))
    logits = teacher.logits.clone()
    logits[0, 7] = 4.0  # level 0, row 1, column 1: the tiny object's cell; level 1, row 0, column 0 is its other one
    value = build("rpn", pair)(off, replace(teacher, logits=logits), tiny).item()
    assert value == pytest.approx(kl(sigmoid(4.0), 0.5) / 2, rel=1e-9)


def test_blind_to_all_but_the_highest_class():
    pair = make_pair()
    method = build("rpn", pair)
    reversed_classes = change(pair.student, lambda z: z.flip(-1), ("logits",))
    lower = change(pair.student, lambda z: torch.where(z == z.amax(-1, keepdim=True), z, z - 3), ("logits",))
    expected = method(pair.student, pair.teacher, pair.batch).item()
    for student in (reversed_classes, lower):
        assert method(student, pair.teacher, pair.batch).item() == pytest.approx(expected, rel=1e-12)


def test_is_zero_without_gradient_when_equal():
    pair = make_pair()
    student = trainable(pair.teacher)
    value = build("rpn", pair)(student, pair.teacher, pair.batch)
    value.backward()
    assert value.item() == 0 and student.logits.grad.abs().max() == 0


def test_says_that_it_is_an_analogue():
    assert "analogue" in (METHODS["rpn"].__doc__ or "")


@pytest.mark.parametrize(
    ("option", "value"), [("tau", 0), ("tau", math.inf), ("foreground", -1), ("background", None), ("background", True)]
)
def test_refuses(option, value):
    with pytest.raises(ValueError, match=rf"^rpn\.{option}=.* is not allowed: it must be "):
        METHODS["rpn"].Options(**{option: value})
