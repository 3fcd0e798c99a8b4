"""GID: distil the instances on which student and teacher differ most, independent of the ground truth.

X. Dai, Z. Jiang, Z. Wu, Y. Bao, Z. Wang, S. Liu, E. Zhou: "General Instance Distillation for Object Detection", 2021,
arXiv:2103.02340; code: https://github.com/daixinghome/Distill_GID_detectron2
(read at 9118c54).

General instances of an image, with n over its anchor points, c over classes, p = sigmoid(z), b boxes:

    score_n = max_c |p_tnc - p_snc|
    box_n   = b_tn if max_c p_tnc > max_c p_snc else b_sn
    the `instances` best boxes after NMS at IoU `nms` over all classes, clipped to the image

At one level, with u_i, v_i = RoIAlign of the teacher's and the student's map at instance i of M, with R x R cells, A a
trained 1x1 conv, (i, j) over the ordered pairs of different instances of one image:

    feature  = sum_i |u_i - A(v_i)|^2 / sum_i |u_i|^2        relative=True; False: / (M R^2), the paper's
    relation = mean_ij smooth_l1(|v_i - v_j| / phi(v), |u_i - u_j| / phi(u))     phi: mean of the image's distances

and, with n over the N anchor points whose cell an instance of their image touches:

    response = cls sum_nc [BCE(z_snc, p_tnc) - H(p_tnc)] / N + sum_n (1 - GIoU(b_sn, b_tn)) / N
    loss     = w_feature mean_levels(feature) + w_relation mean_levels(relation) + w_response response

The options feature, relation and response are the w. The authors' are 5e-4 with relative=False, 40, and 1 with cls=0.1.
On a dual head (YOLO26) the instances and the response are those of its one2many branch.

Where the authors' code differs:
- It takes score_n = |max_c p_tnc - max_c p_snc|, which is 0 where both are equally confident of different classes. We
  follow the paper.
- Its adapters are 3x3 convs in a plain list, and the line that would apply them runs only when there are none: they
  are neither trained nor used. The student's features are compared without an adapter, which requires equal widths.
- It relates all instances of the batch, so the loss depends on which images share it. We relate those of one image.

Where we depart, and why:
- It pools each instance from the one level that fits its size. We pool from every level, and compare level by level: a
  YOLO's label assignment does not bind objects to levels by size.
- It masks anchors whose IoU with an instance is above 0.5. A YOLO has no anchors, so we take the cells that an instance
  touches. Its box part is L1 between regression deltas, which two heads may define differently; 1 - GIoU suits all.
- H has no gradient; subtracting it makes 0 the optimum of the response, so the number in the log can be interpreted.
- It drops instances with a side below 10 pixels, we those below 1: a YOLO must detect small objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from yolokd.methods import ops
from yolokd.methods.base import DENSE_HEADS, Method
from yolokd.views import Spec, View


@dataclass(frozen=True, slots=True)
class GIDOptions:
    """Options of GID; all defaults except that of feature are the authors'."""

    feature: float = 1.0  # weight of the feature part
    relation: float = 40.0  # weight of the relation part
    response: float = 1.0  # weight of the response part
    cls: float = 0.1  # weight of class scores in the response part; that of boxes is 1
    instances: int = 10  # general instances per image
    nms: float = 0.3  # of candidates that overlap by more than this IoU only the best is kept
    cells: int = 10  # cells per side of a pooled feature
    relative: bool = True  # divide the feature part by the teacher's mean square; False: the paper's

    def __post_init__(self) -> None:
        for name in ("feature", "relation", "response", "cls", "nms"):
            ops.check_number(f"gid.{name}", getattr(self, name), inclusive=True)
        ops.check_choice("gid.instances", self.instances, tuple(range(1, 101)))
        ops.check_choice("gid.cells", self.cells, tuple(range(1, 33)))
        ops.check_choice("gid.relative", self.relative, (True, False))


