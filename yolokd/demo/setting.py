"""What a demo trains, on what, and for how long: the bundled scenes, or photographs that are downloaded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.demo.scenes import compose
from yolokd.errors import UsageError

ASSETS = Path(__file__).parent / "assets"
SCENES = {"train": 400, "val": 200}
# One budget for both runs; of each, the best epoch on validation is kept, as Ultralytics does.
BUDGET: dict[str, Any] = {
    "imgsz": 160, "epochs": 8, "batch": 16, "nbs": 16, "optimizer": "AdamW", "lr0": 0.002, "warmup_epochs": 1,
    "close_mosaic": 2, "cache": "ram", "amp": False, "device": "cpu", "workers": 0, "plots": False,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A demo that is ready to begin: its files lie in its folder."""

    about: str  # for the user: what is compared, and how the figures are to be read
    data: Path  # the data set's YAML
    images: Path  # the folder of its validation images
    train: int  # images
    val: int
    teacher: Path
    student: Path
    budget: dict[str, Any]


def bundled(out: Path, seed: int) -> Setting:
    """The demo that needs no network."""
    data = write_data(out / "data", seed)
    weights = {name: out / f"{name}.pt" for name in ("teacher", "student")}
    for file in weights.values():  # copies, so that exports and caches do not change the package's own files
        shutil.copy(ASSETS / file.name, file)
    return Setting(
        "A student of 0.81 M parameters learns to find ten kinds of clothes on small composed pictures, once alone and "
        "once under a teacher of 2.59 M parameters, which was trained on such pictures. Data, budget and seed are the "
        "same.",
        data, data.parent / "images" / "val", SCENES["train"], SCENES["val"], weights["teacher"], weights["student"],
        {**BUDGET, "seed": seed},
    )  # fmt: skip


def write_data(out: str | Path, seed: int = 0) -> Path:
    """Compose the demo's scenes into a folder that is new or empty; return the data set's YAML."""
    try:
        return compose(Path(out).resolve(), **SCENES, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
