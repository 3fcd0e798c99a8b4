"""`yolokd study`: the plan, what is refused, what is run again, the statistics in the tables."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.cli import contents, refusal
from helpers.faulty import GOOD, data_set
from helpers.models import layout
from helpers.studies import SCRIPTED, starts
from helpers.training import ASSETS, TINY
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from yolokd import cli
from yolokd.detectors import teachers
from yolokd.errors import UsageError
from yolokd.latency.intervals import NO_EVIDENCE, ONE_RUN
from yolokd.studies import plan as planning
from yolokd.studies import processes, report
from yolokd.studies.arms import build_arms, read_arms
from yolokd.studies.plan import Job, plan_study, read_seeds
from yolokd.studies.processes import run_all, start_run
from yolokd.studies.runner import study
from yolokd.studies.worker import RESULT, interrupted, validate

TEACHER = str(ASSETS / "teacher.pt")


@pytest.fixture
def given(scenes, teacher, tmp_path, monkeypatch):
    """Arguments of a study that could run, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return {"model": str(ASSETS / "student.pt"), "teacher": str(teacher), "data": str(scenes), **TINY}


@pytest.fixture
def scripted(monkeypatch):
    """Runs are processes still, but nothing is trained in them, and no model is opened to check an arm."""
    monkeypatch.setattr(planning, "preflight_arm", lambda arm: arm)
    monkeypatch.setattr(planning, "check_data", lambda plan: None)
    monkeypatch.setattr(processes, "WORKER", ["-c", SCRIPTED])


# --- The plan ---


@pytest.mark.parametrize(("seeds", "meant"), [(3, [0, 1, 2]), (1, [0]), ((0, 4, 7), [0, 4, 7]), ([5], [5])])
def test_seeds(seeds, meant):
    assert read_seeds(seeds) == meant


@pytest.mark.parametrize("seeds", [0, -1, 2.5, True, "three", [], [1, 1], [0, -1], [0, "a"], None])
def test_seeds_that_are_none(seeds):
    with pytest.raises(UsageError, match="seeds="):
        read_seeds(seeds)


def test_the_short_list_of_arms():
    assert read_arms("builtin, default,pkd+logit,my/strong.yaml", None) == {
        "alone": {"method": "alone"},
        "builtin": {"method": "builtin"},
        "default": {"method": "default"},
        "pkd+logit": {"method": "pkd,logit"},
        "strong": {"method": "my/strong.yaml"},
    }


