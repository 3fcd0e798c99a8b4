"""`yolokd demo`: the whole workflow on a small data set, offline: compose, train twice, export, time, compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ultralytics.utils.files import increment_path

from yolokd.demo.scenes import compose
from yolokd.detectors.opening import open_student
from yolokd.distill.training import train
from yolokd.errors import UsageError
from yolokd.latency import drawing
from yolokd.latency.bench import bench
from yolokd.onnx.export import export
from yolokd.reports.after import after

ASSETS = Path(__file__).parent / "assets"
SCENES = {"train": 500, "val": 200}
# One budget for both runs; of each, the best epoch on validation is kept, as Ultralytics does.
BUDGET: dict[str, Any] = {
    "imgsz": 160, "epochs": 12, "batch": 16, "nbs": 16, "optimizer": "AdamW", "lr0": 0.002, "warmup_epochs": 1,
    "close_mosaic": 2, "cache": "ram", "amp": False, "device": "cpu", "workers": 0,
}  # fmt: skip
ROLES = ("teacher", "student alone", "student distilled")


def demo(out: str | Path | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Train the bundled student twice on the same budget and seed, alone and under the bundled teacher, and compare.

    Args:
        out: folder to write; a fresh runs/demo by default.
        seed: of the scenes and of both trainings.

    Returns:
        One row per model, teacher first: name, map50, map50_95, params, mb, p50_ms, p90_ms. The results are not
        adjusted; a demo without a gain says so.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed={seed} is not a whole number of 0 or more.")
    command = ["yolokd", "demo", f"seed={seed}", *([f"out={out}"] if out else [])]
    out = (Path(str(out)) if out else increment_path(Path("runs/demo"))).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out} exists and is not an empty folder: name a new one.")
    data = write_data(out / "data", seed=seed)
    weights = {"teacher": out / "teacher.pt", "student": out / "student.pt"}
    for name, file in weights.items():  # copies, so that exports and caches do not change the package's own files
        shutil.copy(ASSETS / f"{name}.pt", file)

    budget = {**BUDGET, "data": str(data), "seed": seed, "project": str(out)}
    _say("1/5  The student alone")
    alone = open_student(weights["student"])
    alone.train(**budget, name="alone")
    _say("2/5  The same student under the teacher")
    distilled = train(model=weights["student"], teacher=weights["teacher"], **budget, name="distilled")
    _say("3/5  The teacher on the validation scenes")
    teacher = open_student(weights["teacher"], "teacher")
    teacher.val(data=str(data), imgsz=160, device="cpu", workers=0, project=str(out), name="teacher")

    _say("4/5  Export to ONNX, checked against PyTorch")
    checkpoints = (weights["teacher"], alone.trainer.best, distilled.trainer.best)
    files = [
        export(checkpoint, out / f"{role.replace(' ', '-')}.onnx", source=data.parent / "images" / "val", imgsz=160)
        for role, checkpoint in zip(ROLES, checkpoints, strict=True)
    ]
    _say("5/5  Latency, one image at a time")
    records = bench(files, data.parent / "images" / "val", project=str(out), name="bench", quick=True)

    rows = [
        _row(role, model, checkpoint, file, record)
        for role, model, checkpoint, file, record in zip(
            ROLES, (teacher, alone, distilled), checkpoints, files, records, strict=True
        )
    ]
    picture = drawing.accuracy_latency(rows, out / "accuracy-latency.png")
    text = table(rows)
    (out / "demo.json").write_text(json.dumps({"seed": seed, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    (out / "demo.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{verdict(rows)}\n\nPicture: {picture}\nDistilled model: {files[-1]}\nAll files: {out}")
    after(out, command)
    return rows


def write_data(out: str | Path, seed: int = 0) -> Path:
    """Compose the demo's scenes into a folder that is new or empty; return the data set's YAML."""
    try:
        return compose(Path(out).resolve(), **SCENES, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _say(step: str) -> None:
    print(f"\n=== {step} ===", flush=True)


def _row(role: str, model: Any, checkpoint: Path, file: Path, record: dict[str, Any]) -> dict[str, Any]:
    total = record["results"]["stages"]["total"]
    return {
        "name": role,
        "map50": float(model.metrics.box.map50),
        "map50_95": float(model.metrics.box.map),
        "params": sum(p.numel() for p in open_student(checkpoint).model.parameters()),  # anew: validation fuses
        "mb": file.stat().st_size / 1e6,
        "p50_ms": total["p50"],
        "p90_ms": total["p90"],
    }


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a Markdown table; mAP in percent."""
    lines = ["| model | mAP50 | mAP50-95 | parameters | MB | p50 ms | p90 ms |", "|---|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        lines.append(
            f"| {r['name']} | {100 * r['map50']:.1f} | {100 * r['map50_95']:.1f} | {r['params']:,} | {r['mb']:.1f} | "
            f"{r['p50_ms']:.2f} | {r['p90_ms']:.2f} |"
        )
    return "\n".join(lines)


def verdict(rows: list[dict[str, Any]]) -> str:
    """The effect of distilling on this seed, in one sentence."""
    teacher, alone, distilled = rows
    gain = 100 * (distilled["map50"] - alone["map50"])
    gap = 100 * (teacher["map50"] - alone["map50"])
    if gain <= 0:
        return f"Distilling did not help on this seed: {gain:+.1f} points of mAP50."
    closed = f", {gain / gap:.0%} of the gap to the teacher" if gap > 0 else ""
    return f"Distilling gained {gain:+.1f} points of mAP50{closed} (one seed; the device runs the same model)."
