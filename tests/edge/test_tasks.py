"""Rotated boxes, keypoints and masks from the checkpoint to the board: the same as Ultralytics'."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.edge import centre_and_size, colour_frames, entry, labelled, measured, metadata, shares, toy
from helpers.models import NAMES, lively
from ultralytics import YOLO
from ultralytics.data.utils import polygons2masks_overlap
from ultralytics.utils.metrics import OKS_SIGMA, batch_probiou, kpt_iou
from ultralytics.utils.nms import TorchNMS
from ultralytics.utils.ops import process_mask, resample_segments

import yolokd
from yolokd import compat
from yolokd.errors import ParityError, UsageError
from yolokd.onnx import parity, validation
from yolokd_edge import cli, likeness
from yolokd_edge.boxes import NMS_BLOCK, Letterbox
from yolokd_edge.bundle import open_bundle
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import OBB, POSE, RAW, SEGMENT, TASKS
from yolokd_edge.detector import Detector
from yolokd_edge.ground_truth import Objects, objects
from yolokd_edge.outputs.base import Limits
from yolokd_edge.outputs.obb import Rotated, corners, probiou, rotated_nms
from yolokd_edge.outputs.pose import Keypoints
from yolokd_edge.outputs.segment import Masks
from yolokd_edge.verify import verify_bundle

FAMILY = {"obb": "yolo11n-obb", "pose": "yolo11n-pose", "segment": "yolo11n-seg"}
# not all of each: they take seconds
TWINS = {"obb": {}, "pose": {"int8": True}, "segment": {"fp16": True}}
FIGURE = {"obb": "max_point_diff", "pose": "max_point_diff", "segment": "max_mask_diff"}


@pytest.fixture(scope="module", autouse=True)
def by_axis():
    """Old versions of Ultralytics put boxes a pixel beside: what is compared here is the rest."""
    with compat.boxes_by_axis():
        yield


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[np.ndarray]:
    """Not square, and as long as the input: Ultralytics' validator rounds the sides of longer ones otherwise."""
    found = colour_frames(tmp_path_factory.mktemp("frames"), 6)
    scales = [96 / max(frame.shape) for frame in found]
    return [cv2.resize(f, None, fx=s, fy=s, interpolation=cv2.INTER_AREA) for f, s in zip(found, scales, strict=True)]


def label_rows(task: str, result, frame: np.ndarray) -> list[np.ndarray]:
    """The detections as rows of a label file, moved a little."""
    random = np.random.default_rng(0)
    if task == "obb":
        points = result.obb.xyxyxyxy.numpy()
        points = points + random.uniform(-0.05, 0.05, (len(points), 1, 1)) * (points - points.mean(1, keepdims=True))
        return [np.r_[c, p.ravel()] for c, p in zip(result.obb.cls.numpy(), shares(points, frame), strict=True)]
    if task == "segment":
        if result.masks is None:
            return []
        outlines = list(zip(result.boxes.cls.numpy(), result.masks.xyn, strict=True))
        wide = [(c, points) for c, points in outlines if len(points) > 2 and np.ptp(points, axis=0).min() > 0.05]
        return [np.r_[c, points.ravel()] for c, points in wide]  # Ultralytics knows no object without an area
    boxes = result.boxes.xyxy.numpy()
    boxes = boxes + random.uniform(-0.05, 0.05, (len(boxes), 4)) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    points = result.keypoints.data.numpy()
    points[..., :2], points[..., 2] = shares(points[..., :2], frame), 2
    rows = np.c_[result.boxes.cls.numpy(), centre_and_size(boxes, frame), points.reshape(len(points), -1)]
    return list(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory, frames):
    """Function: task -> checkpoint, data set, bundle and its folder, made when first asked for."""
    known: dict[str, tuple[Path, Path, Path, Path]] = {}

    def make(task: str) -> tuple[Path, Path, Path, Path]:
        if task not in known:
            folder = tmp_path_factory.mktemp(task)
            checkpoint = lively(FAMILY[task], folder / "model.pt")
            model = YOLO(checkpoint)
            found = [model.predict(f, rect=False, imgsz=96, device="cpu", verbose=False)[0] for f in frames]
            rows = [label_rows(task, result, frame) for result, frame in zip(found, frames, strict=True)]
            more = {"kpt_shape": [17, 3]} if task == "pose" else {}
            data = labelled(folder / "data", frames, rows, NAMES, **more)
            file = yolokd.bundle(checkpoint, folder / "x-edge.zip", data=data, **TWINS[task], max_drop=100)
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder / "unpacked")
            known[task] = checkpoint, data, file, folder / "unpacked"
        return known[task]

    return make


