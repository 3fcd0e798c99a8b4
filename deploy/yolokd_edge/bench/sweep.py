"""A whole benchmark: every combination of options, run by run, while the board is watched; a record for each."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.plan import Plan
from yolokd_edge.bench.record import NOT_ASKED, make_record
from yolokd_edge.bench.report import check_report_place, write_report
from yolokd_edge.bench.results import busy_windows
from yolokd_edge.bench.schema import STAGES
from yolokd_edge.bench.timing import WARM_UP_CPU_S
from yolokd_edge.bench.trial import Trial, frames_of, run_trial
from yolokd_edge.bench.trtexec import cross_check
from yolokd_edge.bench.workers import build_engines, fresh_trials, note_build
from yolokd_edge.board.monitor import Monitor
from yolokd_edge.board.telemetry import Telemetry
from yolokd_edge.bundle import is_bundle, open_bundle
from yolokd_edge.common import EdgeError
from yolokd_edge.progress import Progress


def collect(
    options: BenchOptions, own_process: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, np.ndarray]]]:
    """Measure models, interleaved frame by frame, or apart: in processes of their own that take turns.

    One run of one combination happens in this process. Several runs, several streams or a sweep get a new process for
    each run.

    Args:
        options: What to measure.
        own_process: Whether this process was started for this measurement, so that its memory is worth reporting.

    Returns:
        One record per model and combination (schema yolokd.latency/1), and its samples: ns (n,) by stage, `start`,
        `switches`, `run`, and telemetry (n, 2) of time and value under `telemetry/...`.
    """
    limits, cells = options.limits, options.combinations()
    if options.apart:
        cells = [replace(cell, models=[model]) for cell in cells for model in cell.models]
    fresh = options.runs > 1 or len(cells) > 1 or cells[0].streams > 1
    frames = _frames(options, fresh)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    plans = [Plan(cell, limits, created, list(sys.argv)) for cell in cells]

    # It says something between runs only, and once before frames are timed: writing takes time from what is measured.
    runs = options.runs * len(plans)
    progress = Progress("measuring runs", runs)

    def announce() -> None:
        progress.announce(runs * least_seconds(plans[0]))

    def once(plan: Plan) -> list[list[Trial]]:
        return fresh_trials(plan, announce) if fresh else [run_trial(plan, frames, own_process, announce)]

    alone = options.power and len(plans[0].options.models) == 1
    builds = [build_engines(plan) if fresh else [None] * len(options.models) for plan in plans]
    bare = [once(plan) if alone else None for plan in plans]  # without the sampler
    with progress:
        trials, telemetries = _watched(plans, once, progress.step)
    records, series = [], []
    for plan, found, telemetry, unwatched, built in zip(plans, trials, telemetries, bare, builds):  # noqa: B905
        overhead = _overhead(found[0], unwatched[0]) if unwatched else None
        if unwatched and not fresh:  # then it was the bare run that built
            built = [(unwatched[0][0].facts["runtime"]["trt"] or {}).get("build_s")]
        for k, own in enumerate(found):
            note_build(own, built[k])
            check = _cross_check(Path(plan.options.models[k]), plan.options, own) if options.trtexec else NOT_ASKED
            records.append(make_record(own, plan, telemetry, found[0] if k else None, overhead, check))
            series.append(_joined(own, telemetry))
    return records, series


def _frames(options: BenchOptions, fresh: bool) -> Sequence[np.ndarray]:
    """The frames to measure on, once it is clear that there is something to measure."""
    if not options.models or options.in_memory and not len(options.source) or no_images(options):
        raise EdgeError("A measurement needs at least one model and one image.")
    if fresh and options.in_memory:
        raise EdgeError("Several runs read the images in processes of their own: give the path of the images.")
    frames = frames_of(options)
    for path in options.models:
        if not Path(path).exists():
            raise EdgeError(f"There is no model file {path}.")
    return frames


def no_images(options: BenchOptions) -> bool:
    """Whether neither images nor noise are asked for."""
    return options.source is None and not options.random


def _cross_check(path: Path, options: BenchOptions, trials: Sequence[Trial]) -> tuple[dict[str, Any] | None, str]:
    p50 = median(int(v) for t in trials for v in t.series["infer"]) / 1e6
    bundle = open_bundle(path) if is_bundle(path) else None  # a zip file's temporary folder lives as long
    file = bundle.model(options.precision or "fp32", options.provider) if bundle else path
    return cross_check(file, options.fp16, p50)


def _watched(
    plans: Sequence[Plan], once: Callable[[Plan], list[list[Trial]]], step: Callable[[], None]
) -> tuple[list[list[list[Trial]]], list[Telemetry]]:
    """Do the runs of all plans, in random order within a repeat, while the board is watched.

    Returns:
        For each plan its trials by model, and what the board told while it ran.
    """
    options = plans[0].options  # what is not swept over is the same in all
    found: list[list[list[Trial]]] = [[[] for _ in options.models] for _ in plans]
    order, rng, idle = list(range(len(plans))), random.Random(options.seed), None
    with Monitor(options.power) as monitor:
        if options.power:
            print(f"idle baseline of the board: {options.idle:g} s", file=sys.stderr)
            start = monitor.clock()
            time.sleep(options.idle)
            idle = (start, monitor.clock())
        for repeat in range(options.runs):
            rng.shuffle(order)
            for k in order:
                for stream in once(replace(plans[k], repeat=repeat)):
                    for model, trial in enumerate(stream):
                        found[k][model].append(trial)
                step()
        if monitor.tegrastats and options.power:
            time.sleep(0.3)  # a sample after the last frame, so that the energy is bracketed
    return found, [Telemetry(monitor, busy_windows([t for model in own for t in model]), idle) for own in found]


def least_seconds(plan: Plan) -> float:
    """What a run takes at least: its warm-up and its frames. Slow models take longer, and the first run tells."""
    limits = plan.limits
    return min(WARM_UP_CPU_S, limits.warm_up_cap_s) + min(limits.t_min_s, limits.t_max_s)


def _overhead(watched: Sequence[Trial], bare: Sequence[Trial]) -> float:
    """By how many percent the sampler slowed the median frame of the first run."""
    with_it, without = (float(np.median(t[0].series["total"])) for t in (watched, bare))
    return 100 * (with_it / without - 1)


def _joined(trials: Sequence[Trial], telemetry: Telemetry) -> dict[str, np.ndarray]:
    """All trials' samples one after the other, with the number of the run, and what was sampled beside them."""
    names = (*STAGES, "start", "switches")
    out = {name: np.concatenate([t.series[name] for t in trials]) for name in names}
    out["run"] = np.repeat(np.arange(len(trials)), [len(t.series["total"]) for t in trials])
    out.update({"telemetry/" + name: values for name, values in telemetry.series().items()})
    return out


def measure_models(
    options: BenchOptions, out: str | Path | None = None, own_process: bool = False
) -> list[dict[str, Any]]:
    """Measure models as `collect` does and write a report to `out` if given; one record per model and combination."""
    if out is not None:
        check_report_place(out)
    records, series = collect(options, own_process)
    if out is not None:
        write_report(records, series, out)
    return records
