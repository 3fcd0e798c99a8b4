"""yolokd: knowledge distillation for Ultralytics detectors, from the teacher to the measured file on the device."""

from __future__ import annotations

import importlib
from typing import Any

from yolokd_edge.version import VERSION as __version__

_TRAINERS = ("KDOBBTrainer", "KDPoseTrainer", "KDRTDETRTrainer", "KDSegmentationTrainer", "KDTrainer")
_FUNCTIONS = (
    "bench",
    "bundle",
    "check",
    "compare",
    "explain",
    "export",
    "fit",
    "label",
    "report",
    "study",
    "throughput",
    "train",
    "tune",
)
__all__ = ["METHODS", "YOLO", *_TRAINERS, "__version__", *_FUNCTIONS]

_HOME = {
    "METHODS": "methods",
    "YOLO": "tuning.tuner",
    **dict.fromkeys(_TRAINERS, "distill.trainer"),
    "check": "checks.check",
    "train": "reports.trained",
    "label": "labelling.label",
    "fit": "fitting.fit",
    "export": "onnx.export",
    "bundle": "onnx.bundle",
    "bench": "reports.timed",
    "throughput": "latency.throughput",
    "compare": "latency.gate",
    "study": "reports.trained",
    "report": "reports.make",
    "explain": "reports.explain",
    "tune": "tuning.tuner",
}
_STANDS_ON_ULTRALYTICS = {*_TRAINERS, "YOLO", *_FUNCTIONS} - {"bench", "compare", "throughput"}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import yolokd` alone costs no torch and no ultralytics."""
    if name not in _HOME:
        raise AttributeError(f"module 'yolokd' has no attribute {name!r}")
    if name in _STANDS_ON_ULTRALYTICS:
        importlib.import_module("yolokd.compat").check()
    return getattr(importlib.import_module(f"yolokd.{_HOME[name]}"), name)
