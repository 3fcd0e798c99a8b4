"""The runs of a study as shell lines, for a cluster that has a queue of its own, with a SLURM array script for them.

A line runs one run wherever the study's folder, the data and this Python environment are found under the same paths.
What it leaves is what the study's own processes leave, so the study takes it for done, in whatever order lines ended.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.studies import processes
from yolokd.studies.plan import Job
from yolokd.studies.worker import SPEC, write_json

PRINT = "print"  # jobs=print
LINES, SCRIPT = "jobs.txt", "jobs.sbatch"
THREADS = 4  # of a run, whose machine is not known here


def write(waiting: Sequence[Job], out: Path, threads: int | None, device: Any) -> list[str]:
    """Prepare the runs, and write a line for each and the array script; returns the lines."""
    count = threads or THREADS
    for job in waiting:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / SPEC, job.spec)
    lines = [line(job, count) for job in waiting]
    for name, text in ((LINES, "".join(f"{one}\n" for one in lines)), (SCRIPT, script(len(lines), out, count, device))):
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
    return lines


def line(job: Job, threads: int) -> str:
    """The shell's words for a run, its output in log.txt; from here, where a recipe's file may be named from."""
    words = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, *processes.WORKER, str(job.folder), str(threads), ""]
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(words)} >> {shlex.quote(str(job.folder / 'log.txt'))} 2>&1"


def script(count: int, out: Path, threads: int, device: Any) -> str:
    """For `sbatch`: an array with one task for each line."""
    options = {"job-name": f"yolokd-{out.name}", "array": f"1-{count}", "cpus-per-task": threads, "output": "/dev/null"}
    if device != "cpu":
        options["gres"] = "gpu:1"
    head = "".join(f"#SBATCH --{key}={value}\n" for key, value in options.items())
    return f'#!/bin/bash\n{head}eval "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(out / LINES))})"\n'
