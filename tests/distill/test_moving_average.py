"""The student's moving average as a teacher: it is at every step what would be saved, also after an interruption."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.models import NAMES, build
from helpers.training import TINY, pico, read, rows
from ultralytics import YOLO

from yolokd.checks.payoff import Score, judge
from yolokd.config import options
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read as read_model
from yolokd.detectors.teachers import locate_all
from yolokd.distill.applicability import plans
from yolokd.distill.distiller import Distiller
from yolokd.distill.moving_average import MovingAverage, weights_in_race
from yolokd.distill.pairing import Pairing
from yolokd.distill.trainer import KDTrainer, trainer_for
from yolokd.distill.training import train
from yolokd.errors import UsageError
from yolokd.reports.subject import Subject

slow = pytest.mark.slow
CPU = torch.device("cpu")


def refused(**arguments) -> str:
    with pytest.raises(UsageError) as error:
        options.fold({"model": "yolo11n.yaml", **arguments})
    return str(error.value)


# --- arguments ------------------------------------------------------------------------------------------------------


def test_it_is_the_last_teacher_and_has_no_file(teacher):
    both = options.fold({"teacher": f"ema,{teacher}"})["kd"]
    assert (both["teacher"], both["init"]) == ([str(teacher.resolve()), "ema"], "auto")
    alone = options.fold({"teacher": "ema"})["kd"]
    assert (alone["teacher"], alone["init"]) == (["ema"], "own"), "nothing to start from but itself"
    assert options.fold({"teacher": "ema", "init": "auto"})["kd"]["init"] == "own"
    assert DistillOptions.from_dict(both).of_student == (1,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"teacher": "ema", "init": "teacher"}, "init=teacher starts the student from a teacher, and teacher=ema is"),
        ({"teacher": "ema", "init": "head"}, "init=head starts"),
        ({"teacher": "ema", "init.channels": "copied"}, "init.channels=copied is about a start from the teacher"),
        ({"teacher": "ema", "cache": "teacher"}, "cache=teacher stores what a teacher answers"),
        ({"teacher": ["ema", "ema"]}, "teacher=ema is given twice"),
        ({"teacher": "ema", "teachers": "best"}, "teachers=best is for several"),
    ],
)
def test_what_cannot_be_asked_of_it(given, said):
    assert said in refused(**given)


def test_it_is_not_rounded_with_the_student(monkeypatch):
    monkeypatch.setattr(options, "require", lambda given: None)  # where nvidia-modelopt is not installed
    assert "teacher=ema is rounded to eight bits" in refused(teacher="ema", quantize=8)


def test_other_commands_ask_for_a_file():
    with pytest.raises(UsageError, match="for `yolokd train` only"):
        locate_all("ema")


def test_a_resumed_run_has_it_again(teacher):
    stored = {"teacher": [str(teacher), "ema"], "recipe": {}, "sha256": [None, None]}
    assert options.resumed(stored, None)["teacher"] == [str(teacher.resolve()), "ema"]
    with pytest.raises(UsageError, match="cannot change in a resumed run"):
        options.resumed(stored, {"teacher": [str(teacher)]})
    with pytest.raises(UsageError, match="cannot change in a resumed run"):
        options.resumed({**stored, "teacher": [str(teacher)]}, {"teacher": ["ema"]})


# --- the teacher ----------------------------------------------------------------------------------------------------


def paired(name: str, method: str) -> tuple[Distiller, Pairing]:
    student = read_model(build(name, 0, torch.float32))
    asked = DistillOptions(("ema",), **asked_methods(method, {}))
    (plan,) = plans(student, asked, {"names": NAMES, "channels": 3}, 64, False)
    pairing = Pairing(student, plan, CPU)
    return Distiller(student, [pairing]), pairing


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("yolo11n", "pkd"),
        ("yolo11n", "ld,logit"),
        ("yolo26n", "logit"),
        ("rtdetr-3-20-32", "kd_detr,pkd"),
        ("yolo11n-obb", "probiou"),
    ],
)
def test_its_views_are_those_of_the_average(name, method):
    distiller, pairing = paired(name, method)
    average = copy.deepcopy(distiller.module)
    with torch.no_grad():
        for value in average.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.05 * torch.rand_like(value))
    before = copy.deepcopy(average.state_dict())
    pairing.teacher.follow(average)
    average.to(memory_format=pairing.teacher.layout)  # another layout rounds otherwise
    reader, images = read_model(average), torch.rand(2, 3, 64, 64).contiguous(memory_format=pairing.teacher.layout)
    reader.freeze(pairing.teacher.fields, pairing.teacher_branches, fuse=False)
    with reader.record(pairing.teacher.fields) as recorded, torch.no_grad():
        average(images)
    wanted = reader.views(recorded, pairing.teacher.fields, reader.strides)
    found = pairing.teacher(images)(reader.strides)
    for branch in pairing.teacher_branches:
        for field in pairing.fields & {"neck", "logits", "bins", "rotated"}:
            a, b = (getattr(views[branch], field) for views in (found, wanted))
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    own = pairing.teacher.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in own.items()), "and batch norm does not move"
    assert not any(p.requires_grad for p in pairing.teacher.model.parameters())


def test_a_student_that_is_not_yet_built_for_the_data_has_its_classes():
    student = read_model(build("yolo11n", 0, torch.float32))
    asked = DistillOptions(("ema",), classes={"no such": "name"}, **asked_methods("logit", {}))
    (plan,) = plans(student, asked, {"names": {0: "a", 1: "b"}, "channels": 3}, 64, False)
    assert plan.follows and plan.classes is None, "a class map is about teachers of other data"
    assert plan.coverage.startswith("all 2 classes of the data are taught by")


def test_adapters_begin_as_the_identity():
    """Else the term would ask the student for other maps than those that it shares with its average."""
    distiller, pairing = paired("yolo11n", "pkd")
    x = torch.rand(1, pairing.methods["pkd_loss"].adapters[0].in_channels, 4, 4)
    torch.testing.assert_close(pairing.methods["pkd_loss"].adapters[0](x), x)
    average = distiller.module.eval()
    pairing.teacher.follow(average)
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=pairing.teacher.layout)
    average.to(memory_format=pairing.teacher.layout)
    with distiller.reader.record(pairing.fields) as recorded, torch.no_grad():
        average(images)
    views = [distiller.reader.views(recorded, pairing.fields, (8, 16, 32)), pairing.teacher(images)((8, 16, 32))]
    value = pairing.methods["pkd_loss"](*(next(iter(v.values())) for v in views), {"img": images})
    assert value.item() == pytest.approx(0, abs=1e-5)


def test_it_is_neither_scored_nor_expected_to_lead():
    assert judge([Score("student", "as it is", 40.0, 30.0)], 10, 10) == []
    assert Subject("train", Path("run"), teachers=("big.pt", "ema")).teacher_files == ("big.pt",)


def test_in_a_race_of_starts_it_has_no_say():
    _, pairing = paired("yolo11n", "pkd")
    other = SimpleNamespace(teacher=None)
    assert weights_in_race([other, pairing]) == [1.0, 0.0]


# --- trainings ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory) -> SimpleNamespace:
    """Two epochs, stopped in the second and gone on with."""
    folder = tmp_path_factory.mktemp("ema")
    seen = SimpleNamespace(equal=[], loss=[], resumed=[])

    def look(trainer, into) -> None:
        (pairing,) = trainer.distiller.pairings
        theirs = trainer.ema.ema.state_dict()
        assert isinstance(pairing.teacher, MovingAverage)
        own = pairing.teacher.model.state_dict()
        into.append(all(torch.equal(value, theirs[key]) for key, value in own.items()))

    def stop(trainer) -> None:
        look(trainer, seen.equal)
        seen.ema = copy.deepcopy(trainer.ema.ema.state_dict())
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    student = YOLO(pico("yolo11"))
    student.add_callback("on_train_batch_end", lambda trainer: look(trainer, seen.equal))
    student.add_callback("on_train_epoch_start", stop)
    given = {**TINY, "data": str(scenes), "save_dir": str(folder / "run")}
    with pytest.raises(KeyboardInterrupt):
        student.train(trainer=KDTrainer, teacher="ema", method="pkd,bckd_cls", **given)
    seen.folder = folder / "run"
    seen.last = read(folder / "run" / "weights" / "last.pt")

    def first(trainer) -> None:
        look(trainer, seen.resumed)
        seen.after = copy.deepcopy(trainer.distiller.pairings[0].teacher.model.state_dict())

    again = YOLO(folder / "run" / "weights" / "last.pt")
    again.add_callback("on_train_epoch_start", first)
    again.train(trainer=trainer_for(again.model), resume=str(folder / "run" / "weights" / "last.pt"))
    seen.trainer = again.trainer
    return seen


@slow
def test_the_teacher_is_what_would_be_saved_after_every_step(run):
    assert len(run.equal) > 4 and all(run.equal)


@slow
def test_a_resumed_run_has_the_average_that_was_saved(run):
    assert run.resumed == [True]
    saved = run.last["ema"].float().state_dict()
    kept = {key: value for key, value in saved.items() if key in run.after}
    assert all(torch.equal(run.after[key], value) for key, value in kept.items() if value.is_floating_point())


@slow
def test_its_terms_are_learnt_and_the_checkpoint_says_who_taught(run):
    table = rows(run.folder)
    assert all(float(row["train/pkd_loss"]) > 0 and float(row["train/bckdc_loss"]) >= 0 for row in table)
    best = read(run.folder / "weights" / "best.pt")
    assert best["yolokd"]["teachers"] == [{"file": "ema", "sha256": None}]
    assert math.isnan(run.trainer.fading.teachers[0]), "not scored"


@slow
def test_beside_another_teacher_after_a_race_of_starts(scenes, teacher, tmp_path):
    given = {**TINY, "epochs": 1, "data": str(scenes), "save_dir": str(tmp_path / "run")}
    student = train(model=pico("yolo11"), teacher=f"{teacher},ema", method="pkd", **given)
    big, own = student.trainer.fading.teachers
    assert big == big and own != own, "only the file is scored"
    own, theirs = student.trainer.distiller.pairings[1].teacher.model.state_dict(), student.trainer.ema.ema.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in own.items())
    assert student.trainer.start in ("own", "head", "neck", "teacher")
    assert [one.teacher.fuse for one in student.trainer.distiller.pairings] == [True, False]
