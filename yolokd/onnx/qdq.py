"""ONNX files of students that were trained for INT8: their rounding is in the graph, as pairs of Q and DQ nodes.

The exporter leaves the weights in FP32 and lets the graph round them whenever it is loaded. Here they are rounded once,
which makes the file a quarter as large and changes no output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from yolokd.detectors.quantized import quantized_layers
from yolokd.distill.checkpoints import SIGNED
from yolokd.errors import ParityError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def round_weights(graph: onnx.ModelProto) -> int:
    """Store the weights that the graph rounds as what they are rounded to; returns how many.

    Args:
        graph: a loaded file, changed in place.
    """
    constants = {one.name: one for one in graph.graph.initializer}
    uses = [name for node in graph.graph.node for name in node.input]
    done = []
    for node in graph.graph.node:
        if node.op_type != "QuantizeLinear" or not all(name in constants for name in node.input):
            continue
        weight, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if scale.ndim:
            shape = [-1 if k == axis % weight.ndim else 1 for k in range(weight.ndim)]
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        limits = np.iinfo(zero.dtype)
        rounded = np.rint(weight / scale) + zero.astype(np.float32)  # half to even, as the node rounds
        stored = np.clip(rounded, limits.min, limits.max).astype(zero.dtype)
        graph.graph.initializer.append(numpy_helper.from_array(stored, node.output[0]))
        if uses.count(node.input[0]) == 1:
            graph.graph.initializer.remove(constants.pop(node.input[0]))
        done.append(node)
    for node in done:
        graph.graph.node.remove(node)
    return len(done)


def rounded_layers(graph: onnx.ModelProto) -> int:
    """How many layers with weights read both inputs and weights in eight bits."""
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    layers = [node for node in graph.graph.node if node.op_type in WEIGHTED]
    return sum(all(makers.get(name) == "DequantizeLinear" for name in layer.input[:2]) for layer in layers)


def finish(graph: onnx.ModelProto, student: Any, checkpoint: Path) -> dict[str, Any]:
    """Round the weights of an exported student's graph, and describe it as `quantize` describes a calibrated file.

    Args:
        graph: as Ultralytics exported it, changed in place.
        student: the model that was exported.
        checkpoint: its file, for the error's sentence.

    Raises:
        ParityError: another number of layers computes in eight bits than in the student.
    """
    wanted, layers = quantized_layers(student, ".one2one_")  # the raw output is of the other branch
    round_weights(graph)
    if (found := rounded_layers(graph)) != wanted:
        raise ParityError(
            f"{found} layers of the exported file compute in eight bits and {wanted} of {checkpoint}: the file was not "
            "kept."
        )
    return {
        "scheme": "int8 activations, int8 weights",
        "symmetric": True,
        "per_channel": True,
        "reduce_range": False,
        "bias": "float32",
        "excluded": f"the head's last layers, {layers - wanted} convolutions",
        "trained": True,
        "calib_n": None,
        "calib_sha": None,
    }


def float_twin(checkpoint: Path, target: Path) -> Path:
    """Write the checkpoint of a student trained for INT8 without its quantization: the same weights, not rounded.

    Its accuracy is that of the rounded student, so the twin states none.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)  # opened, and looked through, before
    made_by = {**content[SIGNED], "accuracy": None} if content.get(SIGNED) else None
    torch.save({**content, "modelopt": None, **({SIGNED: made_by} if made_by else {})}, target)
    return target
