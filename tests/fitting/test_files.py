"""The files whose latency is measured: they find nothing, store small, and count the work as ONNX does."""

from __future__ import annotations

import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from ultralytics import YOLO

from yolokd.detectors.opening import open_model, open_teacher
from yolokd.fitting.candidates import Candidate, store_family, works, yaml_of
from yolokd.fitting.files import export_detections, export_random
from yolokd.onnx import profile
from yolokd_edge.detector import Detector
from yolokd_edge.images import list_images, read_image

SMALL = Candidate(0.125, 0.5, 96)
NAMES = {k: str(k) for k in range(10)}


@pytest.fixture(scope="module")
def family(teacher):
    return store_family(dict(open_teacher(str(teacher)).yaml), 10)


@pytest.fixture(scope="module")
def random_file(family, tmp_path_factory):
    return export_random(family, SMALL, NAMES, tmp_path_factory.mktemp("random") / f"{SMALL.name}.onnx")


def test_a_candidate_is_what_the_trained_student_will_be_but_for_its_weights(random_file, family):
    detector = Detector(random_file, threads=1)
    assert detector.contract.hw == (96, 96) and detector.names == NAMES
    trained = YOLO(yaml_of(family, SMALL))
    trained.model.train()(torch.rand(2, 3, 96, 96))  # biases of 0 would be stored once
    folder = random_file.parent / "as-is"
    folder.mkdir()
    trained.model.pt_path = str(folder / "model.pt")
    file = trained.export(format="onnx", imgsz=96, opset=18, device="cpu", verbose=False)
    found, want = (onnx.load(f).graph for f in (random_file, file))
    assert [n.op_type for n in found.node] == [n.op_type for n in want.node]
    assert {tuple(t.dims) for t in found.initializer} == {tuple(t.dims) for t in want.initializer}


def test_a_candidate_detects_nothing_and_computes_with_ordinary_numbers(random_file):
    detector = Detector(random_file, threads=1)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    output = detector.infer(detector.preprocess(image)[0])
    assert output[:, 4:].max() < 1e-6
    assert np.isfinite(output).all() and 1 < np.abs(output[:, :4]).max() < 1e4
    graph = onnx.load(random_file).graph
    weights = np.concatenate([numpy_helper.to_array(t).ravel() for t in graph.initializer if len(t.dims) == 4])
    assert (np.abs(weights[weights != 0]) > 1e-30).all(), "no denormal numbers, which are slow"


def test_its_weights_store_small(random_file, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(random_file)
    assert (tmp_path / "a.zip").stat().st_size < random_file.stat().st_size / 6


def test_the_work_is_what_onnx_counts(random_file, family):
    counted = works(family, [SMALL])[SMALL]
    assert counted.gflops == pytest.approx(profile.figures(random_file)["gflops"], rel=0.03), "no attention in ours"


def test_the_file_of_detections_answers_as_the_teacher_and_computes_nothing(teacher, scenes, tmp_path):
    images = [*map(str, list_images(str(scenes.parent / "images" / "val")))]
    file = export_detections(open_model(teacher), images, 64, tmp_path / "detections.onnx")
    detector, found = Detector(file, threads=1), []
    for image in images[:3]:
        blob, letterbox = detector.preprocess(read_image(image))
        found.append(detector.postprocess(detector.infer(blob), letterbox))
    assert len(found[0]) > 0 and np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert len(onnx.load(file).graph.node) == 4
    typical = sorted(len(YOLO(teacher).predict(i, imgsz=64, rect=False, verbose=False)[0].boxes) for i in images)
    assert typical[0] <= len(found[0]) <= typical[-1]
