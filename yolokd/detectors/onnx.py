"""A detector in an ONNX file, run by onnxruntime: only its detections can teach, not its inner maps.

The file takes one input (B, 3, H, W), RGB in 0 to 1, where each of B, H and W may be fixed or free; images of another
size are padded with grey at the right and bottom and resized. Its output is one of these contracts; pixels are the
input's:

    raw           (B, 4 + K, N): box centre x, y, width, height in pixels, then K scores in 0 to 1
    e2e, nms      (B, N, 6): x1, y1, x2, y2 in pixels, score, class index; rows of score 0 are padding
    boxes_scores  two outputs: "boxes" (B, N, 4) as x1, y1, x2, y2 in pixels, and "scores" (B, N, K) in 0 to 1

Files of `yolokd export` and of Ultralytics' exporter name their contract and classes in their metadata. A detection of
e2e and nms has one score; its other classes get a score near 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torchvision.ops import box_convert

from yolokd.detectors.foreign import GREY, ForeignReader, rgb
from yolokd.errors import UsageError
from yolokd.methods import ops
from yolokd.views import Spec
from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.contract import E2E, NMS, RAW, read_contract

CONTRACTS = ("raw", "e2e", "nms", "boxes_scores")
DECLARED = {RAW: "raw", E2E: "e2e", NMS: "nms"}  # their names in a file's metadata
# NMS on raw and boxes_scores keeps at most this many detections, up to this IoU, above this score
MAX_DETECTIONS, IOU, MIN_SCORE = 300, 0.7, 0.001
IMPROBABLE = 1e-6  # scores are raised to this, so that 0 has a finite logit
FLOATS = ("tensor(float)", "tensor(float16)")  # what images can be fed as
# Operators that multiply by what they hold, so that an infinity in it is no mask.
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "QuantizeLinear", "DequantizeLinear"}
STRIDE = 32  # image sides are a multiple of this where the file leaves them free


class OnnxDetector(nn.Module):
    """Detections of an ONNX file as logits (B, N, K) and boxes (B, N, 4), xyxy in pixels of the given images.

    Args:
        path: the file.
        contract: one of CONTRACTS; None for the file's own.
        names: class index -> name; None for the file's own.

    Raises:
        UsageError: the file cannot be loaded or does not follow its contract, or the contract is unknown.
    """

    task = "detect"

    def __init__(self, path: str, contract: str | None = None, names: dict[int, str] | None = None) -> None:
        super().__init__()
        self.path = path
        self.sessions: dict[torch.device, Any] = {}
        session = self._session(torch.device("cpu"))
        self.contract, self.names = _contract_and_names(session, path, contract, names)
        entry, self.outputs = session.get_inputs()[0], [o.name for o in session.get_outputs()]
        shape = list(entry.shape)
        if len(session.get_inputs()) != 1 or len(shape) != 4 or isinstance(shape[1], int) and shape[1] != 3:
            raise UsageError(f"teacher={path} takes {shape}: a detector takes one input of images (B, 3, H, W).")
        if entry.type not in FLOATS:
            raise UsageError(f"teacher={path} takes {entry.type}: give a file that takes {' or '.join(FLOATS)}.")
        self.entry, self.float16 = entry.name, entry.type == "tensor(float16)"
        self.images, _, self.height, self.width = (n if isinstance(n, int) and n > 0 else None for n in shape)
        if self.contract == "boxes_scores" and not {"boxes", "scores"} <= set(self.outputs):
            raise UsageError(
                f"teacher={path} has outputs {', '.join(self.outputs)}: teacher.contract=boxes_scores needs two that "
                "are called boxes and scores."
            )
        if self.contract != "boxes_scores" and len(self.outputs) != 1:
            raise UsageError(
                f"teacher={path} has outputs {', '.join(self.outputs)}, but the contract {self.contract} is about one: "
                "give teacher.contract=boxes_scores for outputs boxes and scores."
            )
        if name := non_finite(path):
            raise UsageError(f"teacher={path} has values that are not finite, first in {name}: give a file without.")
        found = self(torch.zeros(1, 3, self.height or 2 * STRIDE, self.width or 2 * STRIDE))  # this checks the shapes
        if not all(out.isfinite().all() for out in found.values()):
            raise UsageError(f"teacher={path} computes values that are not finite numbers: give a file that does not.")

    def _session(self, device: torch.device) -> Any:
        """The session for images on a device; ONNX Runtime's own build decides whether a GPU can be used."""
        if device not in self.sessions:
            places: list[tuple[str, dict[str, Any]]] = [("CPUExecutionProvider", {})]
            if device.type == "cuda":
                places.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
            usable = [place for place in places if place[0] in onnxruntime.get_available_providers()]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
            try:
                self.sessions[device] = onnxruntime.InferenceSession(self.path, options, providers=usable)
            except Exception as error:  # ONNX Runtime's own exception types share no base class
                raise UsageError(
                    f"teacher={self.path} is not an ONNX model that can be loaded ({one_line(error)})."
                ) from error
        return self.sessions[device]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> {"logits": (B, N, K), "boxes": (B, N, 4)}."""
        fitted, scale = self._fit(rgb(images.float()))
        whole = self.images or len(images)  # the file's batch size may be fixed: the last batch is padded
        runs = [self._run(F.pad(part, (0, 0, 0, 0, 0, 0, 0, whole - len(part)))) for part in torch.split(fitted, whole)]
        outputs = [self._join(parts)[: len(images)] for parts in zip(*runs, strict=True)]
        boxes, scores = self._read([out.to(images.device).float() for out in outputs])
        return {"logits": scores.clamp(IMPROBABLE, 1 - IMPROBABLE).logit(), "boxes": boxes / scale}

    def _fit(self, images: Tensor) -> tuple[Tensor, float]:
        """The images at the file's size, and the scale: its pixels per pixel of theirs."""
        height, width = images.shape[-2:]
        size = (self.height or height, self.width or width)
        if size == (height, width):
            return images, 1.0
        scale = min(size[0] / height, size[1] / width)
        inside = min(round(height * scale), size[0]), min(round(width * scale), size[1])
        images = F.interpolate(images, size=inside, mode="bilinear", align_corners=False, antialias=scale < 1)
        return F.pad(images, (0, size[1] - inside[1], 0, size[0] - inside[0]), value=GREY), scale

    def _join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Outputs of several runs as one, with empty rows where a run has fewer detections."""
        if self.contract == "raw":
            return torch.cat(parts)
        rows = max(out.shape[1] for out in parts)
        return torch.cat([F.pad(out, (0, 0, 0, rows - out.shape[1])) for out in parts])

    def _run(self, images: Tensor) -> list[Tensor]:
        blob = images.half() if self.float16 else images
        session = self._session(images.device)
        try:
            outputs = session.run(self.outputs, {self.entry: blob.contiguous().cpu().numpy()})
            return [torch.from_numpy(out) for out in outputs]
        except Exception as error:  # ONNX Runtime's own share no base class; an output may be of text
            raise UsageError(
                f"teacher={self.path} cannot be run on images of {tuple(blob.shape)} ({one_line(error)}): give a file "
                "that ONNX Runtime runs."
            ) from error

    def _read(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 4) and scores (B, N, K) from the file's outputs."""
        count = len(self.names)
        if self.contract in ("e2e", "nms"):
            (rows,) = outputs
            self._check(rows, rows.ndim == 3 and rows.shape[2] == 6, "(B, N, 6)")
            self._check(rows, bool((rows[..., 5] < count).all()), f"about {count} classes")
            of_class = F.one_hot(rows[..., 5].long().clamp(0, count - 1), count).to(rows.dtype)
            return rows[..., :4], rows[..., 4:5] * of_class
        if self.contract == "raw":
            (rows,) = outputs
            self._check(rows, rows.ndim == 3 and rows.shape[1] == 4 + count, f"(B, {4 + count}, N) for {count} classes")
            boxes, scores = box_convert(rows[:, :4].mT, "cxcywh", "xyxy"), rows[:, 4:].mT
        else:
            by_name = dict(zip(self.outputs, outputs, strict=True))
            boxes, scores = by_name["boxes"], by_name["scores"]
            self._check(boxes, boxes.ndim == 3 and boxes.shape[2] == 4, "boxes (B, N, 4)")
            fits = scores.ndim == 3 and scores.shape[1:] == (boxes.shape[1], count)
            self._check(scores, fits, f"scores (B, N, {count}) for {count} classes")
        places, there = ops.top_places(boxes, scores.amax(-1), MAX_DETECTIONS, IOU, MIN_SCORE)
        boxes, scores = (torch.take_along_dim(x, places[..., None], 1) for x in (boxes, scores))
        return boxes, scores * there[..., None]

    def _check(self, out: Tensor, fits: bool, expected: str) -> None:
        if not fits:
            raise UsageError(
                f"teacher={self.path} outputs {tuple(out.shape)}, but its contract {self.contract} is {expected}: "
                "give the teacher.contract= and teacher.names= that fit it."
            )


