"""`yolokd explain`: what a study or a run shows, in one paragraph of measured values only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.errors import UsageError
from yolokd.latency.intervals import BETTER, NO_EVIDENCE, WORSE
from yolokd.reports.measure import paired_gains, stored
from yolokd.reports.parts import plain
from yolokd.reports.subject import ALONE, DISTILLED, TEACHER, Run, Subject, columns_of, find, term_of

MAP = "metrics/mAP50-95(B)"
CLEARLY = 0.02  # of mAP50-95, by which a teacher must be better to leave something to learn
RISE = 0.01  # of mAP50-95 over the last tenth of the epochs, from which on a run was still learning
FEW_EPOCHS = 10  # of which too little is seen to say whether a run still rises
OVERFIT = 1.05  # the validation loss at the end beside its lowest
FEW = 10  # objects below which a class's figure is left out of the sentence


def explain(run: str | Path, trust: bool = False) -> str:
    """Say in one paragraph whether distilling helped, for what, what limited it, and what to try next.

    Args:
        run: the folder of a run, a study or a demo.
        trust: open checkpoints that may run code.

    Returns:
        The paragraph, which is also printed.
    """
    text = explained(run, trust)
    print(text)
    return text


def explained(run: str | Path, trust: bool = False) -> str:
    """As `explain`, without printing."""
    subject = find(run, trust)
    if subject.kind == "bench":
        raise UsageError(f"{run} holds a measurement of latency and no training: `yolokd report` shows it.")
    try:
        return paragraph(subject, stored(subject.folder))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{run} does not hold what yolokd writes there: run the same command again.") from error


def paragraph(subject: Subject, data: dict[str, Any] | None) -> str:
    """The paragraph; data are those that a report has measured."""
    arm = best_arm(subject)
    found = limits(subject, arm, data)
    sentences = [*helped(subject, arm), *where(subject, arm, data)]
    reasons = [reason for reason, _ in found if reason]
    sentences += reasons or ["Of what limits a distillation, nothing showed in what was measured."]
    advice = list(dict.fromkeys(step for _, step in found if step))
    sentences.append(f"To try next: {'; '.join(advice)}." if advice else "What to try next does not follow from this.")
    return " ".join(plain(sentence) for sentence in sentences)


# --- did it help ----------------------------------------------------------------------------------------------------


def best_arm(subject: Subject) -> str:
    """The distilled arm of a study with the highest mean mAP50-95, of which the rest is told."""
    distilled = {run.arm for run in subject.of(DISTILLED)} or set(subject.study.get("arms", {})) - {ALONE, "alone"}
    undistilled = {name for name, own in subject.study.get("arms", {}).items() if own.get("kd") == 0}
    rows = [
        s for s in subject.study.get("summary", ()) if s["arm"] in distilled - undistilled and s["map50_95"] is not None
    ]
    return str(max(rows, key=lambda s: s["map50_95"])["arm"]) if rows else ""


def helped(subject: Subject, arm: str) -> list[str]:
    """The gain over the student alone with its interval, or that it was not measured."""
    if subject.kind == "study":
        return helped_in_study(subject, arm)
    if subject.kind == "demo":
        _, alone, distilled = subject.demo["rows"]
        gains = [100 * (distilled[m] - alone[m]) for m in ("map50", "map50_95")]
        word = "helped" if min(gains) > 0 else "did not help" if max(gains) <= 0 else "helped in one figure only"
        return [
            f"On this one seed distilling {word}: {gains[0]:+.1f} points of mAP50 and {gains[1]:+.1f} of mAP50-95 over "
            "the student alone. An interval was not measured: it takes two seeds or more."
        ]
    (run,) = subject.runs
    if run.role == ALONE:
        return ["This run was not distilled: it has no teacher, so there is nothing that could have helped."]
    said = "Whether distilling helped was not measured: this is one run, without the student alone beside it."
    values = [v for v in run.column(MAP) if math.isfinite(v)]
    if not values:
        return [said, "Its accuracy was not measured either."]
    best = max(range(len(values)), key=values.__getitem__)
    return [said, f"It reached {100 * values[best]:.1f} mAP50-95 in epoch {best + 1} of {len(values)}."]


def helped_in_study(subject: Subject, arm: str) -> list[str]:
    """One sentence for the arm that is told, and one that counts the others."""
    rows = [c for c in subject.study["comparisons"] if c["reference"] == "alone" and c["metric"] == "map50_95"]
    if not rows:
        return ["Whether distilling helped was not measured: no pair of runs with the same seed is done."]
    row = next((c for c in rows if c["arm"] == arm), rows[0])
    words = {
        BETTER: "Distilling helped",
        WORSE: "Distilling made the student worse",
        NO_EVIDENCE: "There is no evidence that distilling helped",
    }.get(row["verdict"], "One seed allows no conclusion")
    low, high = row["ci95"]
    ends = "no interval with one seed" if low is None else f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    pairs = f"{row['n']} seed{'s' if row['n'] > 1 else ''}"
    said = [
        f"{words}: with {row['arm']} mAP50-95 changed by {100 * row['mean']:+.1f} points over the student alone "
        f"({ends}, {pairs})."
    ]
    if len(rows) > 1:
        better = sum(c["verdict"] == BETTER for c in rows)
        said.append(f"{row['arm']} has the highest mean of {len(rows)} arms, of which {better} were better than alone.")
    return said


# --- for what -------------------------------------------------------------------------------------------------------


def where(subject: Subject, arm: str, data: dict[str, Any] | None) -> list[str]:
    """The classes and sizes with the largest and smallest gains, as a report has measured them."""
    if data is None or not data["models"]:
        why = "; ".join(data["not_measured"]) if data else f"`yolokd report {subject.folder}` measures it"
        return [f"For which classes and sizes was not measured ({why})."]
    models, names = data["models"], data["names"] or {}
    what = "AP50 gained" if any(m["role"] == ALONE for m in models) else ""
    if not what:
        return ["For which classes and sizes it helped was not measured, for want of the student alone."]
    classes = {str(names.get(k, k)): v for k, v in changes(models, arm, "classes").items()}
    sizes = changes(models, arm, "sizes")
    if not classes and not sizes:
        return [f"For which classes and sizes was not measured: none has {FEW} objects in the images that were scored."]
    images = data["images"]["scored"]
    parts = []
    if classes:
        order = sorted(classes, key=lambda k: -classes[k])
        top, low = order[:3], [k for k in order[3:][-3:]]
        parts.append(f"the classes that gained most are {listed(top, classes)}")
        if low:
            parts.append(f"those that gained least {listed(low, classes)}")
    if sizes:
        parts.append(f"by size the gain is {listed(list(sizes), sizes)}")
    return [f"On {images} validation images, in points of AP50, {'; '.join(parts)}."]


def changes(models: Sequence[dict[str, Any]], arm: str, what: str) -> dict[str, float]:
    """Mean gain in points of each class or size with enough objects."""
    counts: dict[str, int] = {}
    for model in models:
        for key, values in model[what].items():
            counts[key] = max(counts.get(key, 0), values["objects"])
    found = {k: paired_gains(models, arm, (what, k)) for k, n in counts.items() if n >= FEW}
    return {k: 100 * statistics.fmean(gains) for k, gains in found.items() if gains}


def listed(keys: Sequence[str], values: dict[str, float]) -> str:
    return ", ".join(f"{k} ({values[k]:+.1f})" for k in keys)


# --- what limited it ------------------------------------------------------------------------------------------------

Limit = tuple[str, str]  # the sentence, and what to try


def limits(subject: Subject, arm: str, data: dict[str, Any] | None) -> list[Limit]:
    """What the measured values show to have limited the gain, each with its remedy; either may be empty."""
    runs = [run for run in subject.of(DISTILLED) if run.arm == arm or not arm]
    found = [of_teacher(subject, arm, data)]
    if runs:
        found += [of_terms(runs[0]), of_length(runs[0]), of_data(runs[0], data)]
    elif subject.kind != "train":
        found.append(("Terms and length of the training were not measured: no run's folder is there.", ""))
    if subject.kind == "train":
        found.append(("", "`yolokd study methods=default` with the same arguments, which trains the student alone too"))
    else:
        seeds = len(subject.study.get("seeds", [0]))
        rows = [c for c in subject.study.get("comparisons", ()) if c["arm"] == arm and c["reference"] == "alone"]
        if seeds == 1 or any(c["verdict"] == NO_EVIDENCE for c in rows):
            found.append(("", "more seeds (`yolokd study seeds=`), for an interval that decides"))
        if any(c["verdict"] == WORSE for c in rows):
            found.append(("", "`init=own` and a lower `kd=`"))
    return found


def of_teacher(subject: Subject, arm: str, data: dict[str, Any] | None) -> Limit:
    """Whether the teacher is better than the student is without it, or with it where nothing else is known."""
    teacher, student, whose = teacher_and_student(subject, arm, data)
    if teacher is None or student is None:
        return "Whether the teacher is better than the student was not measured.", ""
    said = f"the teacher has {100 * teacher:.1f} mAP50-95 and {whose} {100 * student:.1f}"
    if teacher <= student:
        return f"The teacher is no better: {said}.", "a better teacher"
    if teacher < student + CLEARLY:
        return f"The teacher is hardly better: {said}.", "a better teacher"
    return f"The teacher was not the limit: {said}.", ""


def teacher_and_student(
    subject: Subject, arm: str, data: dict[str, Any] | None
) -> tuple[float | None, float | None, str]:
    """mAP50-95 of both, from all validation images where they were validated, else from a report's."""
    if subject.kind == "demo":
        teacher, alone, _ = subject.demo["rows"]
        return teacher["map50_95"], alone["map50_95"], "the student alone"
    if subject.study.get("teacher"):
        alone = next((s for s in subject.study["summary"] if s["arm"] == "alone"), None)
        return subject.study["teacher"]["map50_95"], alone and alone["map50_95"], "the student alone"
    models = (data or {}).get("models", ())
    role = ALONE if any(m["role"] == ALONE for m in models) else DISTILLED
    of = {r: next((m["map50_95"] for m in models if m["role"] == r), None) for r in (TEACHER, role)}
    images = (data or {}).get("images") or {}
    whose = f"{'the student alone' if role == ALONE else 'the distilled student'} on {images.get('scored')} images"
    return of[TEACHER], of[role], whose


