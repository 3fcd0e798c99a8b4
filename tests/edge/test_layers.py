"""`yolokd_edge layers`: a file's graph read and asked from its bytes, and the first layer that goes wrong."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.edge import colour_frames, export, metadata, toy
from onnx import numpy_helper

from yolokd_edge import cli
from yolokd_edge.common import EdgeError
from yolokd_edge.graph_file import GraphNode, read_nodes, with_outputs
from yolokd_edge.layers import Layer, compare_layers, first_wrong, relative_difference


@pytest.fixture(scope="module")
def model(tmp_path_factory, teacher):
    return export(teacher, tmp_path_factory.mktemp("onnx") / "teacher.onnx", imgsz=96)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    cv2.imwrite(str(folder / "frame.png"), colour_frames(folder, 1)[0])
    return folder / "frame.png"


def test_nodes_are_those_that_onnx_reads(model) -> None:
    expected = [(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in onnx.load(model).graph.node]
    assert [tuple(node) for node in read_nodes(model.read_bytes(), model)] == expected and len(expected) > 50


def test_outputs_are_added_as_onnx_reads_them(model) -> None:
    names = [node.outputs[0] for node in read_nodes(model.read_bytes(), model)][:120:7]
    content = with_outputs(model.read_bytes(), names)
    before, after = onnx.load(model), onnx.load_from_string(content)
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output] + names
    assert after.graph.node == before.graph.node and after.metadata_props == before.metadata_props
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(names, {"images": np.ones((1, 3, 96, 96), np.float32)})
    assert len(found) == len(names) and all(value.size for value in found)


@pytest.mark.parametrize("cut", [0, 1, 100, -1000])
def test_what_is_no_onnx_file_is_one_sentence(model, cut) -> None:
    with pytest.raises(EdgeError, match="is not an ONNX file with a graph"):
        read_nodes(model.read_bytes()[:cut], model)
    with pytest.raises(EdgeError, match="is not an ONNX file with a graph"):
        read_nodes(b"\x3a\xff\xff\xff\xff" * 40, model)


def test_a_difference_is_relative_and_never_hidden_by_nan() -> None:
    ones = np.ones((2, 3))
    assert relative_difference(ones, ones) == 0
    assert relative_difference(ones, 1.1 * ones) == pytest.approx(0.1)
    assert relative_difference(100 * ones, 110 * ones) == pytest.approx(0.1)
    for other in (np.ones((3, 2)), np.full((2, 3), np.nan), np.full((2, 3), np.inf)):
        assert relative_difference(ones, other) == float("inf")
    assert relative_difference(0 * ones, ones) == float("inf") and relative_difference(0 * ones, 0 * ones) == 0
    assert relative_difference(np.full(2, np.nan), np.full(2, np.nan)) == 0


def test_the_first_wrong_layer_has_inputs_that_are_right() -> None:
    """a -> b -> c (cannot be seen) -> d, and a -> e: b is wrong, d only goes on with it."""
    nodes = [GraphNode(n, "Op", i, (n,)) for n, i in
             (("a", ("x",)), ("b", ("a",)), ("c", ("b",)), ("d", ("c",)), ("e", ("a",)))]  # fmt: skip
    right = {name: np.ones(4) for name in "abde"}
    wrong = right | {"b": 1.5 * np.ones(4), "d": 2 * np.ones(4), "e": 1.05 * np.ones(4)}
    layers = compare_layers(nodes, right, wrong)
    assert [(layer.name, round(layer.difference, 6), round(layer.before, 6)) for layer in layers] == [
        ("a", 0, 0), ("b", 0.5, 0), ("d", 1, 0.5), ("e", 0.05, 0),
    ]  # fmt: skip
    assert first_wrong(layers, 0.1) == layers[1] and first_wrong(layers[2:], 0.01) == layers[3]
    assert first_wrong(layers, 2) is None
    assert first_wrong([Layer("n", "Op", "n", float("inf"), 0)], 2) is not None


def command(*words: object) -> int:
    return cli.main(["layers", "--threads", "1", *map(str, words)])


@pytest.mark.parametrize("broken", ["scaled", "not a number"])
def test_a_layer_that_was_tampered_with_is_found(model, image, tmp_path, capsys, broken) -> None:
    assert command("--model", model, "--source", image) == 0
    assert "No layer is the first to differ" in capsys.readouterr().out
    changed = onnx.load(model)
    convolutions = [node for node in changed.graph.node if node.op_type == "Conv"]
    victim = convolutions[len(convolutions) // 2]
    (weights,) = [w for w in changed.graph.initializer if w.name == victim.input[1]]
    values = numpy_helper.to_array(weights) * np.float32(1.02 if broken == "scaled" else np.nan)
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(changed, tmp_path / "tampered.onnx")
    words = ["--model", model, "--against", tmp_path / "tampered.onnx", "--source", image]
    assert command(*words) == 5
    shown = capsys.readouterr()
    assert f"first wrong: {victim.name} (Conv)" in shown.out
    assert shown.err == (
        f"yolokd_edge: the layer {victim.name} (Conv) is the first to differ by more than 0.001.\n"
    )  # fmt: skip
    assert command(*words, "--json") == 5
    record = json.loads(capsys.readouterr().out)
    assert record["first_wrong"]["name"] == victim.name and record["first_wrong"]["before"] == 0
    difference = record["first_wrong"]["difference"]
    assert difference is None if broken != "scaled" else 0.001 < difference < 0.1
    if broken == "scaled":
        assert command(*words, "--limit", "10") == 0


def test_another_runtime_goes_wrong_nowhere(model, image, capsys) -> None:
    pytest.importorskip("openvino")
    assert command("--model", model, "--source", image, "--provider", "openvino") == 0
    assert "on openvino:CPU against" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_sentence(model, image, tmp_path, capsys) -> None:
    other = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 189)), metadata(hw=(96, 96)), hw=(96, 96))
    assert command("--model", model, "--against", other, "--source", image) == 2
    assert "have no layers of the same name" in capsys.readouterr().err
    small = toy(tmp_path / "small.onnx", np.zeros((1, 7, 42)), metadata())
    assert command("--model", model, "--against", small, "--source", image) == 2
    assert "take inputs of other sizes" in capsys.readouterr().err
