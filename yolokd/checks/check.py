"""`yolokd check` and `yolokd.check()`: everything that can be known of a training before it starts."""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics import RTDETR, YOLO

from yolokd import __version__
from yolokd.checks import payoff, report
from yolokd.checks.rehearsal import estimate, measure, rehearsal
from yolokd.config.checks import check_arguments, check_writable
from yolokd.config.parse import non_negative, true_or_false
from yolokd.data.audit import Split
from yolokd.data.findings import PROBLEM, WARNING, Finding, counted, ordered
from yolokd.data.mirror import spread
from yolokd.data.splits import read_data
from yolokd.data.verdict import files_of, summary
from yolokd.detectors import read
from yolokd.detectors.teachers import EMA, load_teacher
from yolokd.distill.applicability import rounded_imgsz
from yolokd.distill.outlook import examine
from yolokd.distill.preflight import Ready, preflight
from yolokd.distill.training import build_student, fold, with_file
from yolokd.errors import DoubtError, UsageError
from yolokd.quiet import quiet

SCHEMA = "yolokd.check/1"
READY, NOT_READY, DOUBTFUL = 0, 2, 3
VERDICTS = {READY: "ready", NOT_READY: "not ready", DOUBTFUL: "doubtful"}
IMAGES = 200


def check(images: int = IMAGES, json: str | Path | None = None, **arguments: Any) -> dict[str, Any]:
    """Look at data and pair, measure whether the teacher is better, and estimate what a training costs; writes nothing
    into the data set and leaves no run.

    Args:
        images: how many validation images the scores are measured on at most, evenly spaced.
        json: a new file to write the outcome to.
        **arguments: `model`, `teacher`, `data`, and whatever else `yolokd train` takes.

    Returns:
        {"schema", "verdict", "code", "findings": [...], "data", "pair", "scores", "cost", "versions"}. The code is 0
        ready, 2 the training could not start, 3 it may not pay or the data has faults.

    Raises:
        UsageError: an option of the check itself cannot be used.
    """
    file = new_file(json)
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise UsageError(f"images={images} is not a number of images: give a whole number of 1 or more.")
    if arguments.get("resume"):
        raise UsageError(f"resume={arguments['resume']} cannot be checked: a check is for a new training.")
    with quiet():
        work = Work()
        work.look(arguments)
        if work.code != NOT_READY:
            with work.collecting():
                work.measure(images)
    outcome = {"schema": SCHEMA, "verdict": VERDICTS[work.code], "code": work.code, **work.told()}
    if file is not None:
        report.write(outcome, file)
    return outcome


def checked(**arguments: Any) -> None:
    """The command line's check: prints the report, then raises what is not ready with its exit code."""
    outcome = check(**arguments)
    print(report.text(outcome))
    found = [f["text"] for f in outcome["findings"] if f["level"] == (PROBLEM if outcome["code"] == 2 else WARNING)]
    if outcome["code"] == READY:
        return
    more = f" ({len(found) - 1} more above)" if len(found) > 1 else ""
    if outcome["code"] == NOT_READY:
        raise UsageError(f"{found[0].rstrip('.')}{more}.")
    raise DoubtError(f"doubtful, {counted(len(found), 'warning')}: {found[0].rstrip('.')}{more}.")


def new_file(json: str | Path | None) -> Path | None:
    """The file that json= names, which must be a new one."""
    if json is None:
        return None
    file = Path(str(json)).expanduser()
    if file.exists():
        raise UsageError(f"json={json} exists already: name a new file.")
    check_writable(file, f"json={json}")
    return file


