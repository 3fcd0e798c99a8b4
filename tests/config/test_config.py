"""key=value arguments: typed, folded into the trainer's kd, and refused with the nearest match."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers.models import NAMES, build
from helpers.training import ASSETS
from ultralytics.utils import ROOT
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from yolokd.config import options
from yolokd.config.checks import check_values
from yolokd.config.options import DistillOptions
from yolokd.config.parse import parse_pairs
from yolokd.config.recipes import asked_methods, read_arguments, shipped_arguments, shipped_recipes
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.yolo import YoloReader
from yolokd.distill.applicability import plan
from yolokd.errors import UsageError
from yolokd.methods import METHODS


def refused(call, *args) -> str:
    """The sentence of a UsageError."""
    with pytest.raises(UsageError) as caught:
        call(*args)
    return str(caught.value)


def test_pairs_are_typed_as_yolo_types_them():
    given = ["imgsz=96,160", "lr0=1e-3", "--cos_lr=True", "data=a=b.yaml", "name=007", "cwd.tau=2", "freeze=None"]
    assert parse_pairs(given) == {
        "imgsz": (96, 160), "lr0": 0.001, "cos_lr": True, "data": "a=b.yaml", "name": "007", "cwd.tau": 2,
        "freeze": None,
    }  # fmt: skip


@pytest.mark.parametrize("argument", ["epochs", "=3", "epochs=", "--epochs", ""])
def test_an_argument_without_key_or_value_is_refused(argument):
    assert repr(argument) in refused(parse_pairs, [argument])


def test_a_key_given_twice_is_refused_with_both_values():
    said = refused(parse_pairs, ["epochs=1", "imgsz=64", "epochs=2"])
    assert "epochs=" in said and " 1 and 2" in said


def test_fold_gathers_ours_and_leaves_theirs(teacher):
    given = {"teacher": teacher, "method": "cwd,logit", "cwd.tau": 2, "logit.gain": 0.5, "kd": 3, "epochs": 7}
    folded = options.fold({**given, "data": "x.yaml"})
    assert folded == {
        "epochs": 7,
        "data": "x.yaml",
        "kd": {
            "teacher": [str(teacher.resolve())],
            "gain": 3.0,
            "init": "auto",
            "methods": {"cwd": {"tau": 2, "gain": 1.0}, "logit": {"gain": 0.5}},
        },
    }
    assert options.fold(dict(folded)) == folded, "a resumed run and a DDP worker fold again"


def test_fold_takes_the_default_recipe(teacher):
    kd = options.fold({"teacher": teacher})["kd"]
    assert kd == {"teacher": [str(teacher.resolve())], "gain": 1.0, "init": "auto", **asked_methods("default", {})}
    assert {METHODS[k.partition("@")[0]].taxonomy_level for k in kd["recipe"]["dense/dense"]} == {"neck", "head"}


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [("epoch", 3, "epochs"), ("teachr", "x.pt", "teacher"), ("metod", "pkd", "method"), ("widht", 1, "width")],
)
def test_an_unknown_argument_is_refused_with_the_nearest(teacher, key, value, meant):
    said = refused(options.fold, {"teacher": teacher, key: value})
    assert repr(key) in said and repr(meant) in said


def test_an_argument_like_nothing_known_is_refused_with_a_place_to_look(teacher):
    assert "yolokd help" in refused(options.fold, {"teacher": teacher, "qqqqqq": 3})


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "abc", True, None, [1]])
def test_gain_must_be_a_number_of_zero_or_more(teacher, value):
    assert f"kd={value} " in refused(options.fold, {"teacher": teacher, "kd": value})
    assert f"pkd.gain={value} " in refused(asked_methods, "pkd", {"pkd.gain": value})


@pytest.mark.parametrize(("key", "value"), [("compile", True), ("quantize", 16), ("distill_model", "big.pt")])
def test_what_cannot_be_combined_is_refused(teacher, key, value):
    assert f"{key}={value} " in refused(options.fold, {"teacher": teacher, key: value})


@pytest.mark.parametrize("value", [16, 4, True, "w8a16", 8.5])
def test_a_training_is_for_eight_bits_or_full_precision(teacher, value):
    assert f"quantize={value} is not for a training: quantize=8" in refused(
        options.fold, {"teacher": teacher, "quantize": value}
    )


@pytest.mark.parametrize("value", [None, 32, "fp32"])
def test_full_precision_is_no_option(teacher, value):
    assert "quantize" not in options.fold({"teacher": teacher, "quantize": value})["kd"]


def test_the_student_teaches_itself_only_before_it_is_quantized(teacher, monkeypatch):
    monkeypatch.setattr(options, "require", lambda given: None)  # where nvidia-modelopt is not installed
    student = ASSETS / "student.pt"
    given = {"teacher": f"self,{teacher}", "model": str(student), "quantize": "int8"}
    folded = options.fold(given)["kd"]
    assert folded["teacher"] == [str(teacher.resolve()), str(student.resolve())]
    assert (folded["quantize"], folded["itself"], folded["init"]) == (8, 1, "auto")
    alone = options.fold({**given, "teacher": "self"})["kd"]
    assert (alone["itself"], alone["init"]) == (0, "own")
    assert "teacher=self is the student before it is quantized: add quantize=8" in refused(
        options.fold, {**given, "quantize": None}
    )
    assert "model=yolo11n.yaml is not trained" in refused(options.fold, {**given, "model": "yolo11n.yaml"})
    assert "is given twice" in refused(options.fold, {**given, "teacher": ["self", "self"]})


def test_scaling_is_refused_where_no_model_is_built(teacher):
    """`YOLO(...).train(trainer=KDTrainer, width=...)` has its model already: silence would train another one."""
    assert "width=0.5 " in refused(options.fold, {"teacher": teacher, "width": 0.5})


def test_a_resumed_run_keeps_its_methods(teacher):
    assert options.fold({"resume": True, "teacher": teacher})["kd"] == {"teacher": [str(teacher.resolve())]}
    assert "cwd.tau=2 " in refused(options.fold, {"resume": True, "cwd.tau": 2})


def test_methods_from_a_list_and_from_taps():
    assert asked_methods(["pkd", "pkd@backbone"], {"pkd@backbone.gain": 2})["methods"] == {
        "pkd": {"gain": 1.0},
        "pkd@backbone": {"gain": 2.0},
    }
    assert asked_methods(" pkd , logit", {})["methods"] == {"pkd": {"gain": 1.0}, "logit": {"gain": 1.0}}


@pytest.mark.parametrize(
    ("method", "dotted", "named"),
    [
        ("pkdd", {}, "'pkdd', did you mean 'pkd'"),
        ("defualt", {}, "did you mean 'default'"),
        ("pkd,", {}, "empty name"),
        (",", {}, "empty name"),
        ("pkd,pkd", {}, "pkd@neck twice"),
        ("logit,logit", {}, "logit twice"),
        ("pkd,pkd@neck", {}, "pkd@neck twice"),
        ("pkd@head", {}, "taps of pkd: neck"),
        ("pkd@", {}, "no tap ''"),
        ("logit@neck", {}, "compares predictions"),
        ("pkd", {"cwd.tau": 2}, "cwd.tau=2 sets an option of cwd, which is not among method=pkd"),
        ("cwd", {"cwd.tua": 2}, "'tua', did you mean 'tau'"),
        ("cwd", {"cw.tau": 2}, "'cw', did you mean 'cwd'"),
        ("cwd", {"cwd.tau": 0}, "cwd.tau=0 "),
        ("cwd", {"cwd.tau": "abc"}, "cwd.tau='abc' "),
        ("cwd", {"cwd.tau": float("nan")}, "cwd.tau=nan "),
        ("cwd", {"cwd.tau": True}, "cwd.tau=True "),
        ("pkd", {"pkd.gain": "x"}, "pkd.gain=x "),
        ("nope.yaml", {}, "method=nope.yaml does not exist"),
        ("default.yaml", {}, "shipped recipes are bckd.full"),
    ],
)
def test_a_wrong_method_is_refused_by_name(method, dotted, named):
    assert named in refused(asked_methods, method, dotted)


def test_a_recipe_file_is_what_it_says(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("methods:\n  cwd: {tau: 2, gain: 1e-3}\n  pkd@backbone:\n", encoding="utf-8")
    expected = {"cwd": {"tau": 2, "gain": 0.001}, "pkd@backbone": {"gain": 1.0}}
    assert asked_methods(file, {}) == asked_methods(str(file), {}) == {"recipe": {"any": expected}, "optional": False}
    changed = asked_methods(file, {"cwd.tau": 3})["recipe"]["any"]
    assert changed["cwd"]["tau"] == 3, "the command line wins over the file"
    file.write_text("optional: true\npairs:\n  set/dense: {cwd: }\nmethods: {pkd: }\n", encoding="utf-8")
    by_pair = {"set/dense": {"cwd": {"gain": 1.0}}, "any": {"pkd": {"gain": 2.0}}}
    assert asked_methods(file, {"pkd.gain": 2}) == {"recipe": by_pair, "optional": True}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: [", "not a readable YAML file"),
        ("", "not a recipe"),
        ("pkd", "not a recipe"),
        ("method: {pkd: {}}", "needs a mapping `methods:`"),
        ("methods: [pkd]", "needs a mapping `methods:`"),
        ("methods: {}", "needs a mapping `methods:`"),
        ("methods: {pkd: {}}\nkd: 2", "'kd'; known are methods"),
        ("pairs: {dense/sets: {pkd: }}", "did you mean 'dense/set'"),
        ("pairs: {dense/set: }", "not a recipe"),
        ("pairs: 3", "not a recipe"),
        ("optional: 3\nmethods: {pkd: }", "optional: 3 "),
        ("methods: {pkdd: {}}", "did you mean 'pkd'"),
        ("methods: {pkd: 3}", "options of pkd are 3"),
        ("methods: {pkd: {1: 2}}", "unknown option of pkd: '1'"),
        ("methods: {cwd: {tau: 0}}", "cwd.tau=0 "),
        ("methods: {pkd: {gain: x}}", "pkd.gain=x "),
        ("methods: {pkd: {}, pkd@neck: {}}", "pkd@neck twice"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, named):
    file = tmp_path / "wrong.yaml"
    file.write_text(text, encoding="utf-8")
    said = refused(asked_methods, str(file), {"pkd.gain": 1} if "pkd: 3" in text else {})
    assert named in said and "\n" not in said


def test_a_binary_recipe_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(bytes(range(256)))
    assert "x.yaml is not a readable YAML file" in refused(asked_methods, tmp_path / "x.yaml", {})


def test_arguments_from_a_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"epochs": 3, "lr0": "1e-3", "cwd.tau": 2, "name": "7"}), encoding="utf-8")
    assert read_arguments(file) == {"epochs": 3, "lr0": 0.001, "cwd.tau": 2, "name": "7"}
    file.write_text("- epochs\n", encoding="utf-8")
    assert "not a mapping" in refused(read_arguments, file)
    assert "does not exist" in refused(read_arguments, tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"epochs": "abc"}, "epochs=abc"),
        ({"lr0": "x"}, "lr0=x"),
        ({"imgsz": "x"}, "imgsz=x"),
        ({"device": "banana"}, "device=banana"),
        ({"iou": 7}, "iou=7"),
    ],
)
def test_values_that_ultralytics_refuses(arguments, named):
    said = refused(check_values, arguments)
    assert named in said and "\n" not in said and said.endswith(".")


def test_every_shipped_recipe_is_valid():
    assert "default" in shipped_recipes()
    for name in shipped_recipes():
        assert asked_methods(name, {})


def test_the_documentation_has_every_papers_recipe_with_its_methods():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\S+[.+]\S+)` \| (.*?) \|", text, re.MULTILINE))
    assert rows.keys() == shipped_recipes().keys() - {"default"}
    for name, row in rows.items():
        keys = list(asked_methods(name, {})["recipe"]["any"])
        assert re.findall(r"`(\w+)`", row) == keys


def test_shipped_argument_files_are_no_recipes():
    assert sorted(shipped_arguments()) == ["coco", "taxonomy", "voc"] and not shipped_arguments().keys() & METHODS
    assert "give it as cfg=voc" in refused(asked_methods, "voc", {})
    assert "give it as method=default" in refused(read_arguments, "default")
    assert "or coco or taxonomy or voc" in refused(read_arguments, "voc.yml")


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_shipped_argument_files_hold_what_a_training_takes(name):
    arguments = read_arguments(name)
    folded = options.fold(arguments)
    check_values(folded)
    assert set(GITHUB_ASSETS_NAMES) >= {arguments["teacher"], arguments["model"].replace(".yaml", ".pt")}
    data = yaml.safe_load((ROOT / "cfg" / "datasets" / arguments["data"]).read_text())["names"]
    coco = yaml.safe_load((ROOT / "cfg" / "datasets" / "coco.yaml").read_text())["names"]
    shared = match_classes(data, coco, folded["kd"].get("classes"))
    assert len(data) == (80 if shared is None else shared.shared)
    own = options.fold({**arguments, "classes": None})
    assert "classes" not in own["kd"] and own["classes"] is None


def test_the_default_recipe_applies_to_every_pair_of_families():
    readers = [
        YoloReader(build(family, dtype=torch.float32)) for family in ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
    ]
    kd = DistillOptions((), 1.0, **asked_methods("default", {}))
    for student, teacher in itertools.product(readers, repeat=2):
        made = plan(student, teacher, kd, NAMES)
        assert list(made.methods) == ["pkd", "logit", "bckd_box"] and len(made.terms) == 3
        assert ["one2one branch" in said for said in made.refused] == [True] * (
            len(student.branches) > len(teacher.branches)
        )
