"""What a report measures itself, in seconds: teacher and students on a few validation images; and where it is kept."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import ultralytics

from yolokd import __version__
from yolokd.detectors.teachers import title
from yolokd.errors import one_line
from yolokd.reports import images
from yolokd.reports.images import Sample
from yolokd.reports.scores import score
from yolokd.reports.subject import ALONE, TEACHER, Run, Subject, read_object
from yolokd_edge.scores import Boxes

FILE, SCHEMA = "report-data.json", "yolokd.report/1"
NONE = type(None)
KEPT: dict[str, type | tuple[type, ...]] = {
    "schema": str, "command": (str, NONE), "versions": (dict, NONE), "models": list, "images": (dict, NONE),
    "names": (dict, NONE), "training": (dict, NONE), "not_measured": list,
}  # fmt: skip
OF_TEACHER, OF_ALL = 10.0, 30.0  # seconds; the teacher's decide how many images are scored
FEWEST = 8  # images


@dataclass(frozen=True)
class Model:
    """A model that was run, with what it found on the images."""

    role: str
    arm: str
    seed: int | None
    file: str
    found: Sequence[Boxes] = ()
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.arm or self.role


@dataclass
class Measured:
    """Everything that was measured; `why` says of each thing that was not, why not."""

    sample: Sample | None = None
    models: list[Model] = field(default_factory=list)
    training: dict[str, Any] | None = None
    why: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """In plain values."""
        given = self.sample
        return {
            "images": None if given is None else {"scored": len(given.files), "of": given.of, "imgsz": given.imgsz},
            "names": None if given is None else {str(k): v for k, v in given.names.items()},
            "models": [{"role": m.role, "arm": m.arm, "seed": m.seed, "file": m.file, **m.scores} for m in self.models],
            "training": self.training,
            "not_measured": self.why,
        }

    def first(self, role: str, arm: str = "") -> Model | None:
        """The model of a role, or arm, with the first seed."""
        return next((m for m in self.models if m.role == role and arm in ("", m.arm)), None)


def measure(subject: Subject) -> Measured:
    """Run teacher and students; what cannot be measured is left out with the reason."""
    measured, arguments = Measured(), subject.arguments
    task = str(arguments.get("task") or "detect")
    begun = time.monotonic()
    try:
        measured.sample = images.sample(arguments, task)
    except Exception as error:  # the data was moved, an image is broken ...
        measured.why.append(f"scores on validation images: {one_line(error)}")
    try:
        measured.training = images.training_data(arguments, task)
    except Exception as error:
        measured.why.append(f"the training images: {one_line(error)}")
    if measured.sample is None:
        return measured
    run_teacher(subject, measured)
    seeds = sorted({run.seed or 0 for run in subject.runs})
    for place, seed in enumerate(seeds):
        if place and time.monotonic() - begun > OF_ALL:
            measured.why.append(f"the seeds from {seed} on: scoring takes at most {OF_ALL:g} seconds")
            break
        for run in subject.runs:
            if (run.seed or 0) == seed:
                run_student(run, measured)
    return measured


def run_teacher(subject: Subject, measured: Measured) -> None:
    """Run the first teacher; where it is slow, fewer images are scored."""
    assert measured.sample is not None
    for file in subject.teacher_files[:1]:
        name = title(file)
        try:
            model = images.open_any(file, "teacher", subject.trust)
            classes, device = images.class_map(subject.arguments), images.device_of(subject.arguments)
            until = time.monotonic() + OF_TEACHER
            some = measured.sample.first(FEWEST)
            found = images.detections(model, some, classes, device)
            took = time.monotonic() - until + OF_TEACHER
            left = max(until - time.monotonic(), 0.0) / max(took, 1e-6) * len(some.files)
            if len(measured.sample.files) > len(some.files) and left >= len(some.files):
                some = measured.sample.first(min(int(left), len(measured.sample.files)))
                found = images.detections(model, some, classes, device)
            measured.sample = some
            measured.models.append(Model(TEACHER, "", None, name, found, score(some.truths, found)))
        except Exception as error:
            measured.why.append(f"the teacher {name}: {one_line(error)}")
    if len(subject.teacher_files) > 1:
        measured.why.append(f"all teachers but the first of {len(subject.teacher_files)}")


def run_student(run: Run, measured: Measured) -> None:
    """Run one student on the same images."""
    given = measured.sample
    assert given is not None
    try:
        if run.checkpoint is None:
            raise FileNotFoundError("its checkpoint is not there")
        model = images.open_any(str(run.checkpoint), "model", run.trust)
        found = images.detections(model, given, None, images.device_of(run.arguments))
        scores = score(given.truths, found)
        measured.models.append(Model(run.role, run.arm, run.seed, str(run.checkpoint), found, scores))
    except Exception as error:
        measured.why.append(f"{run.name}{'' if run.seed is None else f' with seed {run.seed}'}: {one_line(error)}")


def paired_gains(models: Sequence[dict[str, Any]], arm: str, path: Sequence[str], metric: str = "map50") -> list[float]:
    """What an arm's models gained over those alone with the same seed, in one figure; () as path is all objects."""
    gains = []
    for one in models:
        if one["role"] in (TEACHER, ALONE) or one["arm"] != arm:
            continue
        alone = next((m for m in models if m["role"] == ALONE and m["seed"] == one["seed"]), None)
        values = [figure(m, path, metric) for m in (one, alone) if m is not None]
        if len(values) == 2 and values[0] is not None and values[1] is not None:
            gains.append(values[0] - values[1])
    return gains


def figure(model: dict[str, Any], path: Sequence[str], metric: str) -> float | None:
    """A model's figure of one class or size, None where it has none."""
    place: Any = model
    for key in path:
        place = place.get(key) or {}
    value = place.get(metric)
    return None if value is None else float(value)


def versions() -> dict[str, str]:
    """Of what made the training."""
    return {
        "yolokd": __version__,
        "ultralytics": str(ultralytics.__version__),
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def stored(folder: Path) -> dict[str, Any] | None:
    """What an earlier report kept in a folder, None without one."""
    file = folder / FILE
    if not file.is_file():
        return None
    data = read_object(file, KEPT)
    return data if data["schema"] == SCHEMA else None
