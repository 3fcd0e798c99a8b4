"""`yolokd check`: exit codes, what is found, what is measured; nothing is written, no run is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.cli import contents, refusal
from helpers.faulty import GOOD, data_set
from helpers.training import ASSETS, TINY
from ultralytics import YOLO

import yolokd
from yolokd import cli
from yolokd.checks import check as checking
from yolokd.checks import payoff
from yolokd.checks.payoff import Score, judge
from yolokd.checks.rehearsal import Cost, estimate
from yolokd.checks.report import duration, text
from yolokd.distill import fading
from yolokd.errors import DoubtError, UsageError

STUDENT, TEACHER = ASSETS / "student.pt", ASSETS / "teacher.pt"
SMALL = {k: v for k, v in TINY.items() if k not in ("plots", "cache")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unmeasured(monkeypatch):
    """What takes a training's time is left out."""
    monkeypatch.setattr(checking.Work, "measure", lambda self, most: None)


def words(data: Path, **more: object) -> list[str]:
    given = {"model": STUDENT, "teacher": TEACHER, "data": data, **SMALL, **more}
    return [f"{key}={value}" for key, value in given.items()]


def levels(outcome: dict, level: str) -> list[str]:
    return [f["text"] for f in outcome["findings"] if f["level"] == level]


# --- What is found ---


def test_every_problem_is_told_with_the_first_on_stderr(place, capsys, unmeasured):
    said = refusal(capsys, place, "check", "model=gone.pt", f"teacher={TEACHER}", "data=none.yaml")
    assert "model=gone.pt" in said and "(1 more above)" in said
    assert cli.main(["check", "model=gone.pt", f"teacher={TEACHER}", "data=none.yaml"]) == 2
    out = capsys.readouterr().out
    assert "problem: model=gone.pt" in out and "problem: data=none.yaml" in out and "verdict: not ready" in out


@pytest.mark.parametrize(
    ("argument", "named"),
    [("images=0", "images=0"), ("images=True", "images=True"), ("resume=last.pt", "new training"), ("kd=-1", "kd=-1"),
     ("batch=abc", "batch"), ("check=False", "unknown option 'check'"), ("json=data", "json=data exists")],
)  # fmt: skip
def test_arguments_that_cannot_be_used(argument, named, place, capsys, scenes, unmeasured):
    (place / "data").mkdir()
    key = argument.partition("=")[0]
    assert named in refusal(
        capsys, place, "check", *(w for w in words(scenes) if not w.startswith(f"{key}=")), argument
    )


def test_a_teacher_is_opened_also_where_the_data_cannot_be_used(place, unmeasured):
    (place / "text.pt").write_text("no checkpoint")
    outcome = yolokd.check(model=STUDENT, teacher=place / "text.pt", data="none.yaml", **SMALL)
    told = " ".join(levels(outcome, "problem"))
    assert "data=none.yaml cannot be used" in told and f"teacher={place / 'text.pt'} is not a checkpoint" in told


def test_a_faulty_data_set_is_doubtful(place, capsys, unmeasured):
    file = data_set(place / "data", [GOOD, "1 0.5 0.5 0.5 0.5", "7 0.5 0.5 0.2 0.2"], [GOOD, GOOD])
    before = contents(place)
    assert cli.main(["check", *words(file)]) == 3
    printed = capsys.readouterr()
    assert "warning: train: 1 label file with a class that the data does not have" in printed.out
    assert printed.err.startswith("yolokd: doubtful, ") and printed.err.count("\n") == 1
    assert contents(place) == before


def test_data_without_a_usable_label_cannot_start(place, unmeasured):
    file = data_set(place / "data", ["7 0.5 0.5 0.2 0.2"], [GOOD])
    outcome = yolokd.check(model=STUDENT, teacher=TEACHER, data=file, **SMALL)
    assert (outcome["code"], outcome["verdict"]) == (2, "not ready")
    assert "train: no image can be used" in levels(outcome, "problem")[0]


