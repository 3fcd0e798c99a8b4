"""Percentiles' bounds and intervals against exact answers and, with reduced effort, against their nominal coverage."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from yolokd_edge.bench import statistics
from yolokd_edge.bench.statistics import (
    autocorrelation,
    beta_cdf,
    dependence,
    exceedance_correlation,
    upper_bound,
    upper_bound_rank,
)

MS = 1_000_000  # ns


@pytest.mark.parametrize(("n", "p"), [(7, 0.3), (50, 0.5), (300, 0.99), (1000, 0.95)])
def test_beta_distribution_gives_exact_binomial_sums(n: int, p: float) -> None:
    for k in {0, 1, n // 2, int(n * p), n - 1}:
        exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
        assert 1 - beta_cdf(p, k + 1, n - k) == pytest.approx(exact, abs=1e-10)


def test_beta_distribution_at_its_ends_and_with_real_parameters() -> None:
    assert [beta_cdf(x, 2.5, 1.5) for x in (-1, 0, 1, 2)] == [0, 0, 1, 1]
    assert beta_cdf(0.3, 1, 2.7) == pytest.approx(1 - 0.7**2.7)
    assert beta_cdf(0.4, 3.3, 1) == pytest.approx(0.4**3.3)
    assert beta_cdf(0.5, 17.25, 17.25) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("n", "p", "rank"),
    [
        (298, 0.99, None),
        (299, 0.99, 299),
        (300, 0.99, 300),
        (500, 0.99, 499),
        (662, 0.99, 660),
        (1000, 0.99, 996),
        (2000, 0.99, 1988),
        (5000, 0.99, 4962),
        (28, 0.9, None),
        (29, 0.9, 29),
        (2995, 0.999, 2995),
    ],
)
def test_upper_bound_is_the_smallest_rank_that_is_sure_enough(n: int, p: float, rank: int | None) -> None:
    assert upper_bound_rank(n, p) == rank


def test_dependent_samples_need_more_for_a_bound() -> None:
    ordered = np.arange(1, 1001)
    assert upper_bound(ordered, 0.99, 1000) == 996
    assert upper_bound(ordered, 0.99, 500) == 998  # the 499th of 500, as a share of the thousand
    assert upper_bound(ordered, 0.99, 298) is None
    few = statistics.summary(np.arange(400) * MS)  # a slope: no two samples are independent
    assert few["p99"] == 395 and few["upper95"]["p99"] is None and few["ci95"]["p99"] is None


def autoregressive(rng: np.random.Generator, runs: int, n: int, phi: float) -> np.ndarray:
    noise = rng.standard_normal((n, runs))
    for k in range(1, n):
        noise[k] = phi * noise[k - 1] + math.sqrt(1 - phi * phi) * noise[k]
    return noise.T


@pytest.mark.parametrize(("phi", "tau"), [(0.0, 1.0), (0.6, 4.0), (0.8, 9.0)])
def test_tau_is_that_of_the_process(phi: float, tau: float) -> None:
    series = autoregressive(np.random.default_rng(3), 1, 40_000, phi)[0]
    found = dependence([series])
    assert found.tau == pytest.approx(tau, rel=0.1)
    assert found.n_eff == pytest.approx(40_000 / tau, rel=0.1)
    assert found.n_eff_of(0.99) >= found.n_eff_of(0.5)  # what is rare is forgotten sooner


def test_bursts_count_as_one_event_each() -> None:
    samples = np.random.default_rng(0).normal(10, 0.1, 5000)
    samples[np.arange(100, 5000, 500)[:, None] + np.arange(12)] += 10  # ten bursts of twelve frames
    found = dependence([samples])
    assert found.n_eff_of(0.5) > 2000 and found.n_eff_of(0.99) < 5000 / 5


def test_correlation_does_not_reach_from_one_run_into_the_next() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.standard_normal(500) + shift for shift in (0, 50, 100)]
    assert dependence([np.concatenate(runs)]).tau > 100
    assert 1 + 2 * autocorrelation(runs).sum() < 1.3


def test_exceedances_of_independent_and_of_equal_variables() -> None:
    rho, joint = exceedance_correlation(0.5)
    assert np.allclose(joint, 2 / np.pi * np.arcsin(rho), atol=1e-6)  # the known case
    rho, joint = exceedance_correlation(0.99)
    assert joint[0] == 0 and joint[-1] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(("phi", "given"), [(0.6, True), (0.9, False)])
def test_p99_has_an_interval_over_runs_only_where_the_runs_can_carry_it(phi: float, given: bool) -> None:
    """Of runs of 1000 frames at 0.9, one in 20 passed by chance, and its interval held in 75 % instead of 95 %."""
    random = np.random.default_rng(8)
    for _ in range(40):
        runs = 20 * MS * np.exp(0.15 * autoregressive(random, 5, 1000, phi))
        summary = statistics.summary(*runs)
        assert (summary["ci95"]["p99"] is not None) == given and summary["ci95"]["p50"] is not None


def test_a_constant_series_is_certain() -> None:
    summary = statistics.summary([5 * MS] * 600)
    assert summary["ci95"]["p50"] == summary["ci95"]["p99"] == [5, 5] and summary["upper95"]["p99"] == 5
    assert (summary["tau"], summary["n_eff"]) == (1, 600)
    few = statistics.summary([5 * MS] * 400)["ci95"]
    assert few["p50"] == [5, 5] and few["p99"] is None, "four samples beyond p99 say little"
    several = statistics.summary(*[[5 * MS] * 600] * 3)
    assert several["ci95"]["p99"] == pytest.approx([5, 5]) and several["upper95"]["p99"] == pytest.approx(5)


def test_intervals_over_runs_are_students() -> None:
    ends, bound = statistics.run_interval([10.0, 10.0 * math.exp(0.02), 10.0 * math.exp(0.04)])
    error = 0.02 / math.sqrt(3)
    assert ends == pytest.approx([10 * math.exp(0.02 - 4.3027 * error), 10 * math.exp(0.02 + 4.3027 * error)], rel=1e-4)
    assert bound == pytest.approx(10 * math.exp(0.02 + 2.92 * error), rel=1e-4)
    assert statistics.run_interval([0.0, 1.0, 2.0])[0] == pytest.approx([1 - 4.3027 / math.sqrt(3), 3.4841], rel=1e-3)


@pytest.mark.parametrize("deviation", [0.0, 0.01, 0.03])
def test_intervals_hold_the_truth_although_processes_differ(deviation: float) -> None:
    """Reduced: 200 reports of 5 processes have a standard error of 1.5 points; within-process intervals held 30 %."""
    rng, held = np.random.default_rng(5), []
    for _ in range(200):
        factors = np.exp(deviation * rng.standard_normal(5))
        runs = 20 * MS * np.exp(0.15 * rng.standard_normal((5, 400))) * factors[:, None]
        low, high = statistics.summary(*runs)["ci95"]["p50"]
        held.append(low <= 20 <= high)
    assert 0.905 <= np.mean(held) <= 0.99, np.mean(held)


def test_processes_that_ran_together_are_one_run() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(10 + k // 2, 0.1, 400) * MS for k in range(6)]  # three runs of two streams
    low, high = statistics.summary(*runs, repeats=[0, 0, 1, 1, 2, 2])["ci95"]["p50"]
    assert high - low > 2 * 4.3 * 1 / math.sqrt(3) - 0.2  # Student's t of two degrees of freedom, not of five
    low, high = statistics.summary(*runs[:2], repeats=[0, 0])["ci95"]["p50"]
    assert high - low < 0.1  # one run: within it


def test_a_run_that_is_too_short_for_a_percentile_gives_no_interval_of_it() -> None:
    runs = np.random.default_rng(0).normal(10, 1, (5, 250)) * MS
    found = statistics.summary(*runs)
    assert found["p99"] is not None and found["ci95"]["p99"] is None and found["upper95"]["p99"] is None
    assert found["ci95"]["p95"] is not None


def test_an_outlier_widens_nothing_but_the_tail() -> None:
    calm = np.random.default_rng(1).normal(10, 0.1, 1000) * MS
    once = calm.copy()
    once[500] = 10_000 * MS
    a, b = statistics.summary(calm), statistics.summary(once)
    assert b["max"] == 10_000 and b["mean"] > a["mean"] + 5
    assert b["ci95"]["p50"] == pytest.approx(a["ci95"]["p50"], abs=0.01)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_intervals_hold_the_truth_as_often_as_they_say(phi: float) -> None:
    """Reduced: 150 runs have a standard error of 1.8 points. The full figures come from benchmarks/."""
    series = 20 * MS * np.exp(0.15 * autoregressive(np.random.default_rng(11), 150, 1000, phi))
    held: dict[str, list[bool]] = {"p50": [], "p99": []}
    bounded = []
    for samples in series:
        summary = statistics.summary(samples)
        for key, p in (("p50", 0.5), ("p99", 0.99)):
            truth = 20 * math.exp(0.15 * NormalDist().inv_cdf(p))
            if summary["ci95"][key] is not None:  # too dependent for an interval so far out
                low, high = summary["ci95"][key]
                held[key].append(low <= truth <= high)
        bounded.append(truth <= summary["upper95"]["p99"])
    assert len(held["p50"]) == 150 and len(held["p99"]) >= 75
    assert all(0.9 <= np.mean(values) <= 0.99 for values in held.values()), {k: np.mean(v) for k, v in held.items()}
    assert np.mean(bounded) >= 0.9
