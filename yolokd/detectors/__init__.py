"""The only code that reads Ultralytics' heads, and teachers that have none of them."""

from __future__ import annotations

from typing import Any

from ultralytics.nn.modules.head import Detect, RTDETRDecoder

from yolokd.detectors.onnx import OnnxDetector, OnnxReader
from yolokd.detectors.reader import Reader, name
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.detectors.vit import ViT, ViTReader
from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError


def read(model: Any) -> Reader:
    """The reader for an Ultralytics model, by its head, or for a foreign teacher.

    Raises:
        UsageError: yolokd does not know the head.
    """
    if isinstance(model, OnnxDetector):
        return OnnxReader(model)
    if isinstance(model, ViT):
        return ViTReader(model)
    head = model.model[-1]
    if isinstance(head, RTDETRDecoder):
        return RTDETRReader(model)
    if isinstance(head, Detect):
        return YoloReader(model)
    raise UsageError(
        f"{name(model)} ends in {type(head).__name__}, which yolokd cannot read: "
        "use a YOLO or RT-DETR detection model such as yolov8, yolo11, yolo26 or rtdetr-l."
    )
