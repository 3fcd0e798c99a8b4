"""FBKD: the teacher's maps where either detector looks, their means over cells and channels, and relations of cells.

L. Zhang, K. Ma: "Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and Efficient
Detectors", ICLR 2021. The authors' repository holds no code any more; we read OpenMMLab's version of it (mmrazor at
commit 1c0da58).

At one level, i over the H W cells of image b, c over channels, A, L, K trained layers (1x1 conv, linear, 3x3 conv):

    S(x)_bi = H W softmax_i(mean_c |x_bci| / T)
    M       = (S(s) + S(t)) / 2, without gradient
    mask    = sum_bi M_bi |A(s) - t|_bi^2 / sum_bi M_bi |t|_bi^2
    channel = |L(mean_i s) - mean_i t|^2 / |mean_i t|^2                  over b and c
    spatial = |K(mean_c s) - mean_c t|^2 / |mean_c t|^2                  over b and i
    R(x)_i  = x_i + W sum_j (theta x_i . phi x_j) g x_j / (H W)          non-local block; W, theta, phi, g trained
    rel     = mean (R(A(s)) - R(t))^2 / mean t^2                         s and t each have their own R
    loss    = mean over levels of mask + channel + spatial + rel         each times its option

Where we depart, and why:
- Theirs are norms (roots) of sums, times 7e-5, 4e-3, 4e-3 and 7e-5. A root has the same gradient however near the
  student is, and a sum grows with the image: ours are mean squares relative to the teacher's, as in our other methods.
- Their key and value maps are pooled to make the H W x H W products cheap. Without a softmax the sum over j can be
  taken first, which costs C^2 a cell: no pooling.
- Their second adapter of rel is the first one, A.
- The paper's mask has a factor for channels too, which OpenMMLab's code computes and does not use; nor do we.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class FBKDOptions:
    """Options of FBKD."""

    mask: float = 1.0  # weight of the maps where either detector looks
    channel: float = 1.0  # weight of the means over cells
    spatial: float = 1.0  # weight of the means over channels
    rel: float = 1.0  # weight of the relations between cells
    temperature: float = 0.5  # T: the lower, the more the strongest cells count

    def __post_init__(self) -> None:
        for name in ("mask", "channel", "spatial", "rel"):
            ops.check_number(f"fbkd.{name}", getattr(self, name), inclusive=True)
        ops.check_number("fbkd.temperature", self.temperature)


class FBKD(Method):
    """Squared errors of attended maps, of their means, and of maps with the relations between cells."""

    taxonomy_level = "neck"
    term = "fbkd"
    paper = "Zhang, Ma, Improve Object Detection with Feature-based Knowledge Distillation, 2021, ICLR 2021"
    reported = "figures not at hand"
    unit = 0.7  # measured 0.45 at unit 1; paper: on norms
    taps = ("neck", "backbone")
    Options: ClassVar[type] = FBKDOptions
    options: FBKDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: FBKDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs = ops.widths("fbkd", student, teacher, tap, self.taps)
        self.adapters = ops.adapters(pairs)
        self.channel = nn.ModuleList(nn.Linear(s, t) for s, t in pairs)
        self.spatial = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in pairs)
        self.s_relations = nn.ModuleList(NonLocal(t) for _, t in pairs)
        self.t_relations = nn.ModuleList(NonLocal(t) for _, t in pairs)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.paired(student, teacher, self.tap, self.adapters)
        return ops.level_mean([self.one_level(i, *maps) for i, maps in enumerate(pairs)])

    def one_level(self, i: int, adapter: nn.Module, s: Tensor, t: Tensor) -> Tensor:
        """Weighted sum of the four parts at level i; maps (B, C_s, H, W), (B, C, H, W) -> ()."""
        o, a = self.options, adapter(s)
        weight = ((attention(s, o.temperature) + attention(t, o.temperature)) / 2).detach()
        mask = ops.weighted_error(a, t, weight, relative=True)
        channel = error(self.channel[i](s.mean((2, 3))), t.mean((2, 3)))
        spatial = error(self.spatial[i](s.mean(1, keepdim=True)), t.mean(1, keepdim=True))
        apart = (self.s_relations[i](a) - self.t_relations[i](t)).square().mean()
        rel = apart / ops.energy_or_one(t.square().mean())
        loss: Tensor = o.mask * mask + o.channel * channel + o.spatial * spatial + o.rel * rel
        return loss


class NonLocal(nn.Module):
    """R of the module's docstring, (B, C, H, W) -> (B, C, H, W); it begins as x itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = max(1, channels // 2)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inside, 1) for _ in range(3))
        self.last = nn.Conv2d(inside, channels, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))
        summed = value @ key.mT / key.shape[2]  # (B, inside, inside)
        found: Tensor = x + self.last((summed @ query).unflatten(2, x.shape[2:]))
        return found


def attention(x: Tensor, temperature: float) -> Tensor:
    """S of the module's docstring, (B, C, H, W) -> (B, 1, H, W)."""
    strength = x.abs().mean(1).flatten(1) / temperature
    return strength.shape[1] * strength.softmax(1).reshape(len(x), 1, *x.shape[2:])


def error(s: Tensor, t: Tensor) -> Tensor:
    """Mean square of s - t relative to that of t, (...) twice -> ()."""
    return (s - t).square().mean() / ops.energy_or_one(t.square().mean())
