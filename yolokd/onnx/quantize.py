"""Twins of an FP32 ONNX file in other number formats: FP16, INT8 for CPUs, INT8 for TensorRT.

The head stays in FP32 in both INT8 files: it is a few percent of the work, and its box distances and scores are what
eight bits damage most.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from yolokd.errors import UsageError, printable
from yolokd.onnx import metadata
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image
from yolokd_edge.progress import Progress

# U8S8 with 7-bit weights: CPUs without VNNI add two products in 16 bits, which 8-bit weights would overflow.
CPU = {"activation": "uint8", "weight": "int8", "symmetric": False, "reduce_range": True, "bias": "int32"}
# What TensorRT takes: zero point 0, a bias that is not quantized, and no rounding between a convolution and what
# follows it, so that it can fuse the two.
TENSORRT = {"activation": "int8", "weight": "int8", "symmetric": True, "reduce_range": False, "bias": "float32"}
TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def fp16(file: Path, target: Path) -> Path:
    """Write the FP16 twin. Its input and output stay float32, so that it is used like the FP32 file."""
    from onnxruntime.transformers import float16

    graph = float16.convert_float_to_float16(onnx.load(file), keep_io_types=True)
    return _save(graph, file, target, 16, {})


def int8(file: Path, target: Path, images: Sequence[Path], scheme: dict[str, Any]) -> Path:
    """Write an INT8 twin in QDQ form: convolutions outside the head, weights by channel, activations by their range.

    Args:
        file: the FP32 file.
        target: the file to write.
        images: training images whose activations give the ranges (smallest to largest value).
        scheme: CPU or TENSORRT.
    """
    graph = onnx.load(file)
    extra: dict[str, Any] = {"ActivationSymmetric": scheme["symmetric"], "WeightSymmetric": True}
    if scheme["bias"] == "float32":
        extra |= {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"]}
    excluded = head_convolutions(graph, file)
    options = {
        "quant_format": QuantFormat.QDQ,
        "op_types_to_quantize": ["Conv"],
        "per_channel": True,
        "reduce_range": scheme["reduce_range"],
        "activation_type": TYPES[scheme["activation"]],
        "weight_type": TYPES[scheme["weight"]],
        "extra_options": extra,
    }
    logging.disable(logging.WARNING)  # advice on a preparation that an exported, fused graph does not need
    try:
        quantize_static(str(file), str(target), _Reader(file, images, target), nodes_to_exclude=excluded, **options)
    finally:
        logging.disable(logging.NOTSET)
    figures = {
        "scheme": f"{scheme['activation']} activations, {scheme['weight']} weights",
        "symmetric": scheme["symmetric"],
        "per_channel": True,
        "reduce_range": scheme["reduce_range"],
        "bias": scheme["bias"],
        "excluded": f"the head, {len(excluded)} convolutions",
        "calib_n": len(images),
        "calib_sha": _digest(images),
    }
    quantized = onnx.load(target)
    _feed_unrounded(quantized.graph, set(excluded))
    return _save(quantized, file, target, 8, {"int8": figures})


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


class _Reader(CalibrationDataReader):
    """Feeds images to the calibration, preprocessed as at run time."""

    def __init__(self, file: Path, images: Sequence[Path], target: Path) -> None:
        self.detector, self.images = Detector(file, threads=1), iter(images)
        self.name = self.detector.session.get_inputs()[0].name
        self.progress, self.given = Progress(f"calibrating {printable(target.name)}", len(images)), 0

    def get_next(self) -> dict[str, Any] | None:
        if self.given:  # what was given before has been used by now
            self.progress.step()
        self.given, path = self.given + 1, next(self.images, None)
        if path is None:
            self.progress.end()
            return None
        return {self.name: self.detector.preprocess(read_image(path))[0]}


def _digest(images: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in images:
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
