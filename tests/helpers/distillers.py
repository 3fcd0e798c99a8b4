"""Distillers of untrained models, which show plumbing and gradients, not accuracy."""

from __future__ import annotations

import os

import torch
from torch import nn

from helpers.models import NAMES, batch, build
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors.yolo import YoloReader
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing

SIZE = 4  # images of a batch that two ranks share


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


def half(data: dict, rank: int) -> dict:
    """One rank's part of a batch of SIZE images."""
    first, count = rank * SIZE // 2, SIZE // 2
    own = (data["batch_idx"] >= first) & (data["batch_idx"] < first + count)
    objects = {k: data[k][own] for k in ("cls", "bboxes", "batch_idx")}
    objects["batch_idx"] = objects["batch_idx"] - first
    return {"img": data["img"][first : first + count], **objects}


def backward(model: nn.Module, distiller: Distiller, data: dict) -> dict:
    """Gradients and loss items of one pass."""
    loss, items = model(data)
    loss.sum().backward()
    return {"items": items, "grads": {n: p.grad for n, p in distiller.named_parameters() if p.grad is not None}}


def train_one_rank(rank: int, folder: str) -> None:
    """One of two processes that train together."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    distiller = make("yolo26n", "yolo11n")
    together = nn.parallel.DistributedDataParallel(distiller, find_unused_parameters=True)
    torch.save(backward(together, distiller, half(batch(SIZE), rank)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
