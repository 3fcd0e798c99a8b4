"""The race: short trainings of the best-ranked candidates, of which half are left after each round.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), in its synchronous form. Optuna's
SuccessiveHalvingPruner was looked at: it prunes a stream of trials one by one and lets the first ones of every round
through unpruned, which for a field of two to eight is most of the cost, and it cannot say beforehand what it will
cost. Each round's training is a whole one with a learning rate that falls, so that what it comes to can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 8  # candidates in a race
LEAST_SHARE = 0.05  # of the training's epochs that a first round must have, or it tells nothing
OVERHEAD = 1.3  # of a training under a teacher, over the networks' passes: terms, optimizer, images
STARTUP = 15.0  # seconds that a process takes before its first step and for its last validation


@dataclass(frozen=True)
class Round:
    """A round of the race."""

    entrants: int
    epochs: int


def plan_race(costs: Sequence[float], epochs: int, seconds: float) -> list[Round]:
    """The rounds of a race that takes at most the given time, for as many candidates as it has room for.

    Args:
        costs: seconds of an epoch of each candidate, the best-ranked first.
        epochs: of the training that comes after it.
        seconds: that the race may take.

    Returns:
        The rounds; none where there is no room for two candidates.
    """
    least = max(math.ceil(LEAST_SHARE * epochs), 1)
    for count in range(min(len(costs), MOST), 1, -1):
        sizes = [count]
        while sizes[-1] > 2:
            sizes.append(math.ceil(sizes[-1] / 2))
        dearest = sorted(costs[:count], reverse=True)
        each = (seconds - STARTUP * sum(sizes)) / len(sizes)  # of a round, beside its processes' beginnings
        rounds = [Round(n, min(int(each / sum(dearest[:n])), max(epochs // 2, 1))) for n in sizes]
        if rounds[0].epochs >= least:
            return rounds
    return []


def race_seconds(rounds: Sequence[Round], costs: Sequence[float]) -> float:
    """The most that a race takes: in each round the dearest are left."""
    if not rounds:
        return 0.0
    dearest = sorted(costs[: rounds[0].entrants], reverse=True)
    return sum(r.epochs * sum(dearest[: r.entrants]) + r.entrants * STARTUP for r in rounds)


def epoch_seconds(step: float, batch: int, images: int) -> float:
    """Seconds of an epoch over a number of images, from those of a step over a batch."""
    return OVERHEAD * step * images / batch
