"""The record that `val --out` writes, read again by `bench`; standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolokd_edge.common import EdgeError, sha256

SCHEMA = "yolokd.accuracy/1"


def model_sum(path: Path) -> str:
    """Checksum of a file, or of all files of a folder."""
    return sha256(*(sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]))


def matching(files: list[str], path: Path, provider: str) -> dict[str, Any] | None:
    """The accuracy that one of val's records has of a model on a provider."""
    found = [read_record(file) for file in files]
    wanted = model_sum(path) if found else ""
    fits = [r["accuracy"] for r in found if (r["model"]["sha256"], r["provider"]) == (wanted, provider)]
    return fits[-1] if fits else None


def read_record(file: str) -> dict[str, Any]:
    """A record that `val --out` wrote."""
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        if record["schema"] == SCHEMA and {"sha256"} <= record["model"].keys() and isinstance(record["accuracy"], dict):
            return {**record, "provider": str(record["provider"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise EdgeError(f"--accuracy {file} is no record of `yolokd_edge val --out`.")