def of_terms(run: Run) -> Limit:
    """Whether one term was more than half of the loss, over all epochs."""
    if not run.terms or not run.task_losses:
        return "The terms' share of the loss was not measured.", ""
    sums = {c: math.fsum(v for v in run.column(c) if math.isfinite(v)) for c in (*run.terms, *run.task_losses)}
    whole = math.fsum(sums.values())
    term = max(run.terms, key=sums.__getitem__)
    if whole <= 0 or sums[term] <= whole / 2:
        return "", ""
    key = next((k for k in run.provenance.methods or {} if term in columns_of(k)), term_of(term))
    name = term.removeprefix("train/").removesuffix("_loss")
    return (
        f"The term {name} dominated: it made up {sums[term] / whole:.0%} of the loss over all epochs.",
        f"a lower `{key}.gain=`",
    )


def of_length(run: Run) -> Limit:
    """Whether accuracy was still rising when the training ended."""
    values = [v for v in run.column(MAP) if math.isfinite(v)]
    if len(values) < FEW_EPOCHS:
        many = f"{len(values)} epoch{'' if len(values) == 1 else 's'} with a score"
        return f"Whether it was too short cannot be told from {many}.", "a longer training (`epochs=`)"
    last = max(len(values) // 10, 1)
    rise = statistics.fmean(values[-last:]) - statistics.fmean(values[-2 * last : -last])
    if rise < RISE:
        return "", ""
    of = "epoch" if last == 1 else f"{last} epochs"
    return (
        f"It was too short: in the last {of} of {len(values)} mAP50-95 still rose by {100 * rise:.1f} points.",
        "a longer training (`epochs=`)",
    )


def of_data(run: Run, data: dict[str, Any] | None) -> Limit:
    """Whether the student learnt its training images by heart: their loss falls while that of the others rises."""
    pairs = [(c, f"val/{c.removeprefix('train/')}") for c in run.task_losses]
    pairs = [(a, b) for a, b in pairs if all(map(math.isfinite, (*run.column(a), *run.column(b))))]
    if not pairs or len(run.epochs) < FEW_EPOCHS:
        return "Whether there was too little data was not measured.", ""
    train, val = (
        [math.fsum(row) for row in zip(*map(run.column, columns), strict=True)] for columns in zip(*pairs, strict=True)
    )
    lowest = min(range(len(val)), key=val.__getitem__)
    if val[-1] < OVERFIT * val[lowest] or train[-1] >= train[lowest]:
        return "", ""
    images = ((data or {}).get("training") or {}).get("images")
    return (
        f"There was too little data: after epoch {lowest + 1} the validation loss rose by "
        f"{val[-1] / val[lowest] - 1:.0%} while the training loss fell on"
        + (f", with {images} training images." if images else "."),
        "more images, or `unlabeled=` with some that have no labels",
    )
