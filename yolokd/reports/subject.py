"""What a folder holds: one training, a study, a demo or a measurement, read from the files that they write."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from yolokd.detectors.opening import read_content
from yolokd.detectors.teachers import EMA
from yolokd.distill.applicability import term_name
from yolokd.distill.provenance import Provenance
from yolokd.errors import UsageError, as_path
from yolokd.methods import METHODS

Kind = Literal["train", "study", "demo", "bench"]
TEACHER, ALONE, DISTILLED = "teacher", "student alone", "distilled"
BENCH = "report.json"  # of `yolokd bench`
DEMO = "demo.json"
GIVE = "give the folder of a run, a study, a demo or a measurement, or a report.json of `yolokd bench`"
STUDY = {"arguments": dict, "arms": dict, "seeds": list, "summary": list, "comparisons": list, "runs": list}


@dataclass(frozen=True)
class Run:
    """One training's folder."""

    folder: Path
    role: str  # ALONE or DISTILLED
    arm: str = ""  # of a study
    seed: int | None = None
    trust: bool = False

    @property
    def name(self) -> str:
        """The arm's, or the role's outside a study."""
        return self.arm or self.role

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The training's, as Ultralytics saved them."""
        try:
            found = yaml.safe_load((self.folder / "args.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def epochs(self) -> list[dict[str, float]]:
        """The rows of results.csv; nan for what is no number."""
        try:
            with (self.folder / "results.csv").open(encoding="utf-8", errors="replace") as file:
                return [{k.strip(): number(v) for k, v in row.items() if k} for row in csv.DictReader(file)]
        except OSError:
            return []

    def column(self, name: str) -> list[float]:
        """One column of results.csv, nan where it has no number."""
        return [row.get(name, math.nan) for row in self.epochs]

    @property
    def task_losses(self) -> list[str]:
        """The columns of the student's own losses."""
        return [c for c in self._losses if term_of(c) is None]

    @property
    def terms(self) -> list[str]:
        """The columns of the distillation's terms, which count as much as they did in the loss."""
        return [c for c in self._losses if term_of(c) is not None]

    @property
    def _losses(self) -> list[str]:
        return [c for c in (self.epochs[0] if self.epochs else {}) if c.startswith("train/") and c.endswith("_loss")]

    @property
    def checkpoint(self) -> Path | None:
        """Its best model, or the last one."""
        files = [self.folder / "weights" / name for name in ("best.pt", "last.pt")]
        return next((file for file in files if file.is_file()), None)

    @cached_property
    def content(self) -> dict[str, Any]:
        """What its checkpoint holds, nothing of one that is not there or cannot be read."""
        try:
            return read_content(self.checkpoint, "model", self.trust) if self.checkpoint else {}
        except Exception:  # torn, foreign or not to be trusted: a dozen types
            return {}

    @property
    def provenance(self) -> Provenance:
        """How it was made, as its checkpoint says."""
        return Provenance.of_checkpoint(self.content)


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    kind: Kind
    folder: Path
    runs: tuple[Run, ...] = ()
    study: dict[str, Any] = field(default_factory=dict)  # compare.json
    demo: dict[str, Any] = field(default_factory=dict)  # demo.json
    bench: Path | None = None  # report.json
    teachers: tuple[str, ...] = ()
    trust: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that all runs have in common, or the one run's."""
        return self.runs[-1].arguments if self.runs else {}

    @property
    def teacher_files(self) -> tuple[str, ...]:
        """Of the teachers, those that can be run again: a student's moving average was never written."""
        return tuple(file for file in self.teachers if file != EMA)

    def of(self, role: str) -> list[Run]:
        """The runs of a role."""
        return [run for run in self.runs if run.role == role]


def columns_of(key: str) -> list[str]:
    """The columns that a method's term may have in results.csv: at a tap that its key names, or at any of its own."""
    method, _, tap = key.partition("@")
    cls = METHODS.get(method)
    return [] if cls is None else [f"train/{term_name(cls, t)}" for t in ([tap] if tap else ["", *cls.taps])]


def term_of(column: str) -> str | None:
    """A method whose term a column of results.csv may be, None for the student's own losses."""
    return next((key for key in METHODS if column in columns_of(key)), None)


def find(place: str | Path, trust: bool = False) -> Subject:
    """What a folder, or a report of `bench`, holds.

    Raises:
        UsageError: nothing that a report could be made of.
    """
    path = as_path("report", place)
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise UsageError(f"{place} is no report: {GIVE}.")
        return Subject("bench", path.parent, bench=path)
    if not path.is_dir():
        raise UsageError(f"{place} does not exist: {GIVE}.")
    if (path / "compare.json").is_file():
        return find_study(path, trust)
    if (path / DEMO).is_file():
        return find_demo(path, trust)
    if (path / "results.csv").is_file():
        run = Run(path, DISTILLED, trust=trust)
        kd = run.arguments.get("kd") or {}
        if not kd.get("teacher") and not run.provenance.teachers:
            run = Run(path, ALONE, trust=trust)
        return Subject("train", path, (run,), teachers=as_list(kd.get("teacher")), trust=trust)
    if (path / BENCH).is_file():
        return Subject("bench", path, bench=path / BENCH)
    raise UsageError(f"{place} holds no finished epoch, study, demo or measurement: {GIVE}.")


def find_study(path: Path, trust: bool) -> Subject:
    """A study: its tables, and the runs whose folders are there."""
    study = read_object(path / "compare.json", STUDY)
    runs = []
    for arm, arguments in study["arms"].items():
        if not isinstance(arguments, dict):
            raise UsageError(f"{path / 'compare.json'} is not what yolokd writes there: run the same command again.")
        role = DISTILLED if arguments.get("teacher") or arguments.get("distill_model") else ALONE
        for seed in study["seeds"]:
            folder = path / arm / f"seed{seed}" / "train"
            if folder.is_dir():
                runs.append(Run(folder, role, arm, seed, trust))
    return Subject("study", path, tuple(runs), study, teachers=as_list(study["arguments"].get("teacher")), trust=trust)


def find_demo(path: Path, trust: bool) -> Subject:
    """A demo: its table, its two runs and its measurement."""
    demo = read_object(path / DEMO, {"rows": list})
    runs = (Run(path / "alone", ALONE, trust=trust), Run(path / "distilled", DISTILLED, trust=trust))
    bench = path / "bench" / BENCH
    measured = bench if bench.is_file() else None
    return Subject("demo", path, runs, demo=demo, bench=measured, teachers=(str(path / "teacher.pt"),), trust=trust)


def read_object(file: Path, keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A JSON object that must have these keys, with values of these types."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is damaged ({str(error)[:100].rstrip('.')}): run the same command again.") from error
    content = content if isinstance(content, dict) else {}
    if not all(k in content and isinstance(content[k], kind) for k, kind in keys.items()):
        raise UsageError(f"{file} is not what yolokd writes there: run the same command again.")
    return dict(content)


def as_list(given: Any) -> tuple[str, ...]:
    """Teachers as they are named: one, several with commas between, or a list."""
    if not given:
        return ()
    return tuple(t.strip() for t in given.split(",")) if isinstance(given, str) else tuple(map(str, given))


def number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