@pytest.mark.parametrize("task", FAMILY)
def test_detections_are_those_of_ultralytics(task, made, frames):
    """Of the file and of the checkpoint; corners and keypoints up to the rounding of a sine and of the network."""
    checkpoint, _, _, folder = made(task)
    detector, file, model = (
        Detector(folder / "model.onnx", threads=1),
        YOLO(folder / "model.onnx", task=task),
        YOLO(checkpoint),
    )
    assert detector.contract.output == TASKS[task]
    total = 0
    for frame in frames:
        found = detector.detect(frame)
        given = {"rect": False, "imgsz": 96, "device": "cpu", "verbose": False}
        expected = parity.result_rows(file.predict(frame, **given)[0])
        assert found.shape == expected.shape and np.array_equal(found[:, 4:6], expected[:, 4:6])
        assert np.abs(found - expected).max(initial=0) < 2e-3
        if task != "obb":
            assert np.array_equal(found[:, :6], expected[:, :6])
        if task == "segment" and len(found):
            masks = parity.result_things(file.predict(frame, **given)[0])
            assert masks.shape == detector.output.masks.shape and masks.any((1, 2)).all()
            differ = (masks != detector.output.masks).sum((1, 2))
            assert differ.max(initial=0) <= 2 and differ.sum() <= 0.001 * masks.sum(), "one pixel on the border of some"
        known = parity.result_rows(model.predict(frame, **given)[0])
        assert known.shape == found.shape and np.abs(found - known).max(initial=0) < 0.3
        total += len(found)
    assert total > 60


@pytest.mark.parametrize("task", FAMILY)
def test_the_file_is_proven_and_its_bundle_says_what_it_is(task, made):
    _, _, _, folder = made(task)
    manifest, found = json.loads((folder / "bundle.json").read_text()), Detector(folder / "model.onnx").contract
    assert (manifest["contract"]["task"], manifest["contract"]["output"]) == (task, TASKS[task])
    figures = found.meta["parity"]
    assert figures["pass"] and figures["raw"]["max_added"] < 1e-3 and figures["dets"][FIGURE[task]] < 0.5
    added = {"pose": {"map50_95_keypoints"}, "segment": {"map50_95_masks"}}.get(task, set())
    for model in manifest["models"].values():
        assert model["change"].keys() == {"map50", "map50_95"} | added
    assert manifest["models"]["model.onnx"]["accuracy"]["map50_95"] > 0.02


PACKED = [*((task, "fp32") for task in FAMILY), ("pose", "int8"), ("segment", "fp16")]


@pytest.mark.parametrize(("task", "precision"), PACKED)
def test_verify_passes_and_is_exact_here(task, precision, made):
    figures = verify_bundle(open_bundle(made(task)[2]), threads=1, precision=precision)
    assert figures["pass"] and figures["exact"] and figures["dets"]["n"] > 20
    assert figures["dets"][FIGURE[task]] == figures["raw"]["max_abs_box"] == 0


@pytest.mark.parametrize(("task", "output"), [("obb", Rotated), ("pose", Keypoints)])
def test_verify_fails_where_only_the_points_are_elsewhere(task, output, made, monkeypatch, capsys):
    decode = output.decode

    def turned(self, outputs, limits):
        rows, candidates = decode(self, outputs, limits)
        rows[:, 6] += 0.05 if task == "obb" else 3.0
        return rows, candidates

    monkeypatch.setattr(output, "decode", turned)
    assert cli.main(["verify", "--model", str(made(task)[2])]) == 5
    assert "max_point_diff" in capsys.readouterr().err


