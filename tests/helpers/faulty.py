"""Small data sets in which everything that can be wrong with one is wrong somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

GOOD = "0 0.5 0.5 0.4 0.2"


def picture(file: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """An image of (width, height) that differs from those of other seeds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(colours).save(file)
    return file


def label(image: Path, text: str | None) -> Path:
    """Write the label of an image in images/, or none."""
    file = Path(str(image.with_suffix(".txt")).replace("/images/", "/labels/"))
    file.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        file.write_text(text + "\n", encoding="utf-8")
    return file


def data_set(root: Path, train: list[str | None], val: list[str | None], /, **about: Any) -> Path:
    """YAML of a data set with one image for each label; None for an image without a label file."""
    for split, labels in (("train", train), ("val", val)):
        for i, text in enumerate(labels):
            image = picture(root / "images" / split / f"{i}.png", 1000 * len(split) + i)
            label(image, text)
    file = root / "data.yaml"
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": {0: "cup", 1: "pen"}, **about}
    file.write_text(yaml.safe_dump(content))
    return file
