"""Whether the figures can be trusted: drift, other programs, two levels, throttling; and what slow frames met."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.bench.options import Limits
from yolokd_edge.bench.timing import COUNTS_SWITCHES
from yolokd_edge.bench.trial import Trial
from yolokd_edge.board.telemetry import Telemetry
from yolokd_edge.common import usable_cores

BLOCKS = 10
MIN_BLOCK_FRAMES = 20  # frames in a block, below which its median says little
DRIFT, DRIFT_THIRDS, DRIFT_VOID = 1.05, 1.03, 1.10
CONTENDED, CONTENDED_VOID = 0.97, 0.90  # CPU time over wall time, of a process that always has work
INTERRUPTED = 0.1  # share of the frames with an involuntary context switch
STOLEN, STOLEN_VOID = 0.01, 0.10  # share of the time that a hypervisor gave to others
MODE_SHARE, MODE_GAP = 0.1, 0.1  # of the frames on each side of a gap, and its width in medians


class Doubt(NamedTuple):
    """A reason to doubt the figures; one that voids them makes the record invalid."""

    text: str
    void: bool = False


class Drift(NamedTuple):
    """How the latency of one process moved while it was measured."""

    block_medians: list[float]  # ms
    ratio: float  # largest over smallest block median
    slope: float  # Theil-Sen slope of the block medians, % of the median per minute
    thirds: float  # median of the last third over that of the first


def measure_drift(series: dict[str, np.ndarray]) -> Drift | None:
    """Judge the total latency of one process; None with fewer than three frames per block."""
    total, start = np.asarray(series["total"]) / 1e6, np.asarray(series["start"]) / 6e10
    if len(total) < 3 * BLOCKS:
        return None
    levels = [float(np.median(block)) for block in np.array_split(total, BLOCKS)]
    minutes = [float(block.mean()) for block in np.array_split(start, BLOCKS)]
    pairs = [(i, j) for i in range(BLOCKS) for j in range(i) if minutes[i] > minutes[j]]
    slopes = [(levels[i] - levels[j]) / (minutes[i] - minutes[j]) for i, j in pairs]
    middle, third = float(np.median(total)), len(total) // 3
    thirds = float(np.median(total[-third:]) / np.median(total[:third]))
    return Drift(levels, max(levels) / min(levels), 100 * median(slopes or [0.0]) / middle, thirds)


def two_levels(samples: np.ndarray) -> tuple[float, float, float] | None:
    """(low, high, share of the high): the two levels of latencies that keep to two, or None.

    Two levels are seen where the ordered samples have a gap of a tenth of their median with at least a tenth of them
    on either side; both are medians.
    """
    ordered, edge = np.sort(np.asarray(samples, float)), max(int(len(samples) * MODE_SHARE), 1)
    if len(ordered) < 2 * edge + 2 or len(ordered) < 2 * MIN_BLOCK_FRAMES:
        return None
    gaps = np.diff(ordered)[edge - 1 : len(ordered) - edge]
    k = int(gaps.argmax()) + edge
    if gaps.max() < MODE_GAP * float(np.median(ordered)):
        return None
    return float(np.median(ordered[:k])), float(np.median(ordered[k:])), 1 - k / len(ordered)


def _drift_doubts(drifts: Sequence[Drift], frames: int) -> list[Doubt]:
    out = []
    worst = max(drifts, key=lambda d: max(d.thirds, 1 / d.thirds))
    apart = max(worst.thirds, 1 / worst.thirds)
    if apart > DRIFT_THIRDS:
        change = f"drift: the last third of a run took {worst.thirds - 1:+.1%} against the first"
        out.append(Doubt(change, apart > DRIFT_VOID))
    ratio = max(d.ratio for d in drifts)
    if ratio > DRIFT and frames >= BLOCKS * MIN_BLOCK_FRAMES:
        out.append(Doubt(f"drift: block medians differ by {ratio - 1:.1%}"))
    return out


def _disturbances(facts: Sequence[dict[str, Any]]) -> list[Doubt]:
    """Signs that other programs took the CPU."""
    out, first = [], facts[0]
    # On the CPU at least one thread always has work, so that less than one CPU was somebody else's doing.
    shares = [f["cpu_ratio"] * f["threads"] for f in facts if f["cpu_ratio"] is not None]
    if not first["uses_gpu"] and shares and min(shares) < CONTENDED:
        text = f"contended: the process had the CPU for {min(shares):.0%} of the measured time"
        out.append(Doubt(text, min(shares) < CONTENDED_VOID))
    # A process that waits for a GPU has no CPU to miss, but is interrupted where others want its core.
    interrupted = max(f["interrupted"] for f in facts)
    if first["uses_gpu"] and interrupted > INTERRUPTED:
        out.append(Doubt(f"contended: other programs interrupted {interrupted:.0%} of the frames"))
    stolen = max([f["steal"] for f in facts if f["steal"] is not None] or [0.0])
    if stolen > STOLEN:
        text = f"contended: the hypervisor took the CPU away for {stolen:.1%} of the time"
        out.append(Doubt(text, stolen > STOLEN_VOID))
    before, own = first["load"]["before"], first["threads"] * len({f["stream"] for f in facts})
    if before is not None and before > max(usable_cores() - own, 0) + 0.5:
        out.append(Doubt(f"busy: load average {before:.1f} on {usable_cores()} cores before the run"))
    return out


def doubts(
    trials: Sequence[Trial], limits: Limits, drifts: Sequence[Drift], telemetry: Telemetry | None
) -> list[Doubt]:
    """Every reason to doubt the figures of a record."""
    facts, first = [t.facts for t in trials], trials[0].facts
    out = []
    for f in facts:
        if f["n"] < limits.n_min or f["duration_s"] < limits.t_min_s:
            done = f"{f['n']} frames (at least {limits.n_min} wanted) and {f['duration_s']:g} s ({limits.t_min_s:g} s)"
            out.append(Doubt(f"time limit of {limits.t_max_s:g} s reached after {done}"))
            break
    if first["images"].get("random"):
        out.append(Doubt("random: frames were noise, not images: there is little for postprocessing to do"))
    elif first["images"]["n"] < 32:
        out.append(Doubt(f"only {first['images']['n']} different images, at least 32 are recommended"))
    if not all(f["warmup"]["stable"] for f in facts):
        out.append(Doubt("warmup_not_stable: latency still moved by more than 5 % when the warm-up was cut off"))
    out += _disturbances(facts)
    if drifts:
        out += _drift_doubts(drifts, min(f["n"] for f in facts))
    levels = two_levels(np.concatenate([t.series["total"] for t in trials]) / 1e6)
    if levels:
        out.append(Doubt("bimodal: latency keeps to {:.2f} ms and {:.2f} ms ({:.0%})".format(*levels)))
    if first["runtime"]["fallback"]:
        out.append(Doubt(f"fallback: {first['runtime']['providers_active'][0]} ran, not what was asked for"))
    if telemetry is not None:
        certain, doubtful = telemetry.throttled(first["uses_gpu"])
        out += [Doubt(text, True) for text in certain] + [Doubt(text) for text in doubtful]
        if telemetry.pinned() is False:
            out.append(Doubt("dvfs_active: clocks are not locked"))
    return out


def tail_attribution(trials: Sequence[Trial], p99_ms: float | None, ticks: np.ndarray) -> dict[str, Any] | None:
    """What happened during the frames above p99: the share of them with an involuntary switch or a monitor's tick."""
    if p99_ms is None or not COUNTS_SWITCHES:
        return None
    total, start, switches = (np.concatenate([t.series[k] for t in trials]) for k in ("total", "start", "switches"))
    slow = total > p99_ms * 1e6
    if not slow.any():
        return None
    first, last = np.searchsorted(ticks, start[slow]), np.searchsorted(ticks, (start + total)[slow], "right")
    return {
        "n": int(slow.sum()),
        "involuntary_switch": float((switches[slow] > 0).mean()),
        "monitor_tick": float((last > first).mean()),
        "gc": 0.0,  # it is off
        "involuntary_switch_all_frames": float((switches > 0).mean()),
    }
