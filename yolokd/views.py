"""What a detector shows to a distillation loss, and the fixed facts about it. Torch only: no detector is known here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

# 2 L tower maps shaped as this detector's own -> its predictions from them: logits, boxes and, if it has any, bins
Finish = Callable[[tuple[Tensor, ...]], dict[str, Tensor]]
# content (B, Q, W) and references (B, Q, 4) of any queries -> what this decoder makes of them on this batch's images:
# "layer_logits" D x (B, Q, K), "layer_boxes" D x (B, Q, 4), "layer_queries" D x (B, Q, W), "attention" D x (B, Q, Q)
Decode = Callable[[Tensor, Tensor], dict[str, tuple[Tensor, ...]]]

Shape = Literal[
    "maps",  # a tuple of maps (B, C, H, W), one or more per level
    "predictions",  # (B, N, ...), a row per anchor point of a dense head, or per query of a decoder
    "image",  # (B, C, H, W), one map that spans the image
    "queries",  # (B, N, ...), a row per query on its way into the decoder
    "layers",  # a tuple of (B, N, ...), one per decoder layer
    "function",
]
Unit = Literal[
    "xyxy",  # boxes in input pixels
    "rotated",  # rotated boxes in input pixels
    "points",  # points in input pixels, and what follows x and y in another unit
    "cells",  # cells of the detector's own grid, which mean nothing at the anchor points of another image size
]


@dataclass(frozen=True, slots=True)
class About:
    """What code that handles any field of a view must know about it."""

    shape: Shape
    unit: Unit | None = None  # what it is measured in, if its values depend on the size of the image
    classwise: bool = False  # its last dimension counts classes
    dense: bool = False  # every dense head can show it
    task: bool = False  # the heads of detection, segmentation, pose and rotated boxes differ by it


def about(
    shape: Shape, unit: Unit | None = None, *, classwise: bool = False, dense: bool = False, task: bool = False
) -> Any:
    """A field of the view that is None unless asked for."""
    return field(default=None, metadata={"about": About(shape, unit, classwise, dense, task)})


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
    # L maps (B, C, H, W): the deepest backbone layer at each stride
    backbone: tuple[Tensor, ...] | None = about("maps", dense=True)
    # L maps (B, C, H, W): what feeds the head
    neck: tuple[Tensor, ...] | None = about("maps", dense=True)
    # 2 L maps (B, C, H, W): box towers' last hidden map, then class towers'
    towers: tuple[Tensor, ...] | None = about("maps", dense=True)
    # (B, N, K), before the sigmoid
    logits: Tensor | None = about("predictions", classwise=True, dense=True)
    # (B, N, 4), xyxy in input pixels, differentiable
    boxes: Tensor | None = about("predictions", "xyxy", dense=True, task=True)
    # (B, N, 4, R), box distribution logits for the edges left, top, right, bottom
    bins: Tensor | None = about("predictions", "cells", dense=True)
    # (B, N, 5), centre and sides in input pixels, angle of the first side in radians
    rotated: Tensor | None = about("predictions", "rotated", task=True)
    # (B, N, 4, R), box distribution logits for a rotated box's sides, along and across its angle
    rotated_bins: Tensor | None = about("predictions", "cells", task=True)
    # (B, N, J, 2 or 3), x and y in input pixels and, if it has any, visibility logit
    keypoints: Tensor | None = about("predictions", "points", task=True)
    # (B, N, P): mask logits of a point are their combination of the prototypes
    coefficients: Tensor | None = about("predictions", task=True)
    # (B, P, H, W), spanning the image
    prototypes: Tensor | None = about("image", task=True)
    # this branch's last head convolutions, to be run on other tower maps
    finish: Finish | None = about("function")
    # (B, N, W), the queries as they enter the decoder
    content: Tensor | None = about("queries")
    # (B, N, 4), xyxy in input pixels: their reference boxes on entry, no gradient
    references: Tensor | None = about("queries", "xyxy")
    # D x (B, N, W), embeddings after every decoder layer
    layer_queries: tuple[Tensor, ...] | None = about("layers")
    # D x (B, N, K); the last is `logits`
    layer_logits: tuple[Tensor, ...] | None = about("layers", classwise=True)
    # D x (B, N, 4), as `boxes`, which is the last
    layer_boxes: tuple[Tensor, ...] | None = about("layers", "xyxy")
    # D x (B, N, N), self-attention between queries, mean over heads
    attention: tuple[Tensor, ...] | None = about("layers")
    # this decoder, to be run on other queries
    decode: Decode | None = about("function")


ABOUT: dict[str, About] = {f.name: f.metadata["about"] for f in fields(View) if f.name != "strides"}
FUNCTIONS = tuple(name for name, a in ABOUT.items() if a.shape == "function")
FIELDS = tuple(name for name, a in ABOUT.items() if a.shape != "function")  # the fields that hold tensors
MAPS = tuple(name for name, a in ABOUT.items() if a.shape == "maps")
SEVERAL = tuple(name for name, a in ABOUT.items() if a.shape in ("maps", "layers"))  # the fields of several tensors
DENSE = tuple(name for name, a in ABOUT.items() if a.dense)
TASK = tuple(name for name, a in ABOUT.items() if a.task)
CLASSWISE = tuple(name for name, a in ABOUT.items() if a.classwise)
PIXELS = {name: a.unit for name, a in ABOUT.items() if a.unit not in (None, "cells")}  # scale with the image
AT_POINTS = tuple(  # of a dense head, what an anchor point takes from the nearest one of another image size
    name for name, a in ABOUT.items() if a.shape == "predictions" and a.unit != "cells"
)

Change = Callable[[str, Any], Any]  # name and value of a field -> its new value


def each(name: str, value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A field's value with its tensor changed, or with each of its several."""
    return tuple(map(change, value)) if name in SEVERAL else change(value)


def with_results(function: Callable[..., dict[str, Any]], change: Change) -> Callable[..., dict[str, Any]]:
    """A view's function whose results, which are named as fields are, come changed."""
    return lambda *inputs: {name: change(name, value) for name, value in function(*inputs).items()}


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