@pytest.mark.parametrize("task", FAMILY)
def test_parity_sees_what_only_the_task_adds(task, made, frames, monkeypatch, tmp_path):
    checkpoint, _, _, folder = made(task)
    infer = Detector.infer

    def moved(self, blob):
        out = infer(self, blob)
        if task == "segment":
            return out[0], out[1] * 1.01
        out[:, 4 + len(NAMES)] += 2e-3 if task == "obb" else 0.2
        return out

    images = parity.stock_images()
    assert parity.compare(checkpoint, folder / "model.onnx", images)["pass"]
    monkeypatch.setattr(Detector, "infer", moved)
    worse = parity.compare(checkpoint, folder / "model.onnx", images)
    assert not worse["pass"] and worse["raw"]["max_added"] > 1e-3 and worse["raw"]["max_abs_box"] < 0.1


@pytest.mark.parametrize("task", FAMILY)
def test_they_are_printed_drawn_and_measured(task, made, frames, tmp_path, capsys):
    _, data, _, folder = made(task)
    images = data.parent / "images"
    words = [
        "detect",
        "--model",
        str(folder),
        "--source",
        str(images / "0.png"),
        "--json",
        "--save",
        str(tmp_path / "d"),
    ]
    assert cli.main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found, rows = json.loads(line)["detections"], Detector(folder / "model.onnx").detect(frames[0])
    assert len(found) == len(rows) > 0
    for one, row in zip(found, rows, strict=True):
        if task == "obb":
            points = np.array(one["corners"])
            assert points.shape == (4, 2) and np.allclose(points.min(0), row[:2], atol=0.01)
            assert one["angle"] == pytest.approx(row[10], abs=1e-5)
        elif task == "segment":
            points = np.concatenate([np.zeros((0, 2)), *map(np.array, one["polygons"])])  # a line has no outline
            assert not len(points) or (points.min(0) > row[:2] - 9).all()
            assert not len(points) or (points.max(0) < row[2:4] + 9).all()
        else:
            assert np.allclose(np.array(one["keypoints"]), row[6:].reshape(17, 3), atol=1e-3)
    drawn = cv2.imread(str(tmp_path / "d" / "0.png"))
    assert drawn.shape == frames[0].shape and (drawn != frames[0]).any()
    (record,) = measured([folder], images, quick=True, time_limit=0.2)
    assert record["model"]["task"] == task and record["results"]["dets_mean"] > 1


@pytest.mark.parametrize("task", FAMILY)
def test_accuracy_is_that_of_ultralytics_validator(task, made, capsys, tmp_path):
    """Of rotated boxes, keypoints and masks, overall and of each class."""
    _, data, _, folder = made(task)
    shown, ours = (out_of(capsys, folder, data, *more) for more in ([], ["--json"]))
    given = {"rect": False, "imgsz": 96, "batch": 1, "device": "cpu", "workers": 0, "plots": False}
    theirs = YOLO(folder / "model.onnx", task=task).val(data=str(data), project=str(tmp_path), **given)
    record, kind = json.loads(ours), {"pose": "pose", "segment": "seg"}.get(task)
    parts = [
        ("", theirs.box),
        *([({"pose": "_keypoints", "seg": "_masks"}[kind], getattr(theirs, kind))] if kind else []),
    ]
    for of, metric in parts:
        known = record["accuracy"]
        assert 0.001 < metric.map < 0.999
        near = 1e-2 if task == "obb" else 1e-3  # a sine more or less decides one of these few objects
        assert (known["map50" + of], known["map50_95" + of]) == pytest.approx((metric.map50, metric.map), abs=near)
        for k, place in enumerate(theirs.box.ap_class_index):
            own = record["classes"][theirs.names[int(place)]]
            expected = metric.ap50[k], metric.ap[k]
            assert (own["map50" + of], own["map50_95" + of]) == pytest.approx(expected, abs=5 * near)
    assert f"{100 * record['accuracy']['map50' + parts[-1][0]]:.2f}" in shown
    assert ("the boxes around them" in shown) == (task == "obb")


def out_of(capsys, folder: Path, data: Path, *more: str) -> str:
    assert cli.main(["val", "--model", str(folder), "--data", str(data), *more]) == 0
    return capsys.readouterr().out


