"""`yolokd report`: a folder in, report.html out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolokd.errors import UsageError, as_path, one_line
from yolokd.reports import latency, looks, training
from yolokd.reports.explain import paragraph
from yolokd.reports.measure import FILE, SCHEMA, Measured, measure, stored, versions
from yolokd.reports.parts import Code, Part, Section, Text, plain, render, section, write
from yolokd.reports.subject import Subject, find
from yolokd.studies.worker import write_json

PAGE = "report.html"
TITLES = {"train": "Training", "study": "Study", "demo": "Demo", "bench": "Latency"}


def report(place: str | Path, out: str | Path | None = None, trust: bool = False) -> Path:
    """Make the HTML report of a run, a study, a demo or a measurement.

    Args:
        place: its folder, or a report.json of `yolokd bench`.
        out: the HTML file to write, by default report.html in the folder.
        trust: open checkpoints that may run code.

    Returns:
        The HTML file.
    """
    subject = find(place, trust)
    file = subject.folder / PAGE if out is None else as_path("out", out)
    if file.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"out={out} is not an HTML file: name one such as report.html.")
    if not file.parent.is_dir():
        raise UsageError(f"out={out}: the folder {file.parent} does not exist: make it, or name another.")
    try:
        make(subject, file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({one_line(error)}): name another file with out=.") from error
    print(f"Report: {file}")
    return file


def make(subject: Subject, file: Path, command: str = "") -> Path:
    """Measure, and write the page; what was measured is kept in the subject's folder, for `yolokd explain`."""
    data = recorded(subject.folder, command)
    if subject.kind == "bench":
        assert subject.bench is not None
        sections = of_bench(subject.bench, data)
        write_json(subject.folder / FILE, data)
    else:
        measured = measure(subject)
        data |= measured.data()
        write_json(subject.folder / FILE, data)
        sections = of_training(subject, measured, data)
    name = plain(subject.folder.resolve().name)
    return write(file, render(f"{TITLES[subject.kind]} {name}", f"In {plain(subject.folder.resolve())}", sections))


def recorded(folder: Path, command: str) -> dict[str, Any]:
    """The command and the versions: this process', or where it only makes the report again those that were kept."""
    empty = Measured().data()
    if command:
        return {"schema": SCHEMA, "command": command, "versions": versions(), **empty}
    try:
        before = stored(folder) or {}
    except UsageError:  # it is written anew
        before = {}
    return {"schema": SCHEMA, "command": before.get("command"), "versions": before.get("versions"), **empty}


def of_bench(file: Path, data: dict[str, Any]) -> list[Section]:
    """The sections of a measurement."""

    def how() -> list[Part]:
        parts: list[Part] = [Code(data["command"])] if data["command"] else [Text("The exact command: not recorded.")]
        return [*parts, *latency.conditions(file)]

    return [
        section("latency", "Latency", lambda: latency.latency(file)),
        section("made", "How it was measured", how),
    ]


def of_training(subject: Subject, measured: Measured, data: dict[str, Any]) -> list[Section]:
    """The sections of a run, a study or a demo."""
    sections = [section("words", "In words", lambda: [Text(paragraph(subject, data))])]
    if subject.study:
        sections.append(section("gain", "Gain", lambda: training.gains(subject.study)))
    if subject.demo:
        sections.append(section("front", "Accuracy against latency", lambda: latency.front(subject.demo["rows"])))
    sections += [
        section("predictions", "Predictions side by side", lambda: looks.predictions(subject, measured)),
        section("scores", "Classes, sizes, precision and recall", lambda: training.scores(data)),
        section("attention", "Where they look", lambda: looks.attention(subject, measured)),
        section("curves", "Curves", lambda: training.progress(subject)),
    ]
    if subject.bench is not None:
        bench = subject.bench
        sections.append(section("latency", "Latency", lambda: latency.latency(bench)))
    return [*sections, section("made", "What was trained under what", lambda: training.made(subject, data))]
