"""Twins of an FP32 ONNX file in other number formats: FP16, INT8 for CPUs, INT8 for TensorRT.

The head stays in FP32 in both INT8 files: it is a few percent of the work, and its box distances and scores are what
eight bits damage most.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode, load_model_with_shape_infer

from yolokd.errors import UsageError
from yolokd.onnx import metadata

# U8S8 with 7-bit weights: CPUs without VNNI add two products in 16 bits, which 8-bit weights would overflow.
CPU = {"activation": "uint8", "weight": "int8", "symmetric": False, "reduce_range": True, "bias": "int32"}
# What TensorRT takes: zero point 0, a bias that is not quantized, and no rounding between a convolution and what
# follows it, so that it can fuse the two.
TENSORRT = {"activation": "int8", "weight": "int8", "symmetric": True, "reduce_range": False, "bias": "float32"}
ACCEPTED = inspect.signature(QDQQuantizer).parameters
TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def fp16(file: Path, target: Path) -> Path:
    """Write the FP16 twin. Its input and output stay float32, so that it is used like the FP32 file."""
    from onnxruntime.transformers import float16

    graph = float16.convert_float_to_float16(onnx.load(file), keep_io_types=True)
    return _save(graph, file, target, 16, {})


def int8(
    file: Path,
    target: Path,
    ranges: TensorsData,
    scheme: dict[str, Any],
    floats: Collection[str] = (),
    figures: dict[str, Any] | None = None,
) -> Path:
    """Write an INT8 twin in QDQ form: convolutions outside the head, weights by channel, activations by their range.

    Args:
        file: the FP32 file.
        target: the file to write.
        ranges: of the activations, see `calibration.ranges`.
        scheme: CPU or TENSORRT.
        floats: names of convolutions that are left in float beside the head's.
        figures: what else the file says of its quantization.
    """
    graph = load_model_with_shape_infer(file)
    head = head_convolutions(graph, file)
    excluded = f"the head, {len(head)} convolutions" + (f"; and {len(floats)} more" if floats else "")
    said = {
        "scheme": f"{scheme['activation']} activations, {scheme['weight']} weights",
        "symmetric": scheme["symmetric"],
        "per_channel": True,
        "reduce_range": scheme["reduce_range"],
        "bias": scheme["bias"],
        "excluded": excluded,
        **(figures or {}),
    }
    return _save(rounded(graph, ranges, scheme, {*head, *floats}), file, target, 8, {"int8": said})


def rounded(
    graph: onnx.ModelProto, ranges: TensorsData, scheme: dict[str, Any], floats: Collection[str]
) -> onnx.ModelProto:
    """A graph with all convolutions in eight bits but those named.

    Args:
        graph: with the shapes of its tensors; stays as it is.
        ranges: of the activations.
        scheme: CPU or TENSORRT.
        floats: names of convolutions.
    """
    extra: dict[str, Any] = {"ActivationSymmetric": scheme["symmetric"], "WeightSymmetric": True}
    if scheme["bias"] == "float32":
        extra |= {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"]}
    # ONNX Runtime 1.17 must also be told the only thing that it can do
    older = {"mode": QuantizationMode.QLinearOps, "static": True} if "static" in ACCEPTED else {}
    quantizer = QDQQuantizer(
        model=copy.deepcopy(graph),
        per_channel=True,
        reduce_range=scheme["reduce_range"],
        weight_qType=TYPES[scheme["weight"]],
        activation_qType=TYPES[scheme["activation"]],
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=sorted(floats),
        op_types_to_quantize=["Conv"],
        extra_options=extra,
        **older,
    )
    quantizer.quantize_model()
    model: onnx.ModelProto = quantizer.model.model
    _feed_unrounded(model.graph, set(floats))
    return model


def head_convolutions(graph: onnx.ModelProto, file: Path) -> list[str]:
    """Names of the convolutions of the detection head: those of the highest-numbered module."""
    numbered = [(int(m[1]), n.name) for n in graph.graph.node if (m := re.search(r"/model\.(\d+)/", n.name))]
    head = max((number for number, _ in numbered), default=None)
    names = {name for number, name in numbered if number == head}
    found = [n.name for n in graph.graph.node if n.op_type == "Conv" and n.name in names]
    of_head = ("/cv3", "one2one_cv3", "/input_proj")  # YOLO's scores; how RT-DETR's decoder takes the maps
    if not any(part in name for name in found for part in of_head):
        raise UsageError(f"{file} names its nodes in a way that hides its head, which INT8 must leave alone: no twin.")
    return found


def _feed_unrounded(graph: onnx.GraphProto, names: set[str]) -> None:
    """Let nodes read the float tensor where a quantized neighbour made them read its rounded copy."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name in names and (back := makers.get(node.input[0])) and back.op_type == "DequantizeLinear":
            node.input[0] = makers[back.input[0]].input[0]


def _save(graph: onnx.ModelProto, source: Path, target: Path, bits: int, figures: dict[str, Any]) -> Path:
    """Give a twin the metadata of its source, with its own precision and without the source's accuracy and parity."""
    of_source = metadata.read(source)
    described = metadata.description(of_source)
    arguments = str({**ast.literal_eval(of_source["args"]), "quantize": bits})
    metadata.write(
        graph,
        {**of_source, "args": arguments},
        {**described, "accuracy": None, "parity": None, "proven_on": None, **figures} if described else None,
    )
    onnx.save(graph, target)
    return target
