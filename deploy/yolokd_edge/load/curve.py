"""Throughput against latency: inputs kept flowing, by images in each and by inputs at the same time."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.bench.statistics import MIN_RUNS, run_interval, summary
from yolokd_edge.runtimes.requests import Clock, Requests

WARM_UP_S = 1.0  # before a measurement, or half as long as that takes


class Flow(NamedTuple):
    """What came through while there was always something to do."""

    images: int
    seconds: float  # from the first start to the last end
    latencies: np.ndarray  # (n,) int64 ns of each input, from where its computing began

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def saturate(
    requests: Requests,
    inputs: Sequence[np.ndarray],
    seconds: float,
    images: int = 0,
    limit_s: float = float("inf"),
    clock: Clock = time.perf_counter_ns,
) -> Flow:
    """Keep every stream busy for some seconds and at least a number of images, unless the limit comes first."""
    times: list[tuple[int, int]] = []
    started, elapsed, begin = 0, 0.0, clock()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while not started or (elapsed < seconds or started < images) and elapsed < limit_s:
            blob = inputs[started // len(inputs[0]) % len(inputs)]
            requests.start(blob, lambda begun, ended: times.append((begun, ended)))
            started += len(blob)
            elapsed = (clock() - begin) / 1e9
        requests.finish()
    finally:
        if collecting:
            gc.enable()
    ended = np.array(times, np.int64)
    return Flow(started, (int(ended[:, 1].max()) - begin) / 1e9, ended[:, 1] - ended[:, 0])


class Point(NamedTuple):
    """A place on the curve."""

    batch: int
    streams: int | None  # as asked for; None: as the runtime likes


def measure_curve(
    points: Sequence[Point],
    opened: Callable[[Point], tuple[Requests, Sequence[np.ndarray]]],
    seconds: float,
    repeats: int,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter_ns,
) -> list[dict[str, Any]]:
    """Measure all points in turn, in a new random order each time, so that a drift of the machine meets all alike.

    Returns:
        A row for each point, in the order given, with `front`: whether no other point is better in both figures.
    """
    flows: dict[Point, list[Flow]] = {point: [] for point in points}
    facts: dict[Point, dict[str, Any]] = {}
    order, rng = list(points), random.Random(seed)
    for _ in range(repeats):
        rng.shuffle(order)
        for point in order:
            requests, inputs = opened(point)
            try:
                saturate(requests, inputs, min(WARM_UP_S, seconds / 2), clock=clock)
                flows[point].append(saturate(requests, inputs, seconds, clock=clock))
                facts[point] = {"streams": requests.streams, "threads": requests.threads, "how": requests.how}
            finally:
                requests.close()
            step()
    rows = [make_row(point, facts[point], flows[point]) for point in points]
    for row in rows:
        row["front"] = not any(beats(other, row) for other in rows)
    return rows


def make_row(point: Point, facts: dict[str, Any], flows: Sequence[Flow]) -> dict[str, Any]:
    """The figures of a point: images per second, and the latency of an input in ms."""
    rates = [flow.rate for flow in flows]
    return {
        "batch": point.batch,
        "streams_asked": "auto" if point.streams is None else point.streams,
        **facts,
        "images_per_s": sum(flow.images for flow in flows) / sum(flow.seconds for flow in flows),
        "images_per_s_ci95": run_interval(rates)[0] if len(rates) >= MIN_RUNS else None,
        "latency_ms": summary(*(flow.latencies for flow in flows)),
        "runs": [{"images": f.images, "seconds": round(f.seconds, 4), "images_per_s": f.rate} for f in flows],
    }


def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one point has no lower throughput and no higher median latency than another, and one of them better."""
    pairs = [(row["images_per_s"], -typical(row["latency_ms"])) for row in (one, other)]
    return pairs[0] != pairs[1] and all(a >= b for a, b in zip(*pairs))  # noqa: B905


def typical(latency: dict[str, Any]) -> float:
    """The median, or the mean where there are too few samples for one."""
    value: float = latency["mean"] if latency["p50"] is None else latency["p50"]
    return value
