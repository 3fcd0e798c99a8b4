"""Gains over the epochs: the values of every schedule, and that a training follows them."""

from __future__ import annotations

import csv
import math

import pytest
from helpers.training import TINY

import yolokd
from yolokd.config.recipes import with_options
from yolokd.config.schedule import Gain
from yolokd.detectors.opening import scaled_yaml


def values(epochs, **options):
    return [Gain(**options).at(epoch, epochs) for epoch in range(epochs)]


def test_constant():
    assert values(3, gain=2.0) == [2.0, 2.0, 2.0]


def test_linear_ends_at_its_floor():
    assert values(5, gain=2.0, schedule="linear", floor=0.5) == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0])


def test_cosine_is_half_way_in_the_middle():
    expected = [(1 + math.cos(math.pi * e / 4)) / 2 for e in range(5)]
    assert values(5, schedule="cosine") == pytest.approx(expected) and expected[2] == pytest.approx(0.5)


def test_stop_leaves_the_last_epochs_out_and_the_decay_ends_before_them():
    assert values(5, schedule="linear", floor=0.5, stop=2) == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])
    assert values(2, stop=2) == [0.0, 0.0]


def test_warmup_rises_from_the_first_epoch_on():
    assert values(5, gain=4.0, warmup=3) == pytest.approx([1.0, 2.0, 3.0, 4.0, 4.0])


def test_one_epoch_has_the_whole_gain():
    assert values(1, schedule="cosine") == [1.0]


def test_a_student_from_its_teacher_may_have_a_gain_of_its_own():
    assert Gain(gain=0.1, started=2.0, stop=1).of_started() == Gain(gain=2.0, started=2.0, stop=1)
    assert Gain(gain=0.1).of_started().gain == 0.1


def test_a_gain_that_the_user_gives_holds_for_every_start():
    recipe = {"pkd": {"gain": 0.1, "started": 2.0}}
    assert with_options(recipe, {}) == recipe
    assert with_options(recipe, {"pkd.gain": 1}) == {"pkd": {"gain": 1.0}}
    assert with_options(recipe, {"pkd.gain": 1, "pkd.started": 3}) == {"pkd": {"gain": 1.0, "started": 3}}
    assert with_options(recipe, {"pkd.started": 3}) == {"pkd": {"gain": 0.1, "started": 3}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"gain": -1},
        {"floor": 1.5},
        {"warmup": "x"},
        {"stop": 1.5},
        {"stop": True},
        {"schedule": "steps"},
        {"started": -1},
    ],
)
def test_what_is_out_of_range_is_named(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"^{name}={value} is not"):
        Gain(**wrong)


@pytest.mark.slow
def test_a_training_follows_the_schedule(scenes, teacher, tmp_path):
    """The column is there from the first epoch to the last, at 0 where the term is off."""
    options = {"method": "pkd,logit", "logit.stop": 1, "pkd.schedule": "linear", "pkd.stop": 1}
    student = yolokd.train(
        model=scaled_yaml("yolo11n.yaml", width=0.125, depth=0.5), teacher=str(teacher), data=str(scenes),
        project=str(tmp_path), name="run", report=False, **{**TINY, "epochs": 3}, **options,
    )  # fmt: skip
    with open(student.trainer.csv) as file:
        rows = list(csv.DictReader(file))
    pkd, logit = ([float(r[f"train/{name}_loss"]) for r in rows] for name in ("pkd", "logit"))
    assert pkd[0] > 0 and pkd[1:] == [0, 0] and min(logit[:2]) > 0 and logit[2] == 0