class GID(Method):
    """Features, relations and responses of the instances on which student and teacher differ most."""

    taxonomy_level = "roi"
    term = "gid"
    paper = "Dai et al., General Instance Distillation for Object Detection, 2021, arXiv:2103.02340"
    reported = "RetinaNet R101 -> R50 36.2 -> 39.1 COCO AP (paper)"
    unit = 0.3  # measured 1.1 at unit 1; paper: 5e-4, 40 and 1 for its three parts
    taps = ("neck", "backbone")
    needs = frozenset({"logits", "boxes"})
    heads = DENSE_HEADS
    classwise = True
    Options: ClassVar[type] = GIDOptions

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: GIDOptions) -> None:
        super().__init__(student, teacher, tap, options)
        ops.check_classes("gid", student, teacher)
        self.adapters = ops.adapters(ops.widths("gid", student, teacher, tap, self.taps))

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        chosen: GIDOptions = self.options
        size, images = (batch["img"].shape[-2], batch["img"].shape[-1]), batch["img"].shape[0]
        boxes, index = instances(student, teacher, size, chosen)
        s_maps: tuple[Tensor, ...] = ops.required(getattr(student, self.tap), self.tap)
        t_maps: tuple[Tensor, ...] = ops.required(getattr(teacher, self.tap), self.tap)
        features, relations = [], []
        for adapter, s, t in zip(self.adapters, s_maps, t_maps, strict=True):
            u = ops.pooled(ops.wide(t.detach()), boxes, index, size, chosen.cells)
            v = ops.pooled(ops.wide(s), boxes, index, size, chosen.cells)
            scale = 1 if chosen.relative else u.shape[1]  # the authors' error is a sum over channels
            features.append(scale * ops.pooled_error(adapter(v), u, chosen.relative))
            relations.append(relation(v, u, index, images, chosen.instances))
        mask = ops.point_foreground(boxes, index, batch, student.strides, ops.required(student.logits, "logits")) > 0
        parts = chosen.feature * ops.level_mean(features) + chosen.relation * ops.level_mean(relations)
        return parts + chosen.response * response(student, teacher, mask, chosen.cls)


def instances(student: View, teacher: View, size: tuple[int, int], options: GIDOptions) -> tuple[Tensor, Tensor]:
    """The general instances of all images, (M, 4), best first within an image, and their images (M,)."""
    (p_s, b_s), (p_t, b_t) = (
        (
            ops.wide(ops.required(v.logits, "logits").detach()).sigmoid(),
            ops.wide(ops.required(v.boxes, "boxes").detach()),
        )
        for v in (student, teacher)
    )
    score = (p_t - p_s).abs().amax(-1)
    boxes = torch.where((p_t.amax(-1) > p_s.amax(-1))[..., None], b_t, b_s)
    return ops.top_boxes(boxes, score, size, options.instances, options.nms)


def relation(v: Tensor, u: Tensor, index: Tensor, images: int, max_instances: int) -> Tensor:
    """Difference of the normalised distances between instances of an image; (M, ., R, R) twice, (M,) -> ()."""
    count = torch.bincount(index, minlength=images)
    place = torch.arange(len(index), device=index.device) - (count.cumsum(0) - count)[index]  # within its image
    there = torch.arange(max_instances, device=index.device) < count[:, None]
    pairs = there[:, :, None] & there[:, None, :] & ~torch.eye(max_instances, dtype=torch.bool, device=index.device)
    mask = pairs.to(v.dtype)
    d_v, d_u = (distances(x.flatten(1), index, place, mask) for x in (v, u))
    return (F.smooth_l1_loss(d_v, d_u, reduction="none") * mask).sum() / mask.sum().clamp(min=1)


def distances(x: Tensor, index: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """Distances between the features of an image divided by their mean, (M, D) and mask (B, K, K) -> (B, K, K)."""
    rows = x.new_zeros(*mask.shape[:2], x.shape[1]).index_put((index, place), x)
    # computed from differences: the expansion into products loses half of the digits
    lengths = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") * mask
    mean = lengths.sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp(min=1)
    return lengths / mean.clamp(min=ops.TINY_ENERGY)


def response(student: View, teacher: View, mask: Tensor, cls: float) -> Tensor:
    """Divergence of class scores and of boxes at the anchor points where the mask (B, N) is true -> ()."""
    z_s, b_s = (ops.wide(ops.required(getattr(student, name), name))[mask] for name in ("logits", "boxes"))
    z_t, b_t = (ops.wide(ops.required(getattr(teacher, name), name).detach())[mask] for name in ("logits", "boxes"))
    each = cls * ops.divergence(z_s, z_t).sum(-1) + 1 - ops.paired_giou(b_s, b_t)
    return each.sum() / max(len(each), 1)
