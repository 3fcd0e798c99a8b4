"""The runs of a study, each in a fresh process."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolokd.config.parse import one_of, true_or_false
from yolokd.errors import Interrupted, StudyError, UsageError, printable
from yolokd.studies import job_list, processes
from yolokd.studies import plan as planning
from yolokd.studies.plan import SCHEMA, Study, plan_study, read_devices
from yolokd.studies.processes import Engine
from yolokd.studies.report import summarise, write
from yolokd.studies.watching import watched
from yolokd.studies.worker import write_json

OUT = "runs/study"


def study(
    methods: Any = None,
    arms: str | Path | None = None,
    seeds: Any = 3,
    out: str | Path = OUT,
    jobs: int | str | None = None,
    threads: int | None = None,
    devices: Any = None,
    engine: str = "local",
    check: bool = True,
    starts: Any = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train a student in several ways over several seeds and say which is better, and whether that is certain.

    Args:
        methods: comma list of arms: a method, methods joined by "+", a recipe, or `builtin`, which is Ultralytics' own
            distillation, or `all`, which is the default recipe, every method and every paper's whole recipe, as far as
            the pair can have them. The student alone is always the first arm.
        arms: a YAML file of arms with options of their own, instead of `methods` or beside it, such as
            ``strong: {method: default, logit.gain: 6}``; `method` is the arm's name unless given.
        seeds: how many seeds, counted from 0, or a list of them such as 0,4,7.
        out: the study's folder. The same command goes on with what is missing; more arms or seeds may be added.
        jobs: runs at a time; by default one, or one on each of the devices. With `print` nothing is run: a shell line
            for each run that is missing is printed and written, with a SLURM array script, to be run elsewhere.
        threads: CPU threads of each run; by default the usable cores, shared out, or 4 with jobs=print.
        devices: a comma list such as 0,1,2,3: each run has one of them to itself.
        engine: `local`, or `ray` to run on the machines of a Ray cluster, which share the folder and the data.
        check: whether to look at data and scores before the first run, as `yolokd train` does.
        starts: a comma list of own, head, neck and teacher, as init= knows them: every arm from each of these starts,
            and the student alone too. By default each arm has its own init=.
        **arguments: `model`, `teacher`, `data`, and whatever else `yolokd train` takes; a method's dotted options
            apply to the arms that use it. With val=False a run is validated after its last epoch only.

    Returns:
        What OUT/compare.json holds: per run and per arm mAP as fractions and seconds, paired differences as fractions.
        With jobs=print of the runs that are done.

    Raises:
        UsageError: something asked for cannot be done; nothing was written and no training was started.
        StudyError: some runs failed; the others are in the report.
    """
    listed = jobs == job_list.PRINT
    for key, value in (("jobs", None if listed else jobs), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{key}={value} is not a whole number of 1 or more.")
    one_of("engine", engine, ("local", "ray"))
    true_or_false("check", check)
    if listed and (devices is not None or engine != "local"):
        given = f"devices={devices}" if devices is not None else f"engine={engine}"
        raise UsageError(f"jobs=print runs nothing, and {given} says where runs are at work: keep one of the two.")
    pool = read_devices(devices, None if listed or jobs is None else int(jobs), engine, arguments)
    plan = plan_study(methods, arms, seeds, out, arguments, starts)
    if check and not (plan.out / "study.json").is_file():  # else it was looked at when the study began
        planning.check_data(plan)
    chosen: Engine | None
    if listed:
        chosen = None
    elif engine == "ray":
        from yolokd.studies import ray_tasks

        chosen = ray_tasks.engine(threads, arguments.get("device"))
    else:
        chosen = processes.engine(pool, threads)
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.out / ".lock", timeout=0):
            if chosen is None:
                return list_jobs(plan, threads, arguments.get("device"))
            return carry_out(plan, chosen)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"the study was stopped and its runs ended: the same command goes on in {plan.out} with what is missing.",
            stop,
        ) from stop
    except Timeout as error:
        raise UsageError(
            f"out={plan.out} is being worked on by another process: wait for it or name another."
        ) from error