def test_the_pair_is_described(scenes, unmeasured):
    outcome = yolokd.check(model=STUDENT, teacher=TEACHER, data=scenes, **SMALL)
    (teacher,) = outcome["pair"]["teachers"]
    assert outcome["pair"]["task"] == teacher["task"] == "detect"
    assert teacher["classes"] == "all 10 classes of the data are taught by teacher.pt"
    assert {t["term"] for t in teacher["terms"]} >= {"logit_loss", "pkd_loss"} and teacher["left_out"] == []
    assert all(t["strides"] == [8, 16, 32] for t in teacher["terms"])
    assert outcome["data"]["train"]["images"] == 24 and outcome["data"]["val"]["images"] == 8
    assert "student: student for detect, strides 8, 16, 32, 64 px" in text(outcome)


def test_what_a_recipe_leaves_out_is_said(place, unmeasured):
    """Of a pair that shares no class."""
    file = data_set(place / "data", [GOOD, "1 0.5 0.5 0.5 0.5"], [GOOD])
    outcome = yolokd.check(model=STUDENT, teacher=TEACHER, data=file, **SMALL)
    (teacher,) = outcome["pair"]["teachers"]
    assert teacher["classes"].startswith("0 of 2 classes")
    assert any("share no class name" in reason for reason in teacher["left_out"])


def test_a_file_that_could_run_code_is_a_problem(place, scenes, capsys, unmeasured):
    class Evil:
        def __reduce__(self):
            return Path.touch, (place / "ran",)

    torch.save({"model": Evil()}, place / "evil.pt")
    for key in ("model", "teacher"):
        said = refusal(capsys, place, "check", *words(scenes, **{key: place / "evil.pt"}))
        assert "which could run as code" in said and f"{key}={place / 'evil.pt'}" in said


# --- What is judged ---


def scored(teacher: float | None, *student: float) -> list[Score]:
    why = "" if teacher is not None else "it has no detections"
    return [Score("teacher", "t", teacher, teacher, why), *(Score("student", "s", s, s) for s in student)]


@pytest.mark.parametrize(
    ("found", "images", "level"),
    [
        (scored(50.0, 40.0), 200, None),
        (scored(42.0, 40.0), 200, None),
        (scored(41.9, 40.0), 200, "warning"),
        (scored(50.0, 10.0, 49.0), 200, "warning"),
        (scored(50.0, 40.0), 99, "note"),
        (scored(None, 40.0), 200, "note"),
        (scored(1.0), 200, "warning"),
        ([*scored(10.0, 40.0), Score("teacher", "u", 60.0, 50.0)], 200, None),
    ],
)  # fmt: skip
def test_the_teacher_must_be_better_by_two_points(found, images, level):
    """Than the better of the student's scores, and of several teachers the best."""
    assert [f.level for f in judge(found, images, 300)] == ([level] if level else [])


def test_a_doubt_names_both_scores():
    assert "mAP50 41.9 and 40.0, which should be at least 2 points apart" in judge(scored(41.9, 40.0), 200, 200)[0].text