def test_arms_from_a_file(tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text("light: {method: builtin, dis: 3}\nstrong: {method: default, logit.gain: 1e1}\ncwd:\n")
    arms = {arm.name: arm for arm in build_arms(read_arms("default", file), {"teacher": TEACHER, "epochs": 4})}
    assert list(arms) == ["alone", "default", "light", "strong", "cwd"]
    assert arms["alone"].arguments == {"epochs": 4}
    assert arms["light"].arguments == {"epochs": 4, "distill_model": TEACHER, "dis": 3}
    assert arms["strong"].arguments["logit.gain"] == 10
    assert arms["cwd"].arguments == {"epochs": 4, "teacher": TEACHER, "kd": 1.0, "method": "cwd"}
    assert (arms["cwd"].level, arms["default"].level, arms["light"].level) == ("neck", "neck + head + logit", "")


def test_a_dotted_option_reaches_the_arms_that_have_its_method():
    given = read_arms("pkd,logit,pkd+logit", None)
    arms = {a.name: a.arguments for a in build_arms(given, {"teacher": TEACHER, "pkd.gain": 2})}
    assert [name for name, arguments in arms.items() if "pkd.gain" in arguments] == ["pkd", "pkd+logit"]
    with pytest.raises(UsageError, match="cwd.tau=2 sets an option of a method that no arm uses"):
        build_arms(given, {"teacher": TEACHER, "cwd.tau": 2})


def test_labels_that_are_kept_are_kept_for_every_arm():
    """Ultralytics' classes=[0,3] is about the labels, our class map about the teacher."""
    arms = read_arms(["builtin", "pkd"], None)
    made = build_arms(arms, {"teacher": TEACHER, "model": "m.pt", "data": "d.yaml", "classes": [0, 3]})
    assert [arm.arguments.get("classes") for arm in made] == [[0, 3]] * 3
    made = build_arms(arms, {"teacher": TEACHER, "model": "m.pt", "data": "d.yaml", "classes": "map.yaml"})
    assert [arm.arguments.get("classes") for arm in made] == [None, None, "map.yaml"]


def test_arms_are_interleaved_by_seed(given, tmp_path):
    plan = plan_study("builtin,pkd", None, 2, "study", given)
    assert list(plan.jobs) == [("alone", 0), ("builtin", 0), ("pkd", 0), ("builtin", 1), ("pkd", 1), ("alone", 1)]
    arguments = plan.jobs["pkd", 1].spec["arguments"]
    assert arguments["seed"] == 1 and arguments["imgsz"] == 64
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("methods=pkdd", "did you mean 'pkd'"),
        ("methods=pkd,pkd", "an arm twice"),
        ("methods=pkd,,logit", "empty name"),
        ("methods=alone", "no arms to compare"),
        ("methods=Teacher", "cannot name a folder of its own"),
        ("methods=", "not of the form"),
        ("arms=gone.yaml", "arms=gone.yaml does not exist"),
        ("seeds=0", "seeds=0"),
        ("seed=3", "give seeds="),
        ("method=pkd", "list the arms in methods="),
        ("resume=True", "continues where it stopped"),
        ("project=runs", "out="),
        ("save=False", "needs its checkpoint"),
        ("jobs=0", "jobs=0"),
        ("threads=two", "threads=two"),
        ("epoch=3", "did you mean 'epochs'"),
        ("epochs=three", "epochs"),
        ("device=0,1", "give devices= for several"),
        ("devices=0,0", "names a device twice"),
        ("devices=0,,1", "or none"),
        ("devices=cpu,cpu", "device=cpu and devices= both say"),
        ("devices=gpu", "device"),
        ("engine=slurm", "engine=slurm"),
        ("teacher=gone.pt", "teacher=gone.pt"),
        ("model=gone.pt", "model=gone.pt"),
        ("data=gone.yaml", "data=gone.yaml"),
        ("logit.gain=2", "no arm uses"),
        ("pkd.tau=2", "tau"),
        ("out=.", "is not the folder of a study"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(given, tmp_path, capsys, argument, said):
    (tmp_path / "mine.txt").write_text("keep")
    arguments = {"methods": "pkd", "seeds": 2, "out": "study", **given}
    key = argument.partition("=")[0]
    argv = [f"{k}={v}" for k, v in arguments.items() if k != key] + [argument]
    assert said in refusal(capsys, tmp_path, "study", *argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pkd]", "not a mapping"),
        ("a: pkd", "write a mapping"),
        ("a: {", "not a readable YAML"),
        ("../a: {method: pkd}", "cannot name a folder"),
        ("a: {method: pkd}\nA: {method: cwd}", "cannot name a folder"),
        ("a: {method: builtin, pkd.gain: 2}", "which builtin does not have"),
        ("a: {method: pkd, seed: 3}", "arm a: seed=3"),
        ("a: {method: pkd, epoch: 3}", "arm a: unknown option 'epoch', did you mean 'epochs'"),
        ("pkd: {pkd.gain: 2}", "is in methods= and in arms="),
    ],
)
def test_a_bad_file_of_arms(given, tmp_path, capsys, text, said):
    (tmp_path / "arms.yaml").write_text(text)
    argv = [f"{k}={v}" for k, v in given.items()]
    assert said in refusal(capsys, tmp_path, "study", "methods=pkd", "arms=arms.yaml", "out=study", *argv)


