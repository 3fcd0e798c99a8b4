"""Automatic balance: factors of hand-computed cases, what is measured where, and a training that follows them."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from helpers.distillers import make
from helpers.models import batch
from helpers.training import TINY
from ultralytics import YOLO

from yolokd.config import options
from yolokd.config.options import BALANCE_SHARE
from yolokd.detectors.opening import scaled_yaml
from yolokd.distill import gradient_balance
from yolokd.distill.gradient_balance import EVERY, MAX_FACTOR, Balance, gradient_norm, tensors
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError

X = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 4.0], requires_grad=True)]  # "maps"
OFF = torch.tensor([5.0], requires_grad=True)  # a term's own input, which is not upstream of the maps


def total() -> torch.Tensor:
    return torch.cat(X).sum()  # its gradient is 1 four times, of norm 2


def ask(module: Balance, slope: float = 1.0, gain: float = 1.0, task: float = 3.0) -> torch.Tensor:
    """One step with one term, slope x sum, whose gradient has norm 2 slope; the task's has 2 task."""
    return module(task * total(), {"a": gain * slope * total()}, {"a": gain}, X, {"a": []})["a"]


def test_a_case_by_hand():
    """|g(task)| = 6, |g(term)| = 2: at a share of a half and a gain of 2 the term counts 2 x 1.5, a ratio of 1."""
    module = Balance(["a"], 0.5)
    assert ask(module, gain=2.0).item() == pytest.approx(2 * 1.5 * 10)
    assert module.factors().item() == pytest.approx(1.5) and module.ratio.item() == pytest.approx(1.0)


def test_the_terms_unit_does_not_matter():
    assert ask(Balance(["a"], 0.5), slope=1e3).item() == pytest.approx(ask(Balance(["a"], 0.5)).item())


def test_log_measures_and_changes_nothing():
    module = Balance(["a"], None)
    assert ask(module, gain=2.0).item() == 20 and module.ratio.item() == pytest.approx(2 / 3)


def test_measured_every_so_many_steps_and_averaged():
    """Ten alike, then each new one counts a tenth."""
    module = Balance(["a"], 0.5)
    seen = []
    for i in range(12):
        for step in range(EVERY):
            ask(module, slope=float(i + 1) if step == 0 else 1e6)  # between two measurements nobody looks
        seen.append(module.own.item() / 2)
    assert seen[:10] == pytest.approx([(i + 2) / 2 for i in range(10)])
    assert seen[10] == pytest.approx(5.5 + 0.1 * (11 - 5.5)) and seen[11] == pytest.approx(
        seen[10] + 0.1 * (12 - seen[10])
    )


def test_a_term_that_misses_the_maps_is_measured_at_its_own_inputs():
    """Its gradient there is 4; the task's is 7, and 0 at nothing that the term reaches would say nothing."""
    module = Balance(["a"], 0.5)
    loss = 3 * total() + 7 * OFF.sum()
    assert module(loss, {"a": 4 * OFF.sum()}, {"a": 1.0}, X, {"a": [OFF]})["a"].item() == pytest.approx(
        20 * 0.5 * 7 / 4
    )


def test_a_term_without_gradient_waits_for_its_first():
    module = Balance(["a"], 0.5)
    assert ask(module, slope=0.0).item() == 0 and module.ratio.item() == 0
    constant = module(total(), {"a": torch.ones(())}, {"a": 1.0}, X, {"a": [OFF.detach()]})["a"]
    assert constant.item() == 0
    module.steps = EVERY
    assert ask(module).item() == pytest.approx(15.0)


def test_a_term_that_is_off_is_left_alone_and_comes_back():
    module = Balance(["a"], 0.5)
    off = module(total(), {"a": torch.zeros(())}, {"a": 0.0}, X, {"a": []})["a"]
    assert off.item() == 0 and module.seen.item() == 0
    module.steps = EVERY
    assert ask(module).item() == pytest.approx(15.0)


def test_nan_is_not_taken_in():
    module = Balance(["a"], 0.5)
    ask(module)
    module.steps = EVERY
    ask(module, slope=math.nan)
    assert module.factors().item() == pytest.approx(1.5)


def test_a_factor_has_a_limit():
    module = Balance(["a"], 0.5)
    ask(module, slope=1e-9)
    assert module.factors().item() == MAX_FACTOR


def test_every_process_has_the_same_factors(monkeypatch):
    """Another process measures |g(task)| = 12 and |g(term)| = 2 where this one has 6 and 2: 9 and 2 for both."""
    monkeypatch.setattr(gradient_balance.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        gradient_balance.distributed, "all_reduce", lambda x: x.add_(torch.tensor([[12.0], [2.0], [1.0]]))
    )
    module = Balance(["a"], 0.5)
    ask(module)
    assert module.factors().item() == pytest.approx(0.5 * 9 / 2)