class OnnxReader(ForeignReader):
    """Reads an OnnxDetector: a set of boxes and scores."""

    fields = frozenset({"logits", "boxes"})
    strides = (STRIDE,)
    model: OnnxDetector

    def __init__(self, model: OnnxDetector) -> None:
        super().__init__(model)
        name = Path(model.path).stem
        self.spec = Spec(self.strides, {}, len(model.names), name=name, dense=False, provides=self.fields)


def non_finite(path: str) -> str | None:
    """Name of a constant in a file that holds NaN, or infinity where a layer multiplies by it; None without."""
    weighted: set[str] = set()
    constants: list[tuple[str, Any]] = []
    graphs = [onnx.load(path).graph]
    while graphs:
        graph = graphs.pop()
        constants += [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            weighted |= set(node.input) if node.op_type in WEIGHTED else set()
            for attribute in node.attribute:
                if attribute.HasField("g"):  # a branch or the body of a loop
                    graphs.append(attribute.g)
                if attribute.HasField("t") and node.op_type == "Constant":
                    constants.append((node.output[0], attribute.t))
    for name, tensor in constants:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = numpy_helper.to_array(tensor)
            if np.isnan(values).any() or (name in weighted and np.isinf(values).any()):
                return name
    return None


def _contract_and_names(
    session: Any, path: str, contract: str | None, names: dict[int, str] | None
) -> tuple[str, dict[int, str]]:
    """Contract and class names: those given, else those in the file's metadata."""
    entries = dict(session.get_modelmeta().custom_metadata_map)
    if contract is None or names is None:
        try:
            own = read_contract(entries, Path(path))
        except EdgeError as error:
            missing = "teacher.contract=" + "|".join(CONTRACTS) if contract is None else "teacher.names=names.yaml"
            raise UsageError(f"teacher={path} does not say what it outputs ({error}): give {missing}.") from error
        if (declared := contract or DECLARED.get(own.output)) is None:
            raise UsageError(
                f"teacher={path} outputs {own.output}, which is not read from teachers: give the RT-DETR's .pt file."
            )
        contract, names = declared, names or own.names
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"teacher={path} has class indices {sorted(names)}: they must count from 0 without a gap.")
    return contract, names