# --- Running ---


def test_a_study_runs_once_and_grows(given, scripted, tmp_path, capsys):
    out = tmp_path / "study"
    study("builtin,pkd", seeds=2, out=out, jobs=2, threads=3, **given)
    once = ["alone/seed0", "alone/seed1", "builtin/seed0", "builtin/seed1", "pkd/seed0", "pkd/seed1", "teacher"]
    assert starts(out) == dict.fromkeys(once, 1)
    assert (out / "pkd" / "seed0" / "starts").read_text() == "3 3 \n", "its share of threads"
    before = {k: v for k, v in contents(out).items() if "seed" in k}

    report = study("builtin,pkd,cwd", seeds=3, out=out, **given)
    assert starts(out) == dict.fromkeys([*once, *(f"cwd/seed{s}" for s in range(3))], 1) | dict.fromkeys(
        ["alone/seed2", "builtin/seed2", "pkd/seed2"], 1
    )
    assert {k: v for k, v in contents(out).items() if k in before} == before, "a finished run is left alone"
    assert report["teacher"] == {"map50": 0.6, "map50_95": 0.3}
    assert report["missing"] == 0 and len(report["runs"]) == 12
    assert {f.name for f in out.iterdir() if f.is_file()} >= {"compare.json", "compare.md", "runs.csv", "compare.png"}
    assert "7 already done" in capsys.readouterr().out


def test_each_run_has_a_device_of_its_own(tmp_path, monkeypatch):
    """Two at a time, because there are two devices; a device that is free again is given to the next run."""
    busy = tmp_path / "busy"
    busy.mkdir()
    once = f"import os, time; os.mkdir({str(busy)!r} + '/' + sys.argv[3]); time.sleep(0.5)"
    free = f"os.rmdir({str(busy)!r} + '/' + sys.argv[3])"
    monkeypatch.setattr(processes, "WORKER", ["-c", f"import sys\n{once}\n{SCRIPTED}\n{free}"])
    pool = ["0", "1"]
    jobs = [Job(name, tmp_path / name, {"kind": "val", "arguments": {}}) for name in "abcde"]
    assert {job.label: code for job, code in run_all(jobs, pool, 1)} == dict.fromkeys("abcde", 0)
    used = [(tmp_path / name / "starts").read_text().split()[2] for name in "abcde"]
    assert set(used) == {"0", "1"} and min(used.count("0"), used.count("1")) == 2


def test_other_devices_make_no_other_study(given, scripted, tmp_path, capsys):
    del given["device"]
    out = tmp_path / "study"
    study("pkd", seeds=1, out=out, devices="cpu,cpu", **given)
    assert "2 at a time" in capsys.readouterr().out
    assert (out / "pkd" / "seed0" / "starts").read_text().split()[2] == "cpu"
    assert "device" not in json.loads((out / "pkd" / "seed0" / "run.json").read_text())["arguments"]
    study("pkd", seeds=1, out=out, devices=["cpu"], **given)
    assert set(starts(out).values()) == {1}


def test_a_crash_does_not_end_the_study_and_is_tried_again(given, scripted, tmp_path, capsys):
    out = tmp_path / "study"
    (out / "pkd" / "seed0").mkdir(parents=True)
    (out / "study.json").write_text("{}")
    (out / "pkd" / "seed0" / "crash").touch()
    argv = [f"{k}={v}" for k, v in {"methods": "pkd", "seeds": 2, "out": out, **given}.items()]
    assert cli.main(["study", *argv]) == 3
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "1 of 5 runs failed (pkd seed 0" in said.err
    assert "failed: CUDA out of memory" in said.out
    report = json.loads((out / "compare.json").read_text())
    assert report["failed"] == {"pkd seed 0": "CUDA out of memory"} and report["missing"] == 1
    (pair,) = {c["n"] for c in report["comparisons"]}
    assert pair == 1, "only the seed that both arms have"

    (out / "pkd" / "seed0" / "crash").unlink()
    assert cli.main(["study", *argv]) == 0
    assert starts(out) == {"alone/seed0": 1, "alone/seed1": 1, "pkd/seed0": 2, "pkd/seed1": 1, "teacher": 1}


