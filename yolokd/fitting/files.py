"""ONNX files of candidates for measuring their latency, which no weights are needed for.

What a network takes does not depend on its weights, but what follows it does: NMS on detections that are there. So
beside the candidates lies one more file, which outputs what the teacher detects on a typical image and computes
nothing. The time of its last stage beyond that of a candidate without detections is added to every candidate.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from ultralytics.nn.modules.head import RTDETRDecoder

from yolokd import compat
from yolokd.detectors.opening import open_student
from yolokd.fitting.candidates import Candidate, Family, yaml_of
from yolokd.onnx.twins import MOST_OPSET
from yolokd.quiet import quiet
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image

SILENT = -20.0  # logit of a class, below which nothing is detected
LOOKED_AT = 16  # images, of which the one with a typical number of detections is taken
DETECTIONS = "detections.onnx"
FINAL = "student.onnx"  # the trained student's file


def export_random(family: Family, candidate: Candidate, names: dict[int, str], file: Path) -> Path:
    """Write the ONNX file of a candidate that detects nothing, as `yolokd export` would write the trained one's."""
    return export_silent(open_student(yaml_of(family, candidate)), candidate.imgsz, names, file)


def export_silent(model: Any, imgsz: int, names: dict[int, str], file: Path) -> Path:
    """Write the ONNX file of a network, as Ultralytics opened it, with other weights, so that it detects nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        silence(model.model, imgsz)
    model.model.names = names
    return to_onnx(model, imgsz, file)


@torch.no_grad()
def silence(model: Any, imgsz: int) -> None:
    """Weights of one size and random signs, which a zip file stores in a bit each; activations of ordinary size, as
    processors are slow at numbers near the smallest; and no detection."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not any(x is module for x in fixed(model)):
            even(module.weight)
        if isinstance(module, nn.MultiheadAttention):
            even(module.in_proj_weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch below
    model.train()(torch.rand(2, 3, imgsz, imgsz))
    for last in scores_of(model.model[-1]):
        last.weight.zero_()
        last.bias.fill_(SILENT)
    model.eval()


def even(weight: Any) -> None:
    """Give all numbers of a weight one size."""
    weight.copy_(weight.sign() * weight[0].numel() ** -0.5)


def scores_of(head: Any) -> list[Any]:
    """The layers that output a head's class scores."""
    if isinstance(head, RTDETRDecoder):
        return [head.enc_score_head, *head.dec_score_head]
    return [tower[-1] for towers in (head.cv3, getattr(head, "one2one_cv3", None) or ()) for tower in towers]


def fixed(model: Any) -> list[nn.Module]:
    """Convolutions that are no weights: the mean of a box side's distribution."""
    dfl = getattr(model.model[-1], "dfl", None)
    return [] if dfl is None else [m for m in dfl.modules() if isinstance(m, nn.Conv2d)]


def to_onnx(model: Any, imgsz: int, file: Path) -> Path:
    """Ultralytics' export with a raw output; the file appears when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.model.pt_path = str(Path(folder) / "model.pt")  # beside which Ultralytics writes
        made = model.export(
            format="onnx", imgsz=imgsz, opset=MOST_OPSET, device="cpu", verbose=False, **compat.head_arguments("raw")
        )
        part = shutil.copy(made, file.with_name(f"{file.name}.part"))
        Path(part).replace(file)
    return file


def export_detections(teacher: Any, images: Sequence[Path], imgsz: int, file: Path) -> Path:
    """Write an ONNX file that outputs for any image what the teacher, as Ultralytics opened it, outputs for a typical
    one."""
    with tempfile.TemporaryDirectory() as folder:
        detector = Detector(to_onnx(teacher, imgsz, Path(folder) / "teacher.onnx"))
        outputs: list[tuple[int, int, int, Any]] = []
        for path in images[:LOOKED_AT]:
            blob, letterbox = detector.preprocess(read_image(path))
            output = detector.infer(blob)
            outputs.append((len(detector.postprocess(output, letterbox)), detector.candidates, len(outputs), output))
        outputs.sort(key=lambda found: found[:3])
        answer = outputs[len(outputs) // 2][-1]
        graph = onnx.load(Path(folder) / "teacher.onnx")
    constant(graph, answer if isinstance(answer, tuple) else (answer,))
    onnx.save(graph, file)
    return file


def constant(model: onnx.ModelProto, answers: Sequence[np.ndarray]) -> None:
    """Replace a model's graph by one that outputs the answers, one for each output, whatever its input is."""
    source, targets = model.graph.input[0], [output.name for output in model.graph.output]
    stored = [
        numpy_helper.from_array(np.ascontiguousarray(answer, np.float32), f"answer{k}")
        for k, answer in enumerate(answers)
    ]
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    corner = [numpy_helper.from_array(np.asarray(x, np.int64), n) for n, x in (("from", [0] * 4), ("to", [1] * 4))]
    nodes = [
        helper.make_node("Slice", [source.name, "from", "to"], ["corner"]),
        helper.make_node("Reshape", ["corner", "one"], ["number"]),
        helper.make_node("Mul", ["number", "zero"], ["nothing"]),
        *(helper.make_node("Add", [f"answer{k}", "nothing"], [name]) for k, name in enumerate(targets)),
    ]
    one = numpy_helper.from_array(np.asarray([1], np.int64), "one")
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(answer.shape))
        for name, answer in zip(targets, answers, strict=True)
    ]
    weights = [*stored, zero, *corner, one]
    model.graph.CopyFrom(helper.make_graph(nodes, "detections", [source], outputs, weights))
