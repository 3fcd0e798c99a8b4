"""Images without ground truth for each training step, letterboxed, flipped and recoloured like labelled ones.

Which images a step gets and how they are changed depends only on the seed, the epoch and the step: not on the number
of workers, on other code that draws random numbers, or on whether the run was interrupted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from ultralytics.data.augment import LetterBox, RandomHSV
from ultralytics.utils.patches import imread

from yolokd.data.splits import list_images
from yolokd.errors import UsageError, as_path

Place = tuple[int, int]  # index of an image, and number of the draw, which seeds its augmentation


def list_folder(folder: Any, key: str = "unlabeled") -> list[Path]:
    """The image files in a folder and its subfolders, sorted by name.

    Args:
        folder: what the user named.
        key: the argument that named it.

    Raises:
        UsageError: the folder does not exist, or holds no image file that can be read.
    """
    path = as_path(key, folder)
    if not path.is_dir():
        raise UsageError(f"{key}={folder} is not a folder: give one with images.")
    files = sorted(f for f in list_images(path) if f.is_file())
    if not files:
        raise UsageError(f"{key}={folder} holds no image file: give a folder with images, such as .jpg or .png.")
    if not any(imread(str(f)) is not None for f in files):
        raise UsageError(f"{key}={folder} holds no readable image: {files[0].name} is the first broken one.")
    return files


class Images(Dataset[Tensor | None]):
    """Images of a folder, by index and draw, as (C, size, size) of uint8; None for an image that cannot be read so.

    Args:
        files: the image files.
        size: side of an image, pixels.
        channels: 1 for gray, 3 for RGB, or the number that the files have.
        stretch: fill the square, as Ultralytics does for RT-DETR, instead of a letterbox.
        changes: the values of Ultralytics' arguments hsv_h, hsv_s, hsv_v, fliplr, flipud.
        seed: of the draws.
    """

    def __init__(
        self, files: list[Path], size: int, channels: int, stretch: bool, changes: dict[str, float], seed: int
    ) -> None:
        self.files, self.channels, self.changes, self.seed = files, channels, changes, seed
        self.flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
        self.fit = LetterBox((size, size), auto=False, scale_fill=stretch)
        self.recolour = RandomHSV(changes["hsv_h"], changes["hsv_s"], changes["hsv_v"])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Place) -> Tensor | None:
        index, draw = place
        image = imread(str(self.files[index]), self.flag)
        if image is None or (image.shape[2] if image.ndim == 3 else 1) != self.channels:
            return None
        with drawing([self.seed, draw]):
            image = self.recolour.apply_image({"img": np.ascontiguousarray(self.fit(image=image))})["img"]
            for axis, key in enumerate(("flipud", "fliplr")):
                if random.random() < self.changes[key]:
                    image = np.flip(image, axis)
        image = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(image[::-1] if self.channels == 3 else image))  # BGR to RGB


@contextmanager
def drawing(seed: list[int]) -> Iterator[None]:
    """Seed Python's and NumPy's random numbers within the block, and restore their state after it."""
    states = random.getstate(), np.random.get_state()
    random.seed(str(seed))
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class Steps(Sampler[list[Place]]):
    """The images of each step of an epoch, in a random order in which every image comes once before any is repeated.

    Args:
        images: their number in the folder.
        sizes: labelled images of each step of an epoch.
        ratio: images per labelled one; fractions are carried over to later steps.
        seed: of the order.
        rank: the index of this process.
        ranks: the number of processes that train together.
    """

    def __init__(self, images: int, sizes: list[int], ratio: float, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.images, self.seed, self.rank, self.ranks, self.epoch = images, seed, rank, ranks, 0
        ends = [math.floor(ratio * n + 1e-9) for n in np.cumsum(sizes).tolist()]
        self.counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[list[Place]]:
        draw = self.epoch * sum(self.counts) * self.ranks + self.rank
        for count in self.counts:
            draws = [draw + k * self.ranks for k in range(count)]
            yield [(self.index(d), d) for d in draws]
            draw += count * self.ranks

    def index(self, draw: int) -> int:
        """The image of a draw; draws are counted from the start of the training."""
        round_, place = divmod(draw, self.images)
        if round_ != getattr(self, "_round", None):
            self._round = round_
            self._order = np.random.default_rng([self.seed, round_]).permutation(self.images)
        return int(self._order[place])


def collate(images: list[Tensor | None]) -> Tensor | None:
    """A step's readable images as (U, C, H, W); None if there are none."""
    readable = [image for image in images if image is not None]
    return torch.stack(readable) if readable else None


class Unlabeled:
    """The unlabelled images of a trainer's steps.

    Args:
        images: the folder.
        steps: the images that each step gets.
        workers: processes that read them.
        pin: load into pinned memory, from which copies to a GPU do not block.
    """

    def __init__(self, images: Images, steps: Steps, workers: int, pin: bool = False) -> None:
        self.steps = steps
        self.loader = DataLoader(
            images,
            batch_sampler=steps,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            generator=torch.Generator(),  # a loader draws a seed for its workers: not from the global generator
        )
        self.left: Iterator[Tensor | None] = iter(())
        self.drawn = 0  # images of this epoch's steps so far, readable or not

    def start_epoch(self, epoch: int) -> None:
        """Begin the steps of an epoch, counted from 0."""
        self.steps.epoch, self.drawn = epoch, 0
        self.left, self.counts = iter(self.loader), iter(self.steps.counts)

    def close(self) -> None:
        """Stop the loader's processes."""
        self.left = iter(())
        del self.loader

    def step(self, like: Tensor) -> Tensor | None:
        """The next step's images in [0, 1], square, with the longer side of labelled ones (B, C, H, W); None if none.

        They need not have the size of the labelled ones: they go through the student separately.
        """
        images = next(self.left)
        self.drawn += next(self.counts)
        if images is None:
            return None
        images = images.to(like.device, non_blocking=True).to(like.dtype) / 255
        side = max(like.shape[-2:])
        if images.shape[-1] == side:
            return images
        return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def without_objects(images: Tensor, like: dict[str, Any]) -> dict[str, Any]:
    """A training batch of unlabelled images: the labels of a labelled batch, reduced to none."""
    return {"img": images, **{key: like[key][:0] for key in ("cls", "bboxes", "batch_idx")}}
