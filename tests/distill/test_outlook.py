"""What is said before a training starts."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from helpers.cli import contents
from helpers.faulty import GOOD, data_set
from helpers.training import ASSETS, TINY
from ultralytics import YOLO

import yolokd
from yolokd.config import options
from yolokd.data.splits import read_data
from yolokd.detectors.opening import open_student
from yolokd.distill import outlook
from yolokd.distill.preflight import preflight

STUDENT, TEACHER = ASSETS / "student.pt", ASSETS / "teacher.pt"
SMALL = {k: v for k, v in TINY.items() if k not in ("plots", "cache")}


@pytest.fixture
def log(monkeypatch):
    """Lines of the log, (level, text)."""
    lines: list[tuple[str, str]] = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append((record.levelname, record.getMessage()))

    handler = Keep()
    outlook.LOGGER.addHandler(handler)
    yield lines
    outlook.LOGGER.removeHandler(handler)


@pytest.fixture
def started(monkeypatch):
    """Whether a training would have started; none does."""
    calls: list[dict] = []
    monkeypatch.setattr(YOLO, "train", lambda self, trainer=None, **given: calls.append(given))
    return calls


def checkpoint(file, data, map50):
    """The bundled student as a training on a data set leaves it."""
    content = torch.load(STUDENT, map_location="cpu", weights_only=False)
    content["train_args"] = {**content["train_args"], "data": str(data)}
    content["train_metrics"] = {"metrics/mAP50(B)": map50}
    torch.save(content, file)
    return file


def test_a_training_begins_with_a_line_for_the_validation_and_for_the_scores(log, started, tmp_path, monkeypatch):
    """Of its own images the training itself tells, once and of all of them."""
    monkeypatch.chdir(tmp_path)
    file = data_set(tmp_path / "data", [GOOD, "1 0.5 0.5 0.5 0.5", "", "7 0.5 0.5 0.2 0.2"], [GOOD])
    before = contents(tmp_path / "data")
    yolokd.train(model=STUDENT, teacher=TEACHER, data=file, **SMALL)
    said = [text for _, text in log if text.startswith("Check: ")]
    assert said[:2] == [
        "Check: val has 1 image: 1 with objects, 0 without, 0 that Ultralytics will skip",
        "Check: mAP50 on these validation images, as the checkpoints state it: student unknown, teacher.pt unknown; "
        "`yolokd check` measures them",
    ]
    warned = [text for level, text in log if level == "WARNING" and "Check: " in text]
    assert any("class that the data does not have" in text for text in warned) and not any("note:" in t for t in said)
    assert started and "check" not in started[0] and contents(tmp_path / "data") == before


def test_check_false_leaves_it_out(log, started, scenes):
    yolokd.train(model=STUDENT, teacher=TEACHER, data=scenes, check=False, **SMALL)
    assert started and not [text for _, text in log if "Check: " in text]
    with pytest.raises(yolokd.errors.UsageError, match="check=no is neither True nor False"):
        yolokd.train(model=STUDENT, teacher=TEACHER, data=scenes, check="no", **SMALL)


def test_no_random_number_is_drawn(log, scenes):
    """A training after it must be the one without it, bit for bit."""
    student = open_student(STUDENT)
    folded = options.fold({"model": STUDENT, "teacher": str(TEACHER), "data": str(scenes), **SMALL})
    ready = preflight(student, folded)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    outlook.tell(student, ready, folded, False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(("own", "warned"), [(0.629, False), (0.631, True)])
def test_scores_that_checkpoints_state_for_the_same_data(log, started, scenes, tmp_path, own, warned):
    student = checkpoint(tmp_path / "s.pt", scenes, own)
    teacher = checkpoint(tmp_path / "t.pt", scenes, 0.65)
    content = torch.load(teacher, weights_only=False)
    content["model"].names = YOLO(TEACHER).names
    torch.save(content, teacher)
    yolokd.train(model=student, teacher=teacher, data=scenes, **SMALL)
    assert f"student {100 * own:.1f}, t.pt 65.0" in " ".join(text for _, text in log)
    assert any("not clearly better" in text for level, text in log if level == "WARNING") == warned


def test_a_score_for_other_data_is_not_known(scenes, tmp_path):
    data = {"yaml_file": str(scenes)}
    content = {"train_args": {"data": str(scenes)}, "train_metrics": {"metrics/mAP50(B)": 0.5}}
    assert outlook.stated(content, data) == 50.0
    (tmp_path / "scenes.yaml").write_bytes(scenes.read_bytes())
    for other in (str(tmp_path / "scenes.yaml"), str(tmp_path / "gone.yaml"), None):
        assert outlook.stated({**content, "train_args": {"data": other}}, data) is None
    assert outlook.stated({**content, "train_metrics": None}, data) is None and outlook.stated(None, data) is None


def test_of_many_images_some_are_looked_at(log, scenes, monkeypatch):
    monkeypatch.setattr(outlook, "LOOKED_AT", 5)
    monkeypatch.setattr(YOLO, "train", lambda self, trainer=None, **given: None)
    yolokd.train(model=STUDENT, teacher=TEACHER, data=scenes, **SMALL)
    assert any("val has 8 images (looked at 5): " in text for _, text in log)


def test_labels_that_lie_elsewhere_are_left_to_the_training(log, started, tmp_path):
    """It says so by itself, with check=False too; of the validation's images it does not."""
    file = data_set(tmp_path / "data", [GOOD, GOOD], [GOOD, GOOD])
    for split in ("train", "val"):
        (tmp_path / "data" / "labels" / split / "1.txt").rename(tmp_path / "data" / "images" / split / "1.txt")
    yolokd.train(model=STUDENT, teacher=TEACHER, data=file, **SMALL)
    stray = [text for _, text in log if "beside the images" in text]
    assert len(stray) == 1 and "warning: val: 1 label file" in stray[0]


def test_with_ultralytics_classes_only_their_objects_are_counted(tmp_path):
    """Of class 0 and 1 with classes=[1]: an image with class 0 alone has no object, and class 0 is not missed."""
    file = data_set(tmp_path / "data", [GOOD, "1 0.5 0.5 0.5 0.5", f"{GOOD}\n1 0.5 0.5 0.4 0.4"], ["1 0.5 0.5 0.5 0.5"])
    student, data = open_student(STUDENT), read_data({"data": str(file)})
    (train, _), found = outlook.examine(student, data, 8, 64, {"classes": [1]})
    assert train.counts()["with_objects"] == 2 and train.histogram == {1: 2}
    assert not any("no object of" in finding.text for finding in found)
    _, found = outlook.examine(student, data, 8, 64, {"classes": 0})
    assert any(finding.text.startswith("val: no image has an object") for finding in found)
    (train, val), _ = outlook.examine(student, data, 8, 64, {})
    assert (train.counts()["with_objects"], val.counts()["with_objects"]) == (3, 1)
