"""`bench` on a video file or a camera: the latency from capture to result, and the frames that were dropped."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.bench.options import BenchOptions, Limits
from yolokd_edge.bench.statistics import summary
from yolokd_edge.bench.timing import WARM_UP_CPU_S, WARM_UP_GPU_S, warm_up
from yolokd_edge.bench.trial import open_detectors
from yolokd_edge.board.system import load_average
from yolokd_edge.common import EdgeError, printable, usable_cores
from yolokd_edge.detector import Detector
from yolokd_edge.images import VIDEO_SUFFIXES, is_stream, noise_frames
from yolokd_edge.load.camera import USUAL_FPS, Camera, Captured
from yolokd_edge.load.record import load_record
from yolokd_edge.runtimes.requests import Clock
from yolokd_edge.runtimes.table import ON_CPU

SCHEMA = "yolokd.capture/1"
STAGES = ("wait", "pre", "infer", "post", "total")  # wait: from capture until the frame before is done
SLOW_FILE = 0.97  # of a file's rate, below which decoding could not keep up


def is_moving(source: Any) -> bool:
    """Whether a source is a video file or a camera, not images."""
    return isinstance(source, (str, Path)) and (is_stream(str(source)) or Path(source).suffix.lower() in VIDEO_SUFFIXES)


def measure_capture(options: BenchOptions) -> dict[str, Any]:
    """Detect in what a camera or a video file delivers, always in the newest frame; a record of yolokd.capture/1."""
    (options,) = _single(options)
    source, limits = str(options.source), options.limits
    camera = Camera(source)
    (detector,) = open_detectors(options)
    t_min = WARM_UP_CPU_S if detector.active in ON_CPU else WARM_UP_GPU_S
    warm = warm_up([detector], noise_frames(detector.contract.hw, options.seed), options.seed, t_min,
                   limits.warm_up_cap_s)  # fmt: skip
    before = load_average()
    with camera:
        times, seconds = watch(detector, camera.take, limits)
    captured, dropped = camera.newest.captured, camera.newest.dropped
    results = make_results(times, seconds, captured, dropped)
    reasons = doubts(results, limits, camera, before, bool(warm["stable"]), options.threads or usable_cores())
    return _record(detector, options, camera, warm, results, reasons)


def _single(options: BenchOptions) -> list[BenchOptions]:
    """Refuse what a camera cannot do: be in two places at the same time."""
    cells = options.combinations()
    if len(options.models) != 1 or len(cells) > 1 or cells[0].streams != 1:
        raise EdgeError(f"{options.source} delivers each frame once: measure one model with one value of each option.")
    if options.power or options.trtexec:
        raise EdgeError("power and trtexec go with images: leave them out for a video or a camera.")
    if options.repeats is not None and options.repeats > 1:
        raise EdgeError("A video or a camera is measured in one run: leave repeats out.")
    if not Path(options.models[0]).exists():
        raise EdgeError(f"There is no model file {options.models[0]}.")
    return cells


def watch(
    detector: Any,
    take: Callable[[], Captured | None],
    limits: Limits,
    clock: Clock = time.perf_counter_ns,
) -> tuple[np.ndarray, float]:
    """Detect in the newest frame again and again, until the limits are reached or the frames end.

    Returns:
        ns (n, 5) int64 in the order of STAGES, and the seconds from the first frame's capture to the last result.
    """
    times: list[tuple[int, int, int, int, int]] = []
    first: int | None = None
    now = 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            frame = take()
            if frame is None:
                break
            taken = clock()
            blob, box = detector.preprocess(frame.pixels)
            ready = clock()
            raw = detector.infer(blob)
            inferred = clock()
            detector.postprocess(raw, box)
            now = clock()
            times.append((taken - frame.at, ready - taken, inferred - ready, now - inferred, now - frame.at))
            first = frame.at if first is None else first
            elapsed = (now - first) / 1e9
            if elapsed >= limits.t_max_s or (len(times) >= limits.n_min and elapsed >= limits.t_min_s):
                break
    finally:
        if collecting:
            gc.enable()
    return np.array(times, np.int64).reshape(-1, len(STAGES)), (now - (first or 0)) / 1e9


def make_results(times: np.ndarray, seconds: float, captured: int, dropped: int) -> dict[str, Any]:
    """The record's `results`, ms."""
    if not len(times):
        raise EdgeError("No frame was measured: the source delivered none.")
    return {
        "unit": "ms",
        "n": len(times),
        "seconds": round(seconds, 3),
        "stages": {stage: summary(times[:, k]) for k, stage in enumerate(STAGES)},
        "captured": captured,
        "dropped": dropped,
        "dropped_share": dropped / captured,
        "captured_per_s": captured / seconds,
        "results_per_s": len(times) / seconds,
    }


