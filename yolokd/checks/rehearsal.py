"""A training that is set up on a few images in a temporary folder, to be measured: how long, how much memory.

The trainer is the real one with the training's own arguments. It reads its images through a mirror, calls nobody back,
and leaves nothing behind.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils.torch_utils import unset_deterministic

from yolokd.data.mirror import mirrored_yaml, spread
from yolokd.distill.trainer import trainer_for
from yolokd.errors import UsageError
from yolokd.init import transfer
from yolokd.quiet import quiet
from yolokd.studies.step_time import batches_of, step_seconds

WARMUP, STEPS = 1, 3  # steps before the measured ones, and of them
LEFT_OUT = ("project", "name", "save_dir", "exist_ok", "fraction", "cache", "split", "time", "resume", "val")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a training costs on this machine, measured over a few steps."""

    step_seconds: float  # with the loading of the images
    batch: int
    memory: int | None  # bytes: at its peak on the GPU, on a CPU that of the process; None where nobody says
    device: str


@contextmanager
def rehearsal(
    model: Any, arguments: dict[str, Any], data: dict[str, Any], train: list[Path], val: list[Path], most: int
) -> Iterator[Any]:
    """A trainer of the student, ready for its first step, on some of the images.

    Args:
        model: the student's `nn.Module`.
        arguments: the training's, folded, with a model= that Ultralytics opens.
        data: Ultralytics' description of the data set.
        train: its training images.
        val: its validation images.
        most: validation images to take.
    """
    kind = trainer_for(model)
    silent = type("Rehearsal", (kind,), {"run_callbacks": lambda self, event: None})
    devices = str(arguments.get("device") or "").split(",")
    batch = arguments.get("batch", 16)
    given = {k: v for k, v in arguments.items() if k not in LEFT_OUT}
    if len(devices) > 1:
        given |= {"device": devices[0], "batch": max(int(batch) // len(devices), 1)}
    whole = int(batch) if batch >= 1 else 64  # -1 and shares of the GPU's memory choose a batch later
    some = whole * math.ceil(max(2 * whole, transfer.images_for(int(arguments.get("imgsz") or 640))) / whole)
    kd = {**arguments["kd"], "init": "own", "cache": None}
    with tempfile.TemporaryDirectory() as folder, quiet():
        (place := Path(folder, "data")).mkdir()
        file = mirrored_yaml(data, {"train": spread(train, some), "val": spread(val, most)}, place)
        given |= {"data": str(file), "project": folder, "name": "rehearsal", "plots": False, "kd": kd}
        trainer: Any = silent(overrides=given)
        try:
            trainer._setup_train()
            yield trainer
        finally:
            for key in ("train_loader", "test_loader"):
                if hasattr(loader := getattr(trainer, key, None), "close"):
                    loader.close()  # type: ignore[union-attr]
            unset_deterministic()


def measure(trainer: Any) -> Cost:
    """Take some steps, which change the student's weights, and say what they cost.

    Raises:
        UsageError: the batch does not fit the GPU's memory.
    """
    device = trainer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.epoch, times, batches = 0, [], batches_of(trainer)
    trainer.leave_unscored()
    trainer._model_train()
    try:
        for _ in range(WARMUP + STEPS):
            start = time.perf_counter()
            step_seconds(trainer, next(batches))
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"batch={trainer.batch_size} at imgsz={trainer.args.imgsz} does not fit the memory of {_name(device)}: "
            "give a smaller batch= or imgsz=."
        ) from error
    return Cost(statistics.median(times[WARMUP:]), int(trainer.batch_size), _peak(device), _name(device))


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU, {torch.get_num_threads()} threads"


def estimate(
    cost: Cost, images: int, epochs: int, validation_seconds: float | None, devices: int = 1
) -> dict[str, Any]:
    """Time and memory of the whole training.

    Args:
        cost: of a step on one device.
        images: training images that are used.
        epochs: of the training.
        validation_seconds: of one validation; None where unknown, and not counted.
        devices: among which a batch is shared.
    """
    steps = math.ceil(images / (cost.batch * devices))
    return {
        "step_seconds": cost.step_seconds,
        "batch": cost.batch * devices,
        "steps_per_epoch": steps,
        "epochs": epochs,
        "steps": steps * epochs,
        "validation_seconds": validation_seconds,
        "total_seconds": epochs * (steps * cost.step_seconds + (validation_seconds or 0)),
        "peak_memory_bytes": cost.memory,
        "device": cost.device,
    }
