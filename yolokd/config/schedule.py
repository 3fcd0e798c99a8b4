"""How much a term weighs, and how that changes over the epochs: constant, decaying, warmed up, stopped early."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from yolokd.config.parse import is_number, shortened

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class Gain:
    """Weight of one term over a training; these options every method has."""

    gain: float = 1.0  # the weight; 0 leaves the term out
    schedule: str = "constant"  # constant, or linear or cosine from gain down to gain x floor in its last epoch
    floor: float = 0.0  # share of the gain that a decay ends at
    warmup: float = 0.0  # epochs over which the weight rises from near 0
    stop: int = 0  # last epochs without the term, such as those without mosaic
    started: float | None = None  # the gain where the student starts from its teacher; None: as elsewhere

    def __post_init__(self) -> None:
        _check("gain", self.gain, math.inf)
        _check("floor", self.floor, 1.0)
        _check("warmup", self.warmup, math.inf)
        if self.started is not None:
            _check("started", self.started, math.inf)
        if isinstance(self.stop, bool) or not isinstance(self.stop, int) or self.stop < 0:
            raise ValueError(f"stop={shortened(self.stop)} is not a whole number of epochs, 0 or more.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule} is not one of {', '.join(SCHEDULES)}.")

    def of_started(self) -> Gain:
        """The same for a student that starts from its teacher."""
        return self if self.started is None else replace(self, gain=self.started)

    def at(self, epoch: int, epochs: int) -> float:
        """Weight in an epoch, counted from 0, of a training of this number of epochs."""
        last = epochs - self.stop - 1  # the last epoch that has the term
        if epoch > last:
            return 0.0
        done = epoch / last if last > 0 else 0.0
        share = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[self.schedule]
        rise = min((epoch + 1) / (self.warmup + 1), 1.0)
        return self.gain * rise * (1 - share * (1 - self.floor))


GAIN = tuple(f.name for f in fields(Gain))


def _check(name: str, value: Any, most: float) -> None:
    if not is_number(value) or not 0 <= value <= most:
        bound = "of 0 or more" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{name}={shortened(value)} is not a number {bound}.")