def list_jobs(plan: Study, threads: int | None, device: Any) -> dict[str, Any]:
    """Print and write what is missing, and report what is done."""
    describe(plan)
    waiting = [job for job in plan.everything() if job.result() is None]
    if waiting:
        lines = job_list.write(waiting, plan.out, threads, device)
        print("\n".join(lines))
        print(
            f"{len(lines)} runs are missing. Run the lines above, also in {plan.out / job_list.LINES}, anywhere and in "
            f"any order, or give {plan.out / job_list.SCRIPT} to sbatch; then the same command without jobs=print "
            "makes the tables.",
            file=sys.stderr,
        )
    else:
        print("No run is missing: the same command without jobs=print makes the tables.", file=sys.stderr)
    return _report(plan, None)


def describe(plan: Study) -> None:
    """Note what the study is, which also marks its folder."""
    described = {"schema": SCHEMA, "arguments": plan.common, "arms": {a.name: a.arguments for a in plan.arms}}
    described["left_out"] = plan.left_out
    if plan.left_out:
        print(
            f"{len(plan.left_out)} of methods=all cannot be had: {', '.join(plan.left_out)}. compare.md says why.",
            file=sys.stderr,
        )
    write_json(plan.out / "study.json", described)


def carry_out(plan: Study, engine: Engine) -> dict[str, Any]:
    """Do what is missing, and report."""
    describe(plan)
    everything = plan.everything()
    waiting = [job for job in everything if job.result() is None]
    done = len(everything) - len(waiting)
    print(f"{len(everything)} runs in {plan.out}, {done} already done, {engine.said}")
    # closing ends what runs, whatever happens in between
    with watched(waiting) as told, closing(engine.run(waiting)) as runs:
        for job, code in runs:
            done += 1
            if code == 0 and (result := job.result()) is not None:
                said = f"mAP50 {100 * result['map50']:.1f}, mAP50-95 {100 * result['map50_95']:.1f}"
                said += f", {result['wall_s']:.0f} s" if result.get("wall_s") else ""
            else:
                plan.failed[job.label] = _last_line(job.folder / "log.txt")
                said = f"failed: {plan.failed[job.label]}"
            told(f"[{done}/{len(everything)}] {job.label}: {said}")
            _report(plan, engine.at_once)
    report = _report(plan, engine.at_once, plot=True)
    print(f"\n{(plan.out / 'compare.md').read_text(encoding='utf-8')}\nTables, figures and runs: {plan.out}")
    if plan.failed:
        raise StudyError(
            f"{len(plan.failed)} of {len(everything)} runs failed ({', '.join(plan.failed)}; why is in each one's "
            "log.txt): the same command tries them again."
        )
    return report


def _last_line(log: Path) -> str:
    if not log.is_file():
        return "its process was not started"
    lines = [s for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if (s := line.strip())]
    return printable(lines[-1])[:200] if lines else "no word in log.txt"


def _report(plan: Study, jobs: int | None, plot: bool = False) -> dict[str, Any]:
    results = {key: result for key, job in plan.jobs.items() if (result := job.result()) is not None}
    report = summarise(
        arms={arm.name: arm.level for arm in plan.arms},
        seeds=plan.seeds,
        results=results,
        teacher=plan.teacher.result() if plan.teacher else None,
        failed=plan.failed,
        starts={arm.name: arm.start for arm in plan.arms if arm.start},
    )
    report["left_out"] = plan.left_out
    about = {"schema": SCHEMA, "arguments": plan.common, "jobs": jobs}
    about["arms"] = {arm.name: arm.arguments for arm in plan.arms}
    report = {**about, **report}
    write(report, plan.out, plot=plot)
    return report
