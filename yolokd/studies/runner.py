"""The runs of a study, each in a fresh process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolokd.errors import Interrupted, StudyError, UsageError
from yolokd.studies.plan import SCHEMA, Job, Study, plan_study
from yolokd.studies.report import summarise, write
from yolokd.studies.worker import PARENT, SPEC, write_json

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none
# The working directory is no place to import from: a checkout of yolokd there, or somebody's random.py.
RUNNER = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", "yolokd.studies.worker"]


def study(
    methods: Any = None,
    arms: str | Path | None = None,
    seeds: Any = 3,
    out: str | Path = "runs/study",
    jobs: int = 1,
    threads: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train a student in several ways over several seeds and say which is better, and whether that is certain.

    Args:
        methods: comma list of arms: a method, methods joined by "+", a recipe, or `builtin`, which is Ultralytics' own
            distillation. The student alone is always the first arm.
        arms: a YAML file of arms with options of their own, instead of `methods` or beside it, such as
            ``strong: {method: default, logit.gain: 6}``; `method` is the arm's name unless given.
        seeds: how many seeds, counted from 0, or a list of them such as 0,4,7.
        out: the study's folder. The same command goes on with what is missing; more arms or seeds may be added.
        jobs: runs at a time.
        threads: CPU threads of each run; by default the usable cores, shared out.
        **arguments: `model`, `teacher`, `data`, and whatever else `yolokd train` takes; a method's dotted options
            apply to the arms that use it. With val=False a run is validated after its last epoch only.

    Returns:
        What OUT/compare.json holds: per run and per arm mAP as fractions and seconds, paired differences as fractions.

    Raises:
        UsageError: something asked for cannot be done; nothing was written and no training was started.
        StudyError: some runs failed; the others are in the report.
    """
    for key, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{key}={value} is not a whole number of 1 or more.")
    plan = plan_study(methods, arms, seeds, out, arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.out / ".lock", timeout=0):
            return carry_out(plan, jobs, threads or max(1, usable_cores() // jobs))
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"the study was stopped and its runs ended: the same command goes on in {plan.out} with what is missing.",
            stop,
        ) from stop
    except Timeout as error:
        raise UsageError(
            f"out={plan.out} is being worked on by another process: wait for it or name another."
        ) from error


def carry_out(plan: Study, jobs: int, threads: int) -> dict[str, Any]:
    described = {"schema": SCHEMA, "arguments": plan.common, "arms": {a.name: a.arguments for a in plan.arms}}
    write_json(plan.out / "study.json", described)
    everything = plan.everything()
    waiting = [job for job in everything if job.result() is None]
    done = len(everything) - len(waiting)
    print(f"{len(everything)} runs in {plan.out}, {done} already done, {jobs} at a time with {threads} threads each")
    with closing(run_all(waiting, jobs, threads)) as runs:  # ends what runs, whatever happens in between
        for job, code in runs:
            done += 1
            if code == 0 and (result := job.result()) is not None:
                said = f"mAP50 {100 * result['map50']:.1f}, mAP50-95 {100 * result['map50_95']:.1f}"
                said += f", {result['wall_s']:.0f} s" if result.get("wall_s") else ""
            else:
                plan.failed[job.label] = _last_line(job.folder / "log.txt")
                said = f"failed: {plan.failed[job.label]}"
            print(f"[{done}/{len(everything)}] {job.label}: {said}", flush=True)
            _report(plan, jobs)
    report = _report(plan, jobs, plot=True)
    print(f"\n{(plan.out / 'compare.md').read_text(encoding='utf-8')}\nTables, figures and runs: {plan.out}")
    if plan.failed:
        raise StudyError(
            f"{len(plan.failed)} of {len(everything)} runs failed ({', '.join(plan.failed)}; why is in each one's "
            "log.txt): the same command tries them again."
        )
    return report


def run_all(waiting: list[Job], jobs: int, threads: int) -> Generator[tuple[Job, int], None, None]:
    """Run the jobs, the given number at a time, each in a fresh process; yields each and its exit code at its end."""
    queue = list(waiting)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}  # by process id
    try:
        while queue or running:
            while queue and len(running) < jobs:
                job = queue.pop(0)
                process = start_run(job, threads)
                running[process.pid] = (job, process)
            ended = [pid for pid, (_, process) in running.items() if process.poll() is not None]
            for pid in ended:
                job, process = running.pop(pid)
                yield job, process.returncode
            if not ended:
                time.sleep(0.2)
    finally:  # also after Ctrl-C: what is half done goes on next time
        end_all([process for _, process in running.values()])


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


def start_run(job: Job, threads: int) -> subprocess.Popen[bytes]:
    """Begin a run in a process of its own, its output in log.txt."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / SPEC, job.spec)
    count = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*RUNNER, str(job.folder), str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **count, PARENT: str(os.getpid())},
            start_new_session=True,  # a group of its own, which is ended as a whole
        )


def _last_line(log: Path) -> str:
    lines = [s for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if (s := line.strip())]
    return lines[-1][:200] if lines else "no word in log.txt"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(plan: Study, jobs: int, plot: bool = False) -> dict[str, Any]:
    results = {key: result for key, job in plan.jobs.items() if (result := job.result()) is not None}
    report = summarise(
        arms={arm.name: arm.level for arm in plan.arms},
        seeds=plan.seeds,
        results=results,
        teacher=plan.teacher.result() if plan.teacher else None,
        failed=plan.failed,
    )
    about = {"schema": SCHEMA, "arguments": plan.common, "jobs": jobs}
    about["arms"] = {arm.name: arm.arguments for arm in plan.arms}
    report = {**about, **report}
    write(report, plan.out, plot=plot)
    return report