def test_gradients_too_small_for_half_precision_are_seen():
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    assert gradient_norm((x * 1.0).sum().float() * 2e-8, [x]).item() == pytest.approx(4e-8, rel=0.01)


def test_state_round_trip():
    module, other = Balance(["a"], 0.5), Balance(["a"], 0.5)
    for _ in range(EVERY + 3):
        ask(module)
    other.load_state_dict(module.state_dict())
    assert other.steps == EVERY + 3 and torch.equal(other.factors(), module.factors()) and module.ratio == other.ratio


@pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
def test_every_term_of_a_student_is_kept_at_its_share(family):
    """On maps, on the backbone, on predictions, and on a branch that the neck feeds without a gradient."""
    distiller, data = make(family, family, method="pkd,fitnet,logit", logit__gain=2), batch(4)
    distiller.balance = Balance(list(distiller.gains), 0.25)
    with distiller.reader.record(distiller.fields) as seen:
        loss, items = distiller(dict(data))
    assert list(items)[3:] == ["kd_ratio", "pkd_loss", "fit_loss", "logit_loss"] and not items["kd_ratio"].requires_grad
    # pkd and logit meet the task's loss at the neck, fitnet at its backbone maps
    task, (pkd, fit, logit) = loss[:3].sum(), loss[3:]
    backbone = distiller.reader.views(seen, frozenset({"backbone"}), distiller.reader.strides)["one2many"].backbone
    for term, at, share in ((pkd, seen["neck"], 0.25), (fit, backbone, 0.25), (logit, seen["neck"], 0.5)):
        assert gradient_norm(term, list(at)) / gradient_norm(task, list(at)) == pytest.approx(share, rel=1e-3)
    assert items["kd_ratio"].item() == pytest.approx(1.0, rel=1e-3)
    loss.sum().backward()  # the graph is still there
    assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())


def test_a_frozen_neck_is_measured_at_the_outputs():
    distiller, data = make("yolo11n", method="logit"), batch(4)
    distiller.module.model[:-1].requires_grad_(False)
    distiller.balance = Balance(["logit_loss"], 0.25)
    with distiller.reader.record(distiller.fields) as seen:
        loss, _ = distiller(dict(data))
    out = [x for x in tensors(seen["out"]) if x.requires_grad]
    assert gradient_norm(loss[3], out) / gradient_norm(loss[:3].sum(), out) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(("value", "share"), [("auto", BALANCE_SHARE), ("log", None), (0.2, 0.2), (1, 1.0)])
def test_the_option(value, share, teacher):
    assert options.fold({"teacher": str(teacher), "balance": value})["kd"]["balance"] == share


@pytest.mark.parametrize("value", ["off", False])
def test_the_option_off(value, teacher):
    """In a file of arguments, YAML reads the word as False."""
    assert "balance" not in options.fold({"teacher": str(teacher), "balance": value})["kd"]


@pytest.mark.parametrize("value", [0, -1, "much", True, math.inf])
def test_a_wrong_option_is_refused(value, teacher):
    with pytest.raises(UsageError, match=f"^balance={value} is not auto, log, off or a share"):
        options.fold({"teacher": str(teacher), "balance": value})


@pytest.mark.slow
def test_a_training_has_the_column_and_resumes_with_its_averages(scenes, teacher, tmp_path):
    """The column is no loss: nothing of it is trained on, and validation has none."""
    student, found = YOLO(scaled_yaml("yolo11n.yaml", width=0.125, depth=0.33)), {}
    student.add_callback(
        "on_model_save", lambda trainer: found.update(state=torch.load(trainer.last, weights_only=False))
    )
    options = {"balance": "auto", "method": "pkd,logit", "logit.stop": 1, "project": str(tmp_path), "name": "run"}
    student.train(trainer=KDTrainer, teacher=str(teacher), data=str(scenes), **{**TINY, "epochs": 2}, **options)
    with open(student.trainer.csv) as file:
        rows = list(csv.DictReader(file))
    assert not any("val/kd_ratio" in key for key in rows[0])
    ratios = [float(row["train/kd_ratio"]) for row in rows]
    assert ratios[0] == pytest.approx(2 * BALANCE_SHARE, rel=0.05)  # at the first measurement, the epoch's only one
    saved = found["state"]["optimizer"]["kd_balance"]
    assert int(saved["_extra_state"]) == 6 and saved["own"].min() > 0
    fresh = student.trainer.distiller.balance
    fresh.task.zero_()
    student.trainer._load_checkpoint_state(found["state"])
    assert torch.equal(fresh.task, saved["task"]) and fresh.steps == 6
