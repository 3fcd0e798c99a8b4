"""`yolokd inspect` of files that others made: whatever they hold, a table or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.cli import refusal
from onnx import TensorProto, helper, numpy_helper

from yolokd import cli

ODD = "\x1b[2J/node\nyolokd: all is well"


def write(file: Path, nodes: list, takes: dict[str, tuple] | None = None, gives: object = None) -> Path:
    """A file of these nodes; inputs by name as (type, shape)."""
    inputs = [helper.make_tensor_value_info(k, *v) for k, v in (takes or {"x": (TensorProto.FLOAT, [1, 8])}).items()]
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    outputs = [gives or helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "odd", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def product(entry: str = "x", out: str = "y", name: str = ODD) -> onnx.NodeProto:
    return helper.make_node("MatMul", [entry, "w"], [out], name=name)


def test_names_of_nodes_and_files_do_nothing_to_a_terminal(tmp_path: Path, capsys) -> None:
    """The table's columns keep their places, by what is shown of a name."""
    file = write(tmp_path / f"{ODD.replace('/', '')}.onnx", [product(out="z"), product("z", name="short")])
    assert cli.main(["inspect", f"model={file}"]) == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out) and "\\x1b[2J/node\\nyolokd" in out
    head, *rows = out.splitlines()[1:]
    assert {row.index("MatMul") for row in rows} == {head.index("operator")} and len(rows) == 2


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_every_kind_of_number_is_fed(kind: int, tmp_path: Path, capsys) -> None:
    cast = helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    file = write(tmp_path / "m.onnx", [cast, product("f")], {"x": (kind, [1, 8])})
    assert cli.main(["inspect", f"model={file}"]) == 0
    assert "MatMul" in capsys.readouterr().out


def test_every_input_is_fed(tmp_path: Path) -> None:
    both = {"x": (TensorProto.FLOAT, [1, 8]), "x2": (TensorProto.FLOAT, [1, 8])}
    add = helper.make_node("Add", ["x", "x2"], ["sum"])
    assert cli.main(["inspect", f"model={write(tmp_path / 'm.onnx', [add, product('sum')], both)}"]) == 0


def test_what_is_no_image_or_fails_when_it_runs_is_one_sentence(tmp_path: Path, capsys) -> None:
    def said(*given) -> str:
        file = write(tmp_path / "m.onnx", *given)
        return refusal(capsys, tmp_path, "inspect", f"model={file}")

    text = helper.make_node("StringNormalizer", ["x"], ["y"])
    strings = helper.make_tensor_value_info("y", TensorProto.STRING, None)
    assert "takes tensor(string), which is no image" in said([text], {"x": (TensorProto.STRING, [8])}, strings)
    index = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)
    gather = helper.make_node("Gather", ["w", "i"], ["y"], name=ODD)  # of places far outside, by numbers up to 255
    assert "cannot be run by ONNX Runtime (" in said([index, gather], {"x": (TensorProto.UINT8, [1, 8])})


def test_tensors_without_a_shape_have_no_size(tmp_path: Path, capsys) -> None:
    """A sequence is no number of fixed shape, and no node's work hangs on it."""
    pack = helper.make_node("SequenceConstruct", ["x"], ["s"])
    unpack = helper.make_node("ConcatFromSequence", ["s"], ["f"], axis=0)
    assert cli.main(["inspect", f"model={write(tmp_path / 'm.onnx', [pack, unpack, product('f')])}"]) == 0
    assert "memory of activations unknown" in capsys.readouterr().out