@dataclass
class Work:
    """What is known so far of a training."""

    findings: list[Finding] = field(default_factory=list)
    folded: dict[str, Any] | None = None
    student: YOLO | RTDETR | None = None
    ready: Ready | None = None
    splits: list[Split] = field(default_factory=list)
    scores: list[payoff.Score] = field(default_factory=list)
    scored: int = 0  # validation images that the scores are measured on
    cost: dict[str, Any] | None = None
    stride: int = 8  # the student's smallest

    @property
    def code(self) -> int:
        """The exit code of what was found."""
        levels = {finding.level for finding in self.findings}
        return NOT_READY if PROBLEM in levels else DOUBTFUL if WARNING in levels else READY

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """A refusal becomes a problem, so that the next part is looked at too."""
        try:
            yield
        except UsageError as error:
            said = Finding(PROBLEM, str(error))
            self.findings += [said] if said not in self.findings else []

    def look(self, arguments: dict[str, Any]) -> None:
        """Arguments, student, teachers and data, each also where another one cannot be used."""
        arguments, trust = with_file(arguments), False
        scaling: dict[str, Any] = {}
        with self.collecting():
            trust = true_or_false("trust", arguments.get("trust", False))
            non_negative("kd", arguments.get("kd", 1.0))
            scaling, folded = fold(arguments)
            check_arguments(folded, trust)
            self.folded = folded
        if arguments.get("model"):
            with self.collecting():
                self.student = build_student(arguments, scaling, trust)
        data = None
        with self.collecting():
            data = read_data(arguments, trust)
        if self.folded and self.student and data:
            with self.collecting():
                self.ready = preflight(self.student, self.folded, trust)
        elif self.folded:
            for file in (file for file in self.folded["kd"]["teacher"] if file != EMA):
                with self.collecting():
                    load_teacher(file, trust=trust)
        if self.student and data:
            with self.collecting():
                self._audit(self.ready.data if self.ready else data, arguments)

    def _audit(self, data: dict[str, Any], arguments: dict[str, Any]) -> None:
        assert self.student is not None
        self.stride = min(read(self.student.model).strides)
        side = rounded_imgsz(arguments.get("imgsz") or 640, self.student.model)
        self.splits, found = examine(self.student, data, self.stride, side, arguments)
        self.findings += found

    def measure(self, most: int) -> None:
        """Scores and cost; most is the number of validation images for the scores."""
        ready, folded, student = self.ready, self.folded, self.student
        assert ready and folded and student
        train, val = self.splits
        arguments = {**folded, "model": str(student.ckpt_path or student.overrides["model"])}
        taken = spread(files_of(val), most)
        devices = len(str(folded.get("device") or "").split(","))
        with rehearsal(student.model, arguments, ready.data, files_of(train), taken, most) as trainer:
            start = copy.deepcopy(trainer.distiller.module)
            cost = measure(trainer)  # first: the process's peak of memory must be that of its steps
            self.scores, self.scored = payoff.scores(student, start, trainer, ready.plans, arguments), len(taken)
        self.findings += payoff.judge(self.scores, len(taken), val.total)
        own = [s.seconds for s in self.scores if s.of == "student"]
        validation = min(own) * val.usable / len(taken) if own and folded.get("val", True) else None
        share = folded.get("fraction", 1.0)
        used = train.usable * share if share <= 1 and not isinstance(share, int) else min(train.usable, int(share))
        self.cost = estimate(cost, max(round(used), 1), int(folded.get("epochs") or 100), validation, devices)

    def told(self) -> dict[str, Any]:
        """The outcome in plain values."""
        data = self.ready.data if self.ready else None
        names = data["names"] if data else {}
        return {
            "findings": [asdict(finding) for finding in ordered(self.findings)],
            "data": {"file": str((data or {}).get("yaml_file", "")), **summary(self.splits, names, self.stride)},
            "pair": report.pair(self.ready) if self.ready else None,
            "scores": {"images": self.scored, "models": [asdict(score) for score in self.scores]},
            "cost": self.cost,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Of everything that a training stands on."""
    own = {"yolokd": __version__, "ultralytics": ultralytics.__version__, "torch": torch.__version__}
    return {**own, "python": platform.python_version()}
