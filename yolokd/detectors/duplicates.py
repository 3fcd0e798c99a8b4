"""What a head that needs no NMS can start from one that needs it: every object once.

The one2one branch of YOLO26 and YOLOv10 must answer once for an object. A teacher without such a branch answers at
several neighbouring anchor points, and its NMS drops all but the best. Solved for their scores, the branch would start
by answering several times too; so those that NMS drops are lowered to what no detection is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import batched_nms
from ultralytics.utils.metrics import batch_probiou
from ultralytics.utils.nms import TorchNMS

from yolokd.views import View

IOU = 0.7  # as Ultralytics' NMS by default: of boxes of one class that overlap by more only the best is kept
LEAST = 0.01  # below this score a point is no detection; what NMS drops gets it at most


@torch.no_grad()
def without_duplicates(view: View) -> View:
    """The view with the scores of the anchor points that NMS drops lowered to `LEAST`.

    Args:
        view: with logits (B, N, K), and boxes (B, N, 4) or rotated boxes (B, N, 5) in pixels.
    """
    assert view.logits is not None
    scores, cls = view.logits.float().sigmoid().max(-1)
    image, point = (scores > LEAST).nonzero(as_tuple=True)
    dropped = torch.zeros_like(scores, dtype=torch.bool)
    dropped[image, point] = True
    if len(point):
        found = scores[image, point], image * view.logits.shape[-1] + cls[image, point]
        kept = kept_rotated(view.rotated[image, point], *found) if view.boxes is None else None  # type: ignore[index]
        if kept is None:
            boxes = view.boxes[image, point].float()  # type: ignore[index]
            kept = batched_nms(boxes - boxes.amin(), *found, IOU)  # whose offsets assume coordinates of 0 or more
        dropped[image[kept], point[kept]] = False
    lowered = view.logits.clamp(max=math.log(LEAST / (1 - LEAST)))
    return replace(view, logits=torch.where(dropped[..., None], lowered, view.logits))


def kept_rotated(rotated: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """Indices of the rotated boxes (M, 5) that are left, each group (M,) for itself."""
    apart = rotated.float().clone()
    centre = apart[:, :2] - apart[:, :2].amin()
    apart[:, :2] = centre + groups[:, None] * (centre.amax() + 2 * apart[:, 2:4].amax() + 1)
    kept: Tensor = TorchNMS.fast_nms(apart, scores, IOU, iou_func=batch_probiou)
    return kept
