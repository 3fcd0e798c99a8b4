"""The bundled models, and settings of a training that takes seconds."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "yolokd" / "demo" / "assets"
# What makes a training small; pico models at 64 px take a few seconds an epoch.
TINY = {
    "imgsz": 64, "batch": 8, "epochs": 2, "workers": 0, "plots": False, "amp": False, "device": "cpu",
    "optimizer": "AdamW", "lr0": 0.001, "nbs": 8, "warmup_epochs": 0, "close_mosaic": 0, "cache": "ram",
}  # fmt: skip
