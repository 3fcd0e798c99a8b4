"""Images with their objects: a folder in YOLO format, or a data set's YAML."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.images import IMAGE_SUFFIXES

MOST = 1e-2  # by which a coordinate may lie outside 0 to 1, as Ultralytics tolerates it


class Objects(NamedTuple):
    """What is on an image."""

    boxes: np.ndarray  # (n, 4) xyxy in its pixels
    classes: np.ndarray  # (n,) of the model
    points: list[np.ndarray]  # of each the outline (points, 2), or keypoints (K, 2 or 3), in its pixels; else empty


class GroundTruth(NamedTuple):
    """The images of a data set, and the files that say what is on them."""

    name: str  # of the YAML or the folder
    split: str
    images: list[Path]
    classes: Mapping[int, int]  # index of a class in the labels -> its index in the model
    sigmas: Sequence[float] = ()  # how far people place each keypoint apart, where the YAML says it


def read(data: str | Path, split: str, names: Mapping[int, str]) -> GroundTruth:
    """Find the images of a data set.

    Args:
        data: the YAML, or a folder of images whose labels lie in a folder `labels` beside it, or beside the images.
        split: which of the YAML's lists.
        names: the model's classes.
    """
    data = Path(data)
    if data.is_dir():
        images, split = _of_folder(data), "folder"
        found = GroundTruth(data.name, split, images, {k: k for k in names})
    elif data.is_file():
        content = _content(data)
        images = [image for place in _places(data, content, split) for image in _listed(place)]
        classes, sigmas = _classes(data, content.get("names"), names), _sigmas(data, content)
        found = GroundTruth(data.name, split, images, classes, sigmas)
    else:
        raise EdgeError(f"There is no data set {data}: give a folder of images with labels, or a data set's YAML.")
    if not any(label_file(image).is_file() for image in found.images):
        raise EdgeError(
            f"No image of {data} has labels, such as {label_file(found.images[0])}: accuracy needs them in YOLO format."
        )
    return found


def label_file(image: Path) -> Path:
    """Where the objects of an image are written: `labels` for the last `images` in its path, else beside the image."""
    parts = list(image.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) / f"{image.stem}.txt"


def objects(
    image: Path, hw: Sequence[int], classes: Mapping[int, int], keypoints: tuple[int, int] = (0, 0), corners: int = 0
) -> Objects:
    """What is on an image; one without a file has no objects.

    Args:
        image: its path.
        hw: its size, pixels.
        classes: as in GroundTruth.
        keypoints: how many an object has, and the values of each; then a row is a class, a box and these.
        corners: the fewest points of an outline that each object must have; else a row is a class with a box or with
            an outline.
    """
    file = label_file(image)
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except (OSError, ValueError) as error:
        raise EdgeError(f"{file} cannot be read ({one_line(error)}).") from None
    rows: dict[tuple[float, ...], np.ndarray] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            box, points = _row(file, number, line, classes, keypoints[0] * keypoints[1])
            if corners and len(points) < 2 * corners:
                raise EdgeError(
                    f"{file}, line {number}: '{line.strip()[:60]}' has no outline of {corners} points or more."
                )
            rows.setdefault(box, points)  # what is written twice counts once
    height, width = hw[:2]
    values = np.array(sorted(rows), np.float64).reshape(-1, 5)
    each = [rows[box].reshape((-1, keypoints[1]) if keypoints[0] else (-1, 2)).copy() for box in sorted(rows)]
    for points in each:
        points[:, :2] *= [width, height]
    return Objects(values[:, 1:] * [width, height, width, height], values[:, 0].astype(int), each)


def _row(
    file: Path, number: int, line: str, classes: Mapping[int, int], keypoints: int
) -> tuple[tuple[float, ...], np.ndarray]:
    """Class and corners of the box, as shares of the image; and the values of an outline or of keypoints, if any."""
    try:
        values = np.array([float(word) for word in line.split()])
    except ValueError:
        values = np.empty(0)
    fits = len(values) == 5 + keypoints or (not keypoints and len(values) > 6 and len(values) % 2 == 1)
    points = values[1:5] if keypoints else values[1:]
    if not fits or not np.isfinite(values).all() or points.min() < -MOST or points.max() > 1 + MOST:
        raise EdgeError(f"{file}, line {number}: '{line.strip()[:60]}' is no class with a box of shares from 0 to 1.")
    if values[0] not in classes:
        raise EdgeError(f"{file}, line {number}: class {values[0]:g} is none of the {len(classes)} classes.")
    if len(points) == 4:
        low, high = points[:2] - points[2:] / 2, points[:2] + points[2:] / 2
        more = values[5:]
    else:
        low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
        more = points
    return (float(classes[int(values[0])]), *low.tolist(), *high.tolist()), more


def _of_folder(folder: Path) -> list[Path]:
    """The images of a folder, or of the folder `images` in it, and of those inside."""
    inner = folder / "images"
    held = [p for p in (folder, inner) if p.is_dir() and any(f.suffix.lower() in IMAGE_SUFFIXES for f in p.iterdir())]
    below = [str(p) for p in sorted(inner.iterdir()) if p.is_dir()] if inner.is_dir() else []
    if not held and below:  # the splits of a data set, which are not measured together
        raise EdgeError(f"The folder {folder} holds no image: give one of {', '.join(below)}.")
    return _listed(held[0] if held else folder)


def _content(file: Path) -> dict[str, Any]:
    try:
        import yaml  # a board need not have it
    except ImportError:
        raise EdgeError(
            f"Reading {file} needs PyYAML, which is missing: run `pip install pyyaml`, or give the folder of images."
        ) from None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise EdgeError(f"{file} cannot be read as YAML ({one_line(error)}).") from None
    if not isinstance(content, dict):
        raise EdgeError(f"{file} is no data set's YAML: it has no names and no val.")
    return content


def _places(file: Path, content: Mapping[str, Any], split: str) -> list[Path]:
    """Folders and lists of a split."""
    given = content.get(split)
    if not given:
        there = [key for key in ("train", "val", "test") if content.get(key)]
        raise EdgeError(f"{file} has no {split}: it has {', '.join(there) or 'no images'}.")
    root = Path(str(content.get("path") or "."))
    if not root.is_absolute():
        beside = (file.parent / root).resolve()
        root = beside if beside.exists() else file.parent
    return [root / str(place) for place in (given if isinstance(given, list) else [given])]


def _listed(place: Path) -> list[Path]:
    """The images of a folder and of those inside it, or of a text file with one path a line, as Ultralytics finds them:
    links to folders are followed, and hidden files are none."""
    if place.is_dir():
        names = glob.iglob(str(Path(glob.escape(str(place))) / "**" / "*.*"), recursive=True)
        found = sorted(p for p in map(Path, names) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise EdgeError(f"The folder {place} holds no image.")
        return found
    if not place.is_file():
        raise EdgeError(f"There is no folder or list of images {place}.")
    try:
        lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise EdgeError(f"{place} cannot be read as a list of images ({one_line(error)}).") from None
    if not lines:
        raise EdgeError(f"The list of images {place} is empty.")
    return [place.parent / line if line.startswith("./") else Path(line) for line in lines]


def _classes(file: Path, given: Any, names: Mapping[int, str]) -> dict[int, int]:
    """The model's class for each of the data's, by name."""
    listed = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(listed, dict) or not listed:
        raise EdgeError(f"{file} has no names of classes.")
    own = {str(name): k for k, name in names.items()}
    unknown = [str(name) for name in listed.values() if str(name) not in own]
    if unknown:
        raise EdgeError(
            f"{file} has the class {unknown[0]}, which the model does not know: it knows {', '.join(own)[:200]}."
        )
    try:
        return {int(k): own[str(name)] for k, name in listed.items()}
    except (TypeError, ValueError):
        raise EdgeError(f"{file}: the keys of names are no numbers.") from None


def _sigmas(file: Path, content: Mapping[str, Any]) -> list[float]:
    given = content.get("kpt_oks_sigmas")
    if given is None:
        return []
    good = isinstance(given, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given)
    if not good or not np.isfinite(given).all() or min(given, default=0) <= 0:
        raise EdgeError(f"{file}: kpt_oks_sigmas={given} are no positive numbers, one for each keypoint.")
    return [float(v) for v in given]
