"""`yolokd study jobs=print`: lines that a cluster runs, in any order, and the tables afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.cli import refusal
from helpers.studies import SCRIPTED, starts
from helpers.training import ASSETS, TINY

from yolokd import cli
from yolokd.studies import plan as planning
from yolokd.studies import processes
from yolokd.studies.runner import study

SH = ["bash", "-c"]
ALL = ["alone/seed0", "alone/seed1", "pkd/seed0", "pkd/seed1", "teacher"]


@pytest.fixture
def given(scenes, teacher, tmp_path, monkeypatch):
    """Arguments of a study that could run, in an empty working folder whose name a shell would split."""
    here = tmp_path / "a folder"
    here.mkdir()
    monkeypatch.chdir(here)
    return {"model": str(ASSETS / "student.pt"), "teacher": str(teacher), "data": str(scenes), **TINY}


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Runs are processes still, but nothing is trained in them, and no model is opened to check an arm."""
    worker = tmp_path / "worker.py"
    worker.write_text(SCRIPTED)
    monkeypatch.setattr(planning, "preflight_arm", lambda arm: arm)
    monkeypatch.setattr(processes, "WORKER", [str(worker)])


def run_elsewhere(line: str, folder: Path) -> None:
    """A line in another working directory, without what this process has of a study."""
    subprocess.run(
        [*SH, line], check=True, cwd=folder, env={k: v for k, v in os.environ.items() if k != "YOLOKD_STUDY"}
    )


def test_lines_run_anywhere_and_the_study_collects_them(given, scripted, tmp_path, capsys):
    out = Path("study").resolve()
    argv = [f"{k}={v}" for k, v in {"methods": "pkd", "seeds": 2, "out": "study", **given}.items()]
    assert cli.main(["study", *argv, "jobs=print", "threads=3"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines == (out / "jobs.txt").read_text().splitlines() and len(lines) == 5
    assert "5 runs are missing" in said.err
    assert not starts(out), "nothing is run"
    assert json.loads((out / "compare.json").read_text())["missing"] == 4

    for line in reversed(lines[1:]):
        run_elsewhere(line, tmp_path)
    assert starts(out) == dict.fromkeys([name for name in ALL if name != "teacher"], 1), "the teacher's is the first"
    assert (out / "pkd" / "seed1" / "starts").read_text() == "3 3 \n"

    assert cli.main(["study", *argv, "jobs=print"]) == 0
    assert "1 runs are missing" in capsys.readouterr().err
    assert json.loads((out / "compare.json").read_text())["missing"] == 0
    report = study("pkd", seeds=2, out="study", **given)
    assert starts(out) == dict.fromkeys(ALL, 1), "what is done is never done again"
    assert report["teacher"]["map50"] == 0.6 and report["missing"] == 0
    assert cli.main(["study", *argv, "jobs=print"]) == 0
    assert "No run is missing" in capsys.readouterr().err


def test_the_array_script(given, scripted, tmp_path):
    out = Path("study").resolve()
    del given["device"]
    study("pkd", seeds=2, out="study", jobs="print", **given)
    text = (out / "jobs.sbatch").read_text()
    for option in ("--array=1-5", "--cpus-per-task=4", "--gres=gpu:1", "--job-name=yolokd-study"):
        assert f"#SBATCH {option}\n" in text
    assert len((out / "jobs.txt").read_text().splitlines()) == 5
    for task in (2, 5):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["bash", str(out / "jobs.sbatch")], check=True, cwd=tmp_path, env=environment)
    assert starts(out) == {"alone/seed0": 1, "alone/seed1": 1}
    study("pkd", seeds=2, out="study", **given)
    assert starts(out) == dict.fromkeys(ALL, 1)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("devices=0,1", "jobs=print runs nothing, and devices="),
        ("engine=ray", "jobs=print runs nothing, and engine=ray"),
        ("threads=0", "threads=0"),
        ("jobs=many", "jobs=many is not"),
    ],
)
def test_what_cannot_be_listed(given, tmp_path, capsys, argument, said):
    arguments = {"methods": "pkd", "jobs": "print", **given}
    key = argument.partition("=")[0]
    argv = [f"{k}={v}" for k, v in arguments.items() if k != key] + [argument]
    assert said in refusal(capsys, tmp_path, "study", *argv)


@pytest.mark.slow
def test_a_real_study_by_its_lines(given, tmp_path):
    tiny = {**given, "epochs": 1}
    study("pkd", seeds=1, out="study", jobs="print", threads=1, **tiny)
    lines = Path("study/jobs.txt").read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        run_elsewhere(line, tmp_path)
    before = {f: f.stat().st_mtime_ns for f in Path("study").rglob("result.json")}
    report = study("pkd", seeds=1, out="study", **tiny)
    assert report["missing"] == 0 and report["teacher"]["map50"] > 0
    assert {f: f.stat().st_mtime_ns for f in Path("study").rglob("result.json")} == before
