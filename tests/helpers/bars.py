"""A small data set for segment, pose and obb."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml

BARS = {0: "bar", 1: "block"}


def places(*pixels: float) -> list[str]:
    return [f"{v / 64:.4f}" for v in pixels]


def bars(folder: Path, task: str, count: int = 8, names: dict[int, str] = BARS) -> Path:
    """YAML of images with one turned rectangle each, labelled by its corners or by its middle and two ends."""
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        kind, centre, turn = i % 2, random.uniform(24, 40, 2).tolist(), random.uniform(0, 180)
        corners = cv2.boxPoints((centre, (30, 10 + 12 * kind), turn))
        image = cv2.fillPoly(np.full((64, 64, 3), 60, np.uint8), [corners.astype(int)], (90, 160 + 60 * kind, 220))
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
        if task == "pose":
            low, high = corners.min(0), corners.max(0)
            middles = (centre, *(corners[:2] + corners[2:]) / 2)
            words = places(*(low + high) / 2, *(high - low))
            words += [word for k, p in enumerate(middles) for word in (*places(*p), "12"[k < 2])]  # hidden, visible
        else:
            words = places(*corners.flatten())
        (folder / "labels" / f"{i}.txt").write_text(" ".join((str(kind), *words)))
    data = {"path": str(folder), "train": "images", "val": "images", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(data | ({"kpt_shape": [3, 3]} if task == "pose" else {})))
    return folder / "data.yaml"