@pytest.mark.parametrize("change", [{"epochs": 3}, {"lr0": 0.5}, {"kd": 0.5}, {"pkd.gain": 2}])
def test_other_settings_are_not_mixed_in(given, scripted, tmp_path, change):
    study("pkd", seeds=1, out="study", **given)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"with other settings .{next(iter(change))}="):
        study("pkd", seeds=1, out="study", **{**given, **change})
    assert contents(tmp_path) == before


def test_a_changed_teacher_is_noticed(given, scripted, tmp_path):
    own = tmp_path / "teacher.pt"
    own.write_bytes((ASSETS / "teacher.pt").read_bytes())
    study("pkd", seeds=1, out="study", **{**given, "teacher": str(own)})
    own.write_bytes(own.read_bytes() + b" ")
    with pytest.raises(UsageError, match="the file model= has changed"):
        study("pkd", seeds=1, out="study", **{**given, "teacher": str(own)})


def test_a_changed_recipe_is_noticed(given, scripted, tmp_path):
    """run.json names the file only: an edited gain must not count as done."""
    (tmp_path / "mine.yaml").write_text("methods: {logit: {gain: 1}}\n")
    study("mine.yaml", seeds=1, out="study", **given)
    (tmp_path / "mine.yaml").write_text("methods: {logit: {gain: 50}}\n")
    with pytest.raises(UsageError, match="mine seed 0 with other settings .the file method= has changed"):
        study("mine.yaml", seeds=1, out="study", **given)


def test_an_official_teacher_is_fetched_before_anything_is_noted(given, scripted, tmp_path, monkeypatch):
    """Its bare name in a run's note and its file later would make the same command another study."""
    asked = []

    def download(name):
        asked.append(name)
        shutil.copy(ASSETS / "teacher.pt", tmp_path / name)
        return name

    monkeypatch.setattr(teachers, "attempt_download_asset", download)
    for _ in range(2):
        study("builtin,pkd", seeds=1, out="study", **{**given, "teacher": "yolo11s.pt"})
    assert asked == ["yolo11s.pt"] and set(starts(tmp_path / "study").values()) == {1}
    said = json.loads((tmp_path / "study" / "builtin" / "seed0" / "run.json").read_text())
    assert said["arguments"]["distill_model"] == str(tmp_path / "yolo11s.pt")


