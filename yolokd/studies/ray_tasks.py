"""Runs of a study as tasks of a Ray cluster: each on the machine that has room for it.

A task starts the same process as a study on one machine does, and ends it with itself. Whatever a run leaves lies in
the study's folder, which the machines share: so a run that is finished is not begun again by anybody, and one whose
process, task or machine was killed is begun again by Ray, going on from its last epoch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from yolokd.distill.together import restore
from yolokd.errors import UsageError, one_line
from yolokd.studies import processes
from yolokd.studies.plan import Job
from yolokd.studies.processes import Engine, end_all, start_run

AGAIN = 2  # times that a killed run is begun again
PATIENCE = 5  # seconds that stopped tasks have to end their runs; one that Ray was still loading never answers


class KilledError(RuntimeError):
    """A run's process was ended by a signal."""


def engine(threads: int | None, device: Any) -> Engine:
    """Tasks of the cluster that RAY_ADDRESS names or that runs here, or of this machine alone."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("engine=ray needs Ray, which is not installed: pip install 'yolokd[ray]'.") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if begun := not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        restore({signal.SIGTERM: before})  # Ray's own would end a study without a word
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = device != "cpu" and any(node.get("GPU") for node in nodes)
    able = [node for node in nodes if node.get("GPU") or not gpu]
    cores = [int(node.get("CPU", 0)) // int(node.get("GPU", 0) if gpu else 1) for node in able]
    each = threads or max(1, min(cores))
    if each > (most := max(int(node.get("CPU", 0)) for node in able)):
        raise UsageError(f"threads={threads} is more than any machine of the cluster has: give {most} or fewer.")
    said = f"as Ray tasks on {len(able)} machines, {'a GPU and ' if gpu else ''}{each} threads each"
    return Engine(said, None, lambda waiting: run_all(waiting, each, gpu, begun))


def run_all(waiting: list[Job], threads: int, gpu: bool, begun: bool) -> Generator[tuple[Job, int], None, None]:
    """Hand all jobs to the cluster; yields each and its exit code at its end."""
    import ray

    room = {"num_cpus": threads, "num_gpus": int(gpu), "max_retries": AGAIN, "retry_exceptions": [KilledError]}
    task: Any = ray.remote(**room)(run)
    running = {task.remote(job, threads, processes.WORKER): job for job in waiting}
    try:
        while running:
            ended, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
            for ref in ended:
                job = running.pop(ref)
                yield job, _code(ref, job)
            if not ended:
                time.sleep(0.2)  # and not in Ray, which takes SIGTERM for Ctrl-C
    finally:  # also after Ctrl-C: what is half done goes on next time
        stop(list(running))
        if begun:  # here, for this study
            ray.shutdown()


def stop(tasks: list[Any]) -> None:
    """End tasks and so their runs."""
    import ray

    for task in tasks:
        ray.cancel(task)
    _, left = ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE) if tasks else ([], [])
    for task in left:
        ray.cancel(task, force=True)


def run(job: Job, threads: int, worker: list[str]) -> int:
    """The task: exit code of the job's process, on whichever machine this is."""
    if job.result() is not None:
        return 0
    if not any((above / "study.json").is_file() for above in job.folder.parents):
        raise UsageError(f"{job.folder} is on no disk that this machine shares: give an out= that all machines see.")
    process = start_run(job, threads, worker=worker)
    try:
        while process.poll() is None:
            time.sleep(0.2)
    finally:
        end_all([process])
    if process.returncode < 0:
        raise KilledError(f"the run's process was ended by signal {-process.returncode}")
    return int(process.returncode)


def _code(ended: Any, job: Job) -> int:
    """A task's exit code; where it has none, the run's log says why."""
    import ray

    try:
        return int(ray.get(ended))
    except (ray.exceptions.RayError, KilledError, UsageError) as error:
        _note(job.folder / "log.txt", one_line(getattr(error, "cause", None) or error))
        return 1


def _note(log: Path, text: str) -> None:
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")
