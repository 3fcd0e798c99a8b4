"""Statistics of few runs, against printed tables and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from yolokd.latency.intervals import BETTER, NO_EVIDENCE, ONE_RUN, WORSE, apart, paired, t_quantile

# Two-sided 95 % and 99 % points of Student's t, as printed in any table.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032),
         9: (2.262, 3.250), 10: (2.228, 3.169), 29: (2.045, 2.756), 120: (1.980, 2.617)}  # fmt: skip


@pytest.mark.parametrize("df", TABLE)
def test_t_agrees_with_the_tables(df):
    for p, printed in zip((0.975, 0.995), TABLE[df], strict=True):
        assert t_quantile(p, df) == pytest.approx(printed, abs=5.1e-4)
        assert t_quantile(1 - p, df) == -t_quantile(p, df)


def test_t_of_one_degree_is_the_cauchy_distribution():
    assert t_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4))


@pytest.mark.parametrize(("p", "df"), [(0, 3), (1, 3), (0.9, 0)])
def test_t_refuses_what_it_is_not_defined_for(p, df):
    with pytest.raises(ValueError):
        t_quantile(p, df)


def test_paired_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, interval 2 ± 4.303 / sqrt(3) = ±2.484."""
    found = paired([1, 2, 3])
    assert (found.mean, found.sd) == (2, 1)
    assert (found.low, found.high) == (pytest.approx(-0.4843, abs=2e-4), pytest.approx(4.4843, abs=2e-4))
    assert found.verdict == NO_EVIDENCE


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([4.2, 6.2, 4.4], BETTER),
        ([-4.2, -6.2, -4.4], WORSE),
        ([0.0, 0.0], NO_EVIDENCE),
        ([1.0, 100.0], NO_EVIDENCE),
        ([9.0], ONE_RUN),
    ],
)
def test_verdicts(differences, verdict):
    assert paired(differences).verdict == verdict


def test_one_pair_has_no_interval():
    found = paired([3.0])
    assert (found.mean, found.sd, found.low, found.high) == (3.0, None, None, None)
    with pytest.raises(ValueError):
        paired([])


def test_two_samples_by_hand():
    """Means 2 and 5, variances 1 and 4 of three each: error sqrt(5/3), Welch's df 50/17 = 2.94, so t of 2 = 4.3027."""
    found = apart([1, 2, 3], [3, 5, 7])
    half = 4.302653 * math.sqrt(5 / 3)
    assert (found.mean, found.low, found.high) == (3, pytest.approx(3 - half), pytest.approx(3 + half))


def test_two_samples_without_spread_differ_for_certain():
    found = apart([1, 1], [3, 3, 3])
    assert (found.mean, found.low, found.high) == (2, 2, 2)
    with pytest.raises(ValueError):
        apart([1], [2, 3])


@pytest.mark.parametrize(("runs", "paired_runs"), [(3, True), (3, False), (5, True), (5, False)])
def test_few_runs_are_covered_as_promised(runs, paired_runs):
    """An interval over 3 runs must hold the truth 95 times in 100; the extremes of 3 hold it 75 times."""
    random = np.random.default_rng(0)
    held = 0
    for before, after in random.normal(size=(2000, 2, runs)):
        found = paired((after - before).tolist()) if paired_runs else apart(before, after)
        held += found.low <= 0 <= found.high
    assert 0.935 < held / 2000 < (0.965 if paired_runs else 0.99)
