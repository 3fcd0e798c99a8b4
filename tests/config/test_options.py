"""The options of a distillation: one frozen value in the code, plain values on the way through Ultralytics."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from helpers.training import ASSETS, TINY

from yolokd.config import options
from yolokd.config.options import CacheOptions, DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors.teachers import digest
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError

GIVEN = [
    DistillOptions(("big.pt",), **asked_methods("default", {})),
    DistillOptions(("a.onnx", "b.pt"), 0.0, "auto", methods={"pkd": {"gain": 2.0}}, teachers="best", balance="log",
                   trust=True, fade=False, quantize=8, itself=1),
    DistillOptions(
        ("a.onnx",), 2.0, "teacher", methods={"logit": {"gain": 1.0}}, teacher_contract="nms",
        teacher_names={0: "cat", 1: "dog"}, balance=0.5, levels="resize", teacher_imgsz=128, classes={"cat": "animal"},
        unlabeled="/images", unlabeled_ratio=0.5, cache=CacheOptions(3, 2.0), init_channels="copied",
    ),
]  # fmt: skip


@pytest.mark.parametrize("given", GIVEN)
def test_options_survive_a_dict_and_a_yaml_file(given):
    assert DistillOptions.from_dict(given.to_dict()) == given
    assert DistillOptions.from_dict(yaml.safe_load(yaml.safe_dump(given.to_dict()))) == given


def test_what_is_written_is_plain_and_shares_no_list(teacher):
    plain = GIVEN[2].to_dict()
    assert json.loads(json.dumps(plain)).keys() == plain.keys()
    plain["teacher"].append("c.pt")
    assert GIVEN[2].teacher == ("a.onnx",)
    assert plain["cache"] == {"views": 3, "limit": 2.0} and GIVEN[1].to_dict()["balance"] is None


def test_the_cases_above_set_every_field():
    assert all(any(getattr(g, f.name) != f.default for g in GIVEN) for f in dataclasses.fields(DistillOptions))


def test_folded_arguments_are_the_options(teacher):
    given = {"teacher": teacher, "method": "pkd", "balance": "log", "cache": "teacher,ram", "cache_views": 2}
    distillation = DistillOptions.of(options.fold(given))
    assert distillation == DistillOptions(
        (str(teacher.resolve()),), 1.0, "auto", {"pkd": {"gain": 1.0}}, balance="log", cache=CacheOptions(views=2)
    )


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DistillOptions)])
def test_options_are_frozen(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(GIVEN[0], field, None)


def test_what_an_earlier_version_wrote_is_read():
    """It wrote how the student had started among the options, and left out what it did not have yet."""
    old = {"teacher": ["big.pt"], "gain": 0.5, "methods": {"pkd": {"gain": 1.0}}, "start": "teacher", "of": "later"}
    assert DistillOptions.from_dict(old) == DistillOptions(("big.pt",), 0.5, "own", {"pkd": {"gain": 1.0}})
    assert DistillOptions.from_dict({**old, "balance": None}).balance == "log"


def test_a_pair_that_a_recipe_does_not_have_is_refused():
    recipe = DistillOptions((), recipe={"dense/dense": {"pkd": {}}}, optional=True)
    assert recipe.methods_for("dense/dense") == ({"pkd": {}}, True)
    with pytest.raises(UsageError, match="nothing for a pair dense/set: name the methods"):
        recipe.methods_for("dense/set")
    anywhere = DistillOptions((), recipe={"any": {"match": {}}})
    assert anywhere.methods_for("set/set") == ({"match": {}}, False)


def test_resume_takes_the_teacher_given_anew_and_nothing_of_a_run_without_options(teacher):
    stored = {"teacher": ["gone.pt"], "methods": {"pkd": {"gain": 1.0}}, "start": "teacher"}
    assert options.resumed(stored, {"teacher": [str(teacher)]}) == {**stored, "teacher": [str(teacher.resolve())]}
    assert stored["teacher"] == ["gone.pt"]
    with pytest.raises(UsageError, match=r"gone\.pt"):
        options.resumed(stored, None)
    assert options.resumed(None, None) is None and options.resumed({"teacher": ["x.pt"]}, None) is None


def test_the_trainer_writes_nothing_into_the_options(scenes, tmp_path):
    """What the run finds out is the trainer's own, and is saved beside the options, where an old version reads it."""
    given = {**TINY, "model": str(ASSETS / "student.pt"), "teacher": str(ASSETS / "teacher.pt"), "method": "logit"}
    trainer = KDTrainer(overrides={**given, "init": "teacher", "data": str(scenes), "project": str(tmp_path)})
    before = trainer.distillation
    assert DistillOptions.from_dict(trainer.args.kd) == before and trainer.start == "own"
    trainer.setup_model()
    trainer.set_model_attributes()
    assert trainer.distillation is before and trainer.start == "teacher"
    found = {"start": "teacher", "sha256": [digest(str(ASSETS / "teacher.pt"))]}
    assert trainer.args.kd == {**before.to_dict(), **found}
