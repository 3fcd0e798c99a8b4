"""What candidates take: measured, and between measured ones estimated.

The estimate is a sum of what every frame takes and of shares of the candidate's work (operations, numbers written,
convolutions, pixels), none of them negative, fitted so that relative errors are small. How far it may be off is found
by leaving out each measured candidate in turn.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolokd.errors import UsageError
from yolokd.fitting.candidates import Candidate, Work
from yolokd.latency import schema
from yolokd.latency.gate import different
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.schema import PERCENTILES
from yolokd_edge.bench.statistics import samples_needed

BUDGET = re.compile(r"(\w+)\.(\w+)=(\d+(?:\.\d+)?)(us|ms|s)")
MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
TYPICAL = "p50"  # by which the time of detections is compared


@dataclass(frozen=True)
class Budget:
    """The most milliseconds that a percentile of a stage may take."""

    stage: str
    percentile: str
    ms: float

    @property
    def metric(self) -> str:
        return f"{self.stage}.{self.percentile}"

    def of(self, record: Mapping[str, Any]) -> float:
        """What a record says of the metric, ms."""
        value = schema.get(record, f"results.stages.{self.metric}")
        if value is None:
            why = schema.why_null(dict(record), f"results.stages.{self.metric}")
            raise UsageError(
                f"budget={self}: {record['model']['file']} was measured without {self.metric} ({why}): measure longer, "
                "bench.profile=standard, or choose another percentile."
            )
        return float(value)

    def __str__(self) -> str:
        return f"{self.metric}={self.ms:g}ms"


def read_budget(value: Any) -> Budget:
    """The budget in a text such as total.p95=12ms."""
    found = BUDGET.fullmatch(str(value).strip())
    percentiles = [key for key in schema.PERCENTILES if key != "mean"]
    if not found or found[1] not in schema.STAGES or found[2] not in percentiles or not float(found[3]):
        raise UsageError(
            f"budget={value} is no budget: write a stage ({', '.join(schema.STAGES)}), a percentile "
            f"({', '.join(percentiles)}) and a time with its unit, such as budget=total.p95=12ms."
        )
    return Budget(found[1], found[2], float(found[3]) * MS[found[4]])


def check_percentile(budget: Budget, options: BenchOptions) -> None:
    """Refuse a percentile for which the benchmark's profile counts too few frames."""
    frames, needed = options.runs * options.limits.n_min, samples_needed(PERCENTILES[budget.percentile])
    if frames < needed:
        raise UsageError(
            f"budget={budget}: profile {options.profile_name} is sure of {frames} frames and {budget.percentile} needs "
            f"{needed}: give bench.profile=standard, or a budget on a lower percentile."
        )


# --- the estimate ---------------------------------------------------------------------------------------------------


def fit_shares(work: Sequence[Work], ms: Sequence[float]) -> np.ndarray:
    """The times of one unit of each term of the work, none negative, with the least squares of relative errors."""
    matrix, target = np.array([w.terms() for w in work]), np.array(ms)
    matrix = matrix / target[:, None]
    best, shares = math.inf, np.zeros(matrix.shape[1])
    columns = range(matrix.shape[1])
    for chosen in itertools.chain.from_iterable(itertools.combinations(columns, k) for k in range(1, len(columns) + 1)):
        part = matrix[:, chosen]
        found, *_ = np.linalg.lstsq(part, np.ones(len(target)), rcond=None)
        error = float(((part @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < best:
            best, shares = error, np.zeros(matrix.shape[1])
            shares[list(chosen)] = found
    return shares


@dataclass
class Times:
    """What is known of the candidates' latency.

    Attributes:
        ms: of the budget's metric, measured.
        beyond: ms that detections take, added to what was measured without any.
        shares: the estimate's, see `fit_shares`.
        errors: of each measured candidate, the relative error of the estimate from the others.
    """

    works: Mapping[Candidate, Work]
    beyond: float = 0.0
    ms: dict[Candidate, float] = field(default_factory=dict)
    shares: np.ndarray | None = None
    errors: dict[Candidate, float] = field(default_factory=dict)

    def add(self, measured: Mapping[Candidate, float]) -> None:
        """Take in what was measured, and fit anew."""
        self.ms |= measured
        known = list(self.ms)
        self.shares = fit_shares([self.works[c] for c in known], [self.ms[c] for c in known])
        self.errors = {}
        for left_out in known if len(known) > 2 else ():
            others = [c for c in known if c != left_out]
            shares = fit_shares([self.works[c] for c in others], [self.ms[c] for c in others])
            self.errors[left_out] = float(shares @ self.works[left_out].terms()) / self.ms[left_out] - 1

    def of(self, candidate: Candidate) -> float:
        """ms with detections: measured, else estimated."""
        if candidate in self.ms:
            return self.ms[candidate] + self.beyond
        assert self.shares is not None
        return float(self.shares @ self.works[candidate].terms()) + self.beyond

    def typical_error(self) -> float:
        """Median size of the relative error of an estimate."""
        return float(np.median(np.abs(list(self.errors.values())))) if self.errors else math.nan

    def largest_error(self) -> float:
        """Largest size of the relative error of an estimate."""
        return float(np.abs(list(self.errors.values())).max()) if self.errors else math.nan


def spread_out(candidates: Sequence[Candidate], works: Mapping[Candidate, Work], most: int) -> list[Candidate]:
    """The candidates to measure first: the extremes of work, then always the one least like those chosen."""
    rows = np.log([works[c].terms()[1:] for c in candidates])
    scale = rows.std(0)
    rows = rows / np.where(scale > 0, scale, 1)
    order = rows.sum(1)
    chosen = list(dict.fromkeys([int(order.argmin()), int(order.argmax())]))
    while len(chosen) < min(most, len(candidates)):
        gaps = np.min([((rows - rows[k]) ** 2).sum(1) for k in chosen], axis=0)
        chosen.append(int(gaps.argmax()))
    return [candidates[k] for k in sorted(chosen[:most])]


# --- devices --------------------------------------------------------------------------------------------------------


def refuse_other_device(reference: dict[str, Any], record: dict[str, Any], given: str, out: Any) -> None:
    """Refuse a record of another device, or of other settings of the benchmark, than one that is already in use."""
    if found := [text for text in different(reference, record) if not text.startswith("model.")]:
        raise UsageError(
            f"device={given} was measured elsewhere or otherwise than what {out} holds ({found[0]}): give a report of "
            "that device, or another folder, out=."
        )
