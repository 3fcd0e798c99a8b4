"""The estimate of latency finds the law behind exact times, and tells how far it is off where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from yolokd.errors import UsageError
from yolokd.fitting.candidates import Candidate, Work
from yolokd.fitting.times import Budget, Times, check_percentile, fit_shares, read_budget, spread_out
from yolokd_edge.bench.options import BenchOptions

SIZES = [Candidate(w, d, s) for w in (0.25, 0.1875, 0.125, 0.0625) for d in (1.0, 0.5) for s in (64, 96, 160)]


def work(c: Candidate) -> Work:
    area = (c.imgsz / 64) ** 2
    return Work(8 * c.width**2 * c.depth * area, 3 * c.width * area, 90 * c.depth, c.imgsz**2 / 1e6)


WORKS = {c: work(c) for c in SIZES}
LAW = np.array([0.3, 2.0, 0.7, 0.01, 0.0])


def law(candidate: Candidate) -> float:
    return float(LAW @ WORKS[candidate].terms())


def test_exact_times_give_their_law():
    found = fit_shares(list(WORKS.values()), [law(c) for c in SIZES])
    assert found == pytest.approx(LAW, abs=1e-6)


def test_no_share_is_negative_where_plain_least_squares_has_one():
    times = [law(c) - 0.15 * (c.width == 0.0625) for c in SIZES]
    matrix = np.array([w.terms() for w in WORKS.values()]) / np.array(times)[:, None]
    assert np.linalg.lstsq(matrix, np.ones(len(times)), rcond=None)[0].min() < 0
    found = fit_shares(list(WORKS.values()), times)
    assert found.min() >= 0
    here = ((matrix @ found - 1) ** 2).sum()
    rng = np.random.default_rng(0)
    for _ in range(200):  # no neighbour with shares of 0 or more fits better
        other = np.maximum(found + rng.normal(0, 0.01, 5), 0)
        assert ((matrix @ other - 1) ** 2).sum() >= here - 1e-12


def test_the_error_is_that_of_candidates_left_out():
    times = Times(WORKS)
    times.add({c: law(c) for c in SIZES[::2]})
    assert times.largest_error() < 1e-6
    assert times.of(SIZES[1]) == pytest.approx(law(SIZES[1])), "one that was not measured"
    odd = SIZES[::2][3]
    times.add({odd: 2 * law(odd)})
    assert times.errors[odd] == pytest.approx(-0.5, abs=1e-6), "the others say what it should have been"
    assert times.of(odd) == 2 * law(odd), "what was measured is not smoothed"


def test_detections_are_added_to_measured_and_estimated_alike():
    times = Times(WORKS, beyond=0.25)
    times.add({c: law(c) for c in SIZES[::2]})
    assert times.of(SIZES[0]) == pytest.approx(law(SIZES[0]) + 0.25)
    assert times.of(SIZES[1]) == pytest.approx(law(SIZES[1]) + 0.25)


def test_the_first_to_be_measured_span_the_grid():
    chosen = spread_out(SIZES, WORKS, 6)
    assert len(chosen) == 6 and {SIZES[2], Candidate(0.0625, 0.5, 64)} <= set(chosen), "largest and smallest"
    assert {c.imgsz for c in chosen} == {64, 96, 160} or {c.depth for c in chosen} == {1.0, 0.5}
    assert spread_out(SIZES[:2], WORKS, 6) == SIZES[:2]


def test_a_budget_is_read():
    assert read_budget("total.p95=12ms") == Budget("total", "p95", 12.0)
    assert read_budget("infer.p50=800us") == Budget("infer", "p50", 0.8)
    assert str(read_budget("post.p99=1s")) == "post.p99=1000ms"


@pytest.mark.parametrize(
    "text", ["12ms", "total=12ms", "total.p95=12", "total.p95=0ms", "totl.p95=1ms", "total.p94=1ms", None]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="such as budget=total.p95=12ms"):
        read_budget(text)


def test_a_percentile_that_the_profile_cannot_give_is_refused():
    smoke = BenchOptions(["a.onnx"], "images")
    check_percentile(read_budget("total.p99=5ms"), smoke)  # 500 frames, 299 needed
    with pytest.raises(UsageError, match="p999 needs 2995: give bench.profile=standard"):
        check_percentile(read_budget("total.p999=5ms"), smoke)
    with pytest.raises(UsageError, match="p99 needs 299"):
        check_percentile(read_budget("total.p99=5ms"), BenchOptions(["a.onnx"], "images", quick=True))
    check_percentile(read_budget("total.p999=5ms"), BenchOptions(["a.onnx"], "images", profile="standard"))
