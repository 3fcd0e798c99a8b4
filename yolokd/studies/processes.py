"""Runs of a study as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass

from yolokd.studies.plan import Job
from yolokd.studies.worker import PARENT, SPEC, write_json

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none
# The working directory is no place to import from: a checkout of yolokd there, or somebody's random.py.
WORKER = [*(["-P"] if sys.version_info >= (3, 11) else []), "-m", "yolokd.studies.worker"]


@dataclass(frozen=True)
class Engine:
    """A way of carrying out the runs of a study."""

    said: str  # of how many run at a time, for the user
    at_once: int | None  # None where a cluster decides
    run: Callable[[list[Job]], Generator[tuple[Job, int], None, None]]  # yields each job and its exit code at its end


def engine(devices: list[str], threads: int | None) -> Engine:
    """Processes of this machine, one at a time on each device."""
    each = threads or max(1, usable_cores() // len(devices))
    on = f", each on one of {','.join(devices)}" if any(devices) else ""
    said = f"{len(devices)} at a time with {each} threads each{on}"
    return Engine(said, len(devices), lambda waiting: run_all(waiting, devices, each))


def run_all(waiting: list[Job], devices: list[str], threads: int) -> Generator[tuple[Job, int], None, None]:
    """Run the jobs, one at a time on each device; yields each and its exit code at its end.

    Args:
        devices: what each run gets for device=; an empty one leaves it to the run.
    """
    queue, free = list(waiting), list(devices)
    running: dict[int, tuple[Job, str, subprocess.Popen[bytes]]] = {}  # by process id
    try:
        while queue or running:
            while queue and free:
                job, device = queue.pop(0), free.pop(0)
                process = start_run(job, threads, device)
                running[process.pid] = (job, device, process)
            ended = [pid for pid, (*_, process) in running.items() if process.poll() is not None]
            for pid in ended:
                job, device, process = running.pop(pid)
                free.append(device)
                yield job, process.returncode
            if not ended:
                time.sleep(0.2)
    finally:  # also after Ctrl-C: what is half done goes on next time
        end_all([process for *_, process in running.values()])


def end_all(processes: list[subprocess.Popen[bytes]]) -> None:
    """End runs with all the processes that they started, and wait for them."""
    for number in (signal.SIGTERM, KILL):
        for process in processes:
            with suppress(OSError):  # all of it is gone
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, number)
                else:
                    process.terminate()
        for process in processes:
            process.wait()


def start_run(job: Job, threads: int, device: str = "", worker: list[str] | None = None) -> subprocess.Popen[bytes]:
    """Begin a run in a process of its own, its output in log.txt; another worker than WORKER is for tests."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / SPEC, job.spec)
    count = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *(worker or WORKER), str(job.folder), str(threads), device],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **count, PARENT: str(os.getpid())},
            start_new_session=True,  # a group of its own, which is ended as a whole
        )


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
