"""Latency reports made by hand from the schema yolokd.latency/1."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

RECORD: dict[str, Any] = {
    "schema": "yolokd.latency/1",
    "model": {"file": "student.onnx", "bytes": 3_300_000, "imgsz": [160, 160], "precision": "fp32", "task": "detect"},
    "accuracy": {"dataset": "d.yaml", "split": "val", "n_images": 200, "map50": 0.34, "map50_95": 0.211, "conf": 0.001},
    "parity": {"pass": True},
    "runtime": {
        "onnxruntime": "1.31.1",
        "provider_requested": "cpu",
        "providers_active": ["CPUExecutionProvider"],
        "ep_coverage": 1.0,
        "fallback": False,
        "intra_threads": 1,
    },
    "device": {"kind": "x86_64", "board_model": None, "cpu_model": "CPU X", "cores_online": 2, "serial_hash": None},
    "clocks": None,
    "protocol": {"profile": "standard", "repeats": 5, "streams": 1, "interleaved": False, "images": {"sha": "ab"}},
    "results": {"unit": "ms", "n": 5000, "stages": {}, "runs": []},
    "power": None,
    "stability": {"verdict": "valid", "reasons": []},
    "series": {"file": None, "sha256": None},
    "unavailable": {"power": "no rail"},
}


def stages(p50: float, spread: float = 0.0) -> dict[str, Any]:
    """Figures of all stages; the total's p50 is given, p99 is twice that, the interval p50 times 1 ± spread."""
    out = {}
    for stage, share in {"pre": 0.1, "infer": 0.8, "post": 0.1, "total": 1.0}.items():
        points = {"p50": p50 * share, "p90": 1.5 * p50 * share, "p95": 1.8 * p50 * share, "p99": 2 * p50 * share}
        ends = {k: [points[k] * (1 - spread), points[k] * (1 + spread)] if spread else None for k in ("p50", "p99")}
        out[stage] = {
            "mean": 1.1 * p50 * share,
            "min": p50 * share / 2,
            **points,
            "p999": None,
            "max": 4 * p50,
            "ci95": ends,
        }
    return out


def record(p50: float = 10.0, runs: tuple[float, ...] = (), spread: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A valid record; changes are dotted paths, `__` for the dot: stability__verdict="invalid"."""
    made = copy.deepcopy(RECORD)
    made["results"]["stages"] = stages(p50, spread)
    made["results"]["runs"] = [{"n": 1000, "stages": stages(run)} for run in runs]
    for path, value in changes.items():
        *above, last = path.split("__")
        place = made
        for key in above:
            place[key] = place = place[key] if isinstance(place.get(key), dict) else {}
        place[last] = value
    return made


def write(path: Path, *records: Any) -> Path:
    """A report of these records."""
    path.write_text(json.dumps(list(records)))
    return path
