"""The report: records as JSON with the raw samples beside them, and as a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.bench.schema import STAGES
from yolokd_edge.common import EdgeError, check_writable, json_text, printable, sha256


def write_report(
    records: list[dict[str, Any]], series: list[dict[str, np.ndarray]], out: str | Path, overwrite: bool = False
) -> Path:
    """Write the records as a JSON list and the raw samples beside it (.npz, key 'record number/name', ns int64).

    Each record then names its series file and checksum. Returns the path of the .npz.
    """
    out = check_report_place(out, overwrite)
    npz = out.with_suffix(".npz")
    arrays: dict[str, Any] = {
        f"{k}/{stage}": samples for k, stages in enumerate(series) for stage, samples in stages.items()
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with npz.open("wb") as file:
            np.savez_compressed(file, **arrays)
        for entry in records:
            entry["series"] = {"file": npz.name, "sha256": sha256(npz)}
        out.write_text(json_text(records, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"{out} cannot be written ({error.strerror}).") from None
    return npz


def check_report_place(out: str | Path, overwrite: bool = False) -> Path:
    """Refuse a place where an earlier report would be lost; called before measuring as well as before writing."""
    out = Path(out)
    if out.suffix.lower() == ".npz" or out.is_dir():
        raise EdgeError(f"{out} cannot be the report: give a file name such as report.json.")
    for path in (out, out.with_suffix(".npz")):
        if path.exists() and not overwrite:
            raise EdgeError(f"{path} exists already; choose another name for the report.")
    check_writable(out, str(out))
    return out


def _cell_name(entry: dict[str, Any]) -> str:
    runtime, size = entry["runtime"], "x".join(map(str, entry["model"]["imgsz"]))
    provider = runtime["providers_active"][0].replace("ExecutionProvider", "").lower()
    provider += " fp16" if (runtime.get("trt") or {}).get("fp16") else ""
    return f"{provider} {size}, threads {runtime['intra_threads']}, streams {entry['protocol']['streams']}"


def text_table(records: Sequence[dict[str, Any]]) -> str:
    """Records as a text table; the stages are medians, all times in ms. Then the reasons to doubt them."""
    head = ("model", "where", "MB", "precision", "pre", "infer", "post", "total p50", "95 %", "p90", "p99", "fps")
    rows = [(*head, "cpu_ratio", "verdict")]
    for entry in records:
        figures, model = entry["results"], entry["model"]
        stages = figures["stages"]
        ends = stages["total"]["ci95"]["p50"]
        cells = [printable(model["file"]), _cell_name(entry), f"{model['bytes'] / 1e6:.1f}", model["precision"]]
        cells += [_cell(stages[s]["p50"]) for s in STAGES]
        cells.append("-" if ends is None else "{:.2f}..{:.2f}".format(*ends))
        cells += [_cell(stages["total"][key]) for key in ("p90", "p99")]
        cells += [_cell(figures[key]) for key in ("fps_from_p50", "cpu_ratio")]
        rows.append((*cells, entry["stability"]["verdict"]))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(widths[k]) if k < 2 else c.rjust(widths[k]) for k, c in enumerate(row)) for row in rows]
    if any(r["results"].get("ci95_over") == "frames of one process" for r in records):
        lines.append("95 %: holds within one process only; three runs or more show how processes differ")
    notes = [f"{printable(r['model']['file'])}: {why}" for r in records for why in r["stability"]["reasons"]]
    return "\n".join(lines + notes)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
