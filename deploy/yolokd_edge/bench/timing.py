"""Timing of frames: the stages one by one, models interleaved, after a warm-up that ends when latency is stable."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from yolokd_edge.bench.options import Limits
from yolokd_edge.bench.schema import STAGES

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

COUNTS_SWITCHES = resource is not None  # whether this system tells involuntary context switches

WARM_UP_FRAMES, WARM_UP_CPU_S, WARM_UP_GPU_S = 20, 2.0, 10.0
WARM_UP_WINDOW = Limits(50, 0.0, 1.0)  # 50 frames or 1 s
WARM_UP_WINDOWS, STABLE = 3, 1.05  # successive windows, and by how much their medians may differ


def _switches() -> int:
    """Involuntary context switches of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if COUNTS_SWITCHES else 0


class Run:
    """One model's timed frames."""

    def __init__(self, detector: Any, clock: Callable[[], int], cpu_clock: Callable[[], int]) -> None:
        self.detector, self.clock, self.cpu_clock = detector, clock, cpu_clock
        self.times: list[tuple[int, int, int, int]] = []  # ns, in the order of STAGES
        self.starts: list[tuple[int, int]] = []  # when a frame began (ns), and involuntary switches during it
        self.cpu_ns = self.candidates = self.detections = 0

    def add(self, frame: np.ndarray) -> None:
        """Time one frame. Nothing but the three stages lies between the first and the last reading of the clock."""
        clock, detector = self.clock, self.detector
        switches, cpu = _switches(), self.cpu_clock()
        start = clock()
        blob, box = detector.preprocess(frame)
        ready = clock()
        raw = detector.infer(blob)
        inferred = clock()
        found = detector.postprocess(raw, box)
        end = clock()
        self.cpu_ns += self.cpu_clock() - cpu
        self.starts.append((start, _switches() - switches))
        self.times.append((ready - start, inferred - ready, end - inferred, end - start))
        self.candidates += detector.candidates
        self.detections += len(found)

    def series(self) -> dict[str, np.ndarray]:
        """Every sample (n,) int64: ns by stage, `start` on the clock, and `switches`."""
        columns = np.array(self.times, np.int64).reshape(-1, len(STAGES))
        out = {stage: columns[:, k] for k, stage in enumerate(STAGES)}
        starts = np.array(self.starts, np.int64).reshape(-1, 2)
        out["start"], out["switches"] = starts[:, 0], starts[:, 1]
        return out


def measure(
    detectors: Sequence[Any],
    frames: Sequence[np.ndarray],
    limits: Limits,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    cpu_clock: Callable[[], int] = time.process_time_ns,
) -> tuple[list[Run], float]:
    """Time the detectors, interleaved: each round shows one frame to all of them in a new random order.

    Returns:
        One Run per detector, and the seconds that all rounds took together.
    """
    runs = [Run(d, clock, cpu_clock) for d in detectors]
    order, rng = list(runs), random.Random(seed)
    rounds, elapsed, start = 0, 0.0, clock()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while elapsed < limits.t_max_s and (rounds < limits.n_min or elapsed < limits.t_min_s):
            rng.shuffle(order)
            for run in order:
                run.add(frames[rounds % len(frames)])
            rounds += 1
            elapsed = (clock() - start) / 1e9
    finally:
        if collecting:
            gc.enable()
    return runs, elapsed


def warm_up(
    detectors: Sequence[Any],
    frames: Sequence[np.ndarray],
    seed: int,
    t_min_s: float,
    cap_s: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Run until the medians of three successive windows differ by at most 5 % for every detector, or the cap.

    Returns:
        The record's protocol.warmup: frames per detector, s, and whether the latency had become stable.
    """
    medians: list[list[float]] = []
    count, seconds, stable = 0, 0.0, False
    while not stable and seconds < cap_s:
        runs, took = measure(detectors, frames, WARM_UP_WINDOW, seed + len(medians), clock)
        medians.append([median(row[-1] for row in run.times) for run in runs])
        count, seconds = count + len(runs[0].times), seconds + took
        latest = list(zip(*medians[-WARM_UP_WINDOWS:]))  # noqa: B905
        level = len(medians) >= WARM_UP_WINDOWS and all(max(row) <= STABLE * min(row) for row in latest)
        stable = level and count >= WARM_UP_FRAMES and seconds >= t_min_s
    return {"frames": count, "s": round(seconds, 3), "stable": stable}
