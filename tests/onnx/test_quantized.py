"""Students that were trained for INT8: their ONNX file rounds as they do, and a bundle calibrates nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from ultralytics import YOLO

import yolokd
from yolokd.detectors.quantized import quantized_layers
from yolokd.errors import ParityError, UsageError
from yolokd.onnx import metadata, parity, qdq, summary
from yolokd_edge.bundle import open_bundle
from yolokd_edge.detector import Detector
from yolokd_edge.images import list_images, read_image
from yolokd_edge.verify import verify_bundle


def rounding(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, **attributes: int) -> onnx.ModelProto:
    """A graph that rounds a weight and adds it to its input, as exporters write it."""
    arrays = {"w": weight, "s": scale, "z": zero}
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], **attributes),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(weight.shape)) for n in "xy"]
    stored = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_weights_are_stored_as_the_graph_would_round_them(axis):
    """Halves too, which go to the even neighbour, and what is beyond the range."""
    import onnxruntime

    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (4, 6)).astype(np.float32)
    weight[0, :3] = [0.5, 1.5, 99]
    sides = () if axis is None else (weight.shape[axis],)
    scale = np.full(sides, 0.25, np.float32) if axis is None else random.uniform(0.01, 0.2, sides).astype(np.float32)
    graph = rounding(weight, scale, np.zeros(sides, np.int8), **({} if axis is None else {"axis": axis}))
    before = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": 0 * weight})[0]
    assert qdq.round_weights(graph) == 1
    assert [n.op_type for n in graph.graph.node] == ["DequantizeLinear", "Add"]
    assert {i.name for i in graph.graph.initializer} == {"q", "s", "z"}
    onnx.checker.check_model(graph)
    after = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": 0 * weight})[0]
    assert np.array_equal(before, after) and not np.array_equal(before, weight)


def test_a_dual_head_s_other_branch_is_not_counted():
    """The raw output's file has the convolutions of one branch only."""
    rounded, exact = (SimpleNamespace(is_enabled=enabled) for enabled in (True, False))

    def layer(weights: SimpleNamespace) -> torch.nn.Module:
        made = torch.nn.Identity()
        made.input_quantizer = made.weight_quantizer = weights
        return made

    head = torch.nn.ModuleDict({"cv2": layer(rounded), "cv3": layer(exact), "one2one_cv2": layer(rounded)})
    model = torch.nn.ModuleDict({"0": torch.nn.Identity(), "1": head})
    assert quantized_layers(model) == (2, 3) and quantized_layers(model, ".one2one_") == (1, 2)


def entry(change: float | None, size: int, *providers: str) -> dict:
    figures = None if change is None else {"map50": change, "map50_95": change}
    return {"change": figures, "static": {"bytes": size}, "providers": list(providers), "precision": "int8"}


def test_the_smallest_file_within_the_loss_is_recommended():
    models = {
        "model.onnx": entry(0.0, 4_000_000, "cpu", "cuda", "trt"),
        "model_fp16.onnx": entry(-0.001, 2_000_000, "cpu", "cuda", "trt"),
        "model_int8_cpu.onnx": entry(-0.004, 1_000_000, "cpu"),
        "model_int8_trt.onnx": entry(-0.02, 1_000_000, "trt", "cuda"),
    }
    small, half, full = "model_int8_cpu.onnx", "model_fp16.onnx", "model.onnx"
    assert summary.recommended(models, 1.0) == {"cpu": small, "cuda": half, "trt": half}
    assert summary.recommended(models, 0.1) == {"cpu": half, "cuda": half, "trt": half}
    assert summary.recommended(models, 0.05) == {"cpu": full, "cuda": full, "trt": full}
    said = summary.advice(models, 1.0)
    assert (
        "at most 1 points" in said
        and "- `cpu`: `model_int8_cpu.onnx`, 1.00 MB, instead of 4.00 MB, -0.40 points" in said
    )
    assert "`cuda`, `trt`: `model_fp16.onnx`" in said
    assert "no smaller one is within it" in summary.advice(models, 0.0)
    assert "none is recommended" in summary.advice({"model.onnx": entry(None, 1, "cpu")}, 1.0)


def test_masks_and_keypoints_are_shown_and_count():
    """A bundle's README showed boxes alone: a file whose masks had lost a point was told to have lost 0.2."""
    models = {"model.onnx": entry(0.0, 4_000_000, "cpu"), "model_int8_cpu.onnx": entry(-0.002, 1_000_000, "cpu")}
    for (by, masks), one in zip(((0.0, 0.3), (-0.01, 0.29)), models.values(), strict=True):
        one["change"]["map50_95_masks"] = by
        one["accuracy"] = {"map50": 0.6, "map50_95": 0.5, "map50_95_masks": masks}
    header, full, small = (line.split() for line in summary.table(models).splitlines())
    assert header[2:] == ["mAP50", "mAP50-95", "change", "masks", "change", "off", "by"]
    assert full[2:] == ["60.00", "50.00", "+0.00", "30.00", "+0.00", "-"]
    assert small[4:] == ["-0.20", "29.00", "-1.00", "-"]
    assert summary.recommended(models, 0.5) == {"cpu": "model.onnx"}
    assert "instead of 4.00 MB, -0.20 points of boxes, -1.00 points of masks" in summary.advice(models, 2.0)


