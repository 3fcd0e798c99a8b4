"""A study's results: paired statistics, and their tables as Markdown, CSV, JSON and a plot."""

from __future__ import annotations

import csv
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolokd.latency.intervals import BETTER, NO_EVIDENCE, ONE_RUN, WORSE, paired
from yolokd.methods.base import TAXONOMY_LEVELS
from yolokd.studies.arms import ALONE, BUILTIN
from yolokd.studies.worker import write_json

METRICS = {"map50": "mAP50", "map50_95": "mAP50-95"}
COLUMNS = (
    "map50", "map50_95", "map50_last", "map50_95_last", "epochs", "wall_s", "step_ms", "memory_mb", "resumed",
    "checkpoint",
)  # fmt: skip
COSTS = ("wall_s", "step_ms", "memory_mb")  # each also as a ratio to the student alone
COST_CELLS = (("step_ms", "step_ratio", "ms"), ("memory_mb", "memory_ratio", "MB"))
Results = Mapping[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> the run's result.json


def summarise(
    arms: Mapping[str, str],
    seeds: Sequence[int],
    results: Results,
    teacher: Mapping[str, Any] | None,
    failed: Mapping[str, str],
    starts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs, figures per arm and paired differences.

    Args:
        arms: name -> taxonomy level, the student alone first.
        seeds: all seeds of the study.
        results: of the runs that are done; mAP as fractions, seconds.
        teacher: its mAP, or None while it is unknown.
        failed: run -> reason.
        starts: arm -> which of starts= it has, for those that have one.
    """
    starts = starts or {}
    runs = [
        {"arm": arm, "level": level, "seed": seed, **{c: results[arm, seed].get(c) for c in COLUMNS}}
        for arm, level in arms.items()
        for seed in seeds
        if (arm, seed) in results
    ]
    references = [name for name in (ALONE, BUILTIN) if name in arms]
    started = {name: start for name, start in starts.items() if name == f"{ALONE}-{start}"}
    versions = {tuple(sorted((result.get("versions") or {}).items())) for result in results.values()}
    return {
        "seeds": list(seeds),
        "teacher": {m: teacher[m] for m in METRICS} if teacher else None,
        "summary": [
            {**_arm(arm, level, seeds, results, teacher), "start": starts.get(arm, "")} for arm, level in arms.items()
        ],
        "comparisons": [
            comparison
            for reference in references
            for arm in arms
            if arm != reference and (arm, reference) != (ALONE, BUILTIN)
            for metric in METRICS
            if (comparison := compare(arm, reference, metric, seeds, results))
        ]
        + [
            comparison
            for reference, start in started.items()
            for arm in arms
            if arm != reference and starts.get(arm) == start
            for metric in METRICS
            if (comparison := compare(arm, reference, metric, seeds, results))
        ],
        "runs": runs,
        "failed": dict(failed),
        "missing": len(arms) * len(seeds) - len(runs),
        "versions": [dict(v) for v in sorted(versions)],
    }


def _arm(
    arm: str, level: str, seeds: Sequence[int], results: Results, teacher: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Mean and spread of an arm, the share of the gap to the teacher that it closes, and its time."""
    arm_results = [results[arm, seed] for seed in seeds if (arm, seed) in results]
    row: dict[str, Any] = {"arm": arm, "level": level, "n": len(arm_results)}
    for metric in METRICS:
        values = [r[metric] for r in arm_results]
        row[metric] = statistics.fmean(values) if values else None
        row[f"{metric}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        row[f"{metric}_gap_closed"] = gap_closed(arm, metric, seeds, results, teacher)
    for cost in COSTS:
        ratios = [
            results[arm, seed][cost] / results[ALONE, seed][cost]
            for seed in seeds
            if all(results.get((name, seed), {}).get(cost) for name in (arm, ALONE))
        ]
        values = [r[cost] for r in arm_results if r.get(cost)]
        row[cost] = statistics.median(values) if values else None
        row[f"{cost.rpartition('_')[0]}_ratio"] = statistics.median(ratios) if ratios else None
    return row


def gap_closed(
    arm: str, metric: str, seeds: Sequence[int], results: Results, teacher: Mapping[str, Any] | None
) -> float | None:
    """(arm - alone) / (teacher - alone), means over the seeds that both have; None if there is no gap."""
    pairs = _pairs(arm, ALONE, metric, seeds, results)
    if not teacher or not pairs or arm == ALONE:
        return None
    mean, alone = (statistics.fmean(column) for column in zip(*pairs, strict=True))
    return (mean - alone) / (teacher[metric] - alone) if teacher[metric] > alone else None


def compare(arm: str, reference: str, metric: str, seeds: Sequence[int], results: Results) -> dict[str, Any] | None:
    """Paired difference arm - reference over the seeds that both have, with its 95 % t interval."""
    pairs = _pairs(arm, reference, metric, seeds, results)
    if not pairs:
        return None
    difference = paired([a - b for a, b in pairs])
    return {
        "arm": arm,
        "reference": reference,
        "metric": metric,
        "n": len(pairs),
        "mean": difference.mean,
        "sd": difference.sd,
        "ci95": [difference.low, difference.high],
        "differences": list(difference.differences),
        "verdict": difference.verdict,
    }


def _pairs(arm: str, reference: str, metric: str, seeds: Sequence[int], results: Results) -> list[tuple[float, float]]:
    both = [seed for seed in seeds if (arm, seed) in results and (reference, seed) in results]
    return [(results[arm, seed][metric], results[reference, seed][metric]) for seed in both]


# --- Tables ---------------------------------------------------------------------------------------------------------


def write(report: dict[str, Any], folder: Path, plot: bool = False) -> None:
    """Write compare.json, compare.md and runs.csv, each replaced atomically, and compare.png if plot is set."""
    write_json(folder / "compare.json", report)
    for name, text in (("compare.md", markdown(report)), ("runs.csv", as_csv(report))):
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / name)
    if plot and report["comparisons"]:
        from yolokd.latency.plots import gains

        gains(report["comparisons"], folder / "compare.png")


def as_csv(report: Mapping[str, Any]) -> str:
    """One line per run."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["arm", "level", "seed", *COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["runs"])
    return out.getvalue()


def markdown(report: Mapping[str, Any]) -> str:
    """The report as readable Markdown; mAP in percent."""
    about, seeds = report["arguments"], report["seeds"]
    epoch = "best" if about.get("val", True) else "last"
    parts = [
        f"# {len(report['summary'])} arms, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        f"Student `{about['model']}`, teacher `{about['teacher']}`, data `{about['data']}`. Settings: "
        + (", ".join(f"`{k}={v}`" for k, v in about.items() if k not in ("model", "teacher", "data")) or "defaults")
        + ".",
        f"mAP in percent on the validation images, of each run's {epoch} epoch; mean ± standard deviation over seeds. "
        "Time: epochs with their validations, median of the ratios to the student alone of the same seed"
        + (f" ({report['jobs']} runs at a time)" if (report["jobs"] or 1) > 1 else "")
        + ".",
        accuracy_table(report),
    ]
    for reference in dict.fromkeys(c["reference"] for c in report["comparisons"]):
        label = against(reference)
        if rows := [c for c in report["comparisons"] if c["reference"] == reference]:
            parts += [f"## Difference to {label}", difference_table(rows)]
    parts += [
        conclusion(report["comparisons"]),
        "## By level of the review arXiv:2508.03317",
        level_words(report),
        level_table(report),
    ]
    parts += ["## By seed (mAP50)", seed_table(report)]
    if left_out := report.get("left_out"):
        reasons = [f"- `{name}`: {why}" for name, why in left_out.items()]
        parts += ["## Left out, because the pair cannot have it", "\n".join(reasons)]
    if report["failed"]:
        parts += ["## Failed", "\n".join(f"- {run}: {why}" for run, why in report["failed"].items())]
    if report["missing"]:
        parts.append(f"{report['missing']} runs are missing; pairs without both runs are left out.")
    if len(report["versions"]) > 1:
        parts.append(f"The runs were made with different versions: {report['versions']}.")
    return "\n\n".join(parts) + "\n"


def accuracy_table(report: Mapping[str, Any]) -> str:
    """Per arm: mAP, share of the gap to the teacher closed, time."""
    rows = ["| arm | level | seeds | mAP50 | gap closed | mAP50-95 | gap closed | time | ratio |"]
    rows.append("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    if teacher := report["teacher"]:
        rows.append(f"| teacher | | | {_percent(teacher['map50'])} | | {_percent(teacher['map50_95'])} | | | |")
    for s in report["summary"]:
        cells = [_name(s["arm"]), s["level"], str(s["n"])]
        for metric in METRICS:
            spread = f" ± {_percent(s[f'{metric}_sd'])}" if s[f"{metric}_sd"] is not None else ""
            closed = s[f"{metric}_gap_closed"]
            cells += [_percent(s[metric]) + spread, "" if closed is None else f"{closed:.0%}"]
        cells += ["" if s["wall_s"] is None else f"{s['wall_s']:.0f} s"]
        cells += ["" if s["wall_ratio"] is None else f"{s['wall_ratio']:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def difference_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Mean paired difference, interval and verdict, one line per arm and metric."""
    rows = ["| arm | metric | pairs | points | 95 % interval | verdict |", "|---|---|--:|--:|--:|---|"]
    for c in comparisons:
        mean = f"{100 * c['mean']:+.1f}"
        rows.append(
            f"| {_name(c['arm'])} | {METRICS[c['metric']]} | {c['n']} | {mean} | {_interval(c)} | {c['verdict']} |"
        )
    return "\n".join(rows)


def conclusion(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The conclusions in sentences, worded so that they do not mislead on their own."""
    sentences = []
    for reference in dict.fromkeys(c["reference"] for c in comparisons):
        name = against(reference)
        rows = [c for c in comparisons if c["reference"] == reference and c["metric"] == "map50"]
        for verdict, words in (
            (BETTER, "Better than {}"),
            (WORSE, "Worse than {}"),
            (NO_EVIDENCE, "No evidence of a difference to {}"),
        ):
            if arms := [_name(c["arm"]) for c in rows if c["verdict"] == verdict]:
                sentences.append(f"{words.format(name)} in mAP50: {', '.join(arms)}.")
    if any(c["verdict"] == ONE_RUN for c in comparisons):
        sentences.append("One seed allows no conclusion: runs of one arm differ by as much.")
    sentences.append("Each interval holds for its own row; with many arms some will exclude zero by chance.")
    return " ".join(sentences)


def level_words(report: Mapping[str, Any]) -> str:
    """What the table by level holds."""
    alike = " that starts alike" if any(s.get("start") for s in report["summary"]) else ""
    return (
        f"Gain: points above the student alone{alike}, with the 95 % interval over seeds. Step: median time of a "
        "training step. Memory: largest peak of a step, of a GPU's tensors or of the process on a CPU. In brackets: as "
        "a multiple of the student alone."
    )


def level_table(report: Mapping[str, Any]) -> str:
    """The review's table: mAP and its gain by the level at which knowledge is distilled, and what it costs."""
    started = any(s.get("start") for s in report["summary"])
    metrics = [cell for name in METRICS.values() for cell in (name, "gain", "interval")]
    head = ["level", "method", *["start"] * started, *metrics, "step", "memory"]
    words = 2 + started
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * words + "--:|" * (len(head) - words)]
    if teacher := report["teacher"]:
        scores = [cell for metric in METRICS for cell in (_percent(teacher[metric]), "", "")]
        rows.append(f"| {' | '.join(['', 'teacher', *[''] * started, *scores, '', ''])} |")
    gains = {(c["arm"], c["reference"], c["metric"]): c for c in report["comparisons"]}
    order = {level: k for k, level in enumerate(("", *TAXONOMY_LEVELS))}
    for s in sorted(report["summary"], key=lambda s: order.get(s["level"], len(order))):
        start = s.get("start", "")
        reference = started_alone(s, report["summary"]) or ALONE
        cells = [s["level"], _name(s["arm"].removesuffix(f"-{start}")), *[start] * started]
        for metric in METRICS:
            gain = gains.get((s["arm"], reference, metric))
            cells += [_percent(s[metric]), f"{100 * gain['mean']:+.1f}" if gain else "", _interval(gain)]
        cells += [_cost(s.get(cost), s.get(ratio), unit) for cost, ratio, unit in COST_CELLS]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def started_alone(row: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> str:
    """The arm of the student alone that starts as this one does, unless it is this one; empty if there is none."""
    name = f"{ALONE}-{row.get('start')}"
    return name if row["arm"] != name and any(s["arm"] == name for s in summary) else ""


def _interval(comparison: Mapping[str, Any] | None) -> str:
    low, high = comparison["ci95"] if comparison else (None, None)
    return "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _cost(value: float | None, ratio: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f} {unit}" + (f" ({ratio:.2f})" if ratio is not None else "")


def seed_table(report: Mapping[str, Any]) -> str:
    """mAP50 of every run."""
    arms = [s["arm"] for s in report["summary"]]
    map50 = {(r["arm"], r["seed"]): r["map50"] for r in report["runs"]}
    rows = [f"| seed | {' | '.join(map(_name, arms))} |", "|--:|" + "--:|" * len(arms)]
    for seed in report["seeds"]:
        rows.append(f"| {seed} | {' | '.join(_percent(map50.get((arm, seed))) for arm in arms)} |")
    return "\n".join(rows)


def against(reference: str) -> str:
    """A reference of the comparisons in words."""
    if reference.startswith(f"{ALONE}-"):
        return f"the student alone with init={reference.removeprefix(f'{ALONE}-')}"
    return {ALONE: "the student alone", BUILTIN: "Ultralytics' own distillation"}.get(reference, reference)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _name(arm: str) -> str:
    return {ALONE: "student alone", BUILTIN: "built-in"}.get(arm, arm)
