"""Kill trainings at random moments, go on with each until it is finished, and count what is lost: kills.py [KILLS].

A moment is a time within the run, or a write of a checkpoint that is cut off in its middle; the last ones come after
the last epoch. Prints a line for each kill and ends with 1 if a run did not end as one that nobody killed.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from yolokd import cli
from yolokd.demo.scenes import compose
from yolokd.distill import saving, training  # noqa: F401  (imported before the forks)

ASSETS = Path(__file__).parents[1] / "yolokd" / "demo" / "assets"
EPOCHS = 3


def begin(folder: Path, words: Sequence[str], write: int = 0) -> int:
    """Train in a fork of this process, which has imported everything already; dies in the write of that number."""
    if (child := os.fork()) != 0:
        return child
    with (folder / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(folder)
    move, left = saving.move, [write]

    def dying(part: Path, file: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.truncate(part, 999)
            os.kill(os.getpid(), signal.SIGKILL)
        move(part, file)

    saving.move = dying  # type: ignore[assignment]
    os._exit(cli.main(["train", *words]))


def wait(child: int, seconds: float = 1e9) -> int:
    """How a fork ended; after `seconds` it is killed."""
    until = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1])


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def weights(file: Path) -> dict[str, torch.Tensor]:
    held = torch.load(file, map_location="cpu", weights_only=False)
    assert held["yolokd"]["teachers"] and held["optimizer"] is None
    state: dict[str, torch.Tensor] = held["model"].state_dict()
    return state


def judge(run: Path, whole: Path) -> tuple[bool, bool]:
    """Whether the run has every epoch once, the same files and its origin; whether its weights are the same too."""
    with (run / "results.csv").open() as table:
        epochs = [row["epoch"] for row in csv.DictReader(table)]
    right, same = epochs == [str(n + 1) for n in range(EPOCHS)] and files(run) == files(whole), True
    for name in ("best.pt", "last.pt"):
        mine, other = (weights(folder / "weights" / name) for folder in (run, whole))
        same &= all(torch.equal(mine[key], other[key]) for key in other)
    return right, same


def main(kills: int) -> int:
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    print(folder, flush=True)
    data = compose(folder / "scenes", train=24, val=8, imgsz=64, seed=3)
    words = [f"model={ASSETS / 'student.pt'}", f"teacher={ASSETS / 'teacher.pt'}", f"data={data}", "method=pkd,logit"]
    words += ["imgsz=64", "batch=8", f"epochs={EPOCHS}", "workers=0", "plots=False", "amp=False", "device=cpu", "nbs=8"]
    words += ["optimizer=AdamW", "lr0=0.001", "cache=ram", "balance=auto", "init=own", "warmup_epochs=0"]
    words += [f"unlabeled={data.parent / 'images' / 'val'}"]
    started = time.monotonic()
    code = wait(begin(folder, [*words, f"save_dir={folder / 'whole'}"]))
    assert code == 0, (folder / "log.txt").read_text()[-3000:]
    lasts, lost, draw = time.monotonic() - started, 0, random.Random(0)
    for k in range(kills):
        run, write = folder / f"run{k}", draw.choice([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
        child = begin(folder, [*words, f"save_dir={run}"], write)
        killed = wait(child, 1e9 if write else draw.uniform(0.3, 1) * lasts) != 0
        moment = f"within checkpoint write {write}" if write else "at a random time"
        saved = [file for name in ("last.pt", "best.pt") if (file := run / "weights" / name).is_file()]
        if not saved:
            print(f"{k}: {moment}: before its first epoch was saved, nothing to go on from", flush=True)
            continue
        held = torch.load(saved[0], map_location="cpu", weights_only=False)
        code = wait(begin(folder, [f"resume={run}"])) if killed and held["epoch"] >= 0 else 0
        right, same = judge(run, folder / "whole") if code == 0 else (False, False)
        lost += not right or (held["epoch"] == EPOCHS - 1 and not same)
        print(
            f"{k}: {moment}{'' if killed else ' (was done by then)'}: {saved[0].name} of epoch {held['epoch'] + 1}, "
            f"resume ends with {code}, epochs, files and origin {'right' if right else 'WRONG'}, weights "
            f"{'the same' if same else 'others'}",
            flush=True,
        )
    print(f"{kills} kills, {lost} lost")
    return int(lost > 0)


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", YOLO_OFFLINE="true", MPLBACKEND="Agg")
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
