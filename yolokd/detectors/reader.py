"""Common to the readers of all Ultralytics detectors: levels, backbone stages, and hooks for one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from yolokd.views import Spec, View

T = TypeVar("T")
Recorded = dict[Any, Any]  # outputs that hooks stored in one forward pass


class Reader:
    """Reads one Ultralytics detection model. A subclass handles one kind of head and adds its predictions.

    Args:
        model: a DetectionModel of Ultralytics.

    Attributes:
        spec: strides, channels, classes and other facts about the model that a method may need.
        branches: names of the head's branches, such as ("one2many", "one2one").
    """

    spec: Spec
    branches: tuple[str, ...]
    strides: tuple[int, ...]
    fields: frozenset[str] = frozenset({"backbone", "neck"})  # of a view, that this kind of head can provide

    head: Any

    def __init__(self, model: Any) -> None:
        self.model, self.head = model, model.model[-1]
        self.stages: tuple[int, ...] = ()

    def loss_factor(self, images: int) -> int:
        """The factor by which Ultralytics multiplies this model's loss for that number of images; terms need it too."""
        raise NotImplementedError

    def views(self, recorded: Recorded, fields: frozenset[str], strides: tuple[int, ...]) -> dict[str, View]:
        """One view per branch of a recorded pass, with these fields and only the levels at these strides."""
        raise NotImplementedError

    def freeze(self, fields: frozenset[str], branches: tuple[str, ...], fuse: bool = True) -> None:
        """Make the model a teacher, irreversibly: no gradient, fused if it may be, without work that these fields do
        not need.
        """
        self.model.requires_grad_(False).eval()
        self._freeze_head(fields, branches, fuse)
        self._give_raw()
        if fields <= {"backbone", "neck"}:
            self.head = self.model.model[-1] = _without_head(self.head)

    def _give_raw(self) -> None:
        """Let a head in eval mode output raw predictions, without decoding and top-k."""
        self.head.training = True  # the flag alone: its children stay in eval mode

    def _freeze_head(self, fields: frozenset[str], branches: tuple[str, ...], fuse: bool) -> None:
        if fuse:
            self.model.fuse(verbose=False)

    def spec_at(self, strides: tuple[int, ...]) -> Spec:
        """The spec with only the levels at the given strides."""
        channels = {f: self._at(widths, strides) for f, widths in self.spec.channels.items()}
        return replace(self.spec, strides=strides, channels=channels)

    def _at(self, levels: tuple[T, ...], strides: tuple[int, ...]) -> tuple[T, ...]:
        """The maps, or widths, at the given strides; towers are L box maps, then L class maps.

        A stride may be given twice: its map is then returned twice.
        """
        groups = [levels[i : i + len(self.strides)] for i in range(0, len(levels), len(self.strides))]
        return tuple(group[self.strides.index(s)] for group in groups for s in strides)

    @contextmanager
    def record(self, fields: frozenset[str]) -> Iterator[Recorded]:
        """Within the block, forward passes store what the fields need in the yielded dict; then hooks are removed."""
        recorded: Recorded = {}
        hooks = self._hooks(recorded, fields)
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, recorded: Recorded, fields: frozenset[str]) -> list[Any]:
        hooks = [
            self.head.register_forward_pre_hook(lambda module, args: recorded.__setitem__("neck", list(args[0]))),
            self.head.register_forward_hook(keep_output(recorded, "out")),
        ]
        if "backbone" in fields:
            hooks += [self.model.model[i].register_forward_hook(keep_output(recorded, i)) for i in self.stages]
        return hooks

    def _map_fields(self, recorded: Recorded, fields: frozenset[str], strides: tuple[int, ...]) -> dict[str, Any]:
        maps = {"neck": lambda: tuple(recorded["neck"]), "backbone": lambda: tuple(recorded[i] for i in self.stages)}
        return {f: self._at(maps[f](), strides) for f in fields & maps.keys()}

    def _channels(self, maps: tuple[Tensor, ...]) -> tuple[int, ...]:
        return tuple(m.shape[1] for m in maps)

    def dry_run(self, size: int, note: Callable[[Any, Any, Any], None] | None = None) -> None:
        """Run one black image of size x size through the model, without decoding or changing batch norm statistics.

        Args:
            note: a forward hook for every backbone layer, if given.
        """
        first = next(self.model.parameters())
        flags = [(module, module.training) for module in self.model.modules()]  # frozen layers are in eval
        backbone = self.model.model[: len(self.model.yaml["backbone"])]
        hooks = [layer.register_forward_hook(note) for layer in backbone] if note else []
        self.model.eval()
        self._give_raw()
        image = torch.zeros(1, channels(self.model), size, size, device=first.device, dtype=first.dtype)
        try:
            with torch.no_grad():
                self.model(image)
        finally:
            for module, training in flags:
                module.training = training
            for hook in hooks:
                hook.remove()

    def _backbone_stages(self, size: int) -> tuple[int, ...]:
        """Index of the deepest backbone layer at each of the head's strides; () if the backbone lacks one of them."""
        deepest: dict[int, int] = {}

        def note(layer: Any, _: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4:
                deepest[size // out.shape[-1]] = layer.i  # a later layer overwrites an earlier one

        self.dry_run(size, note)
        return tuple(deepest[s] for s in self.strides) if deepest.keys() >= set(self.strides) else ()


class _NoHead(nn.Identity):
    """Replaces a head whose output is not needed: it takes the same inputs and computes nothing."""

    def forward(self, x: Any, *_: Any) -> Any:
        """Return the neck maps unchanged, ignoring whatever else Ultralytics passes to a head."""
        return x


def _without_head(head: Any) -> Any:
    stub: Any = _NoHead()
    stub.i, stub.f, stub.type, stub.np = head.i, head.f, head.type, 0
    for name in ("anchors", "valid_mask"):  # older versions move these of a decoder to the device
        if hasattr(head, name):
            setattr(stub, name, getattr(head, name))
    return stub


def keep_output(recorded: Recorded, key: Any) -> Callable[[Any, Any, Any], None]:
    """A forward hook that stores the module's output under the key; it returns None, so the output is unchanged."""
    return lambda module, args, out: recorded.__setitem__(key, out)


def keep_input(recorded: Recorded, key: Any) -> Callable[[Any, Any], None]:
    """A forward pre-hook that stores the module's first input under the key."""
    return lambda module, args: recorded.__setitem__(key, args[0])


def channels(model: Any) -> int:
    """The number of image channels that a model takes."""
    return int(model.yaml.get("channels", 3))


def name(model: Any) -> str:
    """A model's name for messages: that of its checkpoint or YAML."""
    return Path(getattr(model, "pt_path", None) or model.yaml.get("yaml_file", "model")).stem
