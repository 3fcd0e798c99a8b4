"""How often the 95 % intervals and bounds of the latency report hold the truth, on synthetic series.

    python benchmarks/interval_coverage.py [--runs 1000] [--bootstrap] [--out coverage.json]
    python benchmarks/interval_coverage.py --levels [--runs 1000] [--processes 5]

Each run draws a series whose percentiles are known: independent, first-order autoregressive (AR(1)) with several
correlations, or switching between two levels (a Markov chain, as clock changes make it). Latencies are exp() of the
normal variable: skewed as real ones are. The share of the runs whose interval holds the truth should be 95 %. For 1,000
runs its own standard error is 0.7 points. --bootstrap adds the moving-block bootstrap, for comparison.

--levels draws reports of several processes instead: each process's latencies are multiplied by a factor of its own,
exp() of a normal variable with a standard deviation of 0, 1 or 3 %. The truth is that of a process whose factor is 1.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from yolokd_edge.bench import statistics

LEVELS = {"p50": 0.5, "p99": 0.99}
SCALE, SPREAD = 20e6, 0.15  # ns, sigma of the logarithm


def autoregressive(rng: np.random.Generator, runs: int, n: int, phi: float) -> np.ndarray:
    """AR(1) series (runs, n), standard normal at each point."""
    noise = rng.standard_normal((n, runs))
    out = np.empty_like(noise)
    out[0] = noise[0]
    for k in range(1, n):
        out[k] = phi * out[k - 1] + math.sqrt(1 - phi * phi) * noise[k]
    return out.T


def latencies(normal: np.ndarray) -> np.ndarray:
    return SCALE * np.exp(SPREAD * normal)


def switching(rng: np.random.Generator, runs: int, n: int) -> np.ndarray:
    """Latencies (runs, n) that are half as long again for a fifth of the time, 20 frames at a stretch on average."""
    high = np.empty((n, runs), bool)
    high[0] = rng.random(runs) < 0.2
    for k in range(1, n):
        draw = rng.random(runs)
        high[k] = np.where(high[k - 1], draw < 0.95, draw < 0.0125)
    return (latencies(rng.standard_normal((n, runs))) * np.where(high, 1.5, 1.0)).T


def block_bootstrap(samples: np.ndarray, p: float, rng: np.random.Generator, draws: int = 500) -> tuple[float, float]:
    """Percentile interval of the moving-block bootstrap; blocks of max(50, 4 * first lag with correlation < 0.05)."""
    n = len(samples)
    centred = samples - samples.mean()
    rho = [float(centred[k:] @ centred[: n - k] / (centred @ centred)) for k in range(1, n // 4)]
    first = next((k + 1 for k, r in enumerate(rho) if r < 0.05), n // 4)
    length = min(max(50, 4 * first), n)
    starts = rng.integers(0, n - length + 1, (draws, -(-n // length)))
    index = (starts[..., None] + np.arange(length)).reshape(draws, -1)[:, :n]
    rank = math.ceil(p * n - 1e-9) - 1
    values = np.partition(samples[index], rank, axis=1)[:, rank]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def coverage(
    series: np.ndarray, truth: dict[str, float], bootstrap: bool, rng: np.random.Generator
) -> dict[str, float]:
    """Shares of the runs in which interval and upper bound exist and hold the truth (ms), and the mean n_eff."""
    held: dict[str, list[float]] = {}
    for samples in series:
        summary = statistics.summary(samples)
        for key, p in LEVELS.items():
            ends, bound = summary["ci95"][key], summary["upper95"][key]
            if ends is not None:
                held.setdefault(f"{key} interval", []).append(ends[0] <= truth[key] <= ends[1])
            if bound is not None:
                held.setdefault(f"{key} upper bound", []).append(truth[key] <= bound)
            held.setdefault(f"{key} given", []).append(ends is not None)
            if bootstrap:
                low, high = block_bootstrap(samples / 1e6, p, rng)
                held.setdefault(f"{key} bootstrap", []).append(low <= truth[key] <= high)
        held.setdefault("n_eff", []).append(summary["n_eff"])
    return {name: float(np.mean(values)) for name, values in held.items()}


def known(normal_levels: bool, rng: np.random.Generator) -> dict[str, float]:
    """The true percentiles in ms; of the switching series from ten million frames."""
    if normal_levels:
        return {k: float(latencies(np.array(NormalDist().inv_cdf(p)))) / 1e6 for k, p in LEVELS.items()}
    many = switching(rng, 10000, 1000)
    return {k: float(np.quantile(many, p)) / 1e6 for k, p in LEVELS.items()}


def two_levels(processes: int, runs: int, frames: list[int], rng: np.random.Generator) -> list[dict[str, object]]:
    """How often reports of several processes hold the truth, by the deviation of the processes and of their frames."""
    rows, truth = [], known(True, rng)
    for n in frames:
        for phi in (0.0, 0.6, 0.9):
            for deviation in (0.0, 0.01, 0.03):
                held: dict[str, list[float]] = {}
                for _ in range(runs):
                    factors = np.exp(deviation * rng.standard_normal(processes))
                    series = latencies(autoregressive(rng, processes, n, phi)) * factors[:, None]
                    summary = statistics.summary(*series)
                    for key in LEVELS:
                        ends, bound = summary["ci95"][key], summary["upper95"][key]
                        held.setdefault(f"{key} given", []).append(ends is not None)
                        if ends is not None and bound is not None:
                            held.setdefault(f"{key} interval", []).append(ends[0] <= truth[key] <= ends[1])
                            held.setdefault(f"{key} upper bound", []).append(truth[key] <= bound)
                shares = {name: round(float(np.mean(values)), 4) for name, values in held.items()}
                rows.append({"processes": processes, "n": n, "phi": phi, "deviation": deviation, **shares})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--levels", action="store_true")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 2500])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng: np.random.Generator = np.random.default_rng(args.seed)
    rows: list[dict[str, object]] = two_levels(args.processes, args.runs, args.frames, rng) if args.levels else []
    for n in () if args.levels else args.frames:
        for phi in (0.0, 0.3, 0.6, 0.8, 0.9, None):
            if phi is None:
                series = switching(rng, args.runs, n)
            else:
                series = latencies(autoregressive(rng, args.runs, n, phi))
            name = "switching" if phi is None else "independent" if phi == 0 else f"AR(1) {phi}"
            row = {"series": name, "n": n, **coverage(series, known(phi is not None, rng), args.bootstrap, rng)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"runs": args.runs, "seed": args.seed, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