# --- with nvidia-modelopt -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(teacher, scenes, tmp_path_factory) -> Path:
    """The bundled teacher with the ranges of its training images, as if it had been trained for INT8."""
    pytest.importorskip("modelopt", reason="needs the extra qat")
    from ultralytics.utils.torch_utils import prepare_qat

    model = YOLO(teacher)
    images = [read_image(p)[..., ::-1].copy() for p in list_images(scenes.parent / "images/train")[:8]]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    prepare_qat(model.model.float(), [batch], lambda images: images, 1)
    file = tmp_path_factory.mktemp("qat") / "student.pt"
    model.save(file)
    return file


@pytest.fixture(scope="module")
def unpacked(student, scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(yolokd.bundle(student, folder / "a.zip", data=scenes, imgsz=64, max_drop=20)) as archive:
        archive.extractall(folder / "a")
    return folder / "a"


@pytest.mark.slow
def test_the_bundle_has_the_rounded_file_and_the_same_weights_in_full_precision(unpacked, student):
    said = json.loads((unpacked / "bundle.json").read_text())
    assert [(n, m["precision"]) for n, m in said["models"].items()] == [
        ("model.onnx", "fp32"),
        ("model_int8.onnx", "int8"),
    ]
    full, rounded = said["models"].values()
    assert rounded["static"]["bytes"] < 0.4 * full["static"]["bytes"]
    assert rounded["int8"]["trained"] and rounded["int8"]["excluded"] == "the head's last layers, 7 convolutions"
    assert rounded["providers"] == ["cpu", "cuda", "trt"] and rounded["accuracy"] and full["change"]["map50"] == 0
    graph = onnx.load(unpacked / "model_int8.onnx")
    assert qdq.rounded_layers(graph) == 81 and qdq.rounded_layers(onnx.load(unpacked / "model.onnx")) == 0
    assert said["recommended"] == {"max_drop": 20, "files": dict.fromkeys(("cpu", "cuda", "trt"), "model_int8.onnx")}
    readme = (unpacked / "README.md").read_text()
    assert "`cpu`, `cuda`, `trt`: `model_int8.onnx`" in readme and "{" not in readme.replace("${", "")


@pytest.mark.slow
def test_the_rounded_file_computes_what_the_student_computes(unpacked, student):
    figures = metadata.description(metadata.read(unpacked / "model_int8.onnx"))["parity"]
    assert figures["pass"] and figures["tolerance"] == parity.TOLERANCE_INT8
    assert figures["raw"]["mean_abs_box"] < 0.5 and figures["raw"]["score_scale"] < 0.01
    assert Detector(unpacked / "model_int8.onnx").contract.precision == "int8"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_board_accepts_both(unpacked, precision):
    assert verify_bundle(open_bundle(unpacked), "cpu", 1, precision)["pass"]


@pytest.mark.slow
def test_a_file_that_rounds_otherwise_is_refused(unpacked, student, tmp_path):
    """The fourth range of activations is half of what it should be."""
    graph = onnx.load(unpacked / "model_int8.onnx")
    constants = {i.name: i for i in graph.graph.initializer}
    fourth = [n for n in graph.graph.node if n.op_type == "QuantizeLinear"][3]
    halved = numpy_helper.to_array(constants[fourth.input[1]]) / 2
    graph.graph.initializer.append(numpy_helper.from_array(halved, "halved"))
    for node in graph.graph.node:
        if node is fourth or fourth.output[0] in node.input:
            node.input[1] = "halved"
    onnx.save(graph, tmp_path / "other.onnx")
    images = list_images(unpacked / "parity")
    assert parity.compare(student, unpacked / "model_int8.onnx", images)["pass"]
    with pytest.raises(ParityError, match="does not compute what the checkpoint computes"):
        parity.check(student, tmp_path / "other.onnx", images)


@pytest.mark.slow
def test_a_layer_that_is_not_rounded_is_found(student, tmp_path, monkeypatch):
    monkeypatch.setattr(qdq, "rounded_layers", lambda graph: 80)
    with pytest.raises(ParityError, match="80 layers of the exported file compute in eight bits and 81 of"):
        yolokd.export(student, tmp_path / "a.onnx", imgsz=64)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_what_a_student_trained_for_int8_cannot_have(student, scenes, tmp_path):
    with pytest.raises(UsageError, match="contract=nms: .* was trained for INT8"):
        yolokd.export(student, tmp_path / "a.onnx", "nms")
    with pytest.raises(UsageError, match="contract=nms: .* was trained for INT8"):
        yolokd.bundle(student, tmp_path / "a.zip", data=scenes, contract="nms")
    with pytest.raises(UsageError, match="calib=8: .* nothing is calibrated"):
        yolokd.bundle(student, tmp_path / "a.zip", data=scenes, calib=8)
