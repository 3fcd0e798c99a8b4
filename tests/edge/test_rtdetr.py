"""RT-DETR from the checkpoint to the board: the same boxes as Ultralytics, and the same accuracy."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.edge import centre_and_size, colour_frames, entry, labelled, measured, metadata, toy
from helpers.models import NAMES, lively
from onnx import numpy_helper
from ultralytics import RTDETR

import yolokd
from yolokd.detectors.onnx import OnnxDetector
from yolokd.errors import UsageError
from yolokd.onnx import parity
from yolokd_edge import cli
from yolokd_edge.boxes import letterbox
from yolokd_edge.bundle import open_bundle
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import DETR, PRECISIONS
from yolokd_edge.detector import Detector
from yolokd_edge.outputs.detr import Queries
from yolokd_edge.verify import verify_bundle

HEAD = {"head": "RTDETRDecoder"}
FP16 = tuple(map(int, onnxruntime.__version__.split(".")[:2])) > (1, 17)  # which computes NaN in half precision


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[np.ndarray]:
    return colour_frames(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return lively("rtdetr-2-60-32", tmp_path_factory.mktemp("detr") / "detr.pt")


@pytest.fixture(scope="module")
def data(tmp_path_factory, checkpoint, frames) -> Path:
    """Frames whose objects are what the checkpoint detects, moved a little: it is neither right nor wrong."""
    random, model, objects = np.random.default_rng(0), RTDETR(checkpoint), []
    for frame in frames:
        boxes = model.predict(frame, imgsz=96, conf=0.5, device="cpu", verbose=False)[0].boxes.data.numpy()[::3]
        moved = boxes[:, :4] + random.uniform(-0.1, 0.1, (len(boxes), 4)) * np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
        objects.append(np.c_[boxes[:, 5], centre_and_size(moved, frame)])
    return labelled(tmp_path_factory.mktemp("data") / "data", frames, objects, NAMES)


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, data) -> Path:
    """The bundle with all files; an untrained model's accuracy in INT8 is of no interest here."""
    file = tmp_path_factory.mktemp("made") / "detr-edge.zip"
    return yolokd.bundle(checkpoint, file, data=data, fp16=FP16, int8=True, max_drop=100)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder)
    return folder


def test_the_file_says_what_it_is_and_how_frames_are_fitted(folder):
    detector, manifest = Detector(folder / "model.onnx", threads=1), json.loads((folder / "bundle.json").read_text())
    assert detector.contract.output == manifest["contract"]["output"] == DETR and detector.contract.hw == (96, 96)
    assert manifest["contract"]["preprocessing"]["stretch"] and "letterbox" not in manifest["contract"]["preprocessing"]
    found = detector.contract.meta["parity"]
    assert found["pass"] and found["raw"] is None and found["rows"]["n"] > 50 and found["dets"]["n"] > 50


@pytest.mark.parametrize(("conf", "most"), [(0.25, 300), (0.5, 7), (0.0, 300)])
def test_boxes_are_those_of_ultralytics(conf, most, folder, checkpoint, frames):
    """Of the same file to the last digit, of the checkpoint up to rounding; on frames of many shapes, none square."""
    detector = Detector(folder / "model.onnx", threads=1, conf=conf, max_det=most)
    file, model = RTDETR(folder / "model.onnx"), RTDETR(checkpoint)
    total = 0
    for frame in frames:
        given = {"rect": False, "conf": conf, "max_det": most, "imgsz": 96, "device": "cpu", "verbose": False}
        found = detector.detect(frame)
        assert np.array_equal(found, file.predict(frame, **given)[0].boxes.data.numpy())
        total += len(found)
        if conf:  # without a threshold the last rows of equal score are others
            expected = model.predict(frame, **given)[0].boxes.data.numpy()
            gap = np.abs(found[:, None] - expected[None]).max(2)  # rows of nearly equal score come in any order
            assert found.shape == expected.shape and (not len(found) or gap.min(1).max() < 0.01)
    assert total == len(frames) * 7 if most == 7 else total > 100


def test_shares_become_pixels_of_the_frame(tmp_path):
    """Each axis by its own; what is not above the threshold goes, nothing is cut, and the best come first."""
    final = np.zeros((1, 20, 6), np.float32)
    final[0, 0] = 0.5, 0.5, 0.25, 0.5, 0.9, 2
    final[0, 1] = 0, 1, 0.5, 0.5, 0.8, 0
    final[0, 2] = 0.5, 0.5, 0.25, 0.5, 0.25, 1
    detector = Detector(toy(tmp_path / "a.onnx", final, metadata() | HEAD))
    found = detector.detect(np.zeros((80, 400, 3), np.uint8))
    assert found.tolist() == [[150, 20, 250, 60, pytest.approx(0.9), 2], [-100, 60, 100, 100, pytest.approx(0.8), 0]]
    assert detector.candidates == 2 and detector.contract.output == DETR
    detector.max_det = 1
    assert len(detector.detect(np.zeros((80, 400, 3), np.uint8))) == 1


