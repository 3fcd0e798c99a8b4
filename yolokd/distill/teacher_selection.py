"""Which of several teachers teaches which image: the one whose detections fit the image's ground truth best.

The detections d of a teacher on an image are those that its predictions mean as boxes: of anchor points the boxes that
are left after NMS at IoU 0.7 over all classes at once, of a set its boxes as they are; at most 100, with a score
c_d = max_k p_dk above 0.1, over the classes k that teacher and data share. For the M objects m of the image, of class
k_m with boxes b_m,

    a_dm = p_d,k_m IoU(b_d, b_m)      0 for an object of a class that the teacher does not know, and for all but the
                                      object that d fits best
    q_m  = max_d a_dm                 0 without a detection
    loss = sum_m (1 - q_m) + (sum_d c_d - sum_m q_m)

which counts missed objects and false detections, each softly: 0 for sure, exact and complete
detections, M for none at all, more for false ones. On an image labelled as empty only the second part is left. Equal
losses, such as on an image where no teacher detects anything, go to the one named first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from yolokd.detectors.class_map import ClassMap
from yolokd.methods import ops
from yolokd.views import FIELDS, Decode, View, ViewsAt, each

MIN_SCORE, MAX_DETECTIONS, NMS = 0.1, 100, 0.7  # score of a detection, detections per image, IoU
NEEDS = frozenset({"logits", "boxes"})  # fields of a teacher's view that are compared with the ground truth
OBJECTS = ("cls", "bboxes", "keypoints")  # entries of a batch with one row per object, beside batch_idx


def losses(view: View, dense: bool, classes: ClassMap | None, batch: dict[str, Any]) -> Tensor:
    """Loss of a teacher's detections on every image, (B,).

    Args:
        view: with logits and boxes.
        dense: whether it shows anchor points, whose boxes stand for fewer objects.
        classes: classes that teacher and data share, None for all.
        batch: Ultralytics' training batch.
    """
    true, image = ops.ground_truth(batch)
    cls = batch["cls"].to(true.device).long().reshape(-1)
    if classes is not None:
        view = classes.of_teacher(view)
        cls = classes.places(cls)
    p, boxes = (
        ops.wide(ops.required(view.logits, "logits").detach()).sigmoid(),
        ops.wide(ops.required(view.boxes, "boxes")),
    )
    if not p.shape[-1]:  # no class in common: it can detect nothing
        return torch.bincount(image, minlength=len(p)).to(p.dtype)
    places, there = _detections(boxes, p.amax(-1), dense)
    p, boxes = (torch.take_along_dim(x, places[..., None], 1) for x in (p, boxes.detach()))
    false = (p.amax(-1) * there).sum(-1)
    # (M, D): every object against its image's detections
    fit = p[image].gather(2, cls.clamp(min=0)[:, None, None].expand(-1, p.shape[1], 1))[..., 0]
    fit = fit * ops.paired_iou(boxes[image], true[:, None].to(boxes)) * there[image] * (cls >= 0)[:, None]
    best = torch.zeros_like(boxes[..., 0]).scatter_reduce(0, image[:, None].expand_as(fit), fit, "amax")
    quality = torch.where(fit == best[image], fit, 0).amax(-1)
    missed = 1 - 2 * quality  # 1 - q_m of the first sum, - q_m of the second
    return false + torch.zeros_like(false).index_add(0, image, missed)


def _detections(boxes: Tensor, score: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
    if dense:
        return ops.top_places(boxes, score, MAX_DETECTIONS, NMS, MIN_SCORE)
    best, places = score.topk(min(MAX_DETECTIONS, score.shape[1]))
    return places, best > MIN_SCORE


def images_of_best(candidates: list[Tensor]) -> list[Tensor]:
    """For each teacher the images that it is the best for, T index tensors, from their losses, T times (B,)."""
    best = torch.stack(candidates).argmin(0)
    return [(best == i).nonzero().flatten() for i in range(len(candidates))]


def batch_of_images(batch: dict[str, Any], images: Tensor) -> dict[str, Any]:
    """The batch with these images only and their objects, numbered anew; other entries are left out."""
    index = batch["batch_idx"].reshape(-1).long()
    place = index.new_full((len(batch["img"]),), -1)
    place[images.to(index.device)] = torch.arange(len(images), device=index.device)
    place = place[index]
    keep = place >= 0
    objects = {key: batch[key][keep] for key in OBJECTS if key in batch}
    return {"img": batch["img"][images], **objects, "batch_idx": place[keep].to(batch["batch_idx"].dtype)}


def views_of_images(views: ViewsAt, images: Tensor, count: int) -> ViewsAt:
    """The views of these images of a batch of count."""
    return lambda strides: {branch: view_of_images(view, images, count) for branch, view in views(strides).items()}


def view_of_images(view: View, images: Tensor, count: int) -> View:
    """A view of these images of a batch of count. Its `finish` takes maps of any images and stays as it is."""
    part: dict[str, Any] = {}
    for name in FIELDS:
        if (value := getattr(view, name)) is not None:
            part[name] = each(name, value, lambda x: x[images])
    if view.decode is not None:
        part["decode"] = _decode_of_images(view.decode, images, count)
    return replace(view, **part)


def _decode_of_images(decode: Decode, images: Tensor, count: int) -> Decode:
    """A decoder, which knows a whole batch of images, for queries of some of them: the others get empty ones."""

    def whole(queries: Tensor) -> Tensor:
        return queries.new_zeros(count, *queries.shape[1:]).index_copy(0, images, queries)

    def decode_some(content: Tensor, references: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return {n: tuple(x[images] for x in value) for n, value in decode(whole(content), whole(references)).items()}

    return decode_some
