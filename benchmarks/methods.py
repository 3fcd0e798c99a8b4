"""One short training a method, on its default tap, beside the student alone.

    python benchmarks/methods.py data=scenes.yaml model=student.pt teacher=teacher.pt out=methods.md

The table says whether a method's term falls and the training stays healthy. One seed ranks nothing.
Another pair of heads, such as RT-DETR under RT-DETR, is another call; a method that it cannot have is named with the
reason, and method= takes a comma list. Arguments of Ultralytics' training may be given; the defaults are below.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

from ultralytics import YOLO

from yolokd import train
from yolokd.config.parse import parse_pairs
from yolokd.errors import UsageError
from yolokd.methods import METHODS

SETTINGS = {
    "imgsz": 160, "batch": 16, "nbs": 16, "epochs": 3, "fraction": 320 / 3000, "optimizer": "AdamW", "lr0": 0.002,
    "warmup_epochs": 0, "close_mosaic": 0, "amp": False, "cache": "ram", "workers": 0, "plots": False,
    "val": False, "seed": 0,
}  # fmt: skip
TASK = ("box_loss", "cls_loss", "dfl_loss")
HEAD = "| method | term, first epoch | last | task loss, last | mAP50 | mAP50-95 |\n|---|--:|--:|--:|--:|--:|\n"


def main(model: str, teacher: str, data: str, out: str, method: str = "", **settings: Any) -> None:
    """Write the table, a row as soon as it is known."""
    file = Path(out)
    if file.exists():
        raise UsageError(f"out={out} is there already: choose another name.")
    settings = {**SETTINGS, "data": data, **settings}
    keys = method.split(",") if method else list(METHODS)
    with file.open("w", encoding="utf-8") as table, tempfile.TemporaryDirectory() as folder:
        table.write(HEAD)
        for key in ("", *keys):
            try:
                table.write(row(key, run(key, model, teacher, {**settings, "project": folder, "name": key or "alone"})))
            except UsageError as error:  # the pair cannot have it
                table.write(f"| {key} | {error} | | | | |\n")
            table.flush()


def run(key: str, model: str, teacher: str, settings: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of results.csv of a training under one method, of the student alone without a key."""
    if key:
        student = train(model=model, teacher=teacher, method=key, init="own", **settings)  # the term's part alone
    else:
        student = YOLO(model)
        student.train(**settings)
    with open(student.trainer.csv, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row(key: str, epochs: list[dict[str, str]]) -> str:
    """One line of the table."""
    first, last = epochs[0], epochs[-1]
    own = [c for c in last if c.startswith("train/") and c.endswith("_loss") and c.removeprefix("train/") not in TASK]
    term = [f"{float(epoch[c]):.4g}" for epoch in (first, last) for c in own[:1]] or ["", ""]
    task = sum(float(last[f"train/{name}"]) for name in TASK if f"train/{name}" in last)
    accuracy = [100 * float(last[f"metrics/{name}(B)"]) for name in ("mAP50", "mAP50-95")]
    return f"| {key or 'student alone'} | {' | '.join(term)} | {task:.3f} | {accuracy[0]:.1f} | {accuracy[1]:.1f} |\n"


if __name__ == "__main__":
    main(**parse_pairs(sys.argv[1:]))