def test_an_estimate():
    """25 images in batches of 8 are 4 steps; on two devices of 8 each, 2."""
    cost = Cost(0.5, 8, 10**9, "a CPU")
    told = estimate(cost, images=25, epochs=10, validation_seconds=3.0)
    assert (told["steps_per_epoch"], told["steps"], told["total_seconds"]) == (4, 40, 50.0)
    told = estimate(cost, images=25, epochs=10, validation_seconds=None, devices=2)
    assert (told["batch"], told["steps_per_epoch"], told["total_seconds"]) == (16, 2, 10.0)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59.4, "59 s"), (90, "2 min"), (3600, "1 h 0 min"), (7290, "2 h 2 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_code_is_the_worst_finding(monkeypatch, capsys):
    for found, code, error in (([], 0, None), (["note"], 0, None), (["warning", "note"], 3, DoubtError),
                               (["warning", "problem"], 2, UsageError)):  # fmt: skip
        work = checking.Work(findings=[checking.Finding(level, f"{level} here.") for level in found])
        assert work.code == code
        outcome = {"verdict": "", "code": code, **work.told()}
        monkeypatch.setattr(checking, "check", lambda outcome=outcome: outcome)
        if error is None:
            checking.checked()
        else:
            with pytest.raises(error, match="problem here" if code == 2 else "warning here"):
                checking.checked()


# --- What is measured ---


@pytest.fixture(scope="module")
def good(scenes, tmp_path_factory):
    """The outcome of a real check, the folder that it ran in, and the data set's content before and after."""
    folder = tmp_path_factory.mktemp("good")
    before = contents(scenes.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(fading, "teacher_metric", None)  # calling it fails: the check scores by itself
        outcome = yolokd.check(
            images=6, json=folder / "check.json", model=STUDENT, teacher=TEACHER, data=scenes, **{**SMALL, "epochs": 3}
        )
    return outcome, folder, before, contents(scenes.parent)


@pytest.mark.slow
def test_a_check_writes_nothing_but_its_json(good):
    outcome, folder, before, after = good
    assert [p.name for p in folder.iterdir()] == ["check.json"]
    assert json.loads((folder / "check.json").read_text()) == json.loads(json.dumps(outcome))
    assert after == before


@pytest.mark.slow
def test_scores_are_those_of_ultralytics_validator(good, scenes, tmp_path):
    """Of the teacher, on the images that are named: the same six of eight."""
    outcome = good[0]
    images = sorted((scenes.parent / "images" / "val").rglob("*.*"))
    some = [images[i * 8 // 6] for i in range(6)]
    for image in some:
        for folder in ("images", "labels"):
            file = image if folder == "images" else Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / folder)
    names = {i: str(n) for i, n in YOLO(TEACHER).names.items()}
    (tmp_path / "some.yaml").write_text(
        json.dumps({"path": str(tmp_path), "train": "images", "val": "images", "names": names})
    )
    metrics = YOLO(TEACHER).val(
        data=tmp_path / "some.yaml", imgsz=64, batch=8, device="cpu", plots=False, save_dir=tmp_path / "v"
    )
    models = {f"{s['of']} {s['name']}": s for s in outcome["scores"]["models"]}
    assert outcome["scores"]["images"] == 6
    assert models["teacher teacher.pt"]["map50"] == pytest.approx(100 * metrics.box.map50, abs=1e-3)
    assert models["teacher teacher.pt"]["map50_95"] == pytest.approx(100 * metrics.box.map, abs=1e-3)
    assert models.keys() == {"teacher teacher.pt", "student as it is", "student with its head fitted to the teacher"}


@pytest.mark.slow
def test_cost_of_the_whole_training(good):
    cost = good[0]["cost"]
    assert (cost["batch"], cost["steps_per_epoch"], cost["steps"]) == (8, 3, 9)
    assert 0 < cost["step_seconds"] < 60 and cost["validation_seconds"] > 0
    assert cost["total_seconds"] == pytest.approx(3 * (3 * cost["step_seconds"] + cost["validation_seconds"]))
    assert 10**8 < cost["peak_memory_bytes"] < 10**11 and "CPU" in cost["device"]
    printed = text(good[0])
    assert "3 steps in each of 3 epochs" in printed and "estimate on a CPU" in printed and "versions: yolokd" in printed


@pytest.mark.slow
def test_a_teacher_that_is_no_better_is_doubtful(scenes, untrained, place):
    bad = untrained("yolo11n")
    outcome = yolokd.check(images=4, model=STUDENT, teacher=bad, data=scenes, **SMALL)
    assert outcome["code"] == 3 and any("not clearly better" in said for said in levels(outcome, "warning"))


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_a_problem(scenes, place, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("yolokd.checks.rehearsal.step_seconds", fail)
    outcome = yolokd.check(images=4, model=STUDENT, teacher=TEACHER, data=scenes, **SMALL)
    assert outcome["code"] == 2 and "batch=8 at imgsz=64 does not fit the memory" in levels(outcome, "problem")[0]


def test_teachers_that_cannot_be_validated(monkeypatch):
    class Options:
        teacher_contract, teacher_names, teacher_imgsz, trust = None, None, None, False

    assert payoff.teacher_score("timm:vit", None, "detect", Options, {}).why == "it has no detections"
    said = payoff.teacher_score(str(TEACHER), None, "segment", Options, {}).why
    assert said == "it is for the task detect, and the labels for segment"
    Options.teacher_contract = "raw"
    assert "foreign ONNX" in payoff.teacher_score("a.onnx", None, "detect", Options, {}).why
