"""Hand-over of a bundle to other programs: DeepStream and Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO

from yolokd.config.parse import one_of
from yolokd.errors import UsageError
from yolokd.onnx import deepstream, triton

PROGRAMS = ("deepstream", "triton")


def read(given: Any) -> list[str]:
    """The programs that `handover=` names."""
    if given is None:
        return []
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)):
        raise UsageError(f"handover={given} names no program: give {' or '.join(PROGRAMS)}, or both.")
    return [one_of("handover", name, PROGRAMS) for name in names]


def refuse(programs: Sequence[str], student: YOLO, contract: str) -> None:
    """Refuse what DeepStream's own parser cannot read, before anything is exported."""
    if "deepstream" not in programs:
        return
    if student.task != "detect":
        raise UsageError(
            f"handover=deepstream: DeepStream's own parser reads boxes, this is a {student.task} model: leave it out."
        )
    if contract == "raw" and not isinstance(student, RTDETR):
        raise UsageError(
            "handover=deepstream: DeepStream's own parser takes final boxes: give contract=nms, or contract=e2e for a "
            "model with an NMS-free head."
        )


def write(programs: Sequence[str], root: Path, name: str, models: dict[str, dict[str, Any]]) -> None:
    """Add a folder for each program to an unpacked bundle.

    Args:
        root: the bundle, with its model files and parity images.
        name: the bundle's, which Triton's models get.
        models: the manifest's entries by file name.
    """
    if "deepstream" in programs:
        deepstream.write(root / "deepstream", root / "model.onnx", root / "parity")
    if "triton" in programs:
        taken = [root / file for file, entry in models.items() if "cuda" in entry["providers"]]
        triton.write(root / "triton", name, taken)
