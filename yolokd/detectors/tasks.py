"""Readers of the heads for segment, pose and obb: a Detect head's predictions plus masks, keypoints or an angle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.modules.head import Pose26

from yolokd.detectors.yolo import YoloReader, expected, precise
from yolokd.views import MAPS


class SegmentReader(YoloReader):
    """Reads a model whose last layer is a Segment head."""

    fields = YoloReader.fields | {"coefficients", "prototypes"}
    raw = (*YoloReader.raw, "mask_coefficient")

    def _points(
        self, raw: dict[str, Any], neck: list[Tensor], fields: frozenset[str], strides: tuple[int, ...]
    ) -> dict[str, Tensor]:
        predictions = super()._points(raw, neck, fields, strides)
        if "prototypes" in fields:  # YOLO26 adds class maps in training
            predictions["prototypes"] = raw["proto"][0] if isinstance(raw["proto"], tuple) else raw["proto"]
        return predictions

    def _predictions(
        self, rows: dict[str, Tensor], anchors: Tensor, stride: Tensor, fields: frozenset[str]
    ) -> dict[str, Tensor]:
        predictions = super()._predictions(rows, anchors, stride, fields)
        return predictions | ({"coefficients": rows["mask_coefficient"]} if "coefficients" in fields else {})


class PoseReader(YoloReader):
    """Reads a model whose last layer is a Pose head."""

    fields = YoloReader.fields | {"keypoints"}
    raw = (*YoloReader.raw, "kpts")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.spec = replace(self.spec, keypoints=self.head.kpt_shape[0])

    def _give_raw(self) -> None:
        """As for every head, but a fused YOLO26 lacks modules that its training mode calls: it must decode, in vain."""
        branches = [b for b in ("", "one2one_") if getattr(self.head, f"{b}cv2", None) is not None]
        whole = all(getattr(self.head, f"{b}cv4_sigma", None) is not None for b in branches)
        self.head.training = whole or not isinstance(self.head, Pose26)

    def _predictions(
        self, rows: dict[str, Tensor], anchors: Tensor, stride: Tensor, fields: frozenset[str]
    ) -> dict[str, Tensor]:
        predictions = super()._predictions(rows, anchors, stride, fields)
        if "keypoints" in fields:
            points = precise(rows["kpts"]).unflatten(-1, tuple(self.head.kpt_shape))
            anchors, stride = anchors.to(points.dtype)[:, None], stride.to(points.dtype)[:, None]
            shift = points[..., :2] if isinstance(self.head, Pose26) else 2 * points[..., :2] - 0.5
            predictions["keypoints"] = torch.cat(((anchors + shift) * stride, points[..., 2:]), -1)
        return predictions


class OBBReader(YoloReader):
    """Reads a model whose last layer is an OBB head. Its sides are along its angle, not those of an upright box."""

    fields = frozenset({*MAPS, "logits", "rotated", "rotated_bins"})
    raw = (*YoloReader.raw, "angle")

    def _predictions(
        self, rows: dict[str, Tensor], anchors: Tensor, stride: Tensor, fields: frozenset[str]
    ) -> dict[str, Tensor]:
        predictions = super()._predictions(rows, anchors, stride, fields & self.fields)
        sides = rows["boxes"].unflatten(-1, (4, self.spec.bins)) if self.spec.bins else rows["boxes"]
        if "rotated_bins" in fields and self.spec.bins:
            predictions["rotated_bins"] = sides
        if "rotated" in fields:
            predictions["rotated"] = decode_rotated(sides, rows["angle"], anchors, stride)
        return predictions


def decode_rotated(sides: Tensor, angle: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Rotated boxes (B, N, 5): centre, width and height in pixels, angle of the width in radians.

    sides are as in `decode`: left and right along the angle, top and bottom across it; angle is (B, N, 1) in radians.
    """
    sides = expected(sides)
    angle, anchors, stride = (x.to(sides.dtype) for x in (angle, anchors, stride))
    low, high = sides.split(2, -1)
    along, across = ((high - low) / 2).split(1, -1)
    cos, sin = angle.cos(), angle.sin()
    shift = torch.cat((along * cos - across * sin, along * sin + across * cos), -1)
    return torch.cat(((anchors + shift) * stride, (low + high) * stride, angle), -1)
