"""Adapters solved for where the student starts from its teacher, and the warm-up that such a student gets."""

from __future__ import annotations

import pytest
import torch
from helpers.training import ASSETS, TINY

from yolokd.distill.trainer import KDTrainer
from yolokd.init.adapters import adapted_maps, solve_adapters

METHODS = "pkd,fitnet,crosskd,reviewkd,logit"


@pytest.fixture
def set_up(scenes, tmp_path):
    """A trainer as it is when the student has been started."""

    def make(**more) -> KDTrainer:
        given = {**TINY, "model": str(ASSETS / "student.pt"), "teacher": str(ASSETS / "teacher.pt"), **more}
        trainer = KDTrainer(overrides={**given, "data": str(scenes), "project": str(tmp_path)})
        trainer.setup_model()
        trainer.set_model_attributes()
        return trainer

    return make


def test_adapters_are_the_least_squares_solution(set_up):
    learner = set_up(init="own", method=METHODS).distiller
    before = {name: p.clone() for name, p in learner.methods.named_parameters()}
    statistics = {k: v.clone() for k, v in learner.module.state_dict().items()}
    images = torch.rand(96, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert solve_adapters(learner, images) == 12, "three maps each of pkd and fitnet, six of crosskd"
    assert all(torch.equal(v, statistics[k]) for k, v in learner.module.state_dict().items())
    changed = {name.split(".")[1] for name, p in learner.methods.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"pkd_loss", "fit_loss", "xkd_loss"}, "reviewkd's lead to a space of its own"
    learner.module.eval()
    learner.module.model[-1].training = True
    for adapter, s, t in adapted_maps(learner, images):
        x, y = s.double() - s.double().mean(0), t.double() - t.double().mean(0)
        gram = x.T @ x / len(x)
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
        weight = torch.linalg.solve(gram + ridge, x.T @ y / len(x)).T
        assert torch.allclose(adapter.weight.double().flatten(1), weight, rtol=1e-2, atol=1e-3)
        if adapter.bias is not None:
            mean = s.double().mean(0) @ weight.T + adapter.bias
            assert torch.allclose(mean, t.double().mean(0), atol=1e-3)


def test_adapters_are_solved_for_a_student_from_its_teacher_only(set_up, monkeypatch):
    asked = []
    monkeypatch.setattr("yolokd.distill.trainer.solve_adapters", lambda learner, images: asked.append(len(images)))
    set_up(init="own", method="pkd")
    assert not asked
    set_up(init="teacher", method="pkd")
    assert asked and asked[0] >= 16


@pytest.mark.parametrize(
    ("more", "epochs"),
    [
        ({"init": "teacher"}, 1.0),
        ({"init": "neck"}, 1.0),
        ({"init": "head"}, 3.0),
        ({"init": "own"}, 3.0),
        ({"init": "teacher", "warmup_epochs": 2.0}, 2.0),
    ],
)
def test_a_student_from_its_teacher_is_warmed_up_for_one_epoch(set_up, more, epochs, caplog):
    assert set_up(method="logit", **{"warmup_epochs": 3.0, **more}).args.warmup_epochs == epochs
    assert ("warmup_epochs=1 instead of 3" in caplog.text) == (epochs == 1.0)


@pytest.mark.parametrize(("init", "gain"), [("own", 0.5), ("head", 0.5), ("neck", 2.0), ("teacher", 2.0)])
def test_terms_weigh_by_the_start(set_up, init, gain):
    trainer = set_up(init=init, method="pkd,logit", **{"pkd.gain": 0.5, "pkd.started": 2.0})
    trainer.distiller.start_epoch(0, 2)
    assert trainer.distiller.gains == {"pkd_loss": gain, "logit_loss": 1.0}