def test_an_official_teacher_without_a_network_is_one_sentence(given, monkeypatch):
    def download(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(teachers, "attempt_download_asset", download)
    with pytest.raises(UsageError, match=r"teacher=yolo11s.pt cannot be downloaded \(ConnectionError\)"):
        study("pkd", seeds=1, out="study", **{**given, "teacher": "yolo11s.pt"})


def test_several_teachers_have_no_score_of_their_own(given, scripted, tmp_path):
    own = tmp_path / "second.pt"
    own.write_bytes((ASSETS / "teacher.pt").read_bytes() + b" ")
    both = {**given, "teacher": f"{given['teacher']},{own}"}
    report = study("pkd", seeds=1, out="study", **both)
    assert starts(tmp_path / "study") == {"alone/seed0": 1, "pkd/seed0": 1} and report["teacher"] is None
    assert "| pkd | neck | 1 |" in (tmp_path / "study" / "compare.md").read_text()
    own.write_bytes(b"changed")
    with pytest.raises(UsageError, match="the file teacher= has changed"):
        study("pkd", seeds=1, out="study", **both)
    with pytest.raises(UsageError, match="arm builtin: Ultralytics' own distillation takes one teacher"):
        study("builtin", seeds=1, out="other", **both)


def test_a_teacher_of_another_task_has_no_score_of_its_own(given, tmp_path):
    YOLO("yolo11n-seg.yaml").save(tmp_path / "segment.pt")
    plan = plan_study("pkd", None, 1, "study", {**given, "teacher": str(tmp_path / "segment.pt")})
    assert plan.teacher is None and len(plan.jobs) == 2


def test_a_run_killed_after_its_last_epoch_begins_again(tmp_path, monkeypatch):
    """Ultralytics' own trainer cannot resume what has no epoch left, however often it is asked."""
    file = tmp_path / "weights" / "last.pt"
    file.parent.mkdir()
    file.touch()
    for epoch, wanted in ((0, file), (1, file), (2, None), (-1, None)):
        checkpoint = {"epoch": epoch, "optimizer": {}, "train_args": {"epochs": 3}}
        monkeypatch.setattr("yolokd.detectors.opening.read_content", lambda *a, c=checkpoint: c)
        assert interrupted(tmp_path, False) == wanted


def test_data_that_no_training_could_use_is_refused_before_anything_is_written(given, tmp_path, capsys):
    """Once, by the part of `yolokd check` that takes seconds; 40 broken trainings would have told it otherwise."""
    data = data_set(tmp_path / "data", ["0 0.5", "0 0.5"], [GOOD])
    words = [f"{k}={v}" for k, v in {**given, "data": data, "methods": "pkd", "out": tmp_path / "study"}.items()]
    said = refusal(capsys, tmp_path, "study", *words)
    assert "train: no image" in said and "check=False" in said
    assert "check=maybe is neither True nor False" in refusal(capsys, tmp_path, "study", *words, "check=maybe")


@pytest.mark.parametrize("arms", [["pkd"], ["builtin"]])
def test_data_is_looked_at_once_and_by_wish_not_at_all(arms, given, tmp_path, monkeypatch, caplog):
    """Before the first run only, whichever way of distilling comes first."""
    monkeypatch.setattr(processes, "WORKER", ["-c", SCRIPTED])
    monkeypatch.setattr(LOGGER, "propagate", True)

    def lines(**more) -> list[str]:
        caplog.clear()
        study(arms, seeds=1, out=tmp_path / more.pop("out", "study"), **given, **more)
        said = dict.fromkeys(record.getMessage() for record in caplog.records)
        return [line for line in said if line.startswith("Check: ")]

    first = lines()
    assert [line.split(":")[1].strip() for line in first[:2]] == ["train has 24 images", "val has 8 images"]
    assert "as the checkpoints state it" in first[2]
    assert lines() == [] and lines(out="other", check=False) == []


def test_two_studies_do_not_share_a_folder(given, scripted, tmp_path):
    from filelock import FileLock

    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    with FileLock(tmp_path / "study" / ".lock"), pytest.raises(UsageError, match="worked on by another process"):
        study("pkd", seeds=1, out="study", **given)


def test_a_result_cut_short_is_made_again(given, scripted, tmp_path):
    study("pkd", seeds=1, out="study", **given)
    (tmp_path / "study" / "pkd" / "seed0" / RESULT).write_text('{"map50": 0.')
    study("pkd", seeds=1, out="study", **given)
    assert starts(tmp_path / "study") == {"alone/seed0": 1, "pkd/seed0": 2, "teacher": 1}


def test_leaving_early_ends_the_running_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WORKER", ["-c", "import time; time.sleep(60)"])
    runs = run_all([Job("a", tmp_path / "a", {}), Job("b", tmp_path / "b", {})], devices=["", ""], threads=1)
    monkeypatch.setattr(time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    begun, start = [], start_run
    monkeypatch.setattr(processes, "start_run", lambda *a: begun.append(start(*a)) or begun[-1])
    with pytest.raises(KeyboardInterrupt):
        next(runs)
    assert [p.returncode for p in begun] == [-signal.SIGTERM] * 2


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(pid: int) -> bool:
    until = time.monotonic() + 30
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return gone(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ending_a_run_ends_what_it_started(tmp_path, monkeypatch):
    """A run has loaders' processes of its own."""
    code = "import os, subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    monkeypatch.setattr(processes, "WORKER", ["-c", code])
    process = start_run(Job("a", tmp_path / "a", {}), 1)
    log = tmp_path / "a" / "log.txt"
    while not log.read_text().strip():
        time.sleep(0.02)
    processes.end_all([process])
    assert process.returncode == -signal.SIGTERM and wait_for(int(log.read_text()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run_ends_when_its_study_is_killed_hard(tmp_path):
    child = "import os, time; from yolokd.distill.parent import end_with_parent; "
    child += "end_with_parent(os.environ['YOLOKD_STUDY']); print('ready', flush=True); time.sleep(60)"
    parent = f"""
import sys, time
from pathlib import Path
from yolokd.studies import processes
from yolokd.studies.plan import Job
processes.WORKER = ["-c", {child!r}]
print(processes.start_run(Job("a", Path({str(tmp_path)!r}), {{}}), 1).pid, flush=True)
time.sleep(60)
"""
    study_process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(study_process.stdout.readline())
    until = time.monotonic() + 60
    while "ready" not in (tmp_path / "log.txt").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not gone(pid)
    study_process.kill()
    study_process.wait()
    assert wait_for(pid)


# --- The statistics and tables ---

ARMS = {"alone": "", "builtin": "", "pkd": "neck", "logit": "head"}
SCORES = {
    "alone": (0.25, 0.27, 0.26),
    "builtin": (0.26, 0.26, 0.26),
    "pkd": (0.35, 0.36, 0.37),
    "logit": (0.25, 0.29, 0.26),
}
RESULTS = {
    (arm, seed): {"map50": v, "map50_95": v / 2, "wall_s": 100 + 50 * (arm == "pkd") + seed}
    for arm, scores in SCORES.items()
    for seed, v in enumerate(scores)
}
SCORED = {"map50": 0.66, "map50_95": 0.5}


def summary(results=RESULTS, seeds=(0, 1, 2), teacher=SCORED):
    about = {"schema": "yolokd.study/1", "jobs": 1, "arguments": {"model": "s.pt", "teacher": "t.pt", "data": "d.yaml"}}
    return about | report.summarise(ARMS, seeds, results, teacher, {})


def test_differences_are_paired_by_seed():
    """pkd - alone: 10, 9 and 11 points: mean 10, sd 1, half width 4.303 / sqrt(3) = 2.484."""
    found = report.compare("pkd", "alone", "map50", (0, 1, 2), RESULTS)
    assert found["differences"] == pytest.approx([0.10, 0.09, 0.11])
    assert found["ci95"] == pytest.approx([0.1 - 0.02484, 0.1 + 0.02484], abs=1e-5)
    assert (found["n"], found["verdict"]) == (3, "better")
    assert report.compare("logit", "alone", "map50", (0, 1, 2), RESULTS)["verdict"] == NO_EVIDENCE
    assert report.compare("pkd", "alone", "map50", (1,), RESULTS)["verdict"] == ONE_RUN


def test_gap_closed_and_time():
    rows = {s["arm"]: s for s in summary()["summary"]}
    assert rows["pkd"]["map50_gap_closed"] == pytest.approx((0.36 - 0.26) / (0.66 - 0.26))
    assert rows["alone"]["map50_gap_closed"] is None
    assert rows["pkd"]["wall_ratio"] == pytest.approx(151 / 101), "the median pair"
    worse = summary(teacher={"map50": 0.2, "map50_95": 0.1})
    assert all(s["map50_gap_closed"] is None for s in worse["summary"]), "no gap, no share of it"


def test_an_interrupted_run_has_no_time():
    results = {**RESULTS, ("pkd", 1): {**RESULTS["pkd", 1], "wall_s": None}}
    rows = {s["arm"]: s for s in summary(results)["summary"]}
    assert rows["pkd"]["wall_ratio"] == pytest.approx((150 / 100 + 152 / 102) / 2) and rows["pkd"]["n"] == 3


def test_each_arm_is_held_against_alone_and_builtin():
    pairs = {(c["arm"], c["reference"]) for c in summary()["comparisons"]}
    assert pairs == {(a, "alone") for a in ("builtin", "pkd", "logit")} | {(a, "builtin") for a in ("pkd", "logit")}


def test_markdown():
    text = report.markdown(summary())
    assert "| teacher | | | 66.0 | | 50.0 | | | |" in text
    assert "| pkd | neck | 3 | 36.0 ± 1.0 | 25% | 18.0 ± 0.5 | 14% | 151 s | 1.50 |" in text
    assert "| pkd | mAP50 | 3 | +10.0 | +7.5 to +12.5 | better |" in text
    assert "No evidence of a difference to the student alone in mAP50: built-in, logit." in text
    assert "| neck | pkd | 36.0 | +10.0 | +7.5 to +12.5 | 18.0 | +5.0 | +3.8 to +6.2 |  |  |" in text
    assert "| 1 | 27.0 | 26.0 | 36.0 | 29.0 |" in text
    one = report.markdown(summary(seeds=(0,)))
    assert "One seed allows no conclusion" in one and "Better than" not in one


def test_an_unfinished_study_has_tables_too():
    some = {k: v for k, v in RESULTS.items() if k in {("alone", 0), ("pkd", 0), ("pkd", 1)}}
    text = report.markdown(summary(some, teacher=None))
    assert "9 runs are missing" in text and "| 1 |  |  | 36.0 |  |" in text


def test_csv_has_a_line_a_run():
    rows = list(csv.DictReader(report.as_csv(summary()).splitlines()))
    assert len(rows) == 12 and rows[0]["arm"] == "alone"
    assert (rows[7]["arm"], rows[7]["seed"], float(rows[7]["map50"])) == ("pkd", "1", 0.36)


# --- The real thing ---


def relabelled(scenes, folder, keep: dict[int, int], names: dict[int, str]):
    """YAML of the same validation images in which class i is keep[i], and objects of other classes are unmarked."""
    source = scenes.parent
    for labels in (source / "labels" / "val").glob("*.txt"):
        rows = [line.split() for line in labels.read_text().splitlines()]
        kept = [" ".join([str(keep[int(row[0])]), *row[1:]]) for row in rows if int(row[0]) in keep]
        (folder / "labels" / "val").mkdir(parents=True, exist_ok=True)
        (folder / "labels" / "val" / labels.name).write_text("\n".join(kept))
    shutil.copytree(source / "images" / "val", folder / "images" / "val")
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({"path": str(folder), "train": "images/val", "val": "images/val", "names": names}))
    return file


@pytest.mark.slow
def test_a_teacher_is_scored_by_the_names_of_its_classes(scenes, tmp_path):
    """Class 3 of the data is not class 3 of the teacher."""
    names = yaml.safe_load(scenes.read_text())["names"]

    def score(data, **more) -> float:
        given = {"model": TEACHER, "data": str(data), "imgsz": 64, "batch": 8, "workers": 0, "device": "cpu", **more}
        return validate(tmp_path / "run", given, 1)["map50"]

    whole = score(scenes)
    turned = {i: (i + 3) % 10 for i in names}
    for folder, title in (("turned", str), ("named", lambda name: f"my {name}")):
        (tmp_path / folder).mkdir()
        data = relabelled(scenes, tmp_path / folder, turned, {turned[i]: title(name) for i, name in names.items()})
        more = {"class_map": {name: title(name) for name in names.values()}} if folder == "named" else {}
        assert score(data, **more) == pytest.approx(whole, abs=1e-9) and whole > 0.3
    (tmp_path / "few").mkdir()
    box = YOLO(TEACHER).val(data=str(scenes), imgsz=64, batch=8, workers=0, device="cpu", plots=False).box
    (first, second, *_), each = box.ap_class_index.tolist(), box.ap50
    few = relabelled(scenes, tmp_path / "few", {second: 0, first: 1}, {0: names[second], 1: names[first]})
    assert score(few) == pytest.approx((each[0] + each[1]) / 2), "other classes' detections are no false alarms"
    other = next(name for i, name in names.items() if i not in (first, second))
    assert score(few, class_map={other: names[second]}) < score(few), "another class may be meant"


@pytest.mark.slow
def test_a_real_study_with_an_interrupted_run(given, tmp_path):
    """Two arms, two seeds; one run is killed after its first epoch and goes on from there."""
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump({"strong": {"method": "logit", "logit.gain": 2}}))
    given = {**given, "epochs": 2}
    plan = plan_study(None, tmp_path / "arms.yaml", 2, "study", given)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    job = plan.jobs["strong", 0]
    process = start_run(job, 1)
    table = job.folder / "train" / "results.csv"
    best = job.folder / "train" / "weights" / "best.pt"  # written after last.pt, which is then whole
    while process.poll() is None and not (table.is_file() and best.is_file()):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert job.result() is None, "it was to be killed between its epochs"

    report = study(arms=tmp_path / "arms.yaml", seeds=2, out="study", jobs=2, threads=1, **given)
    assert not report["failed"] and report["missing"] == 0
    runs = {(r["arm"], r["seed"]): r for r in report["runs"]}
    assert [k for k, r in runs.items() if r["resumed"]] == [("strong", 0)]
    assert all(r["epochs"] == 2 for r in runs.values())
    assert runs["strong", 0]["wall_s"] is None and runs["strong", 1]["wall_s"] > 0
    assert 0.3 < report["teacher"]["map50"] <= 1 and report["versions"][0]["ultralytics"]
    made = yaml.safe_load((tmp_path / "study" / "strong" / "seed1" / "train" / "args.yaml").read_text())
    assert made["kd"]["methods"]["logit"]["gain"] == 2 and made["seed"] == 1


@pytest.mark.slow
def test_a_study_of_an_rtdetr_student_validated_at_the_end_only(given, tmp_path):
    """The run's process must find the trainer of its student by itself, and a YAML that YOLO() cannot open."""
    small = tmp_path / "smalln.yaml"
    shape = {k: v for k, v in layout("rtdetr-2-20-32").items() if k not in {"scale", "yaml_file"}}
    small.write_text(yaml.safe_dump(shape))
    given = {**given, "model": str(small), "epochs": 2, "val": False}
    report = study("match", seeds=1, out="study", threads=1, **given)
    assert not report["failed"] and report["missing"] == 0
    assert {r["arm"] for r in report["runs"]} == {"alone", "match"}
    for run in report["runs"]:
        with (tmp_path / "study" / run["arm"] / "seed0" / "train" / "results.csv").open() as file:
            losses = [float(row["val/giou_loss"]) for row in csv.DictReader(file)]
        assert losses[0] == 0 < losses[1], "only the last epoch was to be validated"


def test_an_arm_is_not_scored_at_another_epoch_than_the_rest():
    """Without its own val= it follows the study; with one, a best epoch would meet a last one."""
    arms = {"alone": {"method": "alone"}, "quick": {"method": "pkd", "val": False}}
    with pytest.raises(UsageError, match=r"^arm quick: val=False is for all arms alike: give it beside arms=\.$"):
        build_arms(arms, {"teacher": TEACHER})
    made = build_arms({**arms, "quick": {"method": "pkd"}}, {"teacher": TEACHER, "val": False})
    assert [arm.arguments["val"] for arm in made] == [False, False]
