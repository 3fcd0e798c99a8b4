"""Reader of the Detect family (YOLOv8, 11, 12, 26 and the other anchor-free YOLOs): one view per branch of the head.

A dual head (YOLO26, v10) has two views, "one2many" and "one2one". In training the one2one branch is fed *detached*
neck maps, so its terms train that branch only; the maps of a view are therefore always the head's own inputs.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.tal import make_anchors

from yolokd.detectors.reader import Reader, Recorded, keep_input, name
from yolokd.views import DENSE, MAPS, Finish, Spec, View

PREDICTIONS = frozenset({"logits", "boxes", "bins"})
BRANCHES = {"one2many": ("cv2", "cv3"), "one2one": ("one2one_cv2", "one2one_cv3")}  # box and class towers


class YoloReader(Reader):
    """Reads one Ultralytics detection model whose last layer is a Detect head.

    Its branches are ("one2many",) or, for a dual head, ("one2many", "one2one").
    """

    fields = frozenset((*DENSE, "finish"))
    raw: tuple[str, ...] = ("scores", "boxes")  # the entries (B, channels, N) of the head's raw output that are used

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        head: Detect = self.head
        self.branches = tuple(b for b, (box, _) in BRANCHES.items() if getattr(head, box, None) is not None)
        self.strides = tuple(int(s) for s in head.stride)
        size = max(2 * max(self.strides), 64)  # leaves every level at least 2 x 2 cells
        self.stages = self._backbone_stages(size)
        with self.record(frozenset(MAPS)) as recorded:
            self.dry_run(size)
        widths = {field: self._channels(self._maps(recorded, field, self.branches[0])) for field in MAPS}
        bins = head.reg_max if head.reg_max > 1 else 0
        provided = self.fields if self.stages else self.fields - {"backbone"}
        self.spec = Spec(self.strides, widths, head.nc, bins, name(model), provides=provided)

    def loss_factor(self, images: int) -> int:
        """The number of images: a Detect head's loss is a sum over them."""
        return images

    def _freeze_head(self, fields: frozenset[str], branches: tuple[str, ...], fuse: bool) -> None:
        head = self.head
        if fuse and len(self.branches) > 1:
            if len(branches) > 1:
                head.fuse = types.MethodType(lambda _: None, head)  # keep both branches; the rest is fused
            else:
                head.end2end = branches == ("one2one",)  # which branch fuse() keeps
        super()._freeze_head(fields, branches, fuse)

    def _hooks(self, recorded: Recorded, fields: frozenset[str]) -> list[Any]:
        hooks = super()._hooks(recorded, fields)
        if "towers" in fields:
            hooks += [last.register_forward_pre_hook(keep_input(recorded, key)) for key, last in self._tower_ends()]
        return hooks

    def _tower_ends(self) -> Iterator[tuple[tuple[str, str, int], nn.Module]]:
        """The last convolution of each tower; its input is the tower's last hidden map."""
        for branch in self.branches:
            for attribute in BRANCHES[branch]:
                for level, tower in enumerate(getattr(self.head, attribute) or ()):  # fuse() may have dropped one
                    yield (branch, attribute, level), tower[-1]

    def views(self, recorded: Recorded, fields: frozenset[str], strides: tuple[int, ...]) -> dict[str, View]:
        """One view per branch of a recorded pass, with these fields and only the levels at these strides."""
        out = recorded.get("out")
        out = out[1] if isinstance(out, tuple) else out  # (decoded, raw) of some heads
        raw = out if isinstance(out, dict) and "one2many" in out else {"one2many": out}
        dropped = {b for b, given in raw.items() if isinstance(given, dict) and "scores" not in given}  # by fuse()
        return {b: self._view(recorded, b, raw[b], fields, strides) for b in self.branches if b in raw.keys() - dropped}

    def _view(
        self, recorded: Recorded, branch: str, raw: Any, fields: frozenset[str], strides: tuple[int, ...]
    ) -> View:
        values = self._map_fields(recorded, fields, strides)
        if "towers" in fields:
            values["towers"] = self._at(self._maps(recorded, "towers", branch), strides)
        if fields & self.fields - {*MAPS, "finish"}:
            values.update(self._points(raw, recorded["neck"], fields, strides))
        if "finish" in fields:
            values["finish"] = self._finish(branch, strides)
        return View(strides, **values)

    def _maps(self, recorded: Recorded, field: str, branch: str) -> tuple[Tensor, ...]:
        if field == "towers":
            return tuple(recorded[branch, a, level] for a in BRANCHES[branch] for level in range(len(self.strides)))
        return tuple(self._map_fields(recorded, frozenset({field}), self.strides)[field])

    def _points(
        self, raw: dict[str, Tensor], neck: list[Tensor], fields: frozenset[str], strides: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """The fields among the predictions from the head's raw output (B, channels, N)."""
        anchors, stride = make_anchors(neck, self.head.stride, 0.5)
        rows = {key: raw[key].transpose(1, 2) for key in self.raw}
        if strides != self.strides:  # a level without a partner is left out
            keep = torch.isin(stride.flatten(), stride.new_tensor(strides))
            anchors, stride, rows = anchors[keep], stride[keep], {key: row[:, keep] for key, row in rows.items()}
        return self._predictions(rows, anchors, stride, fields)

    def _predictions(
        self, rows: dict[str, Tensor], anchors: Tensor, stride: Tensor, fields: frozenset[str]
    ) -> dict[str, Tensor]:
        """The fields among PREDICTIONS from raw scores (B, N, K) and boxes (B, N, 4 R, or 4 without bins)."""
        predictions = {"logits": rows["scores"]}
        if fields & {"boxes", "bins"} and self.spec.bins:
            predictions["bins"] = rows["boxes"].unflatten(-1, (4, self.spec.bins))
        if "boxes" in fields:
            predictions["boxes"] = decode(predictions.get("bins", rows["boxes"]), anchors, stride)
        return {f: predictions[f] for f in fields & predictions.keys()}

    def _finish(self, branch: str, strides: tuple[int, ...]) -> Finish:
        """A branch's last convolutions at these strides, as a function of its tower maps."""
        levels = [i for i, s in enumerate(self.strides) if s in strides]
        ends = [getattr(self.head, attribute)[level][-1] for attribute in BRANCHES[branch] for level in levels]

        def finish(towers: tuple[Tensor, ...]) -> dict[str, Tensor]:
            maps = [end(x) for end, x in zip(ends, towers, strict=True)]
            box, cls = maps[: len(levels)], maps[len(levels) :]
            anchors, stride = make_anchors(box, self.head.stride[levels], 0.5)
            halves = {"boxes": box, "scores": cls}
            rows = {key: torch.cat([m.flatten(2) for m in half], -1).transpose(1, 2) for key, half in halves.items()}
            return self._predictions(rows, anchors, stride, PREDICTIONS)

        return finish


def decode(sides: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (B, N, 4), xyxy in pixels, from sides (B, N, 4) in cells or their distribution logits (B, N, 4, R)."""
    sides = expected(sides)
    anchors, stride = anchors.to(sides.dtype), stride.to(sides.dtype)
    return torch.cat((anchors - sides[..., :2], anchors + sides[..., 2:]), -1) * stride


def expected(sides: Tensor) -> Tensor:
    """Sides (B, N, 4) in cells, given as such or by their distribution logits (B, N, 4, R)."""
    sides = precise(sides)
    if sides.ndim == 4:
        sides = sides.softmax(-1) @ torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
    return sides


def precise(x: Tensor) -> Tensor:
    """x in float32 or wider: half precision holds a coordinate of 640 px to half a pixel only."""
    return x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
