"""`throughput`: a measurement from its options to its record, and the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from yolokd_edge.board.system import cpu_times, load_average
from yolokd_edge.common import tell
from yolokd_edge.detector import Detector
from yolokd_edge.load.curve import WARM_UP_S, Point, measure_curve, saturate
from yolokd_edge.load.inputs import (
    check_batches,
    frames_for,
    make_inputs,
    open_detector,
    requests_for,
    takes_batches,
)
from yolokd_edge.load.options import CURVE, LoadOptions
from yolokd_edge.load.report import as_text, check_place, check_served, make_record, write
from yolokd_edge.load.rules import RULES
from yolokd_edge.load.scenarios import Limits, Outcome, offline, one_after_another, server
from yolokd_edge.load.verdicts import judge
from yolokd_edge.progress import Progress
from yolokd_edge.runtimes.requests import Requests


def measure_load(options: LoadOptions) -> dict[str, Any]:
    """Measure what the options say; a record of schema yolokd.throughput/1."""
    detector = open_detector(options)
    batches = options.batches(takes_batches(detector))
    check_batches(detector, batches)
    frames = frames_for(detector, options)
    load_before, ticks = load_average(), cpu_times()
    results = (_curve if options.scenario == CURVE else _scenario)(detector, options, frames, batches)
    later = cpu_times()
    passed = later[1] - ticks[1] if ticks and later else 0
    stolen = (later[0] - ticks[0]) / passed if ticks and later and passed else None
    return make_record(detector, options, frames, results, load_before, stolen)


def _curve(
    detector: Detector, options: LoadOptions, frames: Sequence[np.ndarray], batches: Sequence[int]
) -> dict[str, Any]:
    points = [Point(batch, streams) for batch in batches for streams in options.streams_list]
    inputs = {batch: make_inputs(detector, frames, batch, options.seed) for batch in batches}
    progress = Progress("measuring points", len(points) * options.repeats)
    progress.announce(len(points) * options.repeats * (options.duration + WARM_UP_S))

    def opened(point: Point) -> tuple[Requests, Sequence[np.ndarray]]:
        own = inputs[point.batch]
        return requests_for(detector, options, point.streams, own), own

    with progress:
        rows = measure_curve(points, opened, options.duration, options.repeats, options.seed, progress.step)
    return {"scenario": CURVE, "points": rows}


def _scenario(
    detector: Detector, options: LoadOptions, frames: Sequence[np.ndarray], batches: Sequence[int]
) -> dict[str, Any]:
    inputs = make_inputs(detector, frames, batches[0], options.seed)
    limits = Limits(options.duration, options.time_limit or 2 * options.duration)
    requests = requests_for(detector, options, options.streams_list[0], inputs)
    progress = Progress(f"measuring the scenario {options.scenario}", 1)
    try:
        saturate(requests, inputs, min(WARM_UP_S, options.duration / 2))
        progress.announce(options.duration)
        outcome = _run(options, requests, inputs, limits)
    finally:
        progress.end()
        requests.close()
    facts = {"batch": batches[0], "streams": requests.streams, "threads": requests.threads, "how": requests.how}
    return {**judge(options.scenario, outcome, options.rate, options.bound), **facts}


def _run(options: LoadOptions, requests: Requests, inputs: Sequence[np.ndarray], limits: Limits) -> Outcome:
    if options.scenario == "server":
        assert options.rate is not None and options.bound is not None
        return server(requests, inputs, options.rate, options.bound, limits, options.seed)
    if options.scenario == "offline":
        return offline(requests, inputs, limits)
    return one_after_another(requests, inputs, RULES[options.scenario], limits, options.seed)


def throughput_command(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    options = LoadOptions(**{option.name: getattr(args, option.name) for option in fields(LoadOptions)})
    if args.out:
        check_place(args.out)
    record = measure_load(options)
    tell(as_text(record), partial(write, record, args.out) if args.out else None)
    check_served(record)
