"""What two papers share, and nothing that only one of them needs. Every function leaves its arguments as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolokd.views import Spec, View

T = TypeVar("T")
TINY_AREA = 1e-7  # square pixels: below it a union or an enclosing box counts as empty
TINY_ENERGY = 1e-12  # mean square of a map: below it the map counts as dead and offers no scale


# Checks, so that a wrong pair or option ends in one sentence when a method is built


def check_number(name: str, value: object, above: float = 0.0, inclusive: bool = False) -> None:
    """Refuse an option that is not a finite number above (or at least) a bound."""
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and (number > above or (inclusive and number == above)):
        return
    bound = f"{above:g} or above" if inclusive else f"above {above:g}"
    raise ValueError(f"{name}={value!r} is not allowed: it must be a finite number, {bound}.")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse an option that is none of its choices (1 is not True)."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(map(repr, choices))}.")


def check_classes(method: str, student: Spec, teacher: Spec) -> None:
    """Refuse a pair whose class scores cannot be compared one to one."""
    if student.classes != teacher.classes:
        raise ValueError(
            f"{method} compares scores class by class, but student {student.name} has {student.classes} classes "
            f"and teacher {teacher.name} has {teacher.classes}."
        )


def widths(method: str, student: Spec, teacher: Spec, tap: str, taps: tuple[str, ...]) -> list[tuple[int, int]]:
    """Channels (student, teacher) of every map of a tap, or one sentence why the pair has no such maps."""
    check_choice(f"{method}.tap", tap, taps)
    for role, spec in (("student", student), ("teacher", teacher)):
        if not spec.channels.get(tap):
            raise ValueError(f"{method} on tap {tap!r} needs maps that {role} {spec.name} does not show.")
    s, t = student.channels[tap], teacher.channels[tap]
    if len(s) != len(t):
        raise ValueError(
            f"{method} on tap {tap!r} pairs maps level by level, but student {student.name} shows {len(s)} "
            f"and teacher {teacher.name} shows {len(t)}."
        )
    return list(zip(s, t, strict=True))


def shown(value: T | None, name: str) -> T:
    """A field of a view that must be there."""
    if value is None:
        raise ValueError(f"The view shows no {name}, although the method declares that it needs them.")
    return value


# Maps


def adapters(pairs: Iterable[tuple[int, int]], bias: bool = True) -> nn.ModuleList:
    """One trainable 1x1 conv a map, (B, C_s, H, W) -> (B, C_t, H, W).

    Also at equal widths: two nets that were trained apart share no order of channels.
    """
    return nn.ModuleList(nn.Conv2d(s, t, kernel_size=1, bias=bias) for s, t in pairs)


def adapted(student: View, teacher: View, tap: str, adapters: nn.ModuleList) -> list[tuple[Tensor, Tensor]]:
    """Pairs (A(s), t) of equal shape (B, C_t, H_s, W_s), one a map of the tap; t carries no gradient."""
    s_maps: tuple[Tensor, ...] = shown(getattr(student, tap), tap)
    t_maps: tuple[Tensor, ...] = shown(getattr(teacher, tap), tap)
    pairs = []
    for adapter, s, t in zip(adapters, s_maps, t_maps, strict=True):
        pairs.append((adapter(wide(s)), resize(wide(t.detach()), s)))
    return pairs


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that already: half precision overflows in sums of squares."""
    return x if x.dtype == torch.float64 else x.float()


def resize(x: Tensor, like: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W) by bilinear interpolation; like (., ., H, W). Untouched at equal size."""
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def energy_or_one(energy: Tensor) -> Tensor:
    """A teacher's mean square as a divisor, () -> (): 1 for a dead map, whose relative error has no meaning."""
    return torch.where(energy > TINY_ENERGY, energy, torch.ones_like(energy))


def level_mean(losses: list[Tensor]) -> Tensor:
    """Mean over maps, L times () -> (), so that a gain means the same for any number of levels."""
    return torch.stack(losses).mean()


# Scores and boxes


def confidence(logits: Tensor) -> Tensor:
    """Highest class score, (B, N, K) -> (B, N), in [0, 1], without gradient."""
    return wide(logits.detach()).sigmoid().amax(-1)


def soft_count(logits: Tensor) -> Tensor:
    """The teacher's soft count of positives in the batch, sum_n max_k sigmoid(z), (B, N, K) -> (), at least 1."""
    return confidence(logits).sum().clamp(min=1)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (arXiv:1902.09630) of boxes at equal places, (..., 4) and (..., 4) xyxy -> (...), in [-1, 1].

    A box with a negative side has area 0: heads without box bins can decode one early in training.
    """
    inter = area(torch.cat((torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])), -1))
    hull = area(torch.cat((torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])), -1))
    union = area(a) + area(b) - inter
    # a floor instead of an added epsilon keeps equal boxes at exactly 1
    return inter / union.clamp(min=TINY_AREA) - (hull - union) / hull.clamp(min=TINY_AREA)


def area(boxes: Tensor) -> Tensor:
    """Area of xyxy boxes, (..., 4) -> (...)."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height
