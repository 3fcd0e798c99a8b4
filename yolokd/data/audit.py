"""Look through the images and labels of a data set: what Ultralytics will skip, what is wrong, what there is of what.

Whether an image is skipped is Ultralytics' own verdict, by its own function; why is ours. Nothing is written but into a
temporary mirror.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cv2 import haveImageReader
from ultralytics.data.utils import img2label_paths, verify_image_label

from yolokd.data.labels import Form, faults, read_rows
from yolokd.data.mirror import link, spread
from yolokd.data.splits import split_images

RESTORED = "corrupt JPEG restored"  # in Ultralytics' words: it would rewrite the file


@dataclass(frozen=True, slots=True)
class Seen:
    """An image with its label.

    Attributes:
        image, label: their files; the label's need not exist.
        labelled: whether there is a label file, be it empty.
        skipped: why Ultralytics leaves the image out, "" if it does not.
        restored: whether Ultralytics would rewrite the image, a JPEG with a damaged end.
        faults: kind of fault in the label file -> its first row.
        rows: (objects, 5) as Ultralytics reads them: class, and centre, width and height as shares of the image.
        sides: (objects,) smaller side of each box in pixels at the training's image size.
    """

    image: Path
    label: Path
    labelled: bool
    skipped: str
    restored: bool
    faults: dict[str, str]
    rows: np.ndarray[Any, Any]
    sides: np.ndarray[Any, Any]

    def keeping(self, classes: Collection[int]) -> Seen:
        """With the objects of some classes only, as Ultralytics' classes= has it."""
        wanted = np.isin(self.rows[:, 0], list(classes))
        return replace(self, rows=self.rows[wanted], sides=self.sides[wanted])


@dataclass(slots=True)
class Split:
    """A split: how many images it has, and those that were looked at."""

    name: str
    total: int
    seen: list[Seen] = field(default_factory=list)

    @property
    def used(self) -> list[Seen]:
        """What Ultralytics does not skip."""
        return [s for s in self.seen if not s.skipped]

    @property
    def usable(self) -> int:
        """How many images a training uses of the whole split, if those not looked at are like the others."""
        return round(self.total * len(self.used) / len(self.seen))

    @property
    def with_objects(self) -> int:
        """Images, of those looked at, that have an object and are used."""
        return sum(bool(len(s.rows)) for s in self.used)

    @property
    def histogram(self) -> Counter[int]:
        """Class -> objects."""
        return Counter(int(k) for s in self.used for k in s.rows[:, 0])

    def counts(self) -> dict[str, int]:
        """The split in numbers."""
        used = self.used
        return {
            "images": self.total,
            "looked_at": len(self.seen),
            "with_objects": self.with_objects,
            "without_objects": len(used) - self.with_objects,
            "without_label_file": sum(not s.labelled for s in used),
            "skipped": len(self.seen) - len(used),
            "objects": sum(len(s.rows) for s in used),
        }


@dataclass(frozen=True, slots=True)
class Frame:
    """What a training makes of images: sides of `imgsz` pixels, letterboxed, or stretched as for RT-DETR."""

    imgsz: int
    stretched: bool = False

    def sides(self, rows: np.ndarray[Any, Any], shape: tuple[int, int]) -> np.ndarray[Any, Any]:
        """The smaller side of each box in pixels; shape is the image's (height, width)."""
        longest = max(shape)
        width, height = (self.imgsz, self.imgsz) if self.stretched else (self.imgsz * s / longest for s in shape[::-1])
        return np.minimum(rows[:, 3] * width, rows[:, 4] * height)


def look_through(
    data: dict[str, Any],
    names: list[str],
    form: Form,
    frame: Frame,
    most: int | None,
    kept: Collection[int] | None = None,
) -> list[Split]:
    """The splits of a data set, of each at most the given number of images, evenly spaced, or all.

    Args:
        data: Ultralytics' description of it.
        names: of the splits, such as "train" and "val".
        form: how the labels must look.
        frame: what the training makes of images.
        most: images of a split that are looked at; None for all.
        kept: the classes whose objects count; None for all.
    """
    splits = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name in names:
            images = split_images(data, name)
            some = images if most is None else spread(images, most)
            places = [Path(folder, f"{name}{i}") for i in range(len(some))]
            seen = pool.map(lambda image, place: look_at(image, place, form, frame), some, places)
            splits.append(Split(name, len(images), [s if kept is None else s.keeping(kept) for s in seen]))
    return splits


def look_at(image: Path, place: Path, form: Form, frame: Frame) -> Seen:
    """One image with its label; place is where a link to it may stand meanwhile, without a suffix."""
    label = Path(img2label_paths([str(image)])[0])
    labelled, found = label.is_file(), {}
    if labelled:
        try:
            found = faults(read_rows(label), form)
        except (UnicodeDecodeError, OSError):
            found = {"text": "no text"}
    if why := unreadable(image):
        return _skipped(image, label, labelled, found, why)
    mirrored = link(image, place.with_suffix(image.suffix))
    count, dims = form.keypoints
    single = form.classes is None
    verdict = verify_image_label(
        (str(mirrored), str(label), "", form.task == "pose", form.classes or 1, count, dims, single)
    )
    mirrored.unlink()
    file, rows, shape, message = verdict[0], verdict[1], verdict[2], str(verdict[-1])
    if file is None:
        why = message.rpartition("ignoring corrupt image/label: ")[2].replace(str(mirrored), str(image))
        return _skipped(image, label, labelled, found, why)
    return Seen(image, label, labelled, "", RESTORED in message, found, rows, frame.sides(rows, shape))


def unreadable(image: Path) -> str:
    """Why a file cannot be an image at all, "" if it may be one: for such a file Ultralytics would install a package
    that reads HEIF, of which each file has "ftyp" in its fifth to eighth byte.
    """
    try:
        with image.open("rb") as file:
            heif = file.read(8)[4:] == b"ftyp"
    except OSError:
        return "there is no such file" if not image.is_file() else "it cannot be opened"
    unsure = heif or not str(image).isascii()  # of which OpenCV on Windows opens none
    return "" if unsure or haveImageReader(str(image)) else "no picture in a format that Ultralytics reads"


def _skipped(image: Path, label: Path, labelled: bool, found: dict[str, str], why: str) -> Seen:
    none = np.zeros((0, 5))
    return Seen(image, label, labelled, why, False, found, none, none[:, 0])
