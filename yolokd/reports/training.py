"""The parts of a report that tell trainings: how they were made, their curves, their gains and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolokd.latency.intervals import Paired, paired
from yolokd.reports.measure import figure, paired_gains
from yolokd.reports.parts import NONE, Code, Drawing, Part, Table, Text, percent, plain
from yolokd.reports.subject import ALONE, DISTILLED, TEACHER, Run, Subject
from yolokd.reports.svg import Line, curves, intervals
from yolokd.studies.report import against

METRICS = {"map50": "mAP50", "map50_95": "mAP50-95"}
COLUMNS = {"map50": "metrics/mAP50(B)", "map50_95": "metrics/mAP50-95(B)"}
CLASSES = 40  # lines of a table
TOLD = ("model", "data", "imgsz", "epochs", "batch", "optimizer", "lr0", "seed", "device")


# --- how it was made ------------------------------------------------------------------------------------------------


def made(subject: Subject, data: dict[str, Any]) -> list[Part]:
    """The command, the versions, the arguments, and what the checkpoints say."""
    parts: list[Part] = [Code(data["command"])] if data.get("command") else [Text("The exact command: not recorded.")]
    versions = data.get("versions") or {}
    rows = [[plain(k), plain(v)] for k, v in versions.items()] or [["all", "not recorded"]]
    parts.append(Table("Versions and machine of the run", ["what", "version"], rows))
    arguments = subject.study.get("arguments") or subject.arguments
    rows = [[key, plain(arguments[key])] for key in TOLD if arguments.get(key) is not None]
    rows.insert(0, ["teacher", plain(", ".join(subject.teachers)) or "none"])
    parts.append(Table("Arguments", ["argument", "value"], rows))
    for run in {run.arm: run for run in reversed(subject.of(DISTILLED))}.values():
        parts.append(origin(run))
    return parts


def origin(run: Run) -> Table:
    """What a checkpoint says of itself."""
    said = run.provenance
    rows = [["checkpoint", plain(run.checkpoint or "not there")]]
    rows += [
        ["teacher", f"{plain(t.get('file'))}, SHA-256 {plain(t.get('sha256') or 'unknown')}"] for t in said.teachers
    ]
    for key, options in (said.methods or {}).items():
        told = ", ".join(f"{k}={v}" for k, v in options.items())
        rows.append([f"method {plain(key)}", plain(told) or "defaults"])
    start = {
        "own": "its own weights",
        "neck": "neck and head solved from the teacher's",
        "teacher": "solved from the teacher's",
    }
    for name, value in (
        ("gain of all terms", said.gain),
        ("start", start.get(str(said.start), said.start)),
        ("yolokd", said.version),
        ("ultralytics", run.content.get("version")),
    ):
        rows.append([name, "not recorded" if value is None else plain(value)])
    return Table(f"What the checkpoint of {plain(run.name)} says", ["of", "value"], rows)


# --- curves ---------------------------------------------------------------------------------------------------------


def progress(subject: Subject) -> list[Part]:
    """Accuracy, losses and terms by epoch."""
    runs = [run for run in subject.runs if run.epochs]
    if not runs:
        return [Text("Not measured: results.csv has no epoch.")]
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.name, run)
    shown = list(first.values())
    parts: list[Part] = []
    for metric, name in METRICS.items():
        lines = [Line(run.name, by_epoch(run, COLUMNS[metric], 100)) for run in shown]
        parts += graph(f"{name} on the validation images by epoch", lines, f"{name} (%)")
    for run in shown:
        name = "" if len(shown) == 1 else f" of {run.name}"
        lines = [Line(c.removeprefix("train/"), by_epoch(run, c)) for c in run.task_losses]
        parts += graph(f"The student's own losses{name}", lines, "loss")
        lines = [Line(c.removeprefix("train/"), by_epoch(run, c)) for c in run.terms]
        parts += graph(f"The distillation's terms{name}, as they count in the loss", lines, "loss")
    if any(run.seed is not None for run in shown):
        parts.insert(0, Text("The runs shown are those of each arm's first seed."))
    return parts


def by_epoch(run: Run, column: str, factor: float = 1.0) -> list[tuple[float, float]]:
    """A column as points."""
    return [(e, factor * v) for e, v in zip(run.column("epoch"), run.column(column), strict=True)]


def graph(words: str, lines: Sequence[Line], y_label: str) -> list[Part]:
    """A drawing of curves; nothing where there is no curve."""
    if not any(v == v for line in lines for _, v in line.points):
        return []
    svg = curves(words, lines, "epoch", y_label, zero=y_label == "loss")
    return [Drawing(words, svg, [(i, plain(line.name)) for i, line in enumerate(lines)])]


# --- gains ----------------------------------------------------------------------------------------------------------


def gains(study: dict[str, Any]) -> list[Part]:
    """A study's differences with their intervals, as its own tables have them."""
    parts: list[Part] = []
    for reference in dict.fromkeys(c["reference"] for c in study["comparisons"]):
        rows = [c for c in study["comparisons"] if c["reference"] == reference]
        drawn = [
            (
                f"{plain(c['arm'])}, {METRICS[c['metric']]}",
                100 * c["mean"],
                *(None if e is None else 100 * e for e in c["ci95"]),
            )
            for c in rows
        ]
        words = f"Difference to {plain(against(reference))} in points, mean and 95 % interval over seeds"
        parts.append(Drawing(words, intervals(words, drawn, "points")))
        table = [
            [
                plain(c["arm"]), METRICS[c["metric"]], str(c["n"]), percent(c["mean"], signed=True),
                interval(c["ci95"]), plain(c["verdict"]),
            ]
            for c in rows
        ]  # fmt: skip
        parts.append(Table(words, ["arm", "metric", "pairs", "points", "95 % interval", "verdict"], table))
    teacher = study.get("teacher")
    rows = [["teacher", "", *(percent(teacher[m]) for m in METRICS), "", ""]] if teacher else []
    for s in study["summary"]:
        closed = [s.get(f"{m}_gap_closed") for m in METRICS]
        told = ["" if c is None else f"{c:.0%}" for c in closed]
        rows.append([plain(s["arm"]), str(s["n"]), *(percent(s[m]) for m in METRICS), *told])
    head = ["arm", "seeds", *METRICS.values(), "gap closed, mAP50", "gap closed, mAP50-95"]
    parts.append(Table("All validation images, mean over seeds", head, rows))
    return parts or [Text("Not measured: no pair of runs is done.")]


