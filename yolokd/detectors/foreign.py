"""Common to the readers of teachers that are not Ultralytics models. Such a model cannot be a student."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.detectors.reader import Reader, Recorded, keep_output
from yolokd.views import View

GREY = 114 / 255  # what letterboxed images are padded with


class ForeignReader(Reader):
    """Reads a module whose output for images (B, C, H, W) is a dict of a view's fields.

    A subclass sets ``spec`` and ``strides``. The module itself adapts the images to its input.
    """

    branches = ("foreign",)

    def __init__(self, model: nn.Module) -> None:
        self.model, self.head = model, model

    def freeze(self, fields: frozenset[str], branches: tuple[str, ...], fuse: bool = True) -> None:
        """No gradient and eval mode; no part of the model is left out."""
        self.model.requires_grad_(False).eval()

    def _hooks(self, recorded: Recorded, fields: frozenset[str]) -> list[Any]:
        return [self.model.register_forward_hook(keep_output(recorded, "out"))]

    def views(self, recorded: Recorded, fields: frozenset[str], strides: tuple[int, ...]) -> dict[str, View]:
        """The one view of a recorded pass."""
        out = recorded["out"]
        values: dict[str, Any] = {
            f: self._at(v, strides) if isinstance(v, tuple) else v for f, v in out.items() if f in fields
        }
        return {"foreign": View(strides, **values)}


def rgb(images: Tensor) -> Tensor:
    """Images (B, C, H, W) of any number of channels as (B, 3, H, W).

    This matches how the filters of Ultralytics teachers are adapted: gray counts as equal red, green and blue, and of
    more than three channels the first three are used. Two channels get an empty third.
    """
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    return images[:, :3] if channels >= 3 else F.pad(images, (0, 0, 0, 0, 0, 3 - channels))
