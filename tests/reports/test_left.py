"""The report that `yolokd.train()`, `study()` and `bench()` leave, from Python and from the command line."""

from __future__ import annotations

import inspect

import pytest
from helpers import runs
from helpers.training import TINY

import yolokd
from yolokd import cli
from yolokd.errors import StudyError, UsageError
from yolokd.reports import after, timed, trained


@pytest.mark.slow
def test_a_training_from_python_leaves_it_unless_told_not_to(scenes, teacher, tmp_path):
    given = {"model": str(runs.STUDENT), "teacher": str(teacher), "data": str(scenes), "project": str(tmp_path)}
    given |= {**TINY, "epochs": 1, "method": "logit", "init": "own", "check": False, "logit.tau": 2}
    student = yolokd.train(**given, name="with")
    page = (tmp_path / "with" / "report.html").read_text()
    assert "yolokd.train(model=" in page and "logit.tau" in page and "could not be made" not in page
    assert all(f.__module__ != trained.__name__ for f in student.callbacks["on_train_end"]), "its next one is not ours"
    yolokd.train(**given, name="without", report=False)
    assert (tmp_path / "without" / "weights" / "best.pt").is_file()
    assert not (tmp_path / "without" / "report.html").exists()


@pytest.mark.parametrize("failed", [False, True])
def test_a_study_leaves_it_also_where_runs_failed(failed, scenes, tmp_path, monkeypatch):
    folder = tmp_path / "study"
    folder.mkdir()

    def study(**given):
        if not (folder / "compare.json").exists():
            runs.study(folder, scenes, [0.05, 0.07], runs.table([0.1, 0.2], train__logit_loss=[1.0, 1.0]))
        if failed:
            raise StudyError("1 of 4 runs failed")
        return given

    monkeypatch.setattr(trained.runner, "study", study)
    if failed:
        with pytest.raises(StudyError, match="1 of 4"):
            yolokd.study("logit", out=folder)
    else:
        assert yolokd.study("logit", out=folder)["methods"] == "logit"
    assert "yolokd.study(methods=&#39;logit&#39;" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    if not failed:
        yolokd.study("logit", out=folder, report=False)
        assert not (folder / "report.html").exists()


def test_a_measurement_leaves_it(tmp_path, monkeypatch):
    file = runs.bench(tmp_path / "bench")
    monkeypatch.setattr(timed.measuring, "bench_into", lambda *_, **__: (["record"], file.parent))
    assert yolokd.bench(["a.onnx"], "images", report=False) == ["record"]
    assert not (file.parent / "report.html").exists()
    assert yolokd.bench(["a.onnx"], "images", quick=True) == ["record"]
    assert "quick=True" in (file.parent / "report.html").read_text()


@pytest.mark.parametrize(
    "words", [["train", "model=a.pt"], ["study", "methods=pkd"], ["bench", "model=a.onnx", "source=images"]]
)
def test_anything_but_true_or_false_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "report=maybe"]) == 2
    assert "report=maybe is neither True nor False" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "study", "bench"])
def test_the_signature_is_that_of_the_work_and_one_more(name):
    function = getattr(yolokd, name)
    assert inspect.signature(function).parameters["report"].default is True
    assert "report=False leaves none" in function.__doc__ and "Args:" in function.__doc__
    wanted = {"train": {"arguments"}, "study": {"methods", "seeds", "engine"}, "bench": {"models", "quick"}}[name]
    assert wanted <= inspect.signature(function).parameters.keys()


def test_a_call_can_be_typed_again():
    assert after.typed("train", {"model": "a.pt", "kd": 2, "cwd.tau": 3}) == (
        "yolokd.train(model='a.pt', kd=2, **{'cwd.tau': 3})"
    )


def test_a_report_that_is_none_of_the_users_words():
    with pytest.raises(UsageError, match="report=no"):
        yolokd.train(model="a.pt", report="no")
