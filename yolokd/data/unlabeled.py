"""Images without ground truth, some for each training step: letterboxed, flipped and recoloured as labelled ones are.

Which images a step gets and how they are changed depends on the seed, the epoch and the step alone: not on the number
of workers, on what else draws random numbers, or on whether the run was interrupted.
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
from yolokd.errors import UsageError

Place = tuple[int, int]  # index of an image, number of the draw, which seeds its changes


def list_folder(folder: Any) -> list[Path]:
    """The image files in a folder and those below it, by name.

    Raises:
        UsageError: there is no folder, no image file in it, or none that can be read.
    """
    path = Path(str(folder)).expanduser()
    if not path.is_dir():
        raise UsageError(f"unlabeled={folder} is not a folder: give one with images.")
    files = sorted(f for f in list_images(path) if f.is_file())
    if not files:
        raise UsageError(f"unlabeled={folder} holds no image file: give a folder with images, such as .jpg or .png.")
    if not any(imread(f) is not None for f in files):
        raise UsageError(
            f"unlabeled={folder} holds no readable image: {files[0].name} is the first of the broken ones."
        )
    return files


class Images(Dataset[Tensor | None]):
    """Images of a folder, by index and draw, as (C, size, size) of uint8; None for one that cannot be read as such.

    Args:
        files: the image files.
        size: side of an image, pixels.
        channels: 1 for gray, 3 for RGB, or as many as the files have.
        stretch: fill the square, as Ultralytics does for RT-DETR, in place of a letterbox.
        changes: shares of Ultralytics' arguments: hsv_h, hsv_s, hsv_v, fliplr, flipud.
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
        image = imread(self.files[index], self.flag)
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
    """Python's and NumPy's random numbers from a seed within the block, and as if nothing happened after it."""
    states = random.getstate(), np.random.get_state()
    random.seed(str(seed))
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class Steps(Sampler[list[Place]]):
    """The images of each step of an epoch. They follow one order through the whole folder before any comes again.

    Args:
        images: in the folder.
        sizes: labelled images of each step of an epoch.
        ratio: images per labelled one; fractions are carried over to later steps.
        seed: of the order.
        rank: of this process among all.
        ranks: processes that train together.
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
        """Image of a draw, counted from the training's first."""
        round_, place = divmod(draw, self.images)
        if round_ != getattr(self, "_round", None):
            self._round = round_
            self._order = np.random.default_rng([self.seed, round_]).permutation(self.images)
        return int(self._order[place])


def collate(images: list[Tensor | None]) -> Tensor | None:
    """A step's readable images as (U, C, H, W), None without any."""
    readable = [image for image in images if image is not None]
    return torch.stack(readable) if readable else None


class Unlabeled:
    """The unlabelled images of a trainer's steps.

    Args:
        images: the folder.
        steps: which of them each step gets.
        workers: processes that read them.
        pin: into memory from which a GPU copies at once.
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
            generator=torch.Generator(),  # a loader draws a seed for its workers: not from everybody's stream
        )
        self.left: Iterator[Tensor | None] = iter(())
        self.drawn = 0  # images of this epoch's steps so far, readable or not

    def start_epoch(self, epoch: int) -> None:
        """Begin the steps of an epoch, counted from 0."""
        self.steps.epoch, self.drawn = epoch, 0
        self.left, self.counts = iter(self.loader), iter(self.steps.counts)

    def close(self) -> None:
        """End the loader's processes."""
        self.left = iter(())
        del self.loader

    def step(self, like: Tensor) -> Tensor | None:
        """The next step's images in [0, 1], square, with the longer side of labelled ones (B, C, H, W); None for none.

        Their own size matters to nobody but themselves: they go through the student apart from the labelled ones.
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
    """A training batch of images on which nothing is known, its objects none of a labelled one's."""
    return {"img": images, **{key: like[key][:0] for key in ("cls", "bboxes", "batch_idx")}}
