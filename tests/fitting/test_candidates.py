"""The grid: every candidate is another network, counted as ONNX counts it, and only the largest need to be tried."""

from __future__ import annotations

import pytest
from ultralytics.nn.tasks import DetectionModel

from yolokd.detectors import opening
from yolokd.detectors.opening import open_teacher
from yolokd.errors import UsageError
from yolokd.fitting.candidates import (
    Candidate,
    count,
    grid,
    layout_of,
    outermost,
    store_family,
    works,
    yaml_of,
)


@pytest.fixture
def family(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "USER_CONFIG_DIR", tmp_path)
    return store_family(dict(open_teacher(str(teacher)).yaml), 10)


def test_the_teachers_own_factors_rebuild_the_teacher(family, teacher):
    built = DetectionModel(yaml_of(family, Candidate(family.width, family.depth, 64)), verbose=False)
    want = open_teacher(str(teacher))
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in want.state_dict().items()}


@pytest.mark.parametrize("name", [pytest.param("yolo11m.yaml", marks=pytest.mark.slow), "yolo26s.yaml"])
def test_another_family_keeps_its_scale(name, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "USER_CONFIG_DIR", tmp_path)
    family = store_family(layout_of(open_teacher(str(teacher)), name, False), 80)
    built = DetectionModel(yaml_of(family, Candidate(family.width, family.depth, 64)), verbose=False)
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in DetectionModel(name, verbose=False).state_dict().items()
    }


def test_a_layout_with_factors_of_its_own_and_no_scales_is_a_family(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "USER_CONFIG_DIR", tmp_path)
    layout = dict(opening.yaml_model_load("yolov8n.yaml"))
    for key in ("scales", "scale", "yaml_file"):
        layout.pop(key)
    family = store_family({**layout, "depth_multiple": 0.33, "width_multiple": 0.5}, 80)
    assert (family.depth, family.width) == (0.33, 0.5)
    small = DetectionModel("yolov8s.yaml", verbose=False)
    built = DetectionModel(yaml_of(family, Candidate(0.5, 0.33, 64)), verbose=False)
    assert sum(p.numel() for p in built.parameters()) == sum(p.numel() for p in small.parameters())


def test_no_two_candidates_are_one_network(family):
    found = grid(family, 96, widths=[0.25, 0.249, 0.125], depths=[0.5, 0.34, 0.1], sizes=[96, 70, 64])
    assert found[0] == Candidate(0.25, 0.5, 96), "the largest comes first"
    assert len(found) == len(set(found)) == 4, "one of the depths and of each like pair of widths and sizes"
    counted = {(c.imgsz, count(DetectionModel(yaml_of(family, c), verbose=False))) for c in found}
    assert len(counted) == 4


def test_sizes_are_rounded_up_as_ultralytics_does(family):
    found = grid(family, 100, widths=[0.25], depths=[0.5])
    assert [c.imgsz for c in found] == [128, 96, 64], "100, 80 and 60 pixels"


def test_the_work_grows_with_the_area(family):
    small, large = Candidate(0.125, 0.5, 64), Candidate(0.125, 0.5, 128)
    found = works(family, [small, large])
    assert found[large].gflops == pytest.approx(4 * found[small].gflops)
    assert found[large].convolutions == found[small].convolutions


def test_only_what_nothing_surpasses_is_tried():
    best = [Candidate(0.5, 1, 64), Candidate(0.25, 1, 96)]
    rest = [Candidate(0.25, 1, 64), Candidate(0.5, 0.5, 64), Candidate(0.125, 0.5, 96)]
    assert outermost([*rest, *best]) == best


@pytest.mark.parametrize(
    ("key", "value"), [("widths", []), ("widths", "wide"), ("depths", [0]), ("sizes", [16]), ("widths", [True])]
)
def test_what_is_no_list_of_sizes_is_refused(key, value, family):
    with pytest.raises(UsageError, match=f"{key}="):
        grid(family, 96, **{key: value})


@pytest.mark.parametrize("name", ["none.yaml", "rtdetr-l.yaml", "yolo11n-seg.yaml"])
def test_a_family_that_cannot_be_started_is_refused(name, teacher):
    with pytest.raises(UsageError, match=f"family={name}"):
        layout_of(open_teacher(str(teacher)), name, False)
