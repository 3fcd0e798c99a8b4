"""One process's measurement: models opened, warmed up and timed, with everything that is worth a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from yolokd_edge.bench.facts import (
    accuracy_facts,
    device_facts,
    image_facts,
    memory_facts,
    model_facts,
    parity_facts,
    runtime_facts,
)
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.plan import Plan
from yolokd_edge.bench.timing import WARM_UP_CPU_S, WARM_UP_GPU_S, Run, measure, warm_up
from yolokd_edge.board.system import available_mb, cpu_times, load_average
from yolokd_edge.common import usable_cores
from yolokd_edge.detector import Detector, load
from yolokd_edge.images import noise_frames, read_frames
from yolokd_edge.libraries import COLD, IMPORT_S
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.table import ON_CPU


class Trial(NamedTuple):
    """What one process measured of one model."""

    series: dict[str, np.ndarray]  # as Run.series
    facts: dict[str, Any]  # everything else, fit for JSON


def _first_run_ms(detector: Detector, frame: np.ndarray) -> float:
    blob, _ = detector.preprocess(frame)
    start = time.perf_counter()
    detector.infer(blob)
    return (time.perf_counter() - start) * 1000


def make_trial(run: Run, seconds: float, more: dict[str, Any]) -> Trial:
    """Pack one model's frames; `more` is what does not come from the frames themselves."""
    series, threads = run.series(), run.detector.threads
    wall = int(series["total"].sum()) * threads
    facts = {
        "n": len(run.times),
        "duration_s": round(seconds, 3),
        "threads": threads,
        "cpu_ns": run.cpu_ns,
        "cpu_ratio": round(run.cpu_ns / wall, 4) if wall else None,
        "candidates": run.candidates,
        "detections": run.detections,
        "interrupted": float((series["switches"] > 0).mean()) if run.times else 0.0,
    }
    facts.update(more)
    return Trial(series, facts)


def cold_facts(detector: Detector, first_run_ms: float, own_process: bool, missing: dict[str, str]) -> dict[str, Any]:
    """The record's `cold`: what a fresh process waits for before the first detection."""
    cold = COLD and own_process
    if not cold:
        missing["cold.import_s"] = "the libraries were loaded before this program started"
    if detector.trt is None:
        missing["cold.engine_cache"] = "TensorRT was not asked for"
    return {
        "import_s": round(IMPORT_S, 4) if cold else None,
        "session_s": round(detector.session_s, 4),
        "first_run_ms": round(first_run_ms, 3),
        "engine_cache": detector.trt["engine_cache"] if detector.trt else None,
    }


def frames_of(options: BenchOptions) -> Sequence[np.ndarray]:
    """The frames to measure on; none for noise, whose size only the opened model tells."""
    if options.random:
        return []
    frames: Sequence[np.ndarray] = options.source if options.in_memory else read_frames(options.source, options.seed)
    return frames


def run_trial(
    plan: Plan, frames: Sequence[np.ndarray], own_process: bool, go: Callable[[], None] = lambda: None
) -> list[Trial]:
    """Measure the plan's models in this process, interleaved; one Trial per model.

    Args:
        plan: What to measure.
        frames: Decoded frames, cycled in the order given; noise of the first model's input size takes their place
            where the options say so.
        own_process: Whether the process was started for this, so that its memory and cold start are worth reporting.
        go: Called after the warm-up; returns when the timed part may begin.
    """
    options, available = plan.options, available_mb()
    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(options.threads or usable_cores())
    try:
        detectors = open_detectors(options)
        if options.random:
            frames = noise_frames(detectors[0].contract.hw, options.seed)
        first = [_first_run_ms(d, frames[0]) for d in detectors]
        t_min = WARM_UP_CPU_S if all(d.active in ON_CPU for d in detectors) else WARM_UP_GPU_S
        warm = warm_up(detectors, frames, options.seed + 1, t_min, plan.limits.warm_up_cap_s)
        go()
        average, ticks, start = load_average(), cpu_times(), time.perf_counter_ns()
        runs, seconds = measure(detectors, frames, plan.limits, options.seed + plan.repeat)
        end, later = time.perf_counter_ns(), cpu_times()
    finally:
        cv2.setNumThreads(cv_threads)
    passed = later[1] - ticks[1] if ticks and later else 0
    shared = {
        "repeat": plan.repeat,
        "stream": plan.stream,
        "window": [start, end],
        "warmup": warm,
        "load": {"before": average, "after": load_average()},
        "steal": (later[0] - ticks[0]) / passed if ticks and later and passed else None,
        "images": {**image_facts(frames), "random": options.random},
    }
    trials = []
    for run, first_ms in zip(runs, first):  # noqa: B905
        missing: dict[str, str] = {}
        memory = memory_facts(own_process, len(detectors), available, missing)
        cold = cold_facts(run.detector, first_ms, own_process, missing)
        more = dict(shared, memory=memory, cold=cold, **detector_facts(run.detector, options, missing), missing=missing)
        trials.append(make_trial(run, seconds, more))
    return trials


def open_detectors(options: BenchOptions) -> list[Detector]:
    """The models of one combination of options."""
    settings = {
        "tensorrt": TensorRT(options.fp16, options.cache),
        "allow_fallback": options.allow_fallback,
        "hw": options.imgsz,
    }
    given = (options.provider, options.threads, options.precision)
    return [load(path, *given, **settings) for path in options.models]


def detector_facts(detector: Detector, options: BenchOptions, missing: dict[str, str]) -> dict[str, Any]:
    """What there is to say of a model, and of what it runs on."""
    return {
        "uses_gpu": detector.active not in ON_CPU,
        "model": model_facts(detector, missing),
        "accuracy": accuracy_facts(detector, options.accuracy_records, missing),
        "parity": parity_facts(detector.contract, missing),
        "runtime": runtime_facts(detector, missing),
        "device": device_facts(missing),
    }
