"""Latency reports (schema yolokd.latency/1): read and checked, so that other code can rely on their form."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from yolokd.errors import UsageError, as_path
from yolokd_edge.bench import schema

SCHEMA, STAGES, PERCENTILES = schema.SCHEMA, schema.STAGES, ("mean", *schema.PERCENTILES)
# Required keys with their types; everything else may be null or absent.
FORM: dict[str, Any] = {
    "model": {"file": str},
    "runtime": {"providers_active": list},
    "device": {},
    "protocol": {},
    "stability": {},
    "results": {"stages": {stage: {} for stage in STAGES}},
}


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a report, at least one.

    Raises:
        UsageError: the file is missing, damaged or of another schema; the sentence names the file.
    """
    file = as_path("report", path)
    if not file.is_file():
        raise UsageError(f"{path} does not exist: give a report that `yolokd bench` wrote, such as report.json.")
    try:
        content = json.loads(
            file.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite, parse_int=_finite
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged or not a JSON file ({str(error)[:100].rstrip('.')}).") from error
    records = content if isinstance(content, list) else [content]
    if not records:
        raise UsageError(f"{path} does not hold a record: measure again with `yolokd bench`.")
    for record in records:
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise UsageError(f"{path} is of schema {schema!r}, not {SCHEMA!r}: give a report of this version's bench.")
        _check_form(path, record, FORM, "")
        _check_figures(path, record)
    return records


def _finite(text: str) -> float:
    """A number of JSON that a float holds too, which NaN, 1e999 and a whole one of 400 digits are not."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a number")
    return int(text) if text.lstrip("-").isdigit() else value


def _check_form(path: str | Path, section: dict[str, Any], form: dict[str, Any], where: str) -> None:
    for key, expected in form.items():
        value, name = section.get(key), f"{where}{key}"
        kind = dict if isinstance(expected, dict) else expected
        if not isinstance(value, kind):
            raise UsageError(f"{path} is damaged: {name} is {json.dumps(value)[:40]}, not a {kind.__name__}.")
        if isinstance(expected, dict):
            _check_form(path, value, expected, f"{name}.")


def _check_figures(path: str | Path, record: dict[str, Any]) -> None:
    """Refuse times that are not positive numbers, of single runs as well as pooled, and what is read beside them."""
    beside = {
        "runtime.provider_requested": str,
        "stability.reasons": list,
        "stability.verdict": str,
        "unavailable": dict,
    }
    for key, kind in beside.items():
        value = get(record, key)
        if value is not None and not isinstance(value, kind):
            raise UsageError(f"{path} is damaged: {key} is {json.dumps(value)[:40]}, not a {kind.__name__}.")
    for key in ("accuracy.map50", "accuracy.map50_95"):
        value = get(record, key)
        if value is not None and not (number(value) and 0 <= value <= 1):
            raise UsageError(f"{path} is damaged: {key} is {json.dumps(value)[:40]}, not a fraction.")
    results = record["results"]
    runs = results.get("runs") or []
    if not isinstance(runs, list) or not all(isinstance(r, dict) and isinstance(r.get("stages"), dict) for r in runs):
        raise UsageError(f"{path} is damaged: results.runs is not a list of runs with their stages.")
    for name, stages in [
        ("results", results["stages"]),
        *((f"results.runs[{k}]", r["stages"]) for k, r in enumerate(runs)),
    ]:
        for stage, figures in stages.items():
            for key in PERCENTILES:
                value = figures.get(key) if isinstance(figures, dict) else math.nan
                if value is not None and not is_time(value):
                    raise UsageError(f"{path} is damaged: {name}.{stage}.{key} is {value!r}, not a time in ms.")


def number(value: Any) -> bool:
    """Whether value is a finite number, also as a float: Python's integers have no end."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_time(value: Any) -> bool:
    """Whether value is a time in ms, from a billionth of one to 30 years: a ratio of two is a number again."""
    return number(value) and 1e-9 <= value <= 1e12


def get(record: Any, dotted: str) -> Any:
    """The value at a dotted path such as device.cpu_model, or None."""
    for key in dotted.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def why_null(record: dict[str, Any], dotted: str) -> str:
    """The record's own reason why a value is null; `*` in its keys stands for any stage."""
    reasons = record.get("unavailable") or {}
    starred = [k for k in reasons if _fits(k.split("."), dotted.split("."))]
    return str(reasons[starred[0]]) if starred else "the report gives no reason"


def _fits(pattern: list[str], path: list[str]) -> bool:
    """Whether a pattern matches the path or a part of it from the start."""
    return len(pattern) <= len(path) and all(p in ("*", name) for p, name in zip(pattern, path, strict=False))


def cell(record: dict[str, Any], model: bool = True) -> tuple[Any, ...]:
    """The values that distinguish records of one report: settings, and the model if there are several."""
    settings = ("model.imgsz", "runtime.intra_threads", "protocol.streams")
    keys = (*settings, *(("model.file", "model.precision") if model else ()))
    return (*(str(get(record, k)) for k in keys), str(record["runtime"]["providers_active"][:1]))


def label(record: dict[str, Any]) -> str:
    """A record's short name: file, and the settings that sweeps vary."""
    half = "fp16" if get(record, "runtime.trt.fp16") else ""  # of the engine; the file's precision may differ
    size, threads, streams = (get(record, k) for k in ("model.imgsz", "runtime.intra_threads", "protocol.streams"))
    provider = str(next(iter(record["runtime"]["providers_active"]), "none")).replace("ExecutionProvider", "").lower()
    more = [
        f"{provider} {half}".rstrip(),
        "x".join(map(str, size)) if isinstance(size, list) else "",
        f"threads {threads}" if threads else "",
    ]
    more.append(f"streams {streams}" if streams and streams != 1 else "")
    return f"{record['model']['file']} ({', '.join(m for m in more if m)})"
