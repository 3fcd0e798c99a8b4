"""Which channel of the teacher's map each channel of a student's map represents.

This is stored as an attribute of the student's maps. It is set where a convolution was matched, and `ChannelTracker`
passes it on through concatenation, splitting, addition, pooling and whatever else keeps the channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# For each part that a map is concatenated from: the teacher's channel that each of the student's channels represents
# (-1 for none), and the number of channels of the teacher's part.
Channels = tuple[tuple[Tensor, int], ...]
SPLITS = (torch.chunk, Tensor.chunk, torch.split, Tensor.split)


def mark(x: Tensor, known: Channels | None) -> None:
    """Store what the channels of a map represent."""
    x.teacher_channels = known  # type: ignore[attr-defined]


def channels(x: Tensor) -> Channels | None:
    """What the channels of a map represent; None if unknown."""
    return getattr(x, "teacher_channels", None)


def index(known: Channels | None) -> Tensor | None:
    """The same as a single index into the channels of the teacher's whole map."""
    if known is None:
        return None
    parts, start = [], 0
    for part, width in known:
        parts.append(torch.where(part < 0, part, part + start))
        start += width
    return torch.cat(parts)


class ChannelTracker(TorchFunctionMode):
    """While active, it marks maps that are computed from marked maps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        along_channels = kwargs.get("dim", args[-1] if args else None) == 1
        if func is torch.cat and along_channels:
            parts = [channels(x) for x in args[0]]
            mark(out, None if None in parts else sum((p for p in parts if p), ()))
        elif func in SPLITS and along_channels:
            _share_out(channels(args[0]), out)
        elif isinstance(out, Tensor) and args and isinstance(args[0], Tensor) and func is not F.conv2d:
            x = args[0]
            if out is not x and out.ndim == x.ndim == 4 and out.shape[:2] == x.shape[:2]:
                mark(out, channels(x))
        return out


def _share_out(known: Channels | None, parts: tuple[Tensor, ...]) -> None:
    """Mark the parts of a split map, as long as it is split where it was concatenated."""
    rest = list(known or ())
    for part in parts:
        pieces: list[tuple[Tensor, int]] = []
        while rest and sum(len(p) for p, _ in pieces) < part.shape[1]:
            pieces.append(rest.pop(0))
        if sum(len(p) for p, _ in pieces) != part.shape[1]:
            return
        mark(part, tuple(pieces))
