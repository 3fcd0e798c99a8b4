"""Distillers of untrained models, which show plumbing and gradients, not accuracy."""

from __future__ import annotations

import torch

from helpers.models import NAMES, build
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors.yolo import YoloReader
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing


def make(
    student: str = "yolo11n", teacher: str = "yolo11n", method: str = "pkd,logit", kd: float = 1.0, **options: float
) -> Distiller:
    """A student of seed 0 under a teacher of seed 1; equal arguments give equal weights. pkd__gain means pkd.gain."""
    readers = YoloReader(build(student, 0, torch.float32)), YoloReader(build(teacher, 1, torch.float32))
    chosen = asked_methods(method, {k.replace("__", "."): v for k, v in options.items()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = plan(*readers, DistillOptions((), kd, **chosen), NAMES)
    return Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()
