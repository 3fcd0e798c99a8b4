"""The outcome of `yolokd compare base.json new.json` as Markdown, JSON and JUnit XML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from yolokd_edge.common import printable

WORDS = {0: "pass", 1: "regression", 3: "inconclusive", 4: "provider not active", 5: "parity failed"}


def write(outcome: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
    """Write what was asked for, by kind: json, md, junit."""
    texts = {
        "json": lambda: json.dumps(outcome, indent=1, allow_nan=False) + "\n",
        "md": lambda: markdown(outcome) + "\n",
    }
    texts["junit"] = lambda: junit(outcome)
    for kind, path in outputs.items():
        path.write_text(texts[kind](), encoding="utf-8")


def sentence(outcome: Mapping[str, Any]) -> str:
    """Why it does not pass, in one sentence."""
    pair = next(p for p in outcome["pairs"] if p["code"] == outcome["code"])
    # rows of a pair with problems decided nothing
    decided = [p for p in pair["problems"] if p["code"] == outcome["code"]]
    decided = decided or [r for r in pair["metrics"] if r["code"] == outcome["code"]]
    reasons = "; ".join(f"{d.get('what') or d.get('metric')}: {d['why']}" for d in decided)
    return f"{WORDS[outcome['code']]}, {pair['new']}: {reasons}."


def markdown(outcome: Mapping[str, Any]) -> str:
    """A table a pair of records, with what stands in the way and what to know."""
    lines = [f"# {WORDS[outcome['code']].capitalize()}: {outcome['new']} against {outcome['base']}"]
    for pair in outcome["pairs"]:
        lines += ["", f"## {pair['new']}", "", f"Base: {pair['base']}. Verdict: **{WORDS[pair['code']]}**."]
        if pair["problems"]:
            lines += ["", *(f"- {WORDS[p['code']]}, {p['what']}: {p['why']}" for p in pair["problems"])]
        if pair["metrics"]:
            lines += ["", "| metric | base | new | new / base | 95 % interval | over | limit | verdict |"]
            lines += ["|---|--:|--:|--:|--:|---|--:|---|", *map(_row, pair["metrics"])]
        if pair["problems"] and pair["metrics"]:
            lines += ["", "The figures decide nothing as long as the above stands in the way."]
        if pair["notes"]:
            lines += ["", *(f"- {note}" for note in pair["notes"])]
    return "\n".join(map(printable, lines))


def _row(row: Mapping[str, Any]) -> str:
    accuracy, said = row["metric"].startswith("mAP"), WORDS[row["code"]] + (f": {row['why']}" if row["why"] else "")
    values = [_value(row[side], accuracy) for side in ("base", "new")]
    if accuracy:
        change = "" if row["delta"] is None else f"{row['delta']:+.2f} points"
        cells = [row["metric"], *values, change, "", "", f"{row['limit']:+.2f} points", said]
    else:
        ends = row["ci95"]
        interval = "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        middle = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        cells = [row["metric"], *values, middle, interval, row["interval"] or "", f"{row['limit']:.3f}", said]
    return f"| {' | '.join(cells)} |"


def _value(value: Any, accuracy: bool) -> str:
    if not isinstance(value, (int, float)):
        return ""
    return f"{100 * value:.2f}" if accuracy else f"{value:.3f} ms"


def junit(outcome: Mapping[str, Any]) -> str:
    """A test case for each figure and each thing in the way: a regression is a failure, doubt an error."""
    cases = ElementTree.Element("testsuite", name="yolokd compare")
    counts = {"tests": 0, "failures": 0, "errors": 0}
    for pair in outcome["pairs"]:
        problems = [(p["what"], p["code"], p["why"]) for p in pair["problems"]]
        # where the reports cannot be compared no figure may read as passed or failed
        rows = [(r["metric"], 3 if problems else r["code"], r["why"] or "not judged") for r in pair["metrics"]]
        for name, code, why in [*problems, *rows]:
            case = ElementTree.SubElement(cases, "testcase", classname=printable(pair["new"]), name=printable(name))
            counts["tests"] += 1
            if code:
                kind = "error" if code == 3 else "failure"
                counts[f"{kind}s"] += 1
                ElementTree.SubElement(case, kind, type=WORDS[code], message=printable(f"{name}: {why}"))
    for key, count in counts.items():
        cases.set(key, str(count))
    ElementTree.indent(cases)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(cases, encoding="unicode") + "\n"
