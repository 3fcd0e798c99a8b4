"""Which convolutions of two Ultralytics detectors correspond, and which convolutions of a model must share channels.

What is special to RT-DETR's transformers is in `detr_pairs`.

Layers are aligned in order by type, so families that differ by a few layers can still be paired. Inside a layer,
modules of the same name and type correspond, and their convolutions must have the same window and stride. If the
teacher's list of repeated blocks is longer, evenly spaced ones of it are taken. Layers without a partner are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from ultralytics.nn.modules.block import (
    C2,
    C2PSA,
    CIB,
    PSA,
    SPPF,
    A2C2f,
    AAttn,
    ABlock,
    Attention,
    Bottleneck,
    C2f,
    HGBlock,
    PSABlock,
    RepC3,
    RepNCSPELAN4,
    ResNetBlock,
)
from ultralytics.nn.modules.conv import Conv, RepConv
from ultralytics.nn.modules.head import Detect, RTDETRDecoder

from yolokd.detectors.yolo import BRANCHES

SPLIT = (C2, C2f, C2PSA, PSA, RepNCSPELAN4)  # their cv1 outputs two halves that are processed separately
ATTENTION = (Attention, AAttn)
TASK_TOWERS = [f"{branch}{tower}" for branch in ("", "one2one_") for tower in ("cv4", "cv4_kpts", "cv4_sigma")]
TASK_SHAPES = ("nm", "kpt_shape", "ne")  # of a head: masks, keypoints, angles


@dataclass(frozen=True, slots=True)
class LayerPair:
    """Corresponding convolutions of student and teacher: a `Conv` (with batch norm) or a bare one."""

    name: str
    student: Any
    teacher: Any
    kind: str = "hidden"  # hidden, split (the output's halves are processed separately); last in a head: box, class or
    # value (mask coefficients, keypoints, an angle)
    attention: tuple[Any, Any] | None = None  # for queries, keys and values: the two attention modules

    @property
    def last(self) -> bool:
        """Whether its outputs are predictions."""
        return self.kind in {"box", "class", "value"}

    @property
    def depthwise(self) -> bool:
        conv = bare(self.student)
        return bool(conv.groups == conv.out_channels > 1)


def bare(module: Any) -> nn.Conv2d:
    """The plain convolution of a Conv or of an RT-DETR's projection, or the module itself."""
    conv: nn.Conv2d = module.conv if isinstance(module, Conv) else module
    if isinstance(module, nn.Sequential):
        conv = module[0]  # type: ignore[assignment]
    return conv


def norm_of(module: Any) -> Any:
    """The batch norm that follows the convolution; None for a bare one."""
    return module[1] if isinstance(module, nn.Sequential) else getattr(module, "bn", None)


def layer_pairs(student: Any, teacher: Any) -> list[LayerPair]:
    """Pairs of two detection models with a Detect head, in no particular order."""
    pairs: list[LayerPair] = []
    for here, there in align(student.model[:-1], teacher.model[:-1]):
        pairs += iter_layer_pairs(here, there, f"model.{here.i}")
    return pairs + list(head_pairs(student.model[-1], teacher.model[-1], f"model.{student.model[-1].i}"))


def align(student: Any, teacher: Any) -> list[tuple[Any, Any]]:
    """Longest common subsequence of two lists of layers, where layers of related types match."""
    best: dict[tuple[int, int], list[tuple[Any, Any]]] = {}
    for i in range(len(student) - 1, -1, -1):
        for j in range(len(teacher) - 1, -1, -1):
            skipped = max(best.get((i + 1, j), []), best.get((i, j + 1), []), key=len)
            taken = best.get((i + 1, j + 1), [])
            match = related(student[i], teacher[j]) and len(taken) + 1 > len(skipped)
            best[i, j] = [(student[i], teacher[j]), *taken] if match else skipped
    return best.get((0, 0), [])


def related(student: Any, teacher: Any) -> bool:
    """Whether one's type is the other's or derived from it; an HGBlock that adds its input is another type."""
    if isinstance(student, HGBlock) and isinstance(teacher, HGBlock) and student.add != teacher.add:
        return False
    return isinstance(student, type(teacher)) or isinstance(teacher, type(student))


def iter_layer_pairs(student: Any, teacher: Any, name: str, split: bool = False) -> Iterator[LayerPair]:
    """Pairs inside two modules."""
    if not related(student, teacher):
        return
    if isinstance(student, Conv):
        if alike(student.conv, teacher.conv):
            yield LayerPair(name, student, teacher, "split" if split else "hidden")
        return
    own, others = dict(student.named_children()), dict(teacher.named_children())
    if isinstance(student, (nn.ModuleList, nn.Sequential)) and len(own) < len(others):
        first = int(isinstance(student[0], ResNetBlock))  # the first one halves the map's sides
        step = (len(others) - first) / max(len(own) - first, 1)
        later = [teacher[first + round((i + 1) * step) - 1] for i in range(len(own) - first)]
        others = dict(zip(own, [*teacher[:first], *later], strict=True))
    if any(isinstance(m, A2C2f) and m.gamma is not None for m in (student, teacher)):
        del own["cv2"]  # its output is added with a learned factor, which solving for the convolution ignores
    for key in own:  # in the module's order: a set's order differs between processes, and with it the random draws
        if key not in others:
            continue
        if isinstance(student, ATTENTION) and key == "qkv":
            yield LayerPair(f"{name}.qkv", student.qkv, teacher.qkv, attention=(student, teacher))
        else:
            yield from iter_layer_pairs(
                own[key], others[key], f"{name}.{key}", isinstance(student, SPLIT) and key == "cv1"
            )


