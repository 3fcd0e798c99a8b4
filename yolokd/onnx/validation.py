"""The accuracy of exported files by Ultralytics' own validators, and what a twin may lose of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ultralytics.models.rtdetr import RTDETRValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator

from yolokd.errors import ParityError
from yolokd.onnx import metadata
from yolokd_edge.contract import DETR, OBB, POSE, SEGMENT
from yolokd_edge.detector import Detector

VALIDATORS = {DETR: RTDETRValidator, OBB: OBBValidator, POSE: PoseValidator, SEGMENT: SegmentationValidator}
ADDED_MAP = {
    POSE: ("map50_95_keypoints", "P"),
    SEGMENT: ("map50_95_masks", "M"),
}  # a further figure of a task, and Ultralytics' letter for it


def accuracy(file: Path, data: str | Path, split: str = "val") -> dict[str, Any]:
    """mAP of an exported file on a split, as Ultralytics measures it; fields as in the latency report's `accuracy`."""
    contract = Detector(file, threads=1).contract
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": str(file), "data": str(data), "split": split, "device": "cpu", "plots": False, "verbose": False,
            "workers": 0, "task": contract.exporter["task"], "mode": "val", "rect": False, "project": folder,
        }  # fmt: skip
        validator = VALIDATORS.get(contract.output, DetectionValidator)(args=settings, save_dir=Path(folder))
        found = validator(model=str(file))
    added = ADDED_MAP.get(contract.output)
    return {
        "dataset": Path(data).name,
        "split": split,
        "n_images": len(validator.dataloader.dataset),
        "map50": float(found["metrics/mAP50(B)"]),
        "map50_95": float(found["metrics/mAP50-95(B)"]),
        **({added[0]: float(found[f"metrics/mAP50-95({added[1]})"])} if added else {}),
        "conf": float(validator.args.conf),
        "iou": float(validator.args.iou),
        "source": "Ultralytics' validator on the exported file",
    }


def measure(root: Path, models: dict[str, dict[str, Any]], dataset: dict[str, Any]) -> None:
    """Validate each file with Ultralytics' own validator on onnxruntime; write the figures into entry and metadata."""
    first: dict[str, Any] = {}
    for name, entry in models.items():
        figures = accuracy(root / name, dataset["yaml_file"])
        first = first or figures
        entry["accuracy"] = figures
        keys = [key for key in figures if key.startswith("map50")]
        entry["change"] = {key: round(figures[key] - first[key], 6) for key in keys}
        metadata.change(root / name, {"accuracy": figures})


def refuse_losses(models: dict[str, dict[str, Any]], max_drop: float) -> None:
    """Refuse a twin that lost more than allowed: on the board nobody would see it."""
    first = next(iter(models.values()))["accuracy"]
    for name, entry in models.items():
        drops = {key: -100 * by for key, by in (entry["change"] or {}).items() if key != "map50"}
        if drops and not max(drops.values()) <= max_drop:
            worst = max(drops, key=lambda key: drops[key])
            was, now = (100 * figures[worst] for figures in (first, entry["accuracy"]))
            of = {"map50_95_keypoints": " of keypoints", "map50_95_masks": " of masks"}.get(worst, "")
            images = "calibrate on more or other training images (calib=, data=), or " * (entry["precision"] == "int8")
            raise ParityError(
                f"{name} loses {was - now:.2f} points of mAP50-95{of} ({was:.2f} in FP32, {now:.2f} in "
                f"{entry['precision'].upper()}), more than max_drop={max_drop:g}, so no bundle was made: {images}leave "
                f"{entry['precision']}=True out, or allow the loss with max_drop=."
            )
