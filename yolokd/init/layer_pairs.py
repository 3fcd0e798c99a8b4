"""Which convolutions of two Ultralytics detectors correspond, and which convolutions of a model must share channels.

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
    PSABlock,
    RepNCSPELAN4,
)
from ultralytics.nn.modules.conv import Conv, RepConv
from ultralytics.nn.modules.head import Detect

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
        return bool(conv.groups == conv.in_channels > 1)


def bare(module: Any) -> nn.Conv2d:
    """The plain convolution of a Conv, or the module itself."""
    conv: nn.Conv2d = module.conv if isinstance(module, Conv) else module
    return conv


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
    """Whether one's type is the other's or derived from it."""
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
        step = len(others) / len(own)
        others = {key: teacher[round((i + 1) * step) - 1] for i, key in enumerate(own)}
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
    """Whether two convolutions see the same window, and both are dense or both depthwise."""
    same = all(getattr(student, k) == getattr(teacher, k) for k in ("kernel_size", "stride", "padding", "dilation"))
    widths = [(c.groups, c.in_channels, c.out_channels) for c in (student, teacher)]
    dense = all(groups == 1 for groups, _, _ in widths)
    return same and (dense or all(groups == ins == outs for groups, ins, outs in widths))


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
    """Pairs of convolutions of one input whose outputs are added, so that both must output the same channels."""
    for module in model.modules():
        if isinstance(module, RepConv):
            yield module.conv1, module.conv2


def residuals(model: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(module, convolution): the module's input is added to the convolution's output."""
    for module in model.modules():
        if isinstance(module, Bottleneck) and module.add:
            yield module, module.cv2
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
