"""`yolokd.train()` and `yolokd.study()`, also behind the commands: the work, and the report that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO

from yolokd.config.parse import true_or_false
from yolokd.distill import training
from yolokd.errors import StudyError
from yolokd.reports import loggers
from yolokd.reports.after import after, told_as, typed
from yolokd.studies import runner


@told_as(training.train)
def train(*, report: bool = True, **arguments: Any) -> YOLO | RTDETR:
    return trained(arguments, report, typed("train", arguments))


def trained(arguments: dict[str, Any], report: Any, command: str) -> YOLO | RTDETR:
    """As `train`; the page shows the command."""
    true_or_false("report", report)
    trust, made = arguments.get("trust") is True, []

    def at_end(trainer: Any) -> None:
        made.append(True)
        if (file := after(trainer.save_dir, command, trust)) is not None:
            loggers.hand_over(trainer, file, trust)

    student = training.carry_out(arguments, at_end if report else None)
    if report and not made and student.trainer is not None:  # processes for several devices do not call back
        after(student.trainer.save_dir, command, trust)
    return student


@told_as(runner.study)
def study(
    methods: Any = None, arms: Any = None, seeds: Any = 3, out: Any = runner.OUT, *, report: bool = True, **rest: Any
) -> dict[str, Any]:
    arguments = {"methods": methods, "arms": arms, "seeds": seeds, "out": out, **rest}
    return studied(arguments, report, typed("study", {k: v for k, v in arguments.items() if v is not None}))


def studied(arguments: dict[str, Any], report: Any, command: str) -> dict[str, Any]:
    """As `study`; the page shows the command."""
    place = Path(str(arguments.get("out", runner.OUT)))
    trust = arguments.get("trust") is True
    if not true_or_false("report", report):
        return runner.study(**arguments)
    try:
        found = runner.study(**arguments)
    except StudyError:  # the runs that are there can be told of
        after(place, command, trust)
        raise
    after(place, command, trust)
    return found