def test_keypoint_similarity_is_ultralytics(made):
    """With labels that some keypoints lack, and a spread for each keypoint that the data set gives."""
    random, detector = np.random.default_rng(0), Detector(made("pose")[3] / "model.onnx", threads=1)
    points = random.uniform(0, 90, (5, 17, 3)).astype(np.float32)
    points[..., 2] = random.integers(0, 3, (5, 17))
    rows = np.c_[random.uniform(0, 90, (7, 6)), (points[:1] + random.normal(0, 4, (7, 17, 3))).reshape(7, -1)]
    corner = random.uniform(0, 40, (5, 2))
    boxes = np.c_[corner, corner + random.uniform(9, 50, (5, 2))]
    objects = Objects(boxes, np.zeros(5, int), list(points.astype(float)))
    for sigmas in ([], random.uniform(0.02, 0.2, 17).tolist()):
        spread = sigmas or OKS_SIGMA
        area = torch.from_numpy((boxes[:, 2:] - boxes[:, :2]).prod(1) * 0.53)
        expected = kpt_iou(
            torch.from_numpy(points).double(), torch.from_numpy(rows[:, 6:].reshape(7, 17, 3)), area, spread
        )
        ours = likeness.keypoints(detector, rows, objects, Letterbox((96, 96), (1.0, 1.0), (0, 0)), sigmas)
        np.testing.assert_allclose(ours, expected.T, rtol=1e-4, atol=1e-7)


def test_masks_of_detections_are_ultralytics_as_it_validates(tmp_path):
    """At the size of the prototypes, cut at boxes of which some reach beyond the input; none is left out."""
    contract = Detector(toy(tmp_path / "a.onnx", np.zeros((1, 6, 4)), metadata(RAW, 2))).contract
    output, random = Masks(contract._replace(output=SEGMENT), tmp_path), np.random.default_rng(0)
    centres = np.stack(np.meshgrid([4, 25, 46, 62], [3, 16, 30]), -1).reshape(-1, 2)
    pred = np.zeros((4 + 2 + 3, len(centres)), np.float32)
    pred[:2], pred[2:4] = centres.T, random.uniform(4, 18, (2, len(centres)))
    pred[4], pred[6:] = random.uniform(0.3, 0.9, len(centres)), random.normal(size=(3, len(centres)))
    prototypes = random.normal(size=(3, 8, 16)).astype(np.float32)
    output.check_shapes([(1, *pred.shape), (1, *prototypes.shape)])
    rows, _ = output.decode([pred, prototypes], Limits(0.2, 1.0, 99, True))
    order = np.argsort(-pred[4])
    assert np.array_equal(rows[:, 4], pred[4, order])
    boxes, weights = torch.from_numpy(rows[:, :4]), torch.from_numpy(pred[6:, order].T.copy())
    expected = process_mask(torch.from_numpy(prototypes), weights, boxes, (32, 64))
    assert np.array_equal(output.masks, expected.numpy() > 0) and 20 < output.masks.sum() < 1000


def test_masks_of_objects_are_ultralytics():
    """Outlines of any number of points, some over each other."""
    random, outlines = np.random.default_rng(1), []
    for k in range(6):
        angle = np.sort(random.uniform(0, 2 * np.pi, 3 + 5 * k))
        outlines.append(random.uniform(20, 70, 2) + (6 + 6 * k) * np.c_[np.cos(angle), np.sin(angle)])
    even = resample_segments([o.astype(np.float32) for o in outlines])
    known, order = polygons2masks_overlap((96, 96), [e.reshape(-1) for e in even], 4)
    ours = likeness.object_masks(outlines, (96, 96))
    assert known.max() == 6
    for number, k in enumerate(order, 1):
        assert np.array_equal(ours[k], known == number)


