"""A fit for every head: candidates without detections, the teacher's detections, the ranking, and the whole once."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers.bars import bars
from helpers.models import NAMES, lively
from helpers.training import TINY

from yolokd.detectors import opening
from yolokd.detectors.opening import open_model, open_student
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.errors import UsageError
from yolokd.fitting import measuring
from yolokd.fitting.candidates import grid, least_side, store_family, works
from yolokd.fitting.files import export_detections, export_random
from yolokd.fitting.fit import fit
from yolokd.fitting.ranking import Sample, rank
from yolokd.fitting.request import names_of, read_request
from yolokd_edge.detector import Detector
from yolokd_edge.images import list_images, read_image

SEGMENT, POSE, OBB, DETR = HEADS = ["yolo11n-seg", "yolov8n-pose", "yolo26n-obb", "rtdetr-2-20-32"]
TASKS = {SEGMENT: "seg", POSE: "pose", OBB: "obb", DETR: "obb"}  # an RT-DETR takes the boxes around the corners
SMALL = {"widths": [0.125], "depths": [0.33], "sizes": [64]}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Function: family -> the request for a student of an untrained teacher, with images of bars."""
    made = {}

    def ask(family: str):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            data = bars(folder / "bars", TASKS[family], 8, {k: NAMES[k] for k in range(2)})
            given = dict.fromkeys(("accuracy", "family", "devices", "threads"))
            given |= {"device": "here", "search": 1.0, "out": folder / "out", "arguments": {"epochs": 1}, **SMALL}
            teacher = lively(family, folder / "teacher.pt")
            made[family] = read_request(teacher=teacher, data=data, budget="infer.p50=5ms", **given)
        return made[family]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "USER_CONFIG_DIR", tmp_path_factory.mktemp("config"))
        yield ask


@pytest.mark.parametrize("family", HEADS)
def test_a_candidate_finds_nothing(family, asked, tmp_path):
    request = asked(family)
    (candidate,) = request.candidates
    names = names_of(request.arguments, request.data)
    detector = Detector(export_random(request.family, candidate, names, tmp_path / "a.onnx"), threads=1)
    assert detector.contract.hw == (64, 64) and detector.names == {0: "class 0", 1: "class 1"}
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len(detector.detect(image)) == 0
    work = works(request.family, [candidate])[candidate]
    assert 0 < work.gflops < 0.05 and work.convolutions > 40
    if family == POSE:
        assert request.family.file.read_text().count("kpt_shape:\n- 3\n- 3"), "the data's, not the teacher's 17"


@pytest.mark.parametrize("family", HEADS)
def test_the_teachers_detections_are_answered_without_computing(family, asked, tmp_path):
    request = asked(family)
    images = list_images(str(request.images[0].parent))
    teacher = open_model(request.teacher)
    detector = Detector(export_detections(teacher, images, 64, tmp_path / "detections.onnx"), threads=1)
    first, second = (detector.detect(read_image(image)) for image in images[:2])
    assert len(first) > 0 and np.array_equal(first, second)


@pytest.mark.parametrize("family", HEADS)
def test_every_head_is_ranked_by_its_start(family, asked, monkeypatch):
    request = asked(family)
    (candidate,) = request.candidates
    ready = request.ready(candidate)
    detr = isinstance(ready.student, RTDETRReader)
    sample = Sample(request.data, request.arguments, 64, torch.device("cpu"), ready.student.model.task, detr)
    found = rank(ready, sample)
    assert math.isfinite(found.loss) and found.step > 0
    own = copy.deepcopy(request.ready(candidate).student.model.state_dict())
    monkeypatch.setattr("yolokd.init.transfer.solve", lambda *_: {"teacher": own})
    assert rank(request.ready(candidate), sample).loss != pytest.approx(found.loss, rel=1e-3), "without a start"


def test_an_rtdetr_needs_a_cell_for_each_query(asked, tmp_path_factory):
    assert least_side(open_student(asked(SEGMENT).family.file).model) == 32
    layout = dict(opening.yaml_model_load("yolov8-rtdetr.yaml"), scale="n")
    layout["head"][-1][-1] = ["nc", 32, 300, 2, 4, 2]
    family = store_family(layout, 2)
    least = least_side(open_student(family.file).model)
    assert least == 128, "256 + 64 + 16 cells; at 96 px 189"
    assert {c.imgsz for c in grid(family, 160, [0.125], [0.33], None, least)} == {160, 128}
    with pytest.raises(UsageError, match=r"sizes=\[96\] is not a list of numbers from 128"):
        grid(family, 160, [0.125], [0.33], [96], least)


@pytest.mark.slow
@pytest.mark.parametrize("family", [POSE])  # a minute each: what the others do differently is tested above
def test_in_earnest(family, asked, tmp_path, monkeypatch):
    request = asked(family)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "is_invalid", lambda record: False)  # this machine may be as busy as it likes
    training = {k: v for k, v in TINY.items() if k not in ("imgsz", "device")} | {"epochs": 1}
    bench = {"bench.quick": True, "bench.threads": 1, "bench.time_limit": 1.0}
    found = fit(request.teacher, request.arguments["data"], "infer.p50=1s", search=0, **SMALL, **training, **bench)
    assert found["student"]["name"] == "w0.125-d0.33-64" and 0 < found["student"]["measured_ms"] < 1000
    assert Detector("runs/fit/student.onnx", threads=1).contract.hw == (64, 64)