def interval(ends: Sequence[float | None]) -> str:
    """An interval in points."""
    low, high = ends
    return NONE if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


# --- scores ---------------------------------------------------------------------------------------------------------


def scores(data: dict[str, Any]) -> list[Part]:
    """Precision and recall, and accuracy by class and by size, on the images that were scored."""
    models, images = data["models"], data["images"]
    told: list[Part] = [Text(f"Not measured: {plain(why)}.") for why in data["not_measured"]]
    if not models or not images:
        return told or [Text("Not measured.")]
    parts: list[Part] = [
        Text(
            f"Measured for this report on {images['scored']} of {images['of']} validation images, evenly spaced, with "
            f"images of {images['imgsz']} px, by Ultralytics' own validation; by object size as COCO defines it. "
            "The fewer were scored, the further the figures are from those of all images. Gains are over the student "
            "alone with the same seed, in points; with two seeds or more with their 95 % interval."
        ),
        overall(models),
        recalls(models),
        by(
            models,
            {size: f"{size} ({words})" for size, words in SIZES.items()},
            "sizes",
            "By object size, AP50 in percent",
        ),
    ]
    names = {k: plain(v) for k, v in (data["names"] or {}).items()}
    present = {k: names[k] for k in names if any(k in m["classes"] for m in models)}
    shown = present
    if len(present) > CLASSES:
        order = sorted(present, key=lambda k: -max(m["classes"].get(k, {}).get("objects", 0) for m in models))
        shown = {k: present[k] for k in order[:CLASSES]}
    more = "" if len(shown) == len(present) else f"; the {CLASSES} classes with most objects of {len(present)}"
    parts.append(by(models, shown, "classes", f"By class, AP50 in percent{more}"))
    return [*parts, *told]


SIZES = {"small": "below 32 x 32 px", "medium": "up to 96 x 96 px", "large": "from 96 x 96 px"}


def title(model: dict[str, Any]) -> str:
    """What a model is called in a table."""
    name = plain(model["arm"] or model["role"])
    return name if model["seed"] is None else f"{name}, seed {model['seed']}"


def overall(models: Sequence[dict[str, Any]]) -> Table:
    """One line for each model."""
    rows = [
        [
            title(m),
            *(percent(m[k]) for k in ("map50", "map50_95", "precision", "recall")),
            NONE if m["conf"] is None else f"{m['conf']:.2f}",
        ]
        for m in models
    ]
    head = ["model", "mAP50", "mAP50-95", "precision", "recall", "at confidence"]
    return Table("Accuracy in percent; precision and recall where they balance best (largest F1)", head, rows)


def recalls(models: Sequence[dict[str, Any]]) -> Part:
    """Precision by recall."""
    shown = {m["arm"] or m["role"]: m for m in reversed(models) if m["curve"]}
    lines = [
        Line(title(m), [(5.0 * i, 100 * v) for i, v in enumerate(m["curve"])]) for m in reversed(list(shown.values()))
    ]
    if not lines:
        return Text("Precision by recall: not measured, the images have no objects.")
    words = "Precision by recall, mean over the classes, at an overlap of 0.5"
    svg = curves(words, lines, "recall (%)", "precision (%)", zero=True)
    return Drawing(words, svg, list(enumerate(line.name for line in lines)))


def by(models: Sequence[dict[str, Any]], keys: dict[str, str], what: str, caption: str) -> Table:
    """Accuracy and gains of each class or size."""
    arms = list(dict.fromkeys(m["arm"] or m["role"] for m in models if m["role"] == DISTILLED))
    groups = {
        TEACHER: [m for m in models if m["role"] == TEACHER],
        ALONE: [m for m in models if m["role"] == ALONE],
        **{arm: [m for m in models if m["role"] == DISTILLED and arm in (m["arm"], m["role"])] for arm in arms},
    }
    groups = {name: group for name, group in groups.items() if group}
    rows = []
    for key, name in keys.items():
        objects = max(m[what].get(key, {}).get("objects", 0) for m in models)
        cells = [mean([figure(m, (what, key), "map50") for m in group]) for group in groups.values()]
        told = [NONE if c is None or not objects else f"{100 * c:.1f}" for c in cells]
        for arm in arms if ALONE in groups else ():
            found = paired_gains(models, arm if any(m["arm"] == arm for m in models) else "", (what, key))
            told.append(gain(paired(found)) if found else NONE)
        rows.append([name, str(objects), *told])
    head = [caption.split(",")[0].split()[-1], "objects", *map(plain, groups)]
    return Table(caption, [*head, *(f"gain of {plain(a)}" for a in arms if ALONE in groups)], rows)


def mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def gain(difference: Paired) -> str:
    """A gain in points, with its interval."""
    ends = "" if difference.low is None else f" [{100 * difference.low:+.1f}, {100 * (difference.high or 0):+.1f}]"
    return f"{100 * difference.mean:+.1f}{ends}"
