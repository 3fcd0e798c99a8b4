"""What a detector shows to a distillation loss, and the fixed facts about it. Torch only: no detector is known here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

# 2 L tower maps shaped as this detector's own -> its predictions from them: logits, boxes and, if it has any, bins
Finish = Callable[[tuple[Tensor, ...]], dict[str, Tensor]]
# content (B, Q, W) and references (B, Q, 4) of any queries -> what this decoder makes of them on this batch's images:
# "layer_logits" D x (B, Q, K), "layer_boxes" D x (B, Q, 4), "layer_queries" D x (B, Q, W), "attention" D x (B, Q, Q)
Decode = Callable[[Tensor, Tensor], dict[str, tuple[Tensor, ...]]]


@dataclass(frozen=True, slots=True)
class View:
    """One head branch of one detector for a batch of B images. A field nobody asked for is None.

    L levels, fine to coarse; K classes; R box bins; J keypoints; P prototypes; D decoder layers, first
    to last; W width of a query.
    N of a dense head (YOLO): the anchor points, sum of H * W over the levels. Student and teacher views handed to a
    method show the same levels, so that anchor point n is the same place in both.
    N of a decoder (RT-DETR): its matching queries, whose order means nothing; denoising queries are left out.
    """

    strides: tuple[int, ...]  # L, pixels a cell
    backbone: tuple[Tensor, ...] | None = None  # L maps (B, C, H, W): the deepest backbone layer at each stride
    neck: tuple[Tensor, ...] | None = None  # L maps (B, C, H, W): what feeds the head
    towers: tuple[Tensor, ...] | None = None  # 2 L maps (B, C, H, W): box towers' last hidden map, then class towers'
    logits: Tensor | None = None  # (B, N, K), before the sigmoid
    boxes: Tensor | None = None  # (B, N, 4), xyxy in input pixels, differentiable
    bins: Tensor | None = None  # (B, N, 4, R), box distribution logits for the edges left, top, right, bottom
    rotated: Tensor | None = None  # (B, N, 5), centre and sides in input pixels, angle of the first side in radians
    keypoints: Tensor | None = None  # (B, N, J, 2 or 3), x and y in input pixels and, if it has any, visibility logit
    coefficients: Tensor | None = None  # (B, N, P): mask logits of a point are their combination of the prototypes
    prototypes: Tensor | None = None  # (B, P, H, W), spanning the image
    finish: Finish | None = None  # this branch's last head convolutions, to be run on other tower maps
    content: Tensor | None = None  # (B, N, W), the queries as they enter the decoder
    references: Tensor | None = None  # (B, N, 4), xyxy in input pixels: their reference boxes on entry, no gradient
    layer_queries: tuple[Tensor, ...] | None = None  # D x (B, N, W), embeddings after every decoder layer
    layer_logits: tuple[Tensor, ...] | None = None  # D x (B, N, K); the last is `logits`
    layer_boxes: tuple[Tensor, ...] | None = None  # D x (B, N, 4), as `boxes`, which is the last
    attention: tuple[Tensor, ...] | None = None  # D x (B, N, N), self-attention between queries, mean over heads
    decode: Decode | None = None  # this decoder, to be run on other queries


FUNCTIONS = ("finish", "decode")
DENSE = ("backbone", "neck", "towers", "logits", "boxes", "bins")  # the fields with tensors that a dense head can show
FIELDS = tuple(f.name for f in fields(View) if f.name not in {"strides", *FUNCTIONS})  # the fields that hold tensors
MAPS = ("backbone", "neck", "towers")  # the fields that hold feature maps
TASK = ("boxes", "rotated", "keypoints", "coefficients", "prototypes")  # the fields by which heads of tasks differ

ViewsAt = Callable[[tuple[int, ...]], dict[str, View]]  # strides -> the views at them, by branch of the head


@dataclass(frozen=True, slots=True)
class Spec:
    """Fixed facts about one detector that a method may need to build itself or to refuse a pair."""

    strides: tuple[int, ...]  # L, pixels a cell
    channels: dict[str, tuple[int, ...]]  # widths of the maps, by field name (those of MAPS)
    classes: int  # K
    bins: int = 0  # R; 0 for a head without a box distribution (YOLO26)
    name: str = "detector"  # for messages, such as "yolo11n"
    dense: bool = (
        True  # N are anchor points; False: a set without order (RT-DETR's queries, a foreign detector's boxes)
    )
    provides: frozenset[str] = frozenset((*DENSE, "finish"))  # fields of the view that its kind of head fills
    layers: int = 0  # D; 0 without a decoder
    width: int = 0  # W; 0 without a decoder
    keypoints: int = 0  # J; 0 for a head without them
