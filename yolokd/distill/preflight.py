"""Refuse a pair, data set or method that cannot work, before any folder is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ultralytics import RTDETR, YOLO

from yolokd.config.options import DistillOptions
from yolokd.data.splits import read_data
from yolokd.detectors import read
from yolokd.distill.applicability import plans, rounded_imgsz
from yolokd.errors import UsageError
from yolokd.init import transfer


def preflight(student: YOLO | RTDETR, arguments: dict[str, Any], trust: bool = False) -> None:
    """Refuse a pair, data set or method that cannot work; the trainer checks again, but after making its folder."""
    data = read_data(arguments, trust)
    distillation, single_cls = DistillOptions.of(arguments), bool(arguments.get("single_cls"))
    if single_cls:
        data = {**data, "names": {0: "item"}}
    reader = read(student.model)
    if student.task == "pose":  # the trainer will build the student for the data's number of keypoints
        if "kpt_shape" not in data:
            raise UsageError(f"data={arguments['data']} has no kpt_shape, such as [17, 3]: a pose model needs it.")
        reader.spec = replace(reader.spec, keypoints=data["kpt_shape"][0])
    varied = bool(arguments.get("multi_scale") or arguments.get("rect"))
    side = rounded_imgsz(arguments.get("imgsz") or 640, student.model)
    made = plans(reader, distillation, data, side, single_cls, varied, arguments.get("classes"))
    transfer.partners(distillation.init, reader, made[0].teacher)
