"""The teacher: loaded from a checkpoint, frozen, and stripped of layers whose output no chosen method reads."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils import WINDOWS

from yolokd.detectors.reader import Reader
from yolokd.views import AT_POINTS, PIXELS, View, ViewsAt, each, with_results


class Teacher:
    """A frozen network that provides views. Not an nn.Module: it can never become a student's child, a parameter of an
    optimizer, a DDP bucket or a checkpoint's entry.

    Args:
        reader: reads the model; the teacher takes the model over and changes it for good (fused, branches dropped).
        fields: fields of the views that the methods read.
        branches: head branches that a student will be compared with.
        device: where to run.
        scale: sides of the images that it sees, as a multiple of the student's.
    """

    fuse = True  # whether batch norm is folded into the convolutions, for good

    def __init__(
        self,
        reader: Reader,
        fields: frozenset[str],
        branches: tuple[str, ...],
        device: torch.device,
        scale: float = 1.0,
    ) -> None:
        self.reader, self.fields, self.scale = reader, fields, scale
        reader.freeze(fields, branches, self.fuse)
        self.layout = memory_layout(device)
        self.model = reader.model.to(device, memory_format=self.layout)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # AutoBatch deep-copies the training model

    @torch.no_grad()  # not inference_mode: its tensors cannot be saved for backward
    def __call__(self, images: Tensor) -> ViewsAt:
        """Its views of images (B, C, H, W) in [0, 1], as a function from strides to views by branch."""
        own_images = scaled(images, self.scale, max(self.reader.strides))
        with self.reader.record(self.fields) as recorded:
            self.model(own_images.contiguous(memory_format=self.layout))

        @torch.no_grad()
        def views(strides: tuple[int, ...]) -> dict[str, View]:
            own = self.reader.views(recorded, self.fields, strides)
            return {
                branch: to_student_frame(view, images, own_images, self.reader.spec.dense)
                for branch, view in own.items()
            }

        return views


def memory_layout(device: torch.device) -> torch.memory_format:
    """The memory format in which convolutions run fastest: channels last on x86 CPUs and CUDA, where that is right (MPS
    computes something else then) and fast (under Windows CUDA does not gain).
    """
    on_cpu = device.type == "cpu" and platform.machine() in {"AMD64", "x86_64"} and torch.backends.mkldnn.is_available()
    on_cuda = device.type == "cuda" and not WINDOWS
    return torch.channels_last if on_cpu or on_cuda else torch.contiguous_format


def round_up_to_stride(side: int, stride: int) -> int:
    """The side in pixels as a network of this largest stride can take it: the next multiple."""
    return math.ceil(side / stride) * stride


def scaled(images: Tensor, scale: float, stride: int) -> Tensor:
    """Images with sides scaled and rounded to a multiple of the stride; untouched if they are as they should be."""
    if scale == 1 and not any(side % stride for side in images.shape[-2:]):
        return images
    size = [max(round(side * scale / stride), 1) * stride for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)


def to_student_frame(view: View, images: Tensor, own_images: Tensor, dense: bool) -> View:
    """A teacher's view of scaled images as one of the student's: boxes in its pixels, predictions at its anchor points.

    An anchor point takes what the teacher predicts at the nearest one of the same level. No field has a gradient.

    Args:
        images: the student's.
        own_images: the teacher's, which are the same in another size.
        dense: whether the predictions are at anchor points.
    """
    changed: dict[str, Any] = {}
    if view.decode is not None:
        changed["decode"] = torch.no_grad()(view.decode)
    if images.shape[-2:] == own_images.shape[-2:]:
        return replace(view, **changed) if changed else view
    height, width = (a / b for a, b in zip(images.shape[-2:], own_images.shape[-2:], strict=True))
    ratio = images.new_tensor([width, height, width, height])
    to_pixels: dict[str | None, Callable[[Tensor], Tensor]] = {
        "xyxy": lambda boxes: boxes * ratio,
        "rotated": lambda boxes: stretched(boxes, width, height),
        "points": lambda points: torch.cat((points[..., :2] * ratio[:2], points[..., 2:]), -1),
    }

    def scaled_back(name: str, value: Any) -> Any:
        return each(name, value, to_pixels[PIXELS[name]]) if name in PIXELS else value

    for name in PIXELS:
        if (value := getattr(view, name)) is not None:
            changed[name] = scaled_back(name, value)
    if view.decode is not None:
        decode = with_results(changed["decode"], scaled_back)
        changed["decode"] = lambda content, references: decode(content, references / ratio)
    if dense:
        at_points = {n: changed.get(n, getattr(view, n)) for n in AT_POINTS if getattr(view, n) is not None}
        if at_points:
            places = nearest_anchor(images, own_images, view.strides)
            changed.update({name: value[:, places] for name, value in at_points.items()})
    return replace(view, **changed)


def stretched(rotated: Tensor, width: float, height: float) -> Tensor:
    """Rotated boxes (B, N, 5) of an image whose sides are multiplied; what is then no rectangle keeps its two sides."""
    centre, sides, angle = rotated.split((2, 2, 1), -1)
    along, across = ((width * a, height * b) for a, b in ((angle.cos(), angle.sin()), (-angle.sin(), angle.cos())))
    lengths = torch.cat((torch.hypot(*along), torch.hypot(*across)), -1)
    angle = torch.atan2(along[1], along[0])
    return torch.cat((centre * centre.new_tensor([width, height]), sides * lengths, angle), -1)


def nearest_anchor(images: Tensor, own_images: Tensor, strides: tuple[int, ...]) -> Tensor:
    """For every anchor point of images (B, C, H, W) the nearest of the same level on own_images, (N,)."""
    places, start = [], 0
    for stride in strides:
        rows, columns, own_rows, own_columns = (
            math.ceil(side / stride) for side in (*images.shape[-2:], *own_images.shape[-2:])
        )
        grid = torch.arange(own_rows * own_columns, device=images.device, dtype=torch.float32)
        grid = grid.reshape(1, 1, own_rows, own_columns)
        nearest = F.interpolate(grid, size=(rows, columns), mode="nearest-exact")
        places.append(nearest.flatten().long() + start)
        start += own_rows * own_columns
    return torch.cat(places)
