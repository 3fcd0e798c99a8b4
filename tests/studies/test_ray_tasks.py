"""A study over Ray's local cluster: what is finished, killed or failed, and what is said without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from helpers.cli import processes_with, refusal
from helpers.studies import SCRIPTED, starts
from helpers.training import ASSETS, TINY

from yolokd import cli
from yolokd.studies import plan as planning
from yolokd.studies import processes

# As SCRIPTED; a file in the run's folder says what befalls it, the first time or always.
FAULTS = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
fault = (folder / "fault").read_text() if (folder / "fault").exists() else ""
first = not (folder / "starts").exists()
if first and fault:
    (folder / "starts").write_text("begun\\n")
if fault == "killed" and first:
    os.kill(os.getpid(), 9)
if fault == "task killed" and first:
    os.kill(os.getppid(), 9)
    sys.exit(1)
if fault == "fails":
    print("CUDA out of memory")
    sys.exit(1)
"""


@pytest.fixture
def argv(scenes, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"model": ASSETS / "student.pt", "teacher": teacher, "data": scenes, **TINY}
    given |= {"methods": "pkd,cwd", "seeds": 2, "out": tmp_path / "study", "engine": "ray"}
    return [f"{key}={value}" for key, value in given.items()]


@pytest.mark.slow
def test_a_killed_run_is_run_again_a_failed_one_is_told_and_a_finished_one_is_left(argv, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray", reason="the extra ray")
    monkeypatch.setattr(planning, "preflight_arm", lambda arm: arm)
    monkeypatch.setattr(planning, "check_data", lambda plan: None)
    monkeypatch.setattr(processes, "WORKER", ["-c", FAULTS + SCRIPTED])
    out = tmp_path / "study"
    for run, fault in (("pkd/seed0", "killed"), ("pkd/seed1", "task killed"), ("cwd/seed0", "fails")):
        (out / run).mkdir(parents=True)
        (out / run / "fault").write_text(fault)
    (out / "study.json").write_text("{}")

    assert cli.main(["study", *argv, "threads=1"]) == 3
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("yolokd: 1 of 7 runs failed (cwd seed 0; ")
    assert "cwd seed 0: failed: CUDA out of memory" in said.out
    once = {"alone/seed0": 1, "alone/seed1": 1, "cwd/seed0": 1, "cwd/seed1": 1, "teacher": 1}
    assert starts(out) == {**once, "pkd/seed0": 2, "pkd/seed1": 2}
    report = json.loads((out / "compare.json").read_text())
    assert report["failed"] == {"cwd seed 0": "CUDA out of memory"} and len(report["runs"]) == 5

    (out / "cwd" / "seed0" / "fault").write_text("")
    assert cli.main(["study", *argv, "threads=1"]) == 0
    assert starts(out) == {**once, "pkd/seed0": 2, "pkd/seed1": 2, "cwd/seed0": 2}


STOPPED = """
import sys
from yolokd import cli
from yolokd.studies import plan, processes
plan.preflight_arm = lambda arm: arm
plan.check_data = lambda plan: None
processes.WORKER = ["-c", "import pathlib, sys, time; (pathlib.Path(sys.argv[1]) / 'begun').touch(); time.sleep(100)"]
sys.exit(cli.main(["study", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stopped_study_leaves_no_process(argv, tmp_path):
    pytest.importorskip("ray", reason="the extra ray")
    mark = {"YOLOKD_TEST": str(tmp_path)}
    with (tmp_path / "log.txt").open("w") as log:
        command = [sys.executable, "-c", STOPPED, *argv, "threads=1"]
        process = subprocess.Popen(command, env={**os.environ, **mark}, stdout=log, stderr=log)
    while process.poll() is None and not list((tmp_path / "study").rglob("begun")):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].startswith("yolokd: the study was stopped")
    time.sleep(2)  # Ray's own processes end by themselves
    assert not processes_with("YOLOKD_TEST", str(tmp_path))


def test_without_ray_it_is_one_sentence(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "preflight_arm", lambda arm: arm)
    monkeypatch.setattr(planning, "check_data", lambda plan: None)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'yolokd[ray]'" in refusal(capsys, tmp_path, "study", *argv)


@pytest.mark.parametrize(("more", "said"), [("jobs=2", "jobs=2 is for one machine"), ("devices=cpu", "engine=ray and")])
def test_what_ray_decides_is_refused(argv, tmp_path, capsys, more, said):
    argv = [word for word in argv if not word.startswith("device=")]
    assert said in refusal(capsys, tmp_path, "study", *argv, more)
