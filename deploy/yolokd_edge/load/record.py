"""What the records of throughput and of a camera begin and end with."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from yolokd_edge.bench.facts import device_facts, model_facts, runtime_facts
from yolokd_edge.detector import Detector
from yolokd_edge.version import VERSION


def load_record(
    schema: str,
    seed: int,
    detector: Detector,
    protocol: dict[str, Any],
    results: dict[str, Any],
    reasons: Sequence[str],
    missing: dict[str, str],
) -> dict[str, Any]:
    """A record: which tool, what ran where, how it was measured, what was found, and the reasons to doubt it.

    Args:
        schema: its name.
        seed: of the order in which things were done.
        detector: what ran.
        protocol: how it was measured.
        results: what was found.
        reasons: why the figures may be wrong.
        missing: field -> why it is null; added to.
    """
    missing["tool.git"] = "an installed program knows no commit"
    missing.update({f"model.{key}": "the runtime does not tell it" for key in ("opset", "ir")})
    return {
        "schema": schema,
        "id": uuid.uuid4().hex,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tool": {"name": "yolokd_edge", "version": VERSION, "git": None},
        "command": list(sys.argv),
        "seed": seed,
        "model": model_facts(detector, missing),
        "runtime": runtime_facts(detector, missing),
        "device": device_facts(missing),
        "protocol": protocol,
        "results": results,
        "stability": {"verdict": "valid_with_warnings" if reasons else "valid", "reasons": list(reasons)},
        "notes": None,
        "unavailable": missing,
    }
