"""The ONNX files of a bundle: the FP32 file and its twins, and what the manifest says of each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
from ultralytics import RTDETR, YOLO
from ultralytics.utils import LOGGER

from yolokd.data.splits import split_images
from yolokd.detectors.quantized import is_quantized
from yolokd.errors import UsageError
from yolokd.onnx import (
    calibration,
    export,
    likeness,
    metadata,
    profile,
    qdq,
    quantize,
    summary,
    trials,
    validation,
)
from yolokd.onnx.output_error import OutputError

LOOKED_AT = 64  # images of a set, for whether it looks like another
MOST_OPSET, MOST_IR = 18, 9  # what the runtimes of older JetPacks read: ONNX Runtime 1.14, 1.15 where IR is 9
RTDETR_OPSET = 17  # in half precision ONNX Runtime 1.14 writes LayerNormalization out with operators of opset 17
EVERY = ("cpu", "cuda", "trt")
PROVIDERS = {"fp32": EVERY, "fp16": EVERY, "int8": EVERY, "cpu": ("cpu",), "trt": ("trt", "cuda")}


def make(
    checkpoint: Path, root: Path, student: YOLO, dataset: dict[str, Any] | None, fp16: bool, int8: bool,
    how: dict[str, Any], calib: int, wishes: trials.Wishes,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Write the ONNX files; their manifest entries by file name, the FP32 one first."""
    full = root / "model.onnx"
    # older versions of Ultralytics choose what their torch can write, which boards cannot read
    how = {**how, "opset": RTDETR_OPSET if isinstance(student, RTDETR) else MOST_OPSET}
    rounded = root / "model_int8.onnx" if is_quantized(student.model) else None
    with tempfile.TemporaryDirectory() as folder:
        exact = checkpoint
        if rounded:
            LOGGER.info("The student was trained for INT8: its INT8 file has the training's ranges, none is calibrated")
            export.export(checkpoint, rounded, **how)
            metadata.change(rounded, date=None)
            exact = qdq.float_twin(checkpoint, Path(folder) / checkpoint.name)
        export.export(exact, full, **how)
    metadata.change(full, date=None)  # all that differs between two exports of one checkpoint
    models = {full.name: _entry(full, "fp32", "fp32")}
    if fp16:
        models["model_fp16.onnx"] = _entry(quantize.fp16(full, root / "model_fp16.onnx"), "fp16", "fp16")
    if rounded:
        models[rounded.name] = _entry(rounded, "int8", "int8")
    if dataset:
        _measured_twins(root, models, dataset, calib if int8 and not rounded else 0, wishes)
        validation.measure(root, models, dataset)
    elif known := metadata.description(metadata.read(full))["accuracy"]:
        models[full.name]["accuracy"] = known
    return models


def _measured_twins(
    root: Path, models: dict[str, dict[str, Any]], dataset: dict[str, Any], calib: int, wishes: trials.Wishes
) -> None:
    """Add the calibrated INT8 files, if any images are to be calibrated on, and the output error of every twin."""
    full = root / next(iter(models))
    if not calib and len(models) == 1:
        return
    images, held, split = calibration.image_sets(dataset, calib)
    measure = OutputError(full, held)
    if calib:
        likeness.warn_if_unlike(*(calibration.spread(i, LOOKED_AT) for i in (images, split_images(dataset, "val"))))
        tries = trials.Trials(full, images, measure, wishes)
        for name, scheme in (("cpu", quantize.CPU), ("trt", quantize.TENSORRT)):
            file = root / f"model_int8_{name}.onnx"
            tried = tries.write(file, scheme)
            models[file.name] = {**_entry(file, "int8", name), "trials": tried}
    for name in list(models)[1:] if measure else ():
        models[name]["output_error"] = {"value": round(measure.of(root / name), 6), "split": split, "n": len(held)}
    on_cpu = [name for name in list(models)[1:] if "cpu" in models[name]["providers"]]
    times = {name: measure.relative_time(root / name) for name in on_cpu}  # for the log only: a bundle tells no machine
    LOGGER.info(summary.tried(models, times))


def _entry(file: Path, precision: str, providers: str) -> dict[str, Any]:
    """What the manifest says of a model, its accuracy still unknown."""
    loaded = onnx.load(file)
    opset = next(o.version for o in loaded.opset_import if not o.domain)
    if opset > MOST_OPSET or loaded.ir_version > MOST_IR:
        raise UsageError(
            f"{file.name} has opset {opset} and IR {loaded.ir_version}: boards read {MOST_OPSET}, {MOST_IR}."
        )
    return {
        "precision": precision,
        "providers": list(PROVIDERS[providers]),
        "opset": opset,
        "ir": loaded.ir_version,
        "int8": metadata.description(metadata.of_graph(loaded)).get("int8"),
        "accuracy": None,
        "change": None,
        "static": profile.figures(file),
    }