def doubts(
    results: dict[str, Any], limits: Limits, camera: Any, before: float | None, stable: bool, threads: int
) -> list[str]:
    """Reasons to doubt the figures."""
    out = []
    if results["n"] < limits.n_min or results["seconds"] < limits.t_min_s:
        out.append(f"{results['n']} frames (at least {limits.n_min} wanted) in {results['seconds']:.1f} s "
                   f"({limits.t_min_s:g} s)")  # fmt: skip
    if not stable:
        out.append("warmup_not_stable: latency still moved by more than 5 % when the warm-up was cut off")
    if camera.is_file and camera.fps is None:
        out.append(f"the file tells no rate: taken as {USUAL_FPS:g} frames per second")
    rate = camera.fps or USUAL_FPS
    if camera.is_file and results["captured_per_s"] < SLOW_FILE * rate:
        out.append(f"decoding could not keep up: {results['captured_per_s']:.1f} of {rate:.1f} frames per second")
    if before is not None and before > max(usable_cores() - threads, 0) + 0.5:
        out.append(f"busy: load average {before:.1f} on {usable_cores()} cores before")
    return out


def _record(
    detector: Detector,
    options: BenchOptions,
    camera: Camera,
    warm: dict[str, Any],
    results: dict[str, Any],
    reasons: Sequence[str],
) -> dict[str, Any]:
    missing: dict[str, str] = {}
    if camera.fps is None:
        missing["protocol.source_fps"] = "the file tells none" if camera.is_file else "a camera delivers as it likes"
    protocol = {
        "profile": options.profile_name,
        "source": str(options.source),
        "source_fps": camera.fps,
        "warmup": warm,
        "measured": "from when OpenCV had the frame, a file's at the file's rate, to the detections; always the "
        "newest frame, those that it replaces are dropped",
    }
    return load_record(SCHEMA, options.seed, detector, protocol, results, reasons, missing)


def as_text(record: dict[str, Any]) -> str:
    """A record to read."""
    found, protocol = record["results"], record["protocol"]
    rate = f" at {protocol['source_fps']:.1f} frames per second" if protocol["source_fps"] else ""
    about = f"{record['model']['file']} on {record['runtime']['providers_active'][0]}, {protocol['source']}{rate}"
    lines = [printable(about), f"{'':6}" + "".join(f"{key:>9}" for key in ("p50", "p90", "p99", "max"))]
    for stage in STAGES:
        cells = ["-" if v is None else f"{v:.2f}" for v in (found["stages"][stage][k] for k in ("p50", "p90", "p99"))]
        lines.append(f"{stage:6}" + "".join(f"{cell:>9}" for cell in [*cells, f"{found['stages'][stage]['max']:.2f}"]))
    lines.append(
        f"{found['captured']} frames captured in {found['seconds']:.1f} s, {found['n']} with a result "
        f"({found['results_per_s']:.1f} per second), {found['dropped']} dropped ({found['dropped_share']:.1%})"
    )
    return "\n".join(["latency from capture to result, ms", *lines, *map(printable, record["stability"]["reasons"])])
