"""Training images with a fixed number of augmented views each, so that the teacher's responses can be stored."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE = 16  # images from which a cache's size is estimated
PLAIN = (bool, int, float, str, type(None))


class FixedViewsDataset:
    """A training data set of Ultralytics in which every image has a fixed number of augmented views.

    Item i is view i // n of image i % n, where n is the number of images. It depends only on the seed, the image, the
    view and whether mosaic is closed, not on the process or on earlier random draws; the global random state is
    restored afterwards. Its number is under the key "view": i, or i + count * n once mosaic is closed.

    Args:
        dataset: the data set, with its augmentations.
        count: views per image.
        seed: of the augmentations.
    """

    def __init__(self, dataset: Any, count: int, seed: int) -> None:
        self.dataset, self.count, self.seed = dataset, count, seed
        self.closed = False
        self._prepare()

    def __getattr__(self, name: str) -> Any:
        """Other attributes are the data set's: labels, rect, collate_fn ..."""
        if name == "dataset":  # while it is being unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        number = i + self.closed * self.count * len(self)
        first, second, third = map(int, np.random.SeedSequence([self.seed, number]).generate_state(3))
        streams = random.getstate(), np.random.get_state()
        random.seed(first)
        np.random.seed(second)
        for transform in self.seeded:
            transform.set_random_seed(third)
        try:
            return {**self.dataset[i % len(self)], "view": number}
        finally:
            random.setstate(streams[0])
            np.random.set_state(streams[1])

    def close_mosaic(self, hyp: Any) -> None:
        """As in Ultralytics; from then on there are other views."""
        self.dataset.close_mosaic(hyp)
        self.closed = True
        self._prepare()

    def _prepare(self) -> None:
        parts = list(iter_transforms(self.dataset.transforms))
        for part in parts:
            if hasattr(part, "buffer_enabled"):  # else mosaic takes images that happen to be in memory
                part.buffer_enabled = False
        # Albumentations has its own random generator
        own = (getattr(part, "transform", None) for part in parts)
        self.seeded: list[Any] = [transform for transform in own if hasattr(transform, "set_random_seed")]


class RoundRobinSampler:
    """A sampler's indices, in each epoch with the next view."""

    def __init__(self, sampler: Any, images: int, views: int) -> None:
        self.sampler, self.images, self.views = sampler, images, views
        self.round = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        view, self.round = self.round % self.views, self.round + 1
        yield from (view * self.images + i for i in self.sampler)


def iter_transforms(transform: Any) -> Iterator[Any]:
    """A transform and all within it."""
    yield transform
    for part in getattr(transform, "transforms", None) or ():
        yield from iter_transforms(part)
    if (before := getattr(transform, "pre_transform", None)) is not None:
        yield from iter_transforms(before)


def fingerprint(dataset: Any, *more: Any) -> str:
    """A hash of everything that determines the views of a data set: images, labels and augmentations.

    Augmentations are read from the transforms as they were built, not from a list of arguments, so that those that a
    later Ultralytics adds are included.

    Args:
        dataset: newly built, because a transform may store its last draw.
        more: further plain values to include.
    """
    digest = hashlib.sha256()
    for name in dataset.im_files:
        about = Path(name).stat()
        digest.update(f"{name}\n{about.st_size} {about.st_mtime_ns}\n".encode())
    for label in dataset.labels:
        for array in (label["cls"], label["bboxes"], *(label.get("segments") or ())):
            digest.update(np.ascontiguousarray(array).tobytes() + b"\n")
    settings = [(type(part).__name__, _settings(part)) for part in iter_transforms(dataset.transforms)]
    # the type matters: an RT-DETR's data set stretches images where a YOLO's pads them
    shape = [type(getattr(dataset, "dataset", dataset)).__qualname__, dataset.imgsz, dataset.channels]
    digest.update(json.dumps([settings, shape, *more], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _settings(transform: Any) -> dict[str, Any]:
    """The settings with which a transform was built."""
    return {
        key: repr(value)
        for key, value in vars(transform).items()
        if isinstance(value, (*PLAIN, np.ndarray))
        or (isinstance(value, (list, tuple)) and all(isinstance(v, PLAIN) for v in value))
        or hasattr(value, "set_random_seed")
    }


def versions() -> list[str]:
    """The packages that make images and responses, with their versions."""
    return [f"{name} {importlib.metadata.version(name)}" for name in ("yolokd", "ultralytics", "torch", "numpy")]
