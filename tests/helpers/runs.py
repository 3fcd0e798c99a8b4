"""Folders as a run, a study, a demo and a measurement leave them, without a training: models and figures are given."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from helpers import reports
from helpers.training import ASSETS
from yolokd.distill.provenance import sign, trained
from yolokd.studies.report import summarise
from yolokd.studies.worker import write_json

STUDENT, TEACHER = ASSETS / "student.pt", ASSETS / "teacher.pt"
METHODS = {"logit": {"gain": 3.0}}
MAP = "metrics/mAP50-95(B)"


def table(scores: Sequence[float], **columns: Sequence[float]) -> list[dict[str, float]]:
    """Rows of results.csv with these mAP50-95; other columns have a figure an epoch, `__` for the slash."""
    made = []
    for i, score in enumerate(scores):
        row = {"epoch": i + 1, "time": 2.0 * i, "train/box_loss": 2.0, "train/cls_loss": 1.0}
        row |= {"val/box_loss": 2.0, "val/cls_loss": 1.0, "metrics/mAP50(B)": 1.5 * score, MAP: score}
        made.append(row | {name.replace("__", "/"): values[i] for name, values in columns.items()})
    return made


def run(folder: Path, model: Path, data: Path, rows: list[dict[str, float]], teacher: Path | None = TEACHER) -> Path:
    """A training's folder; without a teacher that of the student alone."""
    (folder / "weights").mkdir(parents=True)
    best = shutil.copy(model, folder / "weights" / "best.pt")
    arguments: dict[str, Any] = {"task": "detect", "model": str(model), "data": str(data), "imgsz": 64, "device": "cpu"}
    if teacher:
        sign(best, trained([str(teacher)], METHODS, 1.0, "teacher", str(data)))
        arguments["kd"] = {"teacher": [str(teacher)]}
    (folder / "args.yaml").write_text(yaml.safe_dump(arguments))
    write_rows(folder, rows)
    return folder


def write_rows(folder: Path, rows: list[dict[str, float]]) -> None:
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def study(folder: Path, data: Path, gains: Sequence[float], rows: list[dict[str, float]], arm: str = "default") -> Path:
    """A study of the student alone and one arm, with a gain for each seed; the arm's model is the teacher itself."""
    common = {"model": str(STUDENT), "teacher": str(TEACHER), "data": str(data), "imgsz": 64}
    arms = {"alone": {"imgsz": 64}, arm: {**common, "method": "default"}}
    results = {}
    for seed, gain in enumerate(gains):
        run(folder / "alone" / f"seed{seed}" / "train", STUDENT, data, table([0.1, 0.2]), teacher=None)
        run(folder / arm / f"seed{seed}" / "train", TEACHER, data, rows)
        results["alone", seed] = {"map50": 0.3, "map50_95": 0.2, "wall_s": 10.0}
        results[arm, seed] = {"map50": 0.3 + gain, "map50_95": 0.2 + gain, "wall_s": 15.0}
    levels = {"alone": "", arm: "logit"}
    summary = summarise(levels, range(len(gains)), results, {"map50": 0.6, "map50_95": 0.5}, {})
    write_json(folder / "compare.json", {"schema": "s", "arguments": common, "jobs": 1, "arms": arms, **summary})
    return folder


def bench(folder: Path, p50: Sequence[float] = (2.0, 1.0), names: Sequence[str] = ("a.onnx", "b.onnx")) -> Path:
    """A report of `bench` with its samples."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = {}
    random = np.random.default_rng(0)
    for i, middle in enumerate(p50):
        for stage, share in {"pre": 0.1, "infer": 0.8, "post": 0.1, "total": 1.0}.items():
            samples[f"{i}/{stage}"] = (1e6 * middle * share * random.uniform(0.9, 1.5, 50)).astype(int)
    file = folder / "samples.npz"
    np.savez(file, **samples)
    series = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    records = [reports.record(p, spread=0.1, model__file=n, series=series) for p, n in zip(p50, names, strict=True)]
    return reports.write(folder / "report.json", *records)


def demo(folder: Path, data: Path) -> Path:
    """A demo's folder."""
    run(folder / "alone", STUDENT, data, table([0.1, 0.2]), teacher=None)
    run(folder / "distilled", TEACHER, data, table([0.1, 0.3], train__logit_loss=[1.0, 1.0]), folder / "teacher.pt")
    shutil.copy(TEACHER, folder / "teacher.pt")
    bench(folder / "bench")
    figures = {"teacher": (0.6, 2.5, 3.0), "student alone": (0.3, 1.2, 1.5), "student distilled": (0.5, 1.1, 1.6)}
    rows = [
        {"name": name, "map50": m, "map50_95": m / 2, "params": 1000, "mb": 1.0, "p50_ms": a, "p90_ms": b}
        for name, (m, a, b) in figures.items()
    ]
    (folder / "demo.json").write_text(json.dumps({"seed": 0, "rows": rows}))
    return folder
