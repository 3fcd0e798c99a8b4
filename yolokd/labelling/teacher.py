"""The teacher that labels: what it finds in an image, in the classes of the data and as rows of a label file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torchvision.ops import batched_nms
from ultralytics import YOLO
from ultralytics.utils.patches import imread

from yolokd import compat
from yolokd.detectors import TASKS
from yolokd.detectors.class_map import ClassMap
from yolokd.detectors.onnx import OnnxDetector
from yolokd.detectors.opening import open_model
from yolokd.detectors.teachers import fetched, locate_all
from yolokd.errors import UsageError

VISIBLE = 0.5  # confidence from which on a keypoint counts as seen


@dataclass(frozen=True)
class Found:
    """An object that the teacher found.

    Attributes:
        cls: its class in the data.
        conf: the teacher's confidence.
        box: x1, y1, x2, y2 as shares of the image, upright.
        row: what a label file says of it, after the class.
    """

    cls: int
    conf: float
    box: tuple[float, ...]
    row: tuple[float, ...]

    def line(self) -> str:
        """The row of a label file."""
        return " ".join([str(self.cls), *(f"{v:.6g}" for v in self.row)])


class Teacher:
    """A trained model of Ultralytics, or an ONNX file of one.

    Args:
        given: what the user named.
        trust: the user answers for what the file runs.
    """

    def __init__(self, given: Any, trust: bool) -> None:
        located = locate_all(given)
        if len(located) > 1:
            raise UsageError(f"teacher={','.join(located)}: one teacher labels, give the best of them.")
        self.file = fetched(located[0])
        self.table: dict[int, int] | None = None  # class of the teacher -> of the data; None for equal ones
        self.merged = False  # whether several of its classes are one of the data
        if self.file.endswith(".onnx"):
            self._open_onnx()
        elif self.file.endswith(".pt"):
            self._open_checkpoint(trust)
        else:
            raise UsageError(f"teacher={self.file} finds no objects: give a detector's .pt or .onnx file.")

    def _open_checkpoint(self, trust: bool) -> None:
        self.model: Any = open_model(self.file, "teacher", trust)
        self.task, self.names = str(self.model.task), dict(self.model.names)
        if self.task not in TASKS:
            raise UsageError(f"teacher={self.file} is for the task {self.task}: give one for {', '.join(TASKS)}.")
        if (channels := int(self.model.model.yaml.get("channels", 3))) != 3:
            raise UsageError(f"teacher={self.file} takes images of {channels} channels: give one for colour images.")
        own = self.model.overrides.get("imgsz")
        self.imgsz = int(own) if isinstance(own, int) and own >= 32 else 640
        self.keypoints = list(getattr(self.model.model, "kpt_shape", ()) or ())

    def _open_onnx(self) -> None:
        try:
            props = {p.key: p.value for p in onnx.load(self.file, load_external_data=False).metadata_props}
        except Exception as error:  # protobuf's own
            raise UsageError(f"teacher={self.file} is not an ONNX model: give a .pt or .onnx file.") from error
        if not {"stride", "names", "imgsz"} <= props.keys() or props.get("task") != "detect":
            raise UsageError(
                f"teacher={self.file} is no detector that Ultralytics exported, with its metadata: give the .pt file, "
                "or what `yolokd export` or `yolo export format=onnx` makes of it."
            )
        own = OnnxDetector(self.file)  # looks whether it keeps its contract
        self.model = YOLO(self.file, task="detect")
        self.task, self.names, self.keypoints = "detect", dict(own.names), []
        self.imgsz = max(own.height or 640, own.width or 640)

    def use_classes(self, classes: ClassMap | None) -> None:
        """Speak in the data's classes: None where they are the teacher's own."""
        if classes is not None:
            pairs = zip(classes.student.tolist(), classes.teacher.tolist(), strict=True)
            self.table = {k: own for own, group in pairs for k in group}
            self.merged = classes.teacher.shape[-1] > 1

    def taught(self, names: Mapping[int, str]) -> set[int]:
        """The classes of the data that it can find."""
        return set(names) if self.table is None else set(self.table.values())

    def look(self, image: np.ndarray[Any, Any], conf: float, **settings: Any) -> list[Found]:
        """What it finds in an image (H, W, 3), BGR, from a confidence on; settings are of Ultralytics' predict."""
        mended = compat.boxes_by_axis() if self.task != "obb" else nullcontext()  # which is about upright boxes
        with mended:
            (result,) = self.model.predict(image, conf=conf, verbose=False, save=False, **settings)
        found = [f for f in self._read(result.cpu()) if f is not None]
        if self.merged and found:
            boxes = torch.tensor([f.box for f in found]) * 1e4  # as batched_nms thinks in pixels
            score, cls = torch.tensor([f.conf for f in found]), torch.tensor([f.cls for f in found])
            found = [found[i] for i in batched_nms(boxes, score, cls, float(settings.get("iou", 0.7))).tolist()]
        return found

    def _read(self, result: Any) -> list[Found | None]:
        """The objects of Ultralytics' result; None in place of one that no label can say, or of no class of the data.

        Coordinates are cut at the image's borders: beyond them a training would skip the whole image.
        """
        objects = result.obb if self.task == "obb" else result.boxes
        if objects is None or not len(objects):
            return []
        found: list[Found | None] = []
        for i in range(len(objects)):
            own = int(objects.cls[i])
            cls = own if self.table is None else self.table.get(own, -1)
            box, row = self._row(result, objects, i)
            width, height = box[2] - box[0], box[3] - box[1]
            usable = cls >= 0 and min(width, height) > 1e-5 and len(row) >= 4
            found.append(Found(cls, float(objects.conf[i]), box, row) if usable else None)
        return found

    def _row(self, result: Any, objects: Any, i: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The upright box of an object, and the numbers of its label."""
        if self.task == "obb":
            corners = objects.xyxyxyxyn[i].clamp(0, 1)
            box = (*corners.amin(0).tolist(), *corners.amax(0).tolist())
            return box, tuple(corners.flatten().tolist())
        box = tuple(objects.xyxyn[i].clamp(0, 1).tolist())
        x1, y1, x2, y2 = box
        row: tuple[float, ...] = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        if self.task == "segment":
            outline = np.clip(result.masks.xyn[i], 0, 1) if result.masks is not None else np.zeros((0, 2))
            return box, tuple(outline.flatten().tolist()) if len(outline) > 2 else ()
        if self.task == "pose":
            points = result.keypoints.xyn[i].clamp(0, 1)
            seen = None if result.keypoints.conf is None else result.keypoints.conf[i] >= VISIBLE
            for j, (x, y) in enumerate(points.tolist()):
                row += (x, y) if seen is None else (x, y, 2.0) if seen[j] else (0.0, 0.0, 0.0)
        return box, row


def read_image(file: Path) -> np.ndarray[Any, Any] | None:
    """An image as a training reads it, BGR; None where it cannot be read."""
    try:
        image = imread(str(file))
    except Exception:  # OpenCV's and Pillow's own, by what is broken
        return None
    if image is None or image.ndim != 3 or image.shape[2] != 3:
        return None
    return image  # type: ignore[no-any-return]
