"""The demo: what it says of its figures, and the whole of it on a very small budget."""

from __future__ import annotations

import json

import cv2
import pytest

from yolokd import cli
from yolokd.demo import run
from yolokd.distill import fading
from yolokd.studies.step_time import steptime


def row(name: str, map50: float) -> dict:
    return {
        "name": name,
        "map50": map50,
        "map50_95": map50 / 2,
        "params": 1234567,
        "mb": 3.25,
        "p50_ms": 4,
        "p90_ms": 5,
    }


def test_the_verdict_tells_the_gain_and_the_share_of_the_gap():
    said = run.verdict([row("teacher", 0.65), row("student alone", 0.25), row("student distilled", 0.35)])
    assert "+10.0 points" in said and "25% of the gap" in said


@pytest.mark.parametrize("distilled", [0.25, 0.2])
def test_no_gain_is_said_plainly(distilled):
    said = run.verdict([row("teacher", 0.65), row("student alone", 0.25), row("student distilled", distilled)])
    assert said.startswith("Distilling did not help")


def test_a_teacher_below_the_student_leaves_no_gap_to_close():
    said = run.verdict([row("teacher", 0.2), row("student alone", 0.25), row("student distilled", 0.3)])
    assert "+5.0 points" in said and "gap" not in said


def test_the_table_has_a_line_a_model_and_percent():
    lines = run.table([row("teacher", 0.6562), row("student alone", 0.25)]).splitlines()
    assert lines[2] == "| teacher | 65.6 | 32.8 | 1,234,567 | 3.2 | 4.00 | 5.00 |" and len(lines) == 4


def test_data_only_writes_the_data_set_and_refuses_a_folder_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SCENES", {"train": 3, "val": 2})
    assert cli.main(["demo", "--data-only", str(tmp_path / "scenes")]) == 0
    assert len(list((tmp_path / "scenes/images/train").glob("*.jpg"))) == 3
    assert capsys.readouterr().out == f"{tmp_path / 'scenes' / 'scenes.yaml'}\n"
    assert cli.main(["demo", "--data-only", str(tmp_path / "scenes")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["seed=-1"], ["seed=x"], ["sede=1"], ["--data-only"]])
def test_bad_input_ends_in_one_sentence(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    """The demo writes a teacher.pt of its own."""
    (tmp_path / "teacher.pt").write_bytes(b"mine")
    assert cli.main(["demo", f"out={tmp_path}"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.pt"] and (tmp_path / "teacher.pt").read_bytes() == b"mine"


@pytest.mark.slow
def test_the_whole_demo_on_a_small_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SCENES", {"train": 32, "val": 16})
    monkeypatch.setattr(run, "BUDGET", {**run.BUDGET, "epochs": 1, "close_mosaic": 0})
    assert cli.main(["demo", f"out={tmp_path / 'demo'}"]) == 0
    said = capsys.readouterr().out
    for role in run.ROLES:
        assert f"| {role} |" in said
    picture = cv2.imread(str(tmp_path / "demo" / "accuracy-latency.png"))
    assert picture is not None and picture.std() > 5
    report = json.loads((tmp_path / "demo" / "bench" / "report.json").read_text())
    assert [len(report) if isinstance(report, list) else len(report["records"])] == [3]
    assert (tmp_path / "demo" / "student-distilled.onnx").is_file()
    assert (tmp_path / "demo" / "demo.md").read_text() in said + "\n"
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "could not be made" not in page and all(f'<th scope="row">{role}</th>' in page for role in run.ROLES)


@pytest.mark.slow
def test_the_step_time_benchmark_times_three_arms(scenes, teacher, capsys, monkeypatch):
    monkeypatch.setattr(fading, "teacher_metric", None)  # calling it fails: no validation for a few timed steps
    times = steptime(
        str(teacher), str(teacher), str(scenes), steps=2, threads=1, imgsz=64, batch=8, amp=False, workers=0,
        optimizer="AdamW", device="cpu",
    )  # fmt: skip
    assert set(times) == {"student alone", "distill_model", "yolokd", "teacher alone"} and min(times.values()) > 0
    assert "time added by yolokd" in capsys.readouterr().out
