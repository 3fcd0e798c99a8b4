"""Opening a student: a checkpoint, a model YAML, or a YAML with other width and depth factors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import USER_CONFIG_DIR

from yolokd.detectors import TASKS
from yolokd.errors import UsageError, one_line


def is_rtdetr_yaml(model: str) -> bool:
    """Whether a model YAML ends in an RT-DETR decoder: YOLO() opens RT-DETR's checkpoints, but not its YAML."""
    return Path(model).suffix in {".yaml", ".yml"} and yaml_model_load(model)["head"][-1][2] == "RTDETRDecoder"


def open_student(model: Any, key: str = "model") -> YOLO | RTDETR:
    try:
        student = RTDETR(str(model)) if is_rtdetr_yaml(str(model)) else YOLO(str(model))
    except Exception as error:  # a missing, damaged or foreign file ends in a dozen exception types
        raise UsageError(
            f"{key}={model} is not a model that Ultralytics can open ({one_line(error)}); "
            "give a YOLO, such as yolo11n.yaml or a trained .pt file."
        ) from error
    if not isinstance(student.model, nn.Module):
        raise UsageError(f"{key}={model} cannot be trained: give a model's YAML or a trained .pt file.")
    if student.task not in TASKS:
        raise UsageError(f"{key}={model} is for the task {student.task}: yolokd distils models for {', '.join(TASKS)}.")
    return student


def scaled_yaml(model: str, width: float | None = None, depth: float | None = None) -> str:
    """Path of a model YAML with other width and depth factors than the family's scales have.

    Args:
        model: a YAML that Ultralytics finds, such as yolo11n.yaml, whose scale gives what is not given here.
        width: factor on the channels, such as 0.125.
        depth: factor on the number of repeated blocks, such as 0.5.
    """
    if Path(model).suffix not in {".yaml", ".yml"}:
        raise UsageError(
            f"width= and depth= build a new model, and model={model} is not a YAML: give yolo11n.yaml or so."
        )
    for key, value in (("width", width), ("depth", depth)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value <= 4):
            raise UsageError(f"{key}={value} is out of range: give a factor above 0 and up to 4.")
    try:
        layout = yaml_model_load(model)
    except Exception as error:
        raise UsageError(f"model={model} cannot be read: {one_line(error)}.") from error
    scale = layout.pop("scale") or next(iter(layout.get("scales", {})), "")
    if scale not in layout.get("scales", {}):
        raise UsageError(f"model={model} has no scales: width= and depth= need a family's YAML, such as yolo11n.yaml.")
    layout.pop("yaml_file")
    own_depth, own_width, most = layout["scales"][scale]
    depth, width = (own if x is None else float(x) for x, own in ((depth, own_depth), (width, own_width)))
    layout["scales"] = {scale: [depth, width, most]}
    text = yaml.safe_dump(layout, sort_keys=False)
    # The name keeps the scale's letter, by which Ultralytics finds it; equal names have equal contents.
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    file = Path(USER_CONFIG_DIR) / "yolokd" / f"{Path(model).stem}-w{width:g}-d{depth:g}-{mark}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)
