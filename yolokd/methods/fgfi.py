"""FGFI: imitate the teacher's features near objects, where an anchor overlaps one almost as well as the best anchor.

T. Wang, L. Yuan, X. Zhang, J. Feng: "Distilling Object Detectors with Fine-grained Feature Imitation", 2019,
arXiv:1906.03609; code: https://github.com/twangnh/Distilling-Object-Detectors (read at c6583f3).

At one level, with i over the cells of all B images, a over the anchors of a cell, g over the objects of i's image:

    m_ig     = max_a IoU(anchor_ia, box_g)
    I_i      = 1 if m_ig > psi max_j m_jg for any g, else 0          j over the cells of the level, or of all levels
    plain    = sum_i I_i |A(s)_i - t_i|^2 / (2 sum_i I_i)
    relative = sum_i I_i |A(s)_i - t_i|^2 / sum_i I_i |t_i|^2
    loss     = mean over levels

A YOLO head has no anchors, so we use synthetic ones: at the centre of each cell one square with sides of `anchor`
strides (`shapes=1`), or also two boxes of the same area with sides 1:2 and 2:1 (`shapes=3`). 8 strides are Faster
R-CNN's anchors on an FPN; RetinaNet's smallest are 4.

Where we follow the paper and not the authors' code:
- The code adds the masks of objects and anchors, so a cell counts once for every anchor and object that keeps it. The
  paper takes their union.

Where we depart, and why:
- The paper has one map. On several levels, `scope="level"` (default) compares an anchor to the best of its own level:
  every level imitates around every object. `scope="all"` compares it to the best of all levels, which leaves small
  objects to the fine and large ones to the coarse levels, but may leave a level with nothing to learn.
- The paper's adapter is a 3x3 conv with a ReLU (`adapter="3x3"`). Between a yolo11n and a teacher twice as wide it
  adds a sixth to the time of the student's own step on a CPU, a 1x1 conv a twentieth. A ReLU also cannot reach the
  negative values of a YOLO's maps (its activation is SiLU); VGG's maps did not have any. The default is a 1x1 conv.
- `relative` (default) divides by the teacher's mean square in the same cells; the plain form is the paper's. Its
  code gives it a weight of 0.01, and 0 in the first 400 steps.
- A teacher's map of another size is interpolated to the student's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from yolokd.methods import ops
from yolokd.methods.base import Method
from yolokd.views import Spec, View

SHAPES = ((1.0, 1.0), (2**-0.5, 2**0.5), (2**0.5, 2**-0.5))  # width and height of area 1: square, 1:2, 2:1


@dataclass(frozen=True, slots=True)
class FGFIOptions:
    """Options of FGFI."""

    psi: float = 0.5  # a cell is kept above this fraction of the object's largest IoU (the paper's value)
    anchor: float = 8.0  # side of the synthetic anchors, in strides of their level
    shapes: int = 1  # anchors per cell: 1, a square; 3, also 1:2 and 2:1 of the same area
    scope: str = "level"  # an object's largest IoU is taken on the same "level", or over "all"
    adapter: str = "1x1"  # trained conv on the student's maps; "3x3": the paper's, with a ReLU
    relative: bool = True  # divide by the teacher's mean square in the same cells; False: the paper's loss

    def __post_init__(self) -> None:
        ops.check_number("fgfi.psi", self.psi, inclusive=True)
        if self.psi >= 1:  # not even the best anchor's IoU is above itself
            raise ValueError(f"fgfi.psi={self.psi!r} is not allowed: it must be below 1.")
        ops.check_number("fgfi.anchor", self.anchor)
        ops.check_choice("fgfi.shapes", self.shapes, (1, 3))
        ops.check_choice("fgfi.scope", self.scope, ("level", "all"))
        ops.check_choice("fgfi.adapter", self.adapter, ("1x1", "3x3"))
        ops.check_choice("fgfi.relative", self.relative, (True, False))


class FGFI(Method):
    """Squared error between adapted student maps and teacher maps in the cells whose anchors fit an object."""

    taxonomy_level = "neck"
    term = "fgfi"
    paper = "Wang et al., Distilling Object Detectors with Fine-grained Feature Imitation, 2019, arXiv:1906.03609"
    reported = "Faster R-CNN VGG16 -> VGG11 59.6 -> 67.6 VOC mAP (authors' repository)"
    unit = 15.0  # measured 0.025 at unit 1; paper: 0.01 on the plain form
    taps = ("neck", "backbone")
    truth = True
    Options: ClassVar[type] = FGFIOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: FGFIOptions) -> None:
        super().__init__(student, teacher, tap, options)
        pairs = ops.widths("fgfi", student, teacher, tap, self.taps)
        one = options.adapter == "1x1"
        self.adapters = ops.adapters(pairs) if one else nn.ModuleList(adapter3x3(s, t) for s, t in pairs)

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        pairs = ops.adapted(student, teacher, self.tap, self.adapters)
        keep = masks(batch, [(s.shape[-2], s.shape[-1]) for s, _ in pairs], student.strides, self.options)
        losses = []
        for (s, t), mask in zip(pairs, keep, strict=True):
            scale = 1.0 if self.options.relative else t.shape[1] / 2  # the paper's error is a sum over channels
            losses.append(scale * ops.weighted_error(s, t, mask.to(s.dtype), self.options.relative))
        return ops.level_mean(losses)


def adapter3x3(student: int, teacher: int) -> nn.Sequential:
    """(B, C_s, H, W) -> (B, C_t, H, W)."""
    return nn.Sequential(nn.Conv2d(student, teacher, 3, padding=1), nn.ReLU())


def masks(
    batch: dict[str, Tensor], sizes: list[tuple[int, int]], strides: tuple[int, ...], options: FGFIOptions
) -> list[Tensor]:
    """The cells to imitate, one (B, 1, H, W) of zeros and ones per level."""
    boxes, index = ops.ground_truth(batch)
    images = batch["img"].shape[0]
    levels = zip(sizes, strides, strict=True)
    ious = [anchor_iou(boxes, size, stride, options) for size, stride in levels]  # L times (M, H, W)
    best = [iou.amax((1, 2)) for iou in ious]
    if options.scope == "all":
        best = [torch.stack(best).amax(0)] * len(best)
    level_masks = []
    for iou, largest in zip(ious, best, strict=True):
        near = (iou > options.psi * largest[:, None, None]).to(iou.dtype)
        mask = near.new_zeros(images, *near.shape[1:])
        level_masks.append(mask.scatter_reduce(0, index[:, None, None].expand_as(near), near, "amax")[:, None])
    return level_masks


def anchor_iou(boxes: Tensor, size: tuple[int, int], stride: int, options: FGFIOptions) -> Tensor:
    """Largest IoU of each box with the anchors of each cell, (M, 4) in pixels, H and W -> (M, H, W).

    Anchors lie on a grid, so the overlap of a box is its overlap with their columns times that with their rows.
    """
    best = boxes.new_zeros(len(boxes), *size)
    box_area = ops.area(boxes)[:, None, None]
    for width, height in SHAPES[: options.shapes]:
        sides = options.anchor * stride * width, options.anchor * stride * height
        columns = shared(boxes[:, 0], boxes[:, 2], size[1], stride, sides[0])
        rows = shared(boxes[:, 1], boxes[:, 3], size[0], stride, sides[1])
        inter = rows[:, :, None] * columns[:, None, :]
        union = box_area + sides[0] * sides[1] - inter
        best = torch.maximum(best, inter / union)
    return best


def shared(low: Tensor, high: Tensor, cells: int, stride: int, side: float) -> Tensor:
    """Length that each interval shares with each anchor along one axis, (M,) twice -> (M, cells)."""
    centre = (torch.arange(cells, device=low.device, dtype=low.dtype) + 0.5) * stride
    end = torch.minimum(high[:, None], centre + side / 2)
    return (end - torch.maximum(low[:, None], centre - side / 2)).clamp(min=0)
