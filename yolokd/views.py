"""What a detector shows to a distillation loss, and the fixed facts about it. Torch only: no detector is known here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

# 2 L tower maps shaped as this detector's own -> its predictions from them: logits, boxes and, if it has any, bins
Finish = Callable[[tuple[Tensor, ...]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class View:
    """One head branch of one detector for a batch of B images. A field nobody asked for is None.

    L levels, fine to coarse; N = sum of H * W over the levels, the anchor points; K classes; R box bins.
    Student and teacher views handed to a method show the same levels, so that anchor point n is the same place in both.
    """

    strides: tuple[int, ...]  # L, pixels a cell
    backbone: tuple[Tensor, ...] | None = None  # L maps (B, C, H, W): the deepest backbone layer at each stride
    neck: tuple[Tensor, ...] | None = None  # L maps (B, C, H, W): what feeds the head
    towers: tuple[Tensor, ...] | None = None  # 2 L maps (B, C, H, W): box towers' last hidden map, then class towers'
    logits: Tensor | None = None  # (B, N, K), before the sigmoid
    boxes: Tensor | None = None  # (B, N, 4), xyxy in input pixels, differentiable
    bins: Tensor | None = None  # (B, N, 4, R), box distribution logits for the edges left, top, right, bottom
    finish: Finish | None = None  # this branch's last head convolutions, to be run on other tower maps


FIELDS = tuple(f.name for f in fields(View) if f.name not in {"strides", "finish"})  # the fields that hold tensors
MAPS = ("backbone", "neck", "towers")  # the fields that hold feature maps


@dataclass(frozen=True, slots=True)
class Spec:
    """Fixed facts about one detector that a method may need to build itself or to refuse a pair."""

    strides: tuple[int, ...]  # L, pixels a cell
    channels: dict[str, tuple[int, ...]]  # widths of the maps, by field name (those of MAPS)
    classes: int  # K
    bins: int = 0  # R; 0 for a head without a box distribution (YOLO26)
    name: str = "detector"  # for messages, such as "yolo11n"