def test_bad_labels_and_a_spread_of_other_keypoints_are_refused(made, tmp_path, capsys):
    _, data, _, folder = made("pose")
    content = yaml.safe_load(data.read_text())
    content["path"] = str(data.parent)
    for sigmas, said in (([0.1] * 3, "3 kpt_oks_sigmas, but"), ([0.1] * 16 + [-1], "are no positive numbers")):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(content | {"kpt_oks_sigmas": sigmas}))
        assert cli.main(["val", "--model", str(folder), "--data", str(tmp_path / "a.yaml")]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n")
    with pytest.raises(EdgeError, match="line 1: '1 0.5 0.5 0.2 0.4' has no outline of 4 points or more"):
        objects(tmp_path / "a.png", (100, 200), {1: 1}, corners=4)


def test_labels_with_keypoints_are_boxes_not_polygons(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.4 0.1 0.1 2 0.9 0.9 2\n")
    boxes, classes, points = objects(tmp_path / "a.png", (100, 200), {1: 1}, (2, 3))
    assert np.allclose(boxes, [[80, 30, 120, 70]]) and classes.tolist() == [1]
    assert np.allclose(points[0], [[20, 10, 2], [180, 90, 2]])
    with pytest.raises(EdgeError, match="line 1"):
        objects(tmp_path / "a.png", (100, 200), {1: 1}, (2, 2))


def test_a_file_that_loses_its_keypoints_is_refused():
    models = {
        "model.onnx": {"precision": "fp32", "accuracy": {"map50_95": 0.5, "map50_95_keypoints": 0.5}, "change": None},
        "model_int8_cpu.onnx": {
            "precision": "int8",
            "accuracy": {"map50_95": 0.5, "map50_95_keypoints": 0.4},
            "change": {"map50": 0.0, "map50_95": 0.0, "map50_95_keypoints": -0.1},
        },
    }
    with pytest.raises(ParityError, match=r"loses 10.00 points of mAP50-95 of keypoints"):
        validation.refuse_losses(models, 5)
    validation.refuse_losses(models, 11)


def test_verify_fails_where_only_the_masks_are_others(made, monkeypatch, capsys):
    things = Masks.things
    monkeypatch.setattr(Masks, "things", lambda self, rows: np.roll(things(self, rows), 3, axis=2))
    assert cli.main(["verify", "--model", str(made("segment")[2])]) == 5
    assert "max_mask_diff" in capsys.readouterr().err


def test_masks_are_cut_at_their_boxes_and_empty_ones_are_no_detections(tmp_path):
    """A sum of prototypes is positive left of the middle; the second box lies right of it."""
    contract = Detector(toy(tmp_path / "a.onnx", np.zeros((1, 6, 4)), metadata(RAW, 2))).contract
    output = Masks(contract._replace(output=SEGMENT), tmp_path)
    pred = np.zeros((1, 4 + 2 + 2, 2), np.float32)
    pred[0, :4] = [[32, 52], [16, 16], [40, 10], [8, 8]]
    pred[0, 4], pred[0, 6], pred[0, 7] = 0.9, 1, 0.5
    prototypes = np.zeros((1, 2, 8, 16), np.float32)
    prototypes[0, 0, :, :8], prototypes[0, 0, :, 8:] = 1, -1
    output.check_shapes([pred.shape, prototypes.shape])
    limits = Limits(0.2, 0.7, 9, False)
    rows, candidates = output.decode([pred[0], prototypes[0]], limits)
    assert rows[:, :4].tolist() == [[12, 12, 52, 20]] and candidates == 2
    wanted = np.zeros((32, 64), np.uint8)
    wanted[12:20, 12:32] = 1
    assert np.array_equal(output.masks, wanted[None]) and output.apart(wanted, wanted) == 0
    output.to_frame(rows, Letterbox((80, 128), (0.5, 0.5), (0, -4)), limits)
    assert output.added(rows) == [{"polygons": [[[24, 32], [24, 46], [62, 46], [62, 32]]]}]
    assert output.apart(wanted, np.roll(wanted, 1, 1)) == pytest.approx(12 / 168)
    with pytest.raises(EdgeError, match="do not fit together"):
        output.check_shapes([pred.shape, (1, 3, 8, 16)])


# --- rotated boxes --------------------------------------------------------------------------------------------------


def rotated(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    columns = [random.uniform(0, 200, (count, 2)), random.uniform(4, 90, (count, 2)), random.uniform(-0.8, 2.4, count)]
    return np.c_[columns[0], columns[1], columns[2]].astype(np.float32)


def test_probiou_is_ultralytics():
    a, b = rotated(40), rotated(30, 1)
    assert np.abs(probiou(a, b) - batch_probiou(torch.tensor(a), torch.tensor(b)).numpy()).max() < 1e-4


@pytest.mark.parametrize("iou", [0.2, 0.7])
def test_rotated_nms_keeps_what_ultralytics_keeps_in_its_order(iou):
    boxes, scores = rotated(3 * NMS_BLOCK), np.random.default_rng(2).permutation(3 * NMS_BLOCK).astype(np.float32)
    theirs = TorchNMS.fast_nms(torch.tensor(boxes), torch.tensor(scores), iou, iou_func=batch_probiou).numpy()
    assert 10 < len(theirs) < len(boxes) and np.array_equal(rotated_nms(boxes, scores, iou, 999), theirs)
    assert np.array_equal(rotated_nms(boxes, scores, iou, 7), theirs[:7])


def test_a_rotated_box_in_the_frame(tmp_path):
    """The way back is each axis' own; nothing is cut; one box of each class stays."""
    output = np.zeros((1, 4 + 2 + 1, 3), np.float32)
    output[0, :4, :] = np.array([[32, 16, 20, 10]] * 3).T
    output[0, 4:6, :] = [[0.9, 0.8, 0.0], [0.0, 0.0, 0.7]]
    output[0, 6, :] = np.pi / 2
    file = toy(tmp_path / "a.onnx", output, metadata(RAW, 2) | {"task": "obb"})
    found = Detector(file).detect(np.zeros((64, 128, 3), np.uint8))  # half as large in the input
    assert np.allclose(found, [[54, 12, 74, 52, 0.9, 0, 64, 32, 40, 20, np.pi / 2],
                               [54, 12, 74, 52, 0.7, 1, 64, 32, 40, 20, np.pi / 2]], atol=1e-4)  # fmt: skip
    assert np.allclose(corners(found[:1, 6:])[0], [[54, 52], [74, 52], [74, 12], [54, 12]], atol=1e-4)


# --- what is refused ------------------------------------------------------------------------------------------------

POSES = metadata(RAW, 2) | {"task": "pose", "kpt_shape": "[5, 3]"}
REFUSED = {
    "final": (metadata("nms_xyxy_conf_cls", 2) | {"task": "obb"}, "only its raw output is read"),
    "free of NMS": (metadata("e2e_xyxy_conf_cls", 2) | {"task": "pose"}, "only its raw output is read"),
    "no shape": (metadata(RAW, 2) | {"task": "pose"}, "'kpt_shape' is no number of keypoints"),
    "odd shape": (POSES | {"kpt_shape": "[5, 4]"}, "'kpt_shape' is no number of keypoints"),
    "other shape": (POSES, "(1, 21, anchors)"),
    "another entry": (POSES | entry(OBB), "declares the output obb_xywh_scores_angle"),
    "detects": (metadata(RAW, 2) | entry(POSE), "declares the output pose_xywh_scores_keypoints"),
    "one output": (metadata(RAW, 2) | {"task": "segment"}, "has 1 inputs and 1 outputs; a detector has one and 2"),
    "semantic": (metadata(RAW, 2) | {"task": "semantic"}, "is a semantic model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_contradicts_itself_is_refused(case, tmp_path):
    props, sentence = REFUSED[case]
    with pytest.raises(EdgeError) as error:
        Detector(toy(tmp_path / "a.onnx", np.zeros((1, 9, 42)), props))
    assert sentence in str(error.value)


def test_other_contracts_are_for_detect(made, tmp_path):
    with pytest.raises(UsageError, match="contract=nms is for detect"):
        yolokd.export(made("pose")[0], tmp_path / "x.onnx", contract="nms")


def test_keypoints_are_cut_at_the_border_and_unseen_ones_not_compared(tmp_path):
    output = Keypoints(Detector(toy(tmp_path / "a.onnx", np.zeros((1, 21, 4)), POSES)).contract, tmp_path)
    rows = np.zeros((1, 21), np.float32)
    rows[0, 6:12] = -50, 5, 0.9, 5000, 7, 0.1
    moved = output.to_frame(rows, Letterbox((64, 128), (0.5, 0.5), (0, 0)), Limits(0.2, 0.7, 9, False))
    assert moved[0, 6:12].tolist() == pytest.approx([0, 10, 0.9, 128, 14, 0.1])
    other = moved.copy()
    other[0, 10] += 40  # of the unseen one
    assert output.apart(moved[0], other[0]) == 0
    other[0, 7] += 4
    assert output.apart(moved[0], other[0]) == 4
