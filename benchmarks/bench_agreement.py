"""Does `bench` agree with others who time the same model, and what does its harness cost a frame?

    python benchmarks/bench_agreement.py --model model.onnx --source images/ [--rounds 12] [--benchmark-app PATH]

Everything is interleaved in short rounds in one run, single-threaded: a machine's load changes from minute to minute,
and only medians over interleaved rounds can be compared.

- frame by frame: the harness and session.run alone, alternating on each frame.
- plain: a loop written here, onnxruntime alone, one clock reading before and after session.run.
- bench: the `infer` stage that the harness measures, same runtime, same inputs.
- benchmark_app: OpenVINO's tool, synchronous, one stream, one thread (its own median, on random input).
- bench/openvino: the `infer` stage with provider=openvino, so that both time the same runtime.
- null: the harness around a detector that does nothing: what it adds inside and outside the timed part.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from yolokd_edge.bench.options import Limits
from yolokd_edge.bench.timing import Run, measure
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_frames
from yolokd_edge.runtimes.onnxruntime_options import session_options

SECONDS = 2.0  # of a round


class Nothing:
    """A detector that does nothing."""

    threads, candidates = 1, 0

    def preprocess(self, frame: Any) -> tuple[None, None]:
        return None, None

    def infer(self, blob: Any) -> None:
        return None

    def postprocess(self, raw: Any, box: Any) -> tuple[()]:
        return ()


def harness(detector: Any, frames: list[np.ndarray]) -> tuple[float, float]:
    """Median of `infer` and `total`, ms."""
    (run,), _ = measure([detector], frames, Limits(1, SECONDS, SECONDS))
    series = run.series()
    return float(np.median(series["infer"])) / 1e6, float(np.median(series["total"])) / 1e6


def plain(session: Any, blobs: list[np.ndarray]) -> float:
    """Median of session.run, ms."""
    name, times, k = session.get_inputs()[0].name, [], 0
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(None, {name: blobs[k % len(blobs)]})
        times.append(time.perf_counter_ns() - start)
        k += 1
    return median(times) / 1e6


def benchmark_app(program: str, model: Path) -> float:
    """The median latency that OpenVINO's tool prints, ms."""
    options = [
        "-d",
        "CPU",
        "-api",
        "sync",
        "-hint",
        "none",
        "-nstreams",
        "1",
        "-nthreads",
        "1",
        "-t",
        str(int(SECONDS)),
    ]
    command = [sys.executable, program, "-m", str(model), *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", text)
    if not found:
        raise SystemExit(f"benchmark_app printed no median:\n{text[-2000:]}")
    return float(found.group(1))


def pairs_of_frames(detector: Any, session: Any, frames: list[np.ndarray], count: int) -> dict[str, float]:
    """The harness against session.run on the same input, frame by frame in random order: ratios of the medians."""
    run = Run(detector, time.perf_counter_ns, time.process_time_ns)
    name, alone, rng = session.get_inputs()[0].name, [], np.random.default_rng(1)
    for k in range(count):
        frame = frames[k % len(frames)]
        blob = detector.preprocess(frame)[0]
        if first := rng.random() < 0.5:
            run.add(frame)
        start = time.perf_counter_ns()
        session.run(None, {name: blob})
        alone.append(time.perf_counter_ns() - start)
        if not first:
            run.add(frame)
    infer = run.series()["infer"]
    middle, low = (float(np.quantile(infer, q) / np.quantile(alone, q)) for q in (0.5, 0.1))
    return {"n": count, "plain_p50_ms": float(np.median(alone)) / 1e6, "ratio_p50": middle, "ratio_p10": low}


def null_cost(frames: list[np.ndarray]) -> dict[str, float]:
    """Microseconds a frame that the harness adds: within the timed part, and outside it."""
    (run,), _ = measure([Nothing()], frames, Limits(20_000, 0, 60))
    series = run.series()
    outside = np.diff(series["start"]) - series["total"][:-1]
    return {"inside_us": float(np.median(series["total"])) / 1e3, "outside_us": float(np.median(outside)) / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--benchmark-app", help="OpenVINO's benchmark_app; without it OpenVINO is left out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    frames = read_frames(args.source)
    detector = Detector(args.model, "cpu", 1)
    blobs = [detector.preprocess(frame)[0] for frame in frames]
    session = onnxruntime.InferenceSession(str(args.model), session_options(1), providers=["CPUExecutionProvider"])
    tasks = {
        "plain": lambda: plain(session, blobs),
        "bench": lambda: harness(detector, frames)[0],
        "bench total": lambda: harness(detector, frames)[1],
    }
    if args.benchmark_app:
        other = Detector(args.model, "openvino", 1)
        tasks["benchmark_app"] = lambda: benchmark_app(args.benchmark_app, args.model)
        tasks["bench/openvino"] = lambda: harness(other, frames)[0]
    rows: dict[str, list[float]] = {name: [] for name in tasks}
    rng = np.random.default_rng(0)
    for _ in range(args.rounds):
        for name in rng.permutation(list(tasks)):
            rows[name].append(tasks[name]())
    report = {name: {"median_ms": median(v), "min_ms": min(v), "max_ms": max(v)} for name, v in rows.items()}
    pairs = [("bench", "plain")] + ([("bench/openvino", "benchmark_app")] if args.benchmark_app else [])
    report["ratios"] = {f"{a} / {b}": median(x / y for x, y in zip(rows[a], rows[b], strict=True)) for a, b in pairs}
    report["frame by frame"] = pairs_of_frames(detector, session, frames, args.pairs)
    report["null"] = null_cost(frames)
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps({"rounds": rows, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
