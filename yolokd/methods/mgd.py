"""MGD: mask most of the student's map and generate the teacher's whole map from the rest.

Z. Yang, Z. Li, M. Shao, D. Shi, Z. Yuan, C. Yuan: "Masked Generative Distillation", 2022, arXiv:2205.01529;
code: https://github.com/yzd-v/MGD.

At one level, with A the adapter, G = conv3x3, ReLU, conv3x3 (C_t channels inside and out), i over the cells:

    M_i      = 0 with probability ratio, else 1     one draw for each image and cell, shared by the channels
    plain    = mean (G(A(s) M) - t)^2               mean over B, C_t, H, W
    relative = mean (G(A(s) M) - t)^2 / mean t^2
    loss     = mean over levels

Where the authors' code departs from this, or we from it, and why:
- It sums over C, H, W and multiplies by alpha = 2e-5 (one-stage), 5e-7 (two-stage): the sum grows with the image and
  the width, the mean does not. `relative` (default) divides by the teacher's own mean square, for which a generator
  that returns 0 has loss 1.
- It has an adapter only where the widths differ; we always have one.
- It draws from torch's global random numbers, which the student's augmentation and dropout share. Our masks come from a
  separate generator, seeded by how often the method has been called: the student's random numbers are unchanged, and a
  resumed training gets the masks it would have had (the state holds the count). In a training on several devices each
  process draws the same masks, for its own images.
- In eval mode nothing is masked, as with dropout, and the loss depends on the maps only.
- `form` and `width` are ours. On one CPU core at 640 px the paper's adapter and two full 3x3 convs cost four fifths of
  YOLO11n's own step (under a YOLO11s), ten times as much as other neck methods. `form="separable"` (default) splits
  each 3x3 conv into a depthwise and a 1x1 conv without an activation between, and merges the adapter into the first:

      G(s M) = p2 d2 relu(p1 d1 (s M))     d: 3x3, one channel each; p1: C_s to width C_t channels; p2: those to C_t

  Receptive field (5 x 5 cells), activation and target are the paper's; masked cells are 0 at the input, where the
  paper's A would add its bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View

SEED = 2022  # of the first call's masks; the n-th call's is SEED + n


@dataclass(frozen=True, slots=True)
class MGDOptions:
    """Options of MGD."""

    ratio: float = 0.65  # share of the cells that is masked, the paper's lambda (0.65 one-stage, 0.45 two-stage)
    form: str = "separable"  # of the generator's 3x3 convs: "separable", or the paper's "full", behind an adapter
    width: float = 0.25  # channels inside the generator, as a share of the teacher's: fewer cost less (1: paper)
    relative: bool = True  # divide by mean t^2 at each level; False: the paper's plain form, as a mean

    def __post_init__(self) -> None:
        ops.check_number("mgd.ratio", self.ratio, inclusive=True)
        if self.ratio >= 1:
            raise ValueError(f"mgd.ratio={self.ratio!r} is not allowed: it must be below 1, or every cell is masked.")
        ops.check_choice("mgd.form", self.form, ("separable", "full"))
        ops.check_number("mgd.width", self.width)
        ops.check_choice("mgd.relative", self.relative, (True, False))


class MGD(Method):
    """Squared error of the teacher's maps, generated from a masked student's."""

    taxonomy_level = "neck"
    term = "mgd"
    paper = "Yang et al., Masked Generative Distillation, 2022, arXiv:2205.01529"
    reported = "RetinaNet X101 -> R50 37.4 -> 41.0 COCO AP (authors' repository)"
    unit = 50.0  # measured 0.007 at unit 1; paper: 2e-5 on the sum over channels and cells
    taps = ("neck", "backbone")
    Options: ClassVar[type] = MGDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: MGDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs = ops.widths("mgd", student, teacher, tap, self.taps)
        form = full if options.form == "full" else separable
        self.generators = nn.ModuleList(form(s, t, max(1, round(options.width * t))) for s, t in pairs)
        self.adapters = ops.adapters(pairs) if options.form == "full" else nn.ModuleList(nn.Identity() for _ in pairs)
        self.calls = 0  # a plain number, so reading it does not wait for a device

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        masks = self.masks([s for s, _ in pairs]) if self.training else [None] * len(pairs)
        losses = []
        for (s, t), mask, generate in zip(pairs, masks, self.generators, strict=True):
            plain = (generate(s if mask is None else s * mask) - t).square().mean()
            losses.append(plain / ops.energy_or_one(t.square().mean()) if self.options.relative else plain)
        return ops.level_mean(losses)

    def masks(self, maps: list[Tensor]) -> list[Tensor]:
        """M of this call, one (B, 1, H, W) per map; the same on every device."""
        numbers = torch.Generator().manual_seed(SEED + self.calls)
        self.calls += 1
        draws = [torch.rand(len(x), 1, *x.shape[-2:], generator=numbers) for x in maps]
        return [(draw >= self.options.ratio).to(x) for draw, x in zip(draws, maps, strict=True)]

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)


def full(_: int, teacher: int, inside: int) -> nn.Sequential:
    """The paper's generator, on adapted maps: (B, C_t, H, W) -> (B, C_t, H, W)."""
    first, last = nn.Conv2d(teacher, inside, 3, padding=1), nn.Conv2d(inside, teacher, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), last)


def separable(student: int, teacher: int, inside: int) -> nn.Sequential:
    """(B, C_s, H, W) -> (B, C_t, H, W)."""

    def split(c: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.Conv2d(c, out, 1)]

    return nn.Sequential(*split(student, inside), nn.ReLU(), *split(inside, teacher))
