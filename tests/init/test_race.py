"""The race between starts: who wins, what every start sees, and that it leaves no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.models import batch, build
from helpers.training import ASSETS
from torch import nn
from ultralytics.utils import DEFAULT_CFG, IterableSimpleNamespace

from yolokd.detectors.opening import open_student
from yolokd.init import race as module
from yolokd.init.race import detection_loss, race


class Learner(nn.Module):
    """As a `Distiller` without a term: a student, adapters, and the student's loss."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module, self.methods = student, nn.ModuleList([nn.Linear(2, 2)])
        self.seen: list[float] = []

    def forward(self, given):
        self.seen.append(float(given["img"].sum()))
        loss, items = self.module(given)
        return loss + self.methods[0](torch.ones(2)).square().sum(), items


def learner_of() -> Learner:
    student = open_student(ASSETS / "student.pt").model
    student.args = IterableSimpleNamespace(**{**vars(DEFAULT_CFG), **student.args})
    for p in student.parameters():
        p.requires_grad_(False)  # as a loaded checkpoint's
    return Learner(student)


def batches(steps: int = 4):
    return [batch(4, seed=i) for i in range(steps)]


def test_the_start_that_is_trained_to_the_lowest_loss_wins_and_nothing_is_changed():
    learner, given = learner_of(), batches()
    states = {"own": copy.deepcopy(learner.module.state_dict())}
    states["better"] = best_of(given)
    before, adapters = copy.deepcopy(learner.module.state_dict()), copy.deepcopy(learner.methods.state_dict())
    modes = [(m.training, getattr(m, "momentum", None)) for m in learner.modules()]
    losses, (student, kept) = race(learner, states, lambda: given, lambda: given[:2], 4, 1e-3)
    assert losses["better"] < losses["own"]
    assert learner.seen[:4] == learner.seen[4:], "all starts see the same images"
    assert all(torch.equal(v, before[k]) for k, v in learner.module.state_dict().items())
    assert all(torch.equal(v, adapters[k]) for k, v in learner.methods.state_dict().items())
    assert modes == [(m.training, getattr(m, "momentum", None)) for m in learner.modules()]
    assert not any(p.requires_grad or p.grad is not None for p in learner.module.parameters())
    assert learner.module.criterion is None
    learner.module.load_state_dict(student)
    left = sum(detection_loss(learner.module, one) for one in given[:2]) / 2
    assert left == pytest.approx(losses["better"], rel=1e-6), "the winner keeps what it has learnt"
    assert any(not torch.equal(v, adapters[k]) for k, v in kept.items())


@pytest.mark.parametrize("own_is_better", [True, False])
def test_of_the_own_weights_and_a_solved_head_the_better_takes_part(own_is_better):
    learner, given = learner_of(), batches(1)
    good = copy.deepcopy(learner.module.state_dict())
    worse = {k: torch.zeros_like(v) if ".cv3.2.2." in k else v for k, v in good.items()}
    states = {"own": good, "head": worse} if own_is_better else {"own": worse, "head": good}
    losses, _ = race(learner, {**states, "neck": good}, lambda: given, lambda: given, 1, 1e-3)
    assert set(losses) == {"own" if own_is_better else "head", "neck"}


def best_of(given):
    """Weights that were trained on these images for longer."""
    trained = learner_of()
    with module.untouched(trained):
        module.run(trained, given * 5, 20, 2e-3)
    return copy.deepcopy(trained.module.state_dict())


def test_training_lowers_the_loss_and_moves_every_weight_but_the_fixed_one():
    learner, given = learner_of(), batches(1)
    before, first = copy.deepcopy(learner.module.state_dict()), detection_loss(learner.module, given[0])
    with module.untouched(learner):
        module.run(learner, given * 12, 12, 2e-3)
    assert detection_loss(learner.module, given[0]) < first
    names = [n for n, _ in learner.module.named_parameters()]
    still = [n for n in names if torch.equal(learner.module.state_dict()[n], before[n])]
    # random images have no object at the last levels, whose boxes so learn nothing
    assert still and all(".dfl" in n or ".cv2." in n for n in still) and len(still) < len(names) / 4, still


def test_a_start_without_a_finite_loss_loses():
    learner, given = learner_of(), batches(2)
    good = copy.deepcopy(learner.module.state_dict())
    bad = {k: torch.full_like(v, math.nan) if v.is_floating_point() else v for k, v in good.items()}
    losses, (kept, _) = race(learner, {"bad": bad, "good": good}, lambda: given, lambda: given[:1], 2, 1e-3)
    assert losses["bad"] == math.inf and math.isfinite(losses["good"])
    assert all(v.isfinite().all() for v in kept.values() if v.is_floating_point())


def test_a_race_that_breaks_off_leaves_the_student_as_it_was():
    learner, given = learner_of(), batches(3)
    before = copy.deepcopy(learner.module.state_dict())

    def breaking():
        yield from given[:2]
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        race(learner, {"own": before}, breaking, lambda: given[:1], 3, 1e-3)
    assert all(torch.equal(v, before[k]) for k, v in learner.module.state_dict().items())
    assert learner.module.criterion is None and not any(p.requires_grad for p in learner.module.parameters())


def test_frozen_layers_neither_learn_nor_move_their_statistics():
    learner, given = learner_of(), batches(2)
    before = copy.deepcopy(learner.module.state_dict())
    _, (after, _) = race(learner, {"own": before}, lambda: given, lambda: given[:1], 2, 1e-3, frozenset({0, 3, 99}))
    changed = {int(k.split(".")[1]) for k, v in after.items() if not torch.equal(v, before[k])}
    assert not changed & {0, 3} and {1, 2, 4} <= changed


def test_the_rate_rises_and_falls(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    learner = learner_of()
    with module.untouched(learner):
        module.run(learner, batches(1) * 6, 6, 0.5e-3)
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.5e-3, 0.5e-3, 0.5e-3, 0.25e-3])


def test_the_loss_that_decides_is_the_training_loss_of_an_image_and_leaves_no_trace():
    student, given = build("yolo11n", dtype=torch.float32), batch(4)
    before = copy.deepcopy(student.state_dict())
    found = detection_loss(student, given)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items()) and not student.training
    student.model[-1].training = True
    assert found == pytest.approx(float(student.loss(given)[0].detach().sum()) / 4, rel=1e-5)
