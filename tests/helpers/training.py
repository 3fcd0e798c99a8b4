"""The bundled models, and settings of a training that takes seconds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from yolokd.detectors.opening import scaled_yaml

ASSETS = Path(__file__).parents[2] / "yolokd" / "demo" / "assets"
# What makes a training small; pico models at 64 px take a few seconds an epoch.
TINY = {
    "imgsz": 64, "batch": 8, "epochs": 2, "workers": 0, "plots": False, "amp": False, "device": "cpu",
    "optimizer": "AdamW", "lr0": 0.001, "nbs": 8, "warmup_epochs": 0, "close_mosaic": 0, "cache": "ram",
}  # fmt: skip


def pico(family: str) -> str:
    """YAML of a tiny member of a family."""
    return scaled_yaml(f"{family}n.yaml", width=0.125, depth=0.33)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def read(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=False)
