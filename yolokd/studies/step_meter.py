"""What a training step of a run takes, in time and memory, measured while it trains.

A step is what Ultralytics does with a loaded batch: forward passes of student and teacher, losses, backward, optimizer.
"""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from yolokd.studies.step_time import wait

WARMUP = 2  # steps before the measured ones
PROCESS = Path("/proc/self")  # Linux


class StepMeter:
    """Callbacks of a training that keep its steps' times and their largest peak of memory."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peaks: list[int] = []  # bytes; empty where they cannot be had
        self._begun = 0.0

    def attach(self, model: Any) -> None:
        """Measure the training that the model begins next."""
        model.add_callback("on_train_batch_start", self.begin)
        model.add_callback("on_train_batch_end", self.end)

    def begin(self, trainer: Any) -> None:
        """A batch is loaded."""
        wait(trainer.device)
        reset_peak(trainer.device)
        self._begun = time.perf_counter()

    def end(self, trainer: Any) -> None:
        """The step is done."""
        wait(trainer.device)
        self.seconds.append(time.perf_counter() - self._begun)
        if (peak := peak_bytes(trainer.device)) is not None:
            self.peaks.append(peak)

    def result(self) -> dict[str, float | None]:
        """The median time in milliseconds and the largest peak in 10^6 bytes; None for what was not measured."""
        seconds, peaks = self.seconds[WARMUP:], self.peaks[WARMUP:]
        return {
            "step_ms": 1000 * statistics.median(seconds) if seconds else None,
            "memory_mb": max(peaks) / 1e6 if peaks else None,
        }


def reset_peak(device: torch.device) -> None:
    """Begin to look for a new peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # then no peak is given either
            (PROCESS / "clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int | None:
    """The peak since `reset_peak`: tensors on a GPU, on a CPU the process's resident memory, under Linux only."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        if not (PROCESS / "clear_refs").exists():
            return None
        lines = (PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    except OSError:
        return None
