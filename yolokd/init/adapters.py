"""Solve for the adapters of feature terms, where the student starts from its teacher.

An adapter is a 1x1 convolution from the student's channels to the teacher's. One that starts at random asks the student
for anything but its teacher's map, until it has learnt: a student whose maps are its teacher's already, but for what
its width cannot hold, would lose some of that. So each begins with the least-squares solution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yolokd.init.least_squares import fit_linear
from yolokd.init.teacher_statistics import POINTS, batch_size, raw_outputs

Rows = tuple[list[Tensor], list[Tensor]]  # of the student's map and of the teacher's, (points, C) each


@torch.no_grad()
def solve_adapters(learner: Any, images: Tensor) -> int:
    """Set the adapters that lead from a map of the student to the same map of a teacher; the others stay.

    Args:
        learner: the student in its `Distiller`.
        images: training images (B, C, H, W) in [0, 1], on the student's device.

    Returns:
        The number of adapters that were set.
    """
    rows: dict[nn.Conv2d, Rows] = {}
    size = batch_size(images)
    share = max(POINTS * size // len(images), 1)  # points of a map that are kept of each batch
    generator = torch.Generator().manual_seed(0)
    with raw_outputs(learner.module):
        for batch in torch.split(images, size):
            for adapter, s, t in adapted_maps(learner, batch):
                place = torch.randperm(len(s), generator=generator)[:share].to(s.device)
                known = rows.setdefault(adapter, ([], []))
                known[0].append(s[place])
                known[1].append(t[place])
    for adapter, (student_rows, teacher_rows) in rows.items():
        weight, bias = fit_linear(torch.cat(student_rows), torch.cat(teacher_rows))
        if weight.isfinite().all() and bias.isfinite().all():
            adapter.weight.copy_(weight[..., None, None])
            if adapter.bias is not None:
                adapter.bias.copy_(bias)
    return len(rows)


def adapted_maps(learner: Any, images: Tensor) -> list[tuple[nn.Conv2d, Tensor, Tensor]]:
    """Each adapter with the two maps between which it stands, a row per cell: (cells, C_s) and (cells, C_t)."""
    found = []
    teachers = learner.teacher_views(images)
    with learner.reader.record(learner.fields) as recorded:
        learner.module(images)
    for pairing, teacher in zip(learner.pairings, teachers, strict=True):
        for name, method in pairing.methods.items():
            own, other = pairing.places[name]
            tap = method.tap or "towers"
            student_maps, teacher_maps = (
                getattr(next(iter(views.values())), tap, None) or ()
                for views in (learner.reader.views(recorded, pairing.fields, own), teacher(other))
            )
            for adapter, s, t in zip(getattr(method, "adapters", ()), student_maps, teacher_maps, strict=False):
                if is_adapter(adapter, s, t):
                    found.append((adapter, in_rows(s), in_rows(t)))
    return found


def is_adapter(module: Any, s: Tensor, t: Tensor) -> bool:
    """Whether a module is a 1x1 convolution from the channels of s to those of t, which are as large."""
    plain = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    widths = plain and (module.in_channels, module.out_channels) == (s.shape[1], t.shape[1])
    return widths and s.shape[-2:] == t.shape[-2:]


def in_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C) in float32."""
    return x.float().permute(0, 2, 3, 1).flatten(0, 2)
