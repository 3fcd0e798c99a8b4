"""The race costs what it says, never more than it may, and takes as many candidates as it has room for."""

from __future__ import annotations

import random

from yolokd.fitting.search import MOST, STARTUP, Round, plan_race, race_seconds


def test_a_race_halves_its_field():
    rounds = plan_race([60.0] * 4, 100, 60 * 100)
    assert [r.entrants for r in rounds] == [4, 2]
    assert rounds[0].epochs == 12 and rounds[1].epochs == 24, "each round half of the time"


def test_no_race_costs_more_than_it_may():
    rng = random.Random(0)
    for _ in range(2000):
        costs = [rng.uniform(1, 100) for _ in range(rng.randint(1, 12))]
        epochs, seconds = rng.randint(1, 300), rng.uniform(0, 20000)
        rounds = plan_race(costs, epochs, seconds)
        assert race_seconds(rounds, costs) <= seconds
        assert all(1 <= r.epochs <= max(epochs // 2, 1) for r in rounds)
        assert not rounds or rounds[0].entrants <= min(len(costs), MOST) and rounds[-1].entrants == 2


def test_with_little_time_fewer_race_and_with_less_none():
    def field(seconds: float) -> int:
        rounds = plan_race([10.0] * 8, 100, seconds)
        return rounds[0].entrants if rounds else 0

    fields = [field(seconds) for seconds in (10000, 2000, 1000, 400, 100, 0)]
    assert fields == sorted(fields, reverse=True) and fields[0] == 8 and fields[-1] == 0 and 0 < fields[-3] < 8


def test_one_candidate_needs_no_race():
    assert plan_race([1.0], 100, 1e9) == []


def test_what_a_process_takes_to_begin_counts():
    assert plan_race([1.0, 1.0], 2, 2 * STARTUP + 2) == [Round(2, 1)]
    assert plan_race([1.0, 1.0], 2, 2 * STARTUP) == []
