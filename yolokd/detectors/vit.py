"""A vision transformer from timm, such as a self-supervised DINOv2 or v3: its patch tokens teach a backbone.

The tokens of the last layer, after its norm and without class and register tokens, are a map with one cell per patch.
The images are resized so that a patch covers one cell of the level with the nearest stride of 4, 8, 16, 32 ... (stride
16 for patches of 14 and of 16 pixels), so the map's cells coincide with the student's. They are normalised as the
model's data configuration says; timm interpolates position embeddings to the grid.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.detectors.foreign import ForeignReader, rgb
from yolokd.errors import UsageError, as_path
from yolokd.views import Spec

PREFIX = "timm:"


class ViT(nn.Module):
    """The backbone map of a transformer for images in [0, 1].

    Args:
        model: as timm builds it: ``forward_features`` (B, 3, H, W) -> (B, prefix + patches, C) for any grid,
            ``patch_embed.patch_size``, ``num_prefix_tokens`` and ``num_features``.
        mean, std: per channel, of the images that it was trained on.
        title: its name in messages.

    Raises:
        UsageError: the model is not such a transformer.
    """

    task = "detect"  # its map suits any task

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...], title: str) -> None:
        super().__init__()
        needed = ("patch_embed", "num_prefix_tokens", "num_features", "forward_features")
        if missing := [attribute for attribute in needed if not hasattr(model, attribute)]:
            raise UsageError(f"teacher={title} has no {missing[0]}: give a plain vision transformer of timm.")
        self.model, self.title, self.names = model, title, dict[int, str]()
        size = model.patch_embed.patch_size
        self.patch = int(size if isinstance(size, int) else size[0])
        self.stride = 2 ** max(round(math.log2(self.patch)), 2)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Images (B, C, H, W) -> {"backbone": one map (B, C, H / stride, W / stride)}."""
        rows, columns = (max(round(side / self.stride), 1) for side in images.shape[-2:])
        images = rgb(images)
        size = (rows * self.patch, columns * self.patch)
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.model.forward_features((images - self.mean) / self.std)
        patches = tokens[:, self.model.num_prefix_tokens :]
        return {"backbone": (patches.mT.unflatten(-1, (rows, columns)),)}


class ViTReader(ForeignReader):
    """Reads a ViT: one backbone map."""

    fields = frozenset({"backbone"})
    model: ViT

    def __init__(self, model: ViT) -> None:
        super().__init__(model)
        self.strides = (model.stride,)
        widths: dict[str, tuple[int, ...]] = {"backbone": (int(model.model.num_features),)}
        self.spec = Spec(self.strides, widths, 0, name=Path(model.title).name, provides=self.fields)


def split(teacher: str) -> tuple[str, Path | None]:
    """The model's name and the file of its weights, if given, in timm:NAME or timm:NAME@FILE."""
    name, _, file = teacher.removeprefix(PREFIX).partition("@")
    return name, as_path("teacher", file) if file else None


def load(teacher: str) -> ViT:
    """The transformer of timm:NAME or timm:NAME@FILE; without a file, timm downloads its weights.

    Raises:
        UsageError: timm is not installed, does not know the model, or cannot load the weights.
    """
    name, file = split(teacher)
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError as error:
        raise UsageError(f"teacher={teacher} needs timm: pip install 'yolokd[timm]'.") from error
    given = {"pretrained_cfg_overlay": {"file": str(file)}} if file else {}
    try:
        # timm's own loader unpickles safely and adapts weights of another image size
        model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True, **given)
    except Exception as error:  # unknown name, model without this option, no network, unsuitable file
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"teacher={teacher} cannot be built ({type(error).__name__}: {reason}): give the name of a vision "
            "transformer of timm and, without a network, its weights, such as timm:NAME@weights.safetensors."
        ) from error
    config = resolve_model_data_config(model)
    return ViT(model, config["mean"], config["std"], teacher)
