"""A step whose loss or gradient is no number moves no weight, is named, and many of them end the run."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.models import NAMES, batch, build
from helpers.training import ASSETS, TINY, rows
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from yolokd.cli import main
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.finite import IN_A_ROW, Steps
from yolokd.distill.pairing import Pairing
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError

TITLES = {"": "the student's own loss", "pkd_loss": "the term pkd_loss"}
GOOD, BAD = torch.tensor([True, True]), torch.tensor([True, False])


@pytest.fixture
def said():
    """What is logged."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage().removeprefix("WARNING ⚠️ "))  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield found
    LOGGER.removeHandler(handler)


def test_a_step_with_a_term_that_is_no_number_is_left_out_and_named(said):
    steps = Steps(TITLES)
    steps.start_epoch()
    assert steps.allow(GOOD, [torch.ones(3)], 0) and not said
    assert not steps.allow(BAD, [torch.ones(3)], 0)
    assert said == ["Epoch 1, step 2: the term pkd_loss is not finite; the step is left out."]
    assert not steps.allow(GOOD, [torch.ones(3), torch.tensor([1.0, torch.nan])], 4)
    assert "Epoch 5, step 3: the gradient of the loss" in said[1]
    assert steps.allow(GOOD, [], 0)


def test_many_in_a_row_end_the_run():
    steps = Steps(TITLES)
    for _ in range(3):  # one good step between begins the count anew
        steps.start_epoch()
        assert not any(steps.allow(BAD, [], 1) for _ in range(IN_A_ROW - 1)) and steps.allow(GOOD, [], 1)
    with pytest.raises(UsageError, match="epoch 2: the term pkd_loss was not finite in 10 steps in a row; the checkp"):
        for _ in range(IN_A_ROW):
            steps.allow(BAD, [], 1)


def test_most_of_an_epoch_ends_the_run_before_it_is_saved():
    steps = Steps(TITLES)
    steps.start_epoch()
    for finite in (BAD, GOOD):
        steps.allow(finite, [], 0)
    steps.end_epoch(0)
    steps.allow(BAD, [], 0)
    with pytest.raises(UsageError, match="2 of 3 steps were left out .*; no checkpoint was written"):
        steps.end_epoch(0)
    steps.start_epoch()
    steps.end_epoch(1)


def test_the_wrapper_says_which_term_it_was_and_keeps_the_loss_finite():
    readers = read(build("yolo11n", 0, torch.float32)), read(build("yolo11n", 1, torch.float32))
    made = plan(*readers, DistillOptions((), 1.0, **asked_methods("logit,pkd", {})), NAMES)
    distiller = Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()
    assert list(distiller.titles.values())[1:] == [
        "the term logit_loss (method logit)",
        "the term pkd_loss (method pkd@neck)",
    ]
    distiller(batch())
    assert distiller.take_finite().tolist() == [True, True, True] and distiller.take_finite() is None
    distiller.gains["pkd_loss"] = 3e38
    loss, items = distiller(batch())
    assert loss.isfinite().all() and not items["pkd_loss"].isfinite()
    distiller.gains["pkd_loss"] = 1.0
    distiller(batch())
    assert distiller.take_finite().tolist() == [True, True, False], "one bad batch of several taints the step"


@pytest.mark.slow
def test_one_bad_step_reaches_no_weight(scenes, teacher, tmp_path, monkeypatch, said):
    calls, forward = [], Pairing.forward

    def spoilt(self, *args):
        values = forward(self, *args)
        calls.append(1)
        return {k: v * float("nan") for k, v in values.items()} if len(calls) == 2 else values

    monkeypatch.setattr(Pairing, "forward", spoilt)
    student = YOLO(ASSETS / "student.pt")
    given = {
        **TINY,
        "teacher": teacher,
        "method": "pkd",
        "init": "own",
        "data": scenes,
        "project": tmp_path,
        "name": "r",
    }
    student.train(trainer=KDTrainer, **given)
    assert [line for line in said if "left out" in line] == [
        "Epoch 1, step 2: the term pkd_loss (method pkd@neck) is not finite; the step is left out."
    ]
    assert len(calls) == 6 and len(rows(tmp_path / "r")) == 2, "no epoch is done again"
    assert all(v.isfinite().all() and v.any() for v in student.trainer.ema.ema.parameters())
    assert any("all 10 classes of the data are taught by" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("kd", ["3e38", "1e37"])
def test_a_gain_that_overflows_ends_in_a_sentence(scenes, teacher, tmp_path, capsys, kd):
    given = {**TINY, "model": ASSETS / "student.pt", "teacher": teacher, "method": "pkd", "init": "own", "data": scenes}
    code = main(["train", f"kd={kd}", *(f"{k}={v}" for k, v in given.items()), f"project={tmp_path}", "name=r"])
    error = capsys.readouterr().err
    assert code == 2 and "yolokd: training stopped in epoch 1: 3 of 3 steps were left out" in error, error
    assert not list(tmp_path.rglob("*.pt")), "no checkpoint of a student that learned nothing"
