"""The demo: what it says of its figures, and the whole of it on a very small budget."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
import yaml
from helpers.training import ASSETS

from yolokd import cli
from yolokd.demo import clock, photographs, run, setting
from yolokd.distill import fading
from yolokd.errors import UsageError
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
    monkeypatch.setattr(setting, "SCENES", {"train": 3, "val": 2})
    assert cli.main(["demo", "--data-only", str(tmp_path / "scenes")]) == 0
    assert len(list((tmp_path / "scenes/images/train").glob("*.jpg"))) == 3
    assert capsys.readouterr().out == f"{tmp_path / 'scenes' / 'scenes.yaml'}\n"
    assert cli.main(["demo", "--data-only", str(tmp_path / "scenes")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["seed=-1"],
        ["seed=x"],
        ["sede=1"],
        ["--data-only"],
        ["real=yes"],
        ["threads=0"],
        ["data=my.yaml"],
        ["real=False", "teacher=big.pt"],
        ["real=True", "teacher=not-here.pt"],
        ["real=True", "data=not-here.yaml", f"teacher={ASSETS / 'teacher.pt'}"],
    ],
)
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
    monkeypatch.setattr(setting, "SCENES", {"train": 32, "val": 16})
    monkeypatch.setattr(setting, "BUDGET", {**setting.BUDGET, "epochs": 2, "close_mosaic": 0})
    before = torch.get_num_threads()
    assert cli.main(["demo", f"out={tmp_path / 'demo'}", "threads=1"]) == 0
    assert torch.get_num_threads() == before
    said = capsys.readouterr().out
    assert said.index("trains a small detector twice") < said.index("About ") < said.index("=== 1/6")
    parts = re.findall(r"=== \d/6  (.*): about .* all together .* left ===", said)
    assert len(parts) == 6 and all(re.search(rf"  \d\. {part} +\d", said) for part in parts), "as it was planned"
    assert len(re.findall(r"demo: epoch 1 of 2, .* left of this part, .* of all", said)) == 2
    named = dict(re.findall(r"^(Picture|Report|Distilled model): +(\S+)$", said, re.MULTILINE))
    assert len(named) == 3 and all(Path(file).is_file() for file in named.values())
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


# --- on photographs ---


def test_without_a_network_the_remedy_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    assert cli.main(["demo", "real=True"]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "coco128.yaml and yolo11n.pt" in said and "no network" in said and "`yolokd demo`" in said
    assert not list(tmp_path.iterdir())


def test_a_download_that_breaks_off_is_one_sentence(tmp_path, monkeypatch, capsys):
    """Ultralytics tries, and its failure is told with the remedy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(photographs, "is_online", lambda: True)
    tried = []

    def fail(url, *_, **__):
        tried.append(str(url))
        raise ConnectionError("cut off")

    monkeypatch.setattr("ultralytics.utils.downloads.safe_download", fail)
    monkeypatch.setattr("ultralytics.data.utils.safe_download", fail)
    assert cli.main(["demo", "real=True"]) == 2
    assert "yolo11n.pt" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["demo", "real=True", f"teacher={ASSETS / 'teacher.pt'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "coco128.yaml" in said and "cut off" in said and "data= and teacher=" in said
    assert [url.rpartition("/")[2] for url in tried] == ["yolo11n.pt", "coco128.zip"]
    assert not list(tmp_path.iterdir())


def test_images_to_score_on_are_held_out_where_there_are_none(tmp_path):
    images = [tmp_path / f"{i}.jpg" for i in range(9)]
    train, val, held_out = photographs.divided(images, images)
    assert held_out and not set(train) & set(val) and sorted([*train, *val]) == images and len(val) == 3
    assert photographs.divided(images[:6], images[6:]) == (images[:6], images[6:], False)
    assert photographs.divided(images[:6], images[5:])[2], "one shared image is enough"
    with pytest.raises(UsageError, match="needs more"):
        photographs.divided(images[:1], images[:1])


@pytest.mark.parametrize(("file", "found"), [("yolo26s.yaml", "yolo26s.yaml"), ("rtdetr-l.yaml", None), ("", None)])
def test_the_student_is_of_the_teachers_family(file, found):
    teacher = SimpleNamespace(yaml={"yaml_file": file} if file else {})
    assert photographs.family(teacher) == (found or photographs.FAMILY)


@pytest.mark.slow
def test_the_demo_on_photographs(tmp_path, scenes, teacher, monkeypatch, capsys):
    """On files that are here, whose validation images are the training images, as COCO128's are."""
    content = yaml.safe_load(scenes.read_text())
    data = tmp_path / "same.yaml"
    data.write_text(yaml.safe_dump({**content, "val": content["train"]}))
    before = sorted(p for p in scenes.parent.rglob("*"))
    monkeypatch.setattr(photographs, "CHANGES", {"imgsz": 64, "epochs": 1, "close_mosaic": 0})
    words = ["real=True", f"data={data}", f"teacher={teacher}", f"out={tmp_path / 'demo'}", "threads=1"]
    assert cli.main(["demo", *words]) == 0
    said = capsys.readouterr().out
    assert "one in 4 was held out" in said and "learns from 18 images of same.yaml" in said
    assert len(list((tmp_path / "demo/data/val/images").iterdir())) == 6
    assert sorted(p for p in scenes.parent.rglob("*")) == before, "the user's folder is as it was"
    for role in run.ROLES:
        assert f"| {role} |" in said
    rows = {r["name"]: r for r in json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"]}
    assert rows["student alone"]["params"] == rows["student distilled"]["params"] < rows["teacher"]["params"]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "could not be made" not in page and "Not measured: " not in page


# --- times ---


def test_the_time_left_follows_what_has_passed(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    time = clock.Clock([("a", 240.0), ("b", 60.0)])
    assert "About 5 min" in time.plan() and re.search(r"2\. b +60 s", time.plan())
    time.next()
    now[0] = 120.0  # a quarter of four epochs: twice as long as was expected
    time.epoch(SimpleNamespace(epoch=0, epochs=4))
    time.epoch(SimpleNamespace(epoch=3, epochs=4))
    now[0] = 480.0
    time.next()
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "=== 1/2  a: about 4 min, all together 5 min left ===",
        "demo: epoch 1 of 4, 6 min left of this part, 8 min of all",
        "",
        "=== 2/2  b: about 2 min, all together 2 min left ===",
    ]


def test_what_is_measured_leaves_models_and_random_numbers_alone(monkeypatch, teacher):
    from yolokd.detectors.opening import open_student

    some = SimpleNamespace(budget={"imgsz": 64, "batch": 2, "epochs": 3}, train=10, val=4)
    student, big = open_student(ASSETS / "student.pt"), open_student(teacher)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    state = torch.get_rng_state()
    pace = clock.measure(some, student, big, 1)
    assert torch.equal(torch.get_rng_state(), state) and pace.step > pace.teacher / 5 > 0
    assert all(torch.equal(before[k], v) for k, v in student.model.state_dict().items())
    monkeypatch.setattr(clock, "usable_cores", lambda: 3)
    for slow, count in ((2, 3), (3, 2)):  # the number of threads with which a step takes twice as long
        paces = {c: clock.Pace(2.0 if c == slow else 1.0, 0.5) for c in (2, 3)}
        monkeypatch.setattr(clock, "measure", lambda *given, p=paces, **_: p[given[3]])
        assert clock.fastest(some, student, big) == (count, clock.Pace(1.0, 0.5))
    parts = clock.expected(some, clock.Pace(1.0, 0.5))
    assert parts[0] == ("The student alone", 3 * (5 * 1.0 + 2 * 0.5)) and len(parts) == 6
    assert clock.expected(some, clock.Pace(2.0, 1.0))[1][1] == 2 * parts[1][1], "all in proportion to the machine"


@pytest.mark.slow
def test_the_step_time_benchmark_times_three_arms(scenes, teacher, capsys, monkeypatch):
    monkeypatch.setattr(fading, "teacher_metric", None)  # calling it fails: no validation for a few timed steps
    times = steptime(
        str(teacher), str(teacher), str(scenes), steps=2, threads=1, imgsz=64, batch=8, amp=False, workers=0,
        optimizer="AdamW", device="cpu",
    )  # fmt: skip
    assert set(times) == {"student alone", "distill_model", "yolokd", "teacher alone"} and min(times.values()) > 0
    assert "time added by yolokd" in capsys.readouterr().out
