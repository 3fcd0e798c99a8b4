"""The outcome of a gate as files that other programs read."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

from yolokd.latency import gate_report
from yolokd.onnx import profile
from yolokd_edge.common import EdgeError


def test_junit_of_names_with_control_characters_is_xml() -> None:
    pair: dict[str, Any] = {"new": "a\x1b[2J\n.onnx", "base": "b", "code": 3, "notes": [], "metrics": []}
    pair["problems"] = [{"code": 3, "what": "match\x00", "why": "\x07"}]
    root = ElementTree.fromstring(gate_report.junit({"pairs": [pair]}).partition("\n")[2])
    assert root[0].get("classname") == "a\\x1b[2J\\n.onnx"


def test_inspect_says_what_it_cannot_run(tmp_path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(EdgeError, match="empty.onnx is not an ONNX model that can be read"):
        profile.figures(tmp_path / "empty.onnx")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    node = helper.make_node("Mine", ["x"], ["y"], domain="mine")
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=9)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, tmp_path / "custom.onnx")
    with pytest.raises(EdgeError, match="custom.onnx cannot be run by ONNX Runtime"):
        profile.slowest(tmp_path / "custom.onnx")