def alike(student: nn.Conv2d, teacher: nn.Conv2d) -> bool:
    """Whether two convolutions see the same window, and both are dense or both depthwise.

    As depthwise counts every convolution that mixes no outputs: DWConv of an RT-DETR whose width is scaled joins pairs.
    """
    same = all(getattr(student, k) == getattr(teacher, k) for k in ("kernel_size", "stride", "padding", "dilation"))
    dense = all(c.groups == 1 for c in (student, teacher))
    return same and (dense or all(c.groups == c.out_channels for c in (student, teacher)))


def head_pairs(student: Any, teacher: Any, name: str) -> Iterator[LayerPair]:
    """Pairs of two Detect heads, level by level at equal strides; one2many replaces a branch that the teacher lacks."""
    if not isinstance(student, Detect) or not isinstance(teacher, Detect):
        return
    levels = [int(s) for s in teacher.stride]
    for attributes in BRANCHES.values():
        for attribute, fallback, kind in zip(attributes, BRANCHES["one2many"], ("box", "class"), strict=True):
            towers = getattr(student, attribute, None) or ()
            others = getattr(teacher, attribute, None) or getattr(teacher, fallback, None)
            for level, tower in enumerate(towers):
                stride = int(student.stride[level])
                if others is None or stride not in levels:
                    continue
                other, path = others[levels.index(stride)], f"{name}.{attribute}.{level}"
                yield from iter_layer_pairs(tower, other, path)
                yield LayerPair(f"{path}.{len(tower) - 1}", tower[-1], other[-1], kind)
    yield from task_pairs(student, teacher, name)


def task_pairs(student: Any, teacher: Any, name: str) -> Iterator[LayerPair]:
    """Pairs of what heads for segment, pose and obb have beside boxes and classes, where both mean the same by it."""
    meaning = [[getattr(head, key, None) for key in TASK_SHAPES] for head in (student, teacher)]
    if not related(student, teacher) or meaning[0] != meaning[1]:
        return
    levels = [int(s) for s in teacher.stride]
    for attribute in TASK_TOWERS:
        others = getattr(teacher, attribute, None) or getattr(teacher, attribute.removeprefix("one2one_"), None)
        for level, tower in enumerate(getattr(student, attribute, None) or ()):
            stride = int(student.stride[level])
            if others is None or stride not in levels:
                continue
            other, path = others[levels.index(stride)], f"{name}.{attribute}.{level}"
            yield from iter_layer_pairs(tower, other, path)
            mine, theirs = (t[-1] if isinstance(t, nn.Sequential) else t for t in (tower, other))
            if isinstance(mine, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
                last = f"{path}.{len(tower) - 1}" if isinstance(tower, nn.Sequential) else path
                yield LayerPair(last, mine, theirs, "value")
    if hasattr(student, "proto") and hasattr(teacher, "proto"):
        yield from iter_layer_pairs(student.proto, teacher.proto, f"{name}.proto")


def sums(model: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of convolutions whose outputs are added or read alike, so that both must output the same channels."""
    for module in model.modules():
        if isinstance(module, RepConv):
            yield module.conv1, module.conv2
        elif isinstance(module, RepC3):
            yield module.m[-1].conv1, module.cv2
        elif isinstance(module, ResNetBlock) and not isinstance(module.shortcut, nn.Identity):
            yield module.cv3, module.shortcut[0]
        elif isinstance(module, RTDETRDecoder):
            yield from ((module.input_proj[0], other) for other in module.input_proj[1:])  # one transformer reads them


def residuals(model: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(module, convolution): the module's input is added to the convolution's output."""
    for module in model.modules():
        if isinstance(module, Bottleneck) and module.add:
            yield module, module.cv2
        elif isinstance(module, HGBlock) and module.add:
            yield module, module.ec
        elif isinstance(module, ResNetBlock) and isinstance(module.shortcut, nn.Identity):
            yield module, module.cv3
        elif isinstance(module, CIB) and module.add:
            yield module, module.cv1[3]  # its depthwise follower keeps the channels
        elif isinstance(module, ATTENTION):
            yield module, module.proj
        elif isinstance(module, (PSABlock, PSA)):
            yield module.ffn, module.ffn[-1]
        elif isinstance(module, ABlock):
            yield module.mlp, module.mlp[-1]
        elif isinstance(module, SPPF) and getattr(module, "add", False):
            yield module, module.cv2
