"""What is said of a view's fields, from which the code that handles any of them works."""

from __future__ import annotations

import typing
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from yolokd import views
from yolokd.distill.teacher import to_student_frame
from yolokd.views import ABOUT, CLASSWISE, FIELDS, FUNCTIONS, PIXELS, SEVERAL, View, each


def test_every_field_says_what_it_is():
    assert [*ABOUT] == [f.name for f in fields(View) if f.name != "strides"]
    assert {a.shape for a in ABOUT.values()} == {*typing.get_args(views.Shape)}, "no shape without a field"
    assert {a.unit for a in ABOUT.values()} - {None} == {*typing.get_args(views.Unit)}
    assert {*FIELDS} | {*FUNCTIONS} == {*ABOUT} and {*CLASSWISE, *PIXELS, *SEVERAL} <= {*FIELDS}


@pytest.mark.parametrize("name", ABOUT)
def test_a_fields_shape_is_that_of_its_type(name):
    kind = typing.get_args(typing.get_type_hints(View)[name])[0]
    expected = "one" if kind is Tensor else "several" if typing.get_origin(kind) is tuple else "function"
    assert expected == ("several" if name in SEVERAL else "function" if name in FUNCTIONS else "one")


def test_the_sets_are_those_that_the_detectors_were_written_for():
    assert views.MAPS == ("backbone", "neck", "towers")
    assert views.DENSE == ("backbone", "neck", "towers", "logits", "boxes", "bins")
    assert views.TASK == ("boxes", "rotated", "rotated_bins", "keypoints", "coefficients", "prototypes")
    assert views.AT_POINTS == ("logits", "boxes", "rotated", "keypoints", "coefficients")
    assert SEVERAL == (*views.MAPS, "layer_queries", "layer_logits", "layer_boxes", "attention")


def test_all_that_is_in_pixels_comes_into_the_students_pixels():
    """A teacher that sees images of twice the size: every field in pixels is halved, and no other is touched."""
    small, large = torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 16, 32)
    sides = {"rotated": 5, "keypoints": 6}
    given = {name: torch.full((1, 2, sides.get(name, 4)), 2.0) for name in FIELDS}
    given["keypoints"] = given["keypoints"].reshape(1, 2, 2, 3)
    given = {name: (x,) if name in SEVERAL else x for name, x in given.items()}
    view = to_student_frame(View((8,), **given), small, large, dense=False)
    for name in FIELDS:
        got, expected = getattr(view, name), given[name]
        if name in PIXELS:
            expected = each(name, expected, lambda x: x / 2)
            if name == "rotated":  # the angle stays
                expected[..., 4] = 2.0
            if name == "keypoints":  # and so does visibility
                expected[..., 2] = 2.0
        pairs = zip(got, expected, strict=True) if name in SEVERAL else [(got, expected)]
        for a, b in pairs:
            torch.testing.assert_close(a, b, msg=name)
