"""The Detect family (YOLOv8, 11, 12, 26 and the other anchor-free YOLOs): what a forward pass shows, branch by branch.

A dual head (YOLO26, v10) shows two views, "one2many" and "one2one". In training the one2one branch is fed *detached*
neck maps, so its terms train that branch only; the maps are therefore always those of the head's own inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.tal import make_anchors

from yolokd.errors import UsageError
from yolokd.views import MAPS, Finish, Spec, View

T = TypeVar("T")
PREDICTIONS = frozenset({"logits", "boxes", "bins"})
BRANCHES = {"one2many": ("cv2", "cv3"), "one2one": ("one2one_cv2", "one2one_cv3")}  # box and class towers


class YoloReader:
    """Reads one Ultralytics detection model whose last layer is a Detect head.

    Args:
        model: a DetectionModel of Ultralytics.

    Attributes:
        spec: strides, channels, classes and bins of the model.
        branches: names of the head's branches, ("one2many",) or ("one2many", "one2one").
    """

    def __init__(self, model: Any) -> None:
        head = model.model[-1]
        if not isinstance(head, Detect):
            raise UsageError(
                f"{name(model)} ends in {type(head).__name__}, which yolokd cannot read yet: "
                "use a YOLO detection model such as yolov8, yolo11, yolo12 or yolo26."
            )
        self.model, self.head = model, head
        self.branches = tuple(b for b, (box, _) in BRANCHES.items() if getattr(head, box, None) is not None)
        self.strides = tuple(int(s) for s in head.stride)
        self.stages = self._backbone_stages()
        with self.record(frozenset(MAPS)) as seen:
            _raw_forward(model)
        channels = {field: tuple(m.shape[1] for m in self._maps(seen, field, self.branches[0])) for field in MAPS}
        bins = head.reg_max if head.reg_max > 1 else 0
        self.spec = Spec(self.strides, channels, head.nc, bins, name(model))

    def spec_at(self, strides: tuple[int, ...]) -> Spec:
        """The spec with only the levels at the given strides."""
        channels = {f: self._at(widths, strides) for f, widths in self.spec.channels.items()}
        return replace(self.spec, strides=strides, channels=channels)

    def _backbone_stages(self) -> tuple[int, ...]:
        """Index of the deepest backbone layer at each of the head's strides; () when the backbone lacks one of them."""
        layers = self.model.model[: len(self.model.yaml["backbone"])]
        found: dict[int, int] = {}
        size = _probe_size(self.model)

        def note(layer: Any, _: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                found[size // out.shape[-1]] = layer.i  # later layers overwrite: the deepest stays

        hooks = [layer.register_forward_hook(note) for layer in layers]
        try:
            _raw_forward(self.model)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(found[s] for s in self.strides) if found.keys() >= set(self.strides) else ()

    @contextmanager
    def record(self, fields: frozenset[str]) -> Iterator[dict[Any, Any]]:
        """Within the block, forward passes leave what the fields need in the yielded dict; no hook outlives it."""
        seen: dict[Any, Any] = {}

        def keep_output(key: Any) -> Any:
            return lambda module, args, out: seen.__setitem__(key, out)  # returns None: the output stays as it is

        def keep_input(key: Any) -> Any:
            return lambda module, args: seen.__setitem__(key, args[0])

        hooks = [
            self.head.register_forward_pre_hook(lambda module, args: seen.__setitem__("neck", list(args[0]))),
            self.head.register_forward_hook(keep_output("out")),
        ]
        if "backbone" in fields:
            hooks += [self.model.model[i].register_forward_hook(keep_output(i)) for i in self.stages]
        if "towers" in fields:
            hooks += [last.register_forward_pre_hook(keep_input(key)) for key, last in self._tower_ends()]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _tower_ends(self) -> Iterator[tuple[tuple[str, str, int], nn.Module]]:
        """The last convolution of each tower: what enters it is the tower's last hidden map."""
        for branch in self.branches:
            for attribute in BRANCHES[branch]:
                for level, tower in enumerate(getattr(self.head, attribute) or ()):  # fuse() may have dropped one
                    yield (branch, attribute, level), tower[-1]

    def views(self, seen: dict[Any, Any], fields: frozenset[str], strides: tuple[int, ...]) -> dict[str, View]:
        """A view a branch of a recorded pass, with these fields and only the levels at these strides."""
        out = seen.get("out")
        raw = out if isinstance(out, dict) and "one2many" in out else {"one2many": out}
        return {b: self._view(seen, b, raw[b], fields, strides) for b in self.branches if b in raw and raw[b] != {}}

    def _view(
        self, seen: dict[Any, Any], branch: str, raw: Any, fields: frozenset[str], strides: tuple[int, ...]
    ) -> View:
        found: dict[str, Any] = {f: self._at(self._maps(seen, f, branch), strides) for f in fields & set(MAPS)}
        if fields & PREDICTIONS:
            found.update(self._points(raw, seen["neck"], fields, strides))
        if "finish" in fields:
            found["finish"] = self._finish(branch, strides)
        return View(strides, **found)

    def _maps(self, seen: dict[Any, Any], field: str, branch: str) -> tuple[Tensor, ...]:
        if field == "neck":
            return tuple(seen["neck"])
        if field == "backbone":
            return tuple(seen[i] for i in self.stages)
        return tuple(seen[branch, a, level] for a in BRANCHES[branch] for level in range(len(self.strides)))

    def _at(self, levels: tuple[T, ...], strides: tuple[int, ...]) -> tuple[T, ...]:
        """Those of the maps, or widths, that are at the given strides; towers come as L box maps, then L class maps."""
        return tuple(m for i, m in enumerate(levels) if self.strides[i % len(self.strides)] in strides)

    def _points(
        self, raw: dict[str, Tensor], neck: list[Tensor], fields: frozenset[str], strides: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """logits (B, N, K), bins (B, N, 4, R) and boxes (B, N, 4) from the head's raw output (B, channels, N)."""
        anchors, stride = make_anchors(neck, self.head.stride, 0.5)
        scores, distances = raw["scores"].transpose(1, 2), raw["boxes"].transpose(1, 2)
        if strides != self.strides:  # a level without a partner is left out
            keep = torch.isin(stride.flatten(), stride.new_tensor(strides))
            anchors, stride, scores, distances = anchors[keep], stride[keep], scores[:, keep], distances[:, keep]
        return self._predictions(scores, distances, anchors, stride, fields)

    def _predictions(
        self, scores: Tensor, distances: Tensor, anchors: Tensor, stride: Tensor, fields: frozenset[str]
    ) -> dict[str, Tensor]:
        """The fields among PREDICTIONS from raw scores (B, N, K) and box channels (B, N, 4 R, or 4 without bins)."""
        found = {"logits": scores}
        if fields & {"boxes", "bins"} and self.spec.bins:
            found["bins"] = distances.reshape(*distances.shape[:-1], 4, self.spec.bins)
        if "boxes" in fields:
            found["boxes"] = decode(found.get("bins", distances), anchors, stride)
        return {f: found[f] for f in fields & found.keys()}

    def _finish(self, branch: str, strides: tuple[int, ...]) -> Finish:
        """A branch's last convolutions at these strides, as a function of its tower maps."""
        levels = [i for i, s in enumerate(self.strides) if s in strides]
        ends = [getattr(self.head, attribute)[level][-1] for attribute in BRANCHES[branch] for level in levels]

        def finish(towers: tuple[Tensor, ...]) -> dict[str, Tensor]:
            maps = [end(x) for end, x in zip(ends, towers, strict=True)]
            box, cls = maps[: len(levels)], maps[len(levels) :]
            anchors, stride = make_anchors(box, self.head.stride[levels], 0.5)
            distances, scores = (torch.cat([m.flatten(2) for m in half], -1).transpose(1, 2) for half in (box, cls))
            return self._predictions(scores, distances, anchors, stride, PREDICTIONS)

        return finish


def decode(sides: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
    """Boxes (B, N, 4), xyxy in pixels, from sides (B, N, 4) in cells or their distribution logits (B, N, 4, R).

    Always in float32 or wider: half precision holds a coordinate of 640 px to half a pixel only.
    """
    sides = sides.float() if sides.dtype in {torch.float16, torch.bfloat16} else sides
    if sides.ndim == 4:
        sides = sides.softmax(-1) @ torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
    anchors, stride = anchors.to(sides.dtype), stride.to(sides.dtype)
    return torch.cat((anchors - sides[..., :2], anchors + sides[..., 2:]), -1) * stride


def name(model: Any) -> str:
    """What to call a model in a message: its checkpoint's or its YAML's name."""
    return Path(getattr(model, "pt_path", None) or model.yaml.get("yaml_file", "model")).stem


def _probe_size(model: Any) -> int:
    """Pixels of a square image that leaves every level of the head at least 2 x 2 cells."""
    return max(2 * int(max(model.model[-1].stride)), 64)


def _raw_forward(model: Any) -> None:
    """Run the model on one black image without touching batch norm statistics or decoding boxes."""
    size, first = _probe_size(model), next(model.parameters())
    flags = [(module, module.training) for module in model.modules()]  # they may differ: frozen layers stay in eval
    model.eval()
    model.model[-1].training = True  # the flag alone: its children stay in eval mode
    try:
        with torch.no_grad():
            model(torch.zeros(1, model.yaml.get("channels", 3), size, size, device=first.device, dtype=first.dtype))
    finally:
        for module, training in flags:
            module.training = training
