"""Links to images and their labels, in the folders in which Ultralytics reads them.

Ultralytics writes into a data set that it reads: a label cache, and JPEGs that it restores. Read through a mirror, both
fall into the mirror, and the user's files stay as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ultralytics.data.utils import img2label_paths

PLACES = ("path", "train", "val", "test", "minival", "yaml_file", "download")  # keys of a YAML that a mirror replaces


def link(source: str | Path, target: Path) -> Path:
    """Make target a link to a file, or a copy of it where the system has no links for its users."""
    try:
        target.symlink_to(os.path.abspath(source))
    except OSError:
        shutil.copyfile(source, target)
    return target


def mirror(images: Iterable[Path], folder: Path) -> Path:
    """Links to the images and to the labels that they have; returns the images' folder."""
    places = folder / "images", folder / "labels"
    for place in places:
        place.mkdir(parents=True)
    for i, image in enumerate(images):
        link(image, places[0] / f"{i:06d}{image.suffix}")
        if (label := Path(img2label_paths([str(image)])[0])).is_file():
            link(label, places[1] / f"{i:06d}.txt")
    return places[0]


def mirrored_yaml(data: dict[str, Any], splits: dict[str, list[Path]], folder: Path) -> Path:
    """The YAML of a data set with the given images only, of which it says what the whole one says.

    Args:
        data: Ultralytics' description of the whole one.
        splits: name -> images.
        folder: an empty one, for the mirror.
    """
    places = {name: str(mirror(images, folder / name)) for name, images in splits.items()}
    about = {key: value for key, value in data.items() if key not in PLACES}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({**about, "path": str(folder), **places}), encoding="utf-8")
    return file


def spread(images: list[Path], most: int) -> list[Path]:
    """At most the given number of images, evenly spaced."""
    count = min(len(images), most)
    return [images[i * len(images) // count] for i in range(count)]
