"""Measures candidates: on this machine, or on a board by a bundle that goes there and a report that comes back."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from yolokd.errors import UsageError, printable
from yolokd.fitting.candidates import Candidate
from yolokd.fitting.files import DETECTIONS, FINAL
from yolokd.fitting.times import TYPICAL, Budget, Times, refuse_other_device
from yolokd.latency import schema
from yolokd.onnx.bundle import BOARD_FILES, NOT_IN_A_BUNDLE
from yolokd.studies.worker import read_json, write_json
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.report import write_report
from yolokd_edge.bench.sweep import collect
from yolokd_edge.common import PACKAGE, sha256

REPORTS, BOARD = "times.json", "board.zip"
ROUNDS = 4  # of measuring what the estimate proposes
FIRST = 12  # candidates that are measured before there is an estimate
ON_A_BOARD = 24  # candidates in a bundle, which has one way there and back
README = """# Candidates for {budget}

Networks without training, to find out what they take on this device, with images and everything to run them. It needs
Python 3.8 or newer, numpy, OpenCV and ONNX Runtime: `python3 -m pip install -r requirements-cpu.txt`, or the file for
the device. Then

```
sh measure.sh
```

writes `report.json`. `sh measure.sh --provider trt` measures on a GPU; whatever `python3 yolokd_edge bench
--help` lists may follow. Take `report.json` back and give it to the same command as before, device=report.json.
"""
SCRIPT = """#!/bin/sh
# Measure every candidate on this device, each by itself and in turns, and write report.json.
set -e
folder="$(cd "$(dirname "$0")" && pwd)"
python3 "$folder/yolokd_edge" bench --model "$folder"/models/*.onnx --source "$folder/images" \\
    {options} --out "$folder/report.json" "$@"
"""


class Journal:
    """The records of measured files in the run's folder, by the file's name.

    Args:
        folder: the run's.
        given: device=, for sentences.
    """

    def __init__(self, folder: Path, given: str) -> None:
        self.file, self.given = folder / REPORTS, given
        self.records: dict[str, dict[str, Any]] = read_json(self.file) or {}

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep records; all must be of one device."""
        reference = next(iter(self.records.values()), None)
        for record in records:
            if reference is not None:
                refuse_other_device(reference, record, self.given, self.file.parent)
            reference = reference or record
        self.records |= {r["model"]["file"]: r for r in records}
        write_json(self.file, self.records)

    def drop_invalid(self, files: Sequence[str] | None = None) -> None:
        """Forget records that say themselves that they are not valid, of these files or of all: they are measured
        again, on a machine that may be quiet now."""
        invalid = [f for f, r in self.records.items() if is_invalid(r) and (files is None or f in files)]
        self.records = {f: r for f, r in self.records.items() if f not in invalid}

    def ms(self, candidates: Sequence[Candidate], budget: Budget) -> dict[Candidate, float]:
        """What was measured of the candidates, without detections."""
        files = {c: self.records.get(f"{c.name}.onnx") for c in candidates}
        return {c: budget.of(record) for c, record in files.items() if record is not None}

    def beyond(self, largest: Candidate, budget: Budget) -> float:
        """ms that detections take in a stage; those of the teacher against none, at equal numbers of anchor points."""
        if budget.stage not in ("post", "total"):
            return 0.0
        full, none = (self.records[file] for file in (DETECTIONS, f"{largest.name}.onnx"))
        stage = f"results.stages.post.{TYPICAL}"
        return max(float(schema.get(full, stage)) - float(schema.get(none, stage)), 0.0)


def is_invalid(record: dict[str, Any]) -> bool:
    """Whether a measurement says of itself that its figures are not to be used, such as on a busy machine."""
    return bool(schema.get(record, "stability.verdict") == "invalid")


def measure(files: Sequence[Path], images: Path, folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure files, each by itself as the student will run, in turns; the report goes into a new folder."""
    records, series = collect(BenchOptions(list(files), str(images), **{"apart": True, **options}))
    number = next(k for k in itertools.count(1) if not (folder / f"round{k}").exists())
    report = folder / f"round{number}" / "report.json"
    report.parent.mkdir(parents=True)
    write_report(records, series, report)
    print(f"Measured {len(files)} files: {report}", flush=True)
    warn_of_invalid(records, report)
    return records


def warn_of_invalid(records: Sequence[dict[str, Any]], report: Path) -> None:
    """Say which measurements call their own figures invalid, and why."""
    if doubtful := [r for r in records if is_invalid(r)]:
        reasons = "; ".join(map(str, schema.get(doubtful[0], "stability.reasons") or []))
        count, first = f"{len(doubtful)} of {len(records)}", doubtful[0]["model"]["file"]
        LOGGER.warning(printable(f"{report}: {count} measurements are invalid, such as that of {first}: {reasons}"))


def measure_here(
    journal: Journal, times: Times, proposed: Callable[[], list[Candidate]], largest: Candidate, budget: Budget,
    export: Callable[[list[str]], list[Path]], images: Path, options: dict[str, Any],
) -> None:  # fmt: skip
    """Measure candidates on this machine, round by round, until nothing that is proposed is unmeasured.

    Args:
        times: is told what was measured.
        proposed: the candidates to measure, by what is known so far.
        export: writes the files of some names.
        options: of `yolokd bench`.
    """
    everything = list(times.works)
    for _ in range(ROUNDS):
        if all(file in journal.records for file in (DETECTIONS, f"{largest.name}.onnx")):
            times.beyond = journal.beyond(largest, budget)
            times.add(journal.ms(everything, budget))
        names = [f"{c.name}.onnx" for c in proposed()]
        missing = [name for name in dict.fromkeys(names) if name not in journal.records]
        if not missing:
            return
        # what detections take is a difference of two files, which are measured together
        both = [DETECTIONS, f"{largest.name}.onnx"]
        first = [] if all(file in journal.records for file in both) else both
        files = export(list(dict.fromkeys([*first, *missing])))
        journal.add(measure(files, images, journal.file.parent / "times", options))
    times.add(journal.ms(everything, budget))


def read_reports(journal: Journal, reports: Sequence[Path], hashes: dict[str, str]) -> None:
    """Take in a board's reports, which must be of the bundle's files or of the student's, and of one device."""
    for report in reports:
        records = schema.read(report)
        for record in records:
            file = record["model"]["file"]
            known = {**hashes, FINAL: hashes.get(FINAL) or schema.get(record, "model.sha256")}
            if file not in known:
                raise UsageError(
                    f"device={report} is about {printable(file)}, which is none of this run's candidates: give the "
                    "report that measure.sh of its board.zip wrote, or device=board to make one."
                )
            if known[file] != schema.get(record, "model.sha256"):
                raise UsageError(
                    f"device={report} is about another {file} than this run's, by its checksum: measure again with "
                    "this run's board.zip."
                )
        warn_of_invalid(records, report)
        journal.add(records)
    if lacking := [file for file in hashes if file not in journal.records and file != FINAL]:
        raise UsageError(
            f"device={','.join(map(str, reports))} lacks {lacking[0]}, which is in this run's board.zip: give the "
            "report of a whole run of measure.sh."
        )


def as_flags(options: dict[str, Any]) -> str:
    """Options of `yolokd bench` as flags for the board's shell."""
    words = []
    for name, value in {"apart": True, "profile": "smoke", **options}.items():
        if value is not False and value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [shlex.quote(str(value))])]
    return " ".join(words)


def write_bundle(
    target: Path, models: Sequence[Path], images: Path, budget: Budget, options: dict[str, Any]
) -> dict[str, str]:
    """Write a zip file with models, images and the runtime, which measures with options of `yolokd bench`; returns the
    models' checksums by name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "models").mkdir()
        for model in models:
            shutil.copy(model, root / "models")
        shutil.copytree(images, root / "images")
        shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=NOT_IN_A_BUNDLE)
        for file in sorted(BOARD_FILES.glob("*.txt")):
            shutil.copy(file, root)
        (root / "README.md").write_text(README.format(budget=budget), encoding="utf-8")
        (root / "measure.sh").write_text(SCRIPT.format(options=as_flags(options)), encoding="utf-8")
        part = target.with_name(f"{target.name}.part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(p for p in root.rglob("*") if p.is_file()):
                archive.write(file, file.relative_to(root))
        part.replace(target)
    return {model.name: sha256(model) for model in models}


def read_hashes(out: Path) -> dict[str, str]:
    """The checksums of the files in the bundle of a run's folder."""
    found = out / BOARD
    stored = read_json(out / "board.json") if found.is_file() else None
    if not stored:
        raise UsageError(f"out={out} has no {BOARD} that a report could be of: make one first with device=board.")
    return {str(name): str(value) for name, value in stored.items()}


def write_hashes(out: Path, hashes: dict[str, str]) -> None:
    """Note the checksums of a bundle's files."""
    (out / "board.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
