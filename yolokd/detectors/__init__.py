"""The only code that reads Ultralytics' heads, and the code that reads teachers of other origin."""

from __future__ import annotations

from typing import Any

from ultralytics.nn.modules.head import OBB, Detect, Pose, RTDETRDecoder, Segment, WorldDetect, YOLOEDetect

from yolokd.detectors.onnx import OnnxDetector, OnnxReader
from yolokd.detectors.reader import Reader, name
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.detectors.tasks import OBBReader, PoseReader, SegmentReader
from yolokd.detectors.vit import ViT, ViTReader
from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError

TASKS = ("detect", "segment", "pose", "obb")  # Ultralytics' names of the tasks whose heads can be read
PROMPTED = (WorldDetect, YOLOEDetect)  # their classes are texts that are given with the images
READERS: dict[type, type[Reader]] = {
    RTDETRDecoder: RTDETRReader, Segment: SegmentReader, Pose: PoseReader, OBB: OBBReader, Detect: YoloReader,
}  # fmt: skip


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
    for kind, reader in READERS.items():
        if isinstance(head, kind) and not isinstance(head, PROMPTED):
            return reader(model)
    raise UsageError(
        f"{name(model)} ends in {type(head).__name__}, which yolokd cannot read: use a YOLO for detect, segment, pose "
        "or obb such as yolov8, yolo11-seg or yolo26-pose, or an RT-DETR such as rtdetr-l."
    )