def test_the_input_is_stretched_without_a_border(tmp_path):
    detector = Detector(toy(tmp_path / "a.onnx", np.zeros((1, 20, 6)), metadata() | HEAD))
    blob, box = detector.preprocess(np.full((10, 300, 3), 255, np.uint8))
    assert blob.shape == (1, 3, 32, 64) and (blob == 1).all()
    assert box.pad == (0, 0) and box.gain == (64 / 300, 3.2)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([0.5, 0.5, 0.1, 0.1, 0.9, 3], "classes that its metadata does not name"),
        ([0.5, 0.5, 0.1, 0.1, 0.9, 0.4], "classes that its metadata does not name"),  # scores of two classes
        ([np.nan, 0.5, 0.1, 0.1, 0.9, 1], "not finite"),
    ],
)
def test_an_output_that_is_none_is_refused(rows, sentence, tmp_path):
    file = toy(tmp_path / "a.onnx", np.array([[rows] * 9]), metadata() | HEAD)
    with pytest.raises(EdgeError, match=sentence):
        Detector(file).detect(np.zeros((80, 400, 3), np.uint8))


def test_another_shape_is_refused(tmp_path):
    """Such as that of old versions of Ultralytics, a score for each class."""
    for output in (np.zeros((1, 9, 7)), np.zeros((1, 7, 42))):
        with pytest.raises(EdgeError, match=r"declares detr_cxcywh_conf_cls with 3 classes, \(1, queries, 6\)"):
            Detector(toy(tmp_path / "a.onnx", output, metadata() | HEAD))


@pytest.mark.parametrize("precision", PRECISIONS if FP16 else ("fp32", "int8"))
def test_verify_passes_and_is_exact_here(precision, made):
    figures = verify_bundle(open_bundle(made), threads=1, precision=precision)
    assert figures["pass"] and figures["exact"] and figures["dets"]["n"] > 20 and figures["raw"]["max_abs_box"] == 0


def test_verify_sees_a_letterbox_where_frames_are_to_be_stretched(made, monkeypatch, capsys):
    monkeypatch.setattr(Queries, "fit", lambda self, frame, validating=False: letterbox(frame, self.contract.hw))
    assert cli.main(["verify", "--model", str(made)]) == 5
    assert "does not compute what the bundle says" in capsys.readouterr().err


def test_parity_sees_other_weights(folder, checkpoint, tmp_path):
    model = onnx.load(folder / "model.onnx")
    for weights in model.graph.initializer:
        if weights.name.endswith("dec_bbox_head.1.layers.1.bias"):
            moved = numpy_helper.to_array(weights) + np.float32(0.02)
            weights.CopyFrom(numpy_helper.from_array(moved, weights.name))
            break
    else:
        raise AssertionError("no such weights")
    onnx.save(model, tmp_path / "a.onnx")
    images = parity.stock_images()
    assert parity.compare(checkpoint, folder / "model.onnx", images)["pass"]
    worse = parity.compare(checkpoint, tmp_path / "a.onnx", images)
    assert not worse["pass"] and 0.1 < worse["rows"]["max_abs_box"] < 9


def test_accuracy_is_that_of_ultralytics_validator(folder, data, capsys):
    """Of each file; the bundle's own figures are the validator's."""
    known = json.loads((folder / "bundle.json").read_text())["models"]
    for name, model in ((n, m) for n, m in known.items() if "trt" not in n):
        precision = ["--precision", model["precision"]]
        assert cli.main(["val", "--model", str(folder), *precision, "--data", str(data), "--json"]) == 0
        ours = json.loads(capsys.readouterr().out)["accuracy"]
        for key in ("map50", "map50_95"):
            assert ours[key] == pytest.approx(model["accuracy"][key], abs=5e-3), name
    assert 0.2 < known["model.onnx"]["accuracy"]["map50_95"] < 0.95


def test_it_is_drawn_printed_and_measured(folder, data, tmp_path, capsys):
    images = data.parent / "images"
    words = ["detect", "--model", str(folder), "--source", str(images), "--frames", "2", "--json"]
    assert cli.main([*words, "--save", str(tmp_path / "drawn")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and all(d["name"] in NAMES.values() for line in lines for d in line["detections"])
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    (record,) = measured([folder], images, quick=True, time_limit=0.3)
    assert record["model"]["output_contract"] == DETR and record["results"]["dets_mean"] > 10


def test_what_cannot_be_done_is_one_sentence(folder, checkpoint, tmp_path):
    with pytest.raises(UsageError, match="contract=nms is for YOLOs"):
        yolokd.export(checkpoint, tmp_path / "x.onnx", contract="nms")
    with pytest.raises(UsageError, match=r"outputs detr_cxcywh_conf_cls.* give the RT-DETR's .pt file"):
        OnnxDetector(str(folder / "model.onnx"))
    assert not list(tmp_path.iterdir())


def test_yolokds_own_entry_names_the_contract_too(tmp_path):
    file = toy(tmp_path / "a.onnx", np.zeros((1, 9, 6)), metadata() | entry(DETR))
    assert Detector(file).contract.output == DETR
