"""How queries arrive in MLPerf's four scenarios, and how long each takes: measured here, judged in `verdicts`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from yolokd_edge.load.curve import saturate
from yolokd_edge.load.rules import RULES, Rule, proves
from yolokd_edge.runtimes.requests import Clock, Requests

PATIENCE_BOUNDS, PATIENCE_S = 10, 1.0  # the server gives up when it is behind by ten bounds, and by a second


class Limits(NamedTuple):
    """How long a scenario lasts."""

    seconds: float  # at least
    limit_s: float  # at most, though too few queries were answered for the rules


class Outcome(NamedTuple):
    """What a scenario showed."""

    latencies: np.ndarray  # (n,) int64 ns of each query; of offline, of each input
    images: int
    seconds: float
    behind_s: float = 0.0  # by how much the device was behind when the server gave up, or 0
    offered: int = 0  # queries that had arrived by then


def arrivals(rate: float, seed: int) -> Iterator[int]:
    """The times in ns at which queries arrive, by a Poisson process; the same for the same seed (Mersenne Twister)."""
    rng, at = random.Random(seed), 0.0
    while True:
        at += rng.expovariate(rate)
        yield round(at * 1e9)


def drawn(inputs: Sequence[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Inputs at random with replacement."""
    rng = random.Random(seed)
    while True:
        yield inputs[rng.randrange(len(inputs))]


def one_after_another(
    requests: Requests,
    inputs: Sequence[np.ndarray],
    rule: Rule,
    limits: Limits,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
) -> Outcome:
    """Single stream and multi stream: the next query, of the rule's images, as soon as the one before is answered."""
    latencies: list[int] = []
    pick, begin, elapsed = drawn(inputs, seed), clock(), 0.0
    percentile = rule.percentile or 0.0
    while elapsed < limits.limit_s and (elapsed < limits.seconds or not proves(len(latencies), 1, percentile)):
        asked = clock()
        for _ in range(rule.samples // len(inputs[0])):
            requests.start(next(pick), _nothing)
        requests.finish()
        now = clock()
        latencies.append(now - asked)
        elapsed = (now - begin) / 1e9
    return Outcome(np.array(latencies, np.int64), len(latencies) * rule.samples, elapsed)


def _nothing(begun: int, ended: int) -> None:
    """What is done with the times of a part of a query."""


def wait_until(at: int, clock: Clock = time.perf_counter_ns) -> None:
    """Sleep until a time in ns on the clock."""
    left = (at - clock()) / 1e9
    if left > 0:
        time.sleep(left)


def server(
    requests: Requests,
    inputs: Sequence[np.ndarray],
    rate: float,
    bound_ms: float,
    limits: Limits,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    wait: Callable[[int], None] = wait_until,
) -> Outcome:
    """Queries of one image that arrive at a rate; a latency counts from the time of arrival.

    A device that cannot serve the rate falls behind without end: the server gives up when it is ten bounds and a second
    behind, and queries that had arrived and were not begun count as late.
    """
    percentile = RULES["server"].percentile or 0.0
    patience, ended = max(PATIENCE_BOUNDS * bound_ms / 1e3, PATIENCE_S), []  # type: float, list[tuple[int, int]]
    pick, begin, behind, offered = drawn(inputs, seed + 1), clock(), 0.0, 0
    times = arrivals(rate, seed)
    for at in times:
        if at / 1e9 >= limits.limit_s:
            break
        if at / 1e9 >= limits.seconds:
            late = sum(finish - due > bound_ms * 1e6 for due, finish in list(ended))
            if proves(len(ended), late, percentile) or late > len(ended) * (1 - percentile):
                break  # enough for the rules, or more queries would only be late as well
        offered += 1
        wait(begin + at)
        requests.start(next(pick), lambda _, finish, due=begin + at: ended.append((due, finish)))  # type: ignore[misc]
        behind = (clock() - begin - at) / 1e9
        if behind > patience:
            offered += _arrived_by(clock() - begin, times)
            break
    requests.finish()
    seconds = (max([finish for _, finish in ended] or [begin]) - begin) / 1e9
    latencies = np.array([finish - due for due, finish in ended], np.int64)
    return Outcome(latencies, len(ended), seconds, behind if behind > patience else 0.0, offered)


def _arrived_by(now: int, times: Iterator[int]) -> int:
    return sum(1 for _ in takewhile(lambda at: at <= now, times))


def offline(
    requests: Requests, inputs: Sequence[np.ndarray], limits: Limits, clock: Clock = time.perf_counter_ns
) -> Outcome:
    """All images are there from the start, and are computed as fast as they can be."""
    flow = saturate(requests, inputs, limits.seconds, RULES["offline"].queries, limits.limit_s, clock)
    return Outcome(flow.latencies, flow.images, flow.seconds)
