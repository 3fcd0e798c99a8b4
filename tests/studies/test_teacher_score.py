"""A teacher is scored on the data whatever it has beside boxes."""

from __future__ import annotations

import pytest
from helpers.bars import bars
from helpers.models import NAMES, lively
from ultralytics import YOLO

from yolokd.checks import payoff
from yolokd.studies import worker


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A pose teacher of 17 keypoints, and images whose objects have 3."""
    folder = tmp_path_factory.mktemp("given")
    return str(lively("yolov8n-pose", folder / "teacher.pt")), str(bars(folder / "bars", "pose", 4, dict(NAMES)))


def test_by_its_boxes_where_the_data_has_other_keypoints(given, tmp_path, monkeypatch):
    file, data = given
    teacher = YOLO(file)
    assert list(teacher.model.model[-1].kpt_shape) == [17, 3]
    how = {"data": data, "imgsz": 64, "batch": 4, "device": "cpu", "workers": 0}
    kind = worker.counting(teacher, None, [3, 3])
    found = teacher.val(kind, **how, plots=False, save_dir=str(tmp_path / "a")).results_dict
    assert found["metrics/mAP50(P)"] == 0, "keypoints that are not the data's are none"
    assert worker.counting(teacher, None, [17, 3]) is teacher._smart_load("validator")
    options = type("Options", (), dict.fromkeys(("teacher_contract", "teacher_names", "teacher_imgsz", "trust")))
    plan = type("Plan", (), {"classes": None})
    score = payoff.teacher_score(
        file, plan, "pose", options, {**how, "plots": False, "save_dir": str(tmp_path / "b")}, [3, 3]
    )
    assert score.map50 == pytest.approx(100 * found["metrics/mAP50(B)"])
    result = worker.validate(tmp_path / "c", {"model": file, **how}, 1)
    assert result["map50"] == pytest.approx(found["metrics/mAP50(B)"])
