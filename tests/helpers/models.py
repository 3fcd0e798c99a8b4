"""Untrained detectors whose every output differs from place to place, and batches for them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import (
    DetectionModel,
    OBBModel,
    PoseModel,
    RTDETRDetectionModel,
    SegmentationModel,
    yaml_model_load,
)
from ultralytics.utils import ASSETS, DEFAULT_CFG

NAMES = {i: f"class {i}" for i in range(5)}
CLASSES = {"seg": SegmentationModel, "pose": PoseModel, "obb": OBBModel}  # by the family's ending
LAST = ("cv2", "cv3", "one2one_cv2", "one2one_cv3", "cv4", "one2one_cv4", "cv4_kpts", "one2one_cv4_kpts")


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> DetectionModel:
    """A model in eval mode, float64 unless told: then rounding cannot hide a wrong channel."""
    return copy.deepcopy(_built(family, seed)).to(dtype)


@functools.cache
def _built(family: str, seed: int) -> DetectionModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = RTDETRDetectionModel if "rtdetr" in family else CLASSES.get(family.partition("-")[2], DetectionModel)
        return settled(kind(layout(family), nc=len(NAMES), verbose=False))


def settled(model: DetectionModel) -> DetectionModel:
    """A new model whose every output differs from place to place, in eval mode; it draws random numbers."""
    # Fresh batch norms let activations die out with depth and a fresh head says the same everywhere.
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.data.uniform_(0.7, 1.3)
        norm.bias.data.normal_(0, 0.3)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 128, 128))
    for norm, m in zip(norms, momentum, strict=True):
        norm.momentum = m
    for last in getattr(model.model[-1], "dec_bbox_head", ()):
        last.layers[-1].weight.data.normal_(0, 0.1)
    for name in LAST:
        for tower in getattr(model.model[-1], name, None) or ():
            last = tower[-1] if isinstance(tower, nn.Sequential) else tower
            if isinstance(last, nn.Conv2d):  # a YOLO26 pose tower's are elsewhere
                last.weight.data.normal_(0, 0.15)
                last.bias.data.normal_(0, 0.5)
    model.names, model.args, model.nc = NAMES, get_cfg(DEFAULT_CFG), len(NAMES)
    return model.eval()


def layout(family: str) -> str | dict:
    """A family's YAML; small forms of those that have none: YOLOv3, and RT-DETR with a decoder of so many layers.

    "rtdetr-2-20-32" has 2 decoder layers and 20 queries of width 32 on a YOLOv8n.
    """
    if family == "yolov3n":
        return {**yaml_model_load("yolov3.yaml"), "width_multiple": 0.125, "depth_multiple": 0.33}
    if family.startswith("rtdetr-") and family.count("-") == 3:
        layers, queries, width = map(int, family.split("-")[1:])
        found = yaml_model_load("yolov8-rtdetr.yaml")
        found["head"][-1][-1] = ["nc", width, queries, 2, 4, layers]
        return {**found, "scale": "n", "yaml_file": f"{family}.yaml"}
    return f"{family}.yaml"


def images(batch: int = 2, height: int = 64, width: int = 96, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Random images (B, 3, H, W) in [0, 1]."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(size: int = 4, seed: int = 0, side: int = 64) -> dict[str, Tensor]:
    """A training batch as Ultralytics makes it, three objects an image."""
    random = torch.Generator().manual_seed(seed)
    objects = 3 * size
    centres, sides = torch.rand(objects, 2, generator=random), torch.rand(objects, 2, generator=random)
    return {
        "img": torch.rand(size, 3, side, side, generator=random),
        "cls": torch.randint(len(NAMES), (objects, 1), generator=random).float(),
        "bboxes": torch.cat((0.3 + 0.4 * centres, 0.2 + 0.3 * sides), 1),
        "batch_idx": torch.arange(size).repeat_interleave(3).float(),
    }


def lively(family: str, file: Path, imgsz: int = 96) -> Path:
    """Checkpoint of an untrained model whose scores go from 0 to 1 without a tie, and differ from image to image."""
    model = build(family, 0, torch.float32)
    head, task = model.model[-1], {"seg": "segment"}.get(family.partition("-")[2], family.partition("-")[2])
    scores = [head.enc_score_head, *head.dec_score_head] if "rtdetr" in family else [tower[-1] for tower in head.cv3]
    further = getattr(head, "cv4_kpts", None) or [tower[-1] for tower in getattr(head, "cv4", ())]
    sides = [tower[-1] for tower in getattr(head, "cv2", ())]
    bins = torch.arange(getattr(head, "reg_max", 1)).repeat(4)
    last = [*scores, *further, *sides]
    photographs = [cv2.resize(cv2.imread(str(photo)), (imgsz, imgsz)) for photo in sorted(Path(ASSETS).glob("*.jpg"))]
    seen: dict[nn.Module, Tensor] = {}
    hooks = [layer.register_forward_hook(lambda at, given, out: seen.update({at: out})) for layer in last]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for layer in last:
            layer.weight.data.normal_(0, 0.1)
            layer.bias.data.fill_(0)
        model(torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2).float() / 255)
        for layer, hook in zip(last, hooks, strict=True):
            hook.remove()
            if layer not in seen:  # old versions leave out all but the last of the decoder's
                continue
            values = seen[layer].movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1)  # a row per channel
            scale = (0.4 if layer in sides else 1.5) / (values - values.mean(1, keepdim=True)).std()
            layer.weight.data *= scale
            layer.bias.data -= scale * values.mean(1)
            if layer in scores:
                layer.bias.data -= 2
            if layer in sides:  # boxes of some strides: a single bin is the distance itself, which is never negative
                layer.bias.data += 1.5 if len(bins) == 4 else -0.7 * bins
    task = "detect" if "rtdetr" in family or not task else task
    model.task = task
    if task == "pose":
        model.kpt_shape = list(head.kpt_shape)  # as a trainer does it
    torch.save({"model": model, "train_args": {"task": task, "imgsz": imgsz}}, file)
    return file
