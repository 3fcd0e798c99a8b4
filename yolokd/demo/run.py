"""`yolokd demo`: the whole workflow on a small data set: train twice, export, time, compare."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils.files import increment_path

from yolokd.config.parse import true_or_false
from yolokd.data.mirror import mirror
from yolokd.demo import clock
from yolokd.demo.photographs import fetch, photographs
from yolokd.demo.setting import Setting, bundled
from yolokd.detectors.opening import open_student
from yolokd.distill.trainer import trainer_for
from yolokd.errors import UsageError
from yolokd.latency import drawing
from yolokd.latency.bench import bench
from yolokd.onnx.export import export
from yolokd.reports.after import after

CHECKED = 32  # validation images on which an exported file is compared with its checkpoint
ROLES = ("teacher", "student alone", "student distilled")


def demo(
    out: str | Path | None = None,
    seed: int = 0,
    real: bool = False,
    data: str | Path | None = None,
    teacher: str | Path | None = None,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Train a small student twice on the same budget and seed, alone and under a teacher, and compare.

    Args:
        out: folder to write; a fresh runs/demo by default.
        seed: of the scenes and of both trainings.
        real: True: on photographs, with a student of random weights; Ultralytics downloads 13 MB, the data set and the
            teacher.
        data: with real=True: the data set's YAML, coco128.yaml by default.
        teacher: with real=True: the teacher's .pt file, yolo11n.pt by default.
        threads: CPU threads; by default all cores or all but one, whichever is faster in a few measured steps.

    Returns:
        One row per model, teacher first: name, map50, map50_95, params, mb, p50_ms, p90_ms. The results are not
        adjusted; a demo without a gain says so.

    Raises:
        UsageError: something asked for cannot be done, or not be downloaded; no work was begun.
    """
    check_request(seed, real, data, teacher, threads)
    given = {"real": real or None, "data": data, "teacher": teacher, "out": out, "threads": threads}
    command = ["yolokd", "demo", f"seed={seed}", *(f"{k}={v}" for k, v in given.items() if v is not None)]
    folder = (Path(str(out)) if out else increment_path(Path("runs/demo"))).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"out={out} exists and is not an empty folder: name a new one.")
    setting = photographs(folder, seed, *fetch(data, teacher)) if real else bundled(folder, seed)
    print(f"\n{setting.about}", flush=True)
    rows, report = carry_out(setting, folder, threads, shlex.join(command))
    text = table(rows)
    (folder / "demo.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\n{verdict(rows)}\n")
    for what, file in (
        ("Picture", folder / "accuracy-latency.png"),
        ("Report", report or "not made, see the warning above"),
        ("Distilled model", folder / "student-distilled.onnx"),
        ("All files", folder),
    ):
        print(f"{what + ':':17}{file}")
    return rows


def check_request(seed: Any, real: Any, data: Any, teacher: Any, threads: Any) -> None:
    """Refuse what cannot be done."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed={seed} is not a whole number of 0 or more.")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads={threads} is not a whole number of 1 or more.")
    if not true_or_false("real", real):
        for key, value in (("data", data), ("teacher", teacher)):
            if value is not None:
                raise UsageError(f"{key}={value} is for the demo on photographs: give real=True with it.")


def carry_out(
    setting: Setting, out: Path, threads: int | None, command: str
) -> tuple[list[dict[str, Any]], Path | None]:
    """Train, export, time and report; the rows of the table, and the report unless it could not be made."""
    before = torch.get_num_threads()
    try:
        print("\nMeasuring a few steps ...", flush=True)
        pair = open_student(setting.student), open_student(setting.teacher, "teacher")
        if threads is None:
            threads, pace = clock.fastest(setting, *pair)
        else:
            pace = clock.measure(setting, *pair, threads)
        teacher = clock.with_threads(pair[1], threads)
        time = clock.Clock(clock.expected(setting, pace))
        print(f"\n{time.plan()}", flush=True)
        budget = {**setting.budget, "data": str(setting.data), "project": str(out)}

        time.next()
        alone = clock.with_threads(open_student(setting.student), threads, time.epoch)
        alone.train(**budget, name="alone")
        time.next()
        distilled = clock.with_threads(open_student(setting.student), threads, time.epoch)
        distilled.train(trainer=trainer_for(distilled.model), teacher=str(setting.teacher), **budget, name="distilled")
        time.next()
        same = {key: budget[key] for key in ("data", "imgsz", "device", "workers", "project", "plots")}
        teacher.val(**same, name="teacher")

        time.next()
        checked = mirror(sorted(setting.images.iterdir())[:CHECKED], out / "checked")
        checkpoints = (setting.teacher, alone.trainer.best, distilled.trainer.best)
        files = [
            export(checkpoint, out / f"{role.replace(' ', '-')}.onnx", source=checked, imgsz=budget["imgsz"])
            for role, checkpoint in zip(ROLES, checkpoints, strict=True)
        ]
        time.next()
        records = bench(files, setting.images, project=str(out), name="bench", quick=True)
        rows = [
            row(role, model, checkpoint, file, record)
            for role, model, checkpoint, file, record in zip(
                ROLES, (teacher, alone, distilled), checkpoints, files, records, strict=True
            )
        ]
        drawing.accuracy_latency(rows, out / "accuracy-latency.png")
        said = {"seed": setting.budget["seed"], "about": setting.about, "rows": rows}
        (out / "demo.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        time.next()
        return rows, after(out, command)
    finally:
        torch.set_num_threads(before)


def row(role: str, model: Any, checkpoint: Path, file: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A model's line of the table."""
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
