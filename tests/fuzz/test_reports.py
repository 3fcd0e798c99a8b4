"""Latency reports, thousands of times nearly right: one sentence, or outcomes that are JSON, XML and one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.fuzzing import Wish, changed, fuzz, mistyped, strict
from helpers.reports import record

from yolokd.errors import UsageError
from yolokd.latency import gate_report, schema
from yolokd.latency.gate import compare
from yolokd.latency.pareto import pareto

REPORT = [record(10.0, (9.99, 10.0, 10.01), 0.02, model__bytes=3_000_000, power__j_per_frame=0.5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a valid report."""
    (tmp_path / "base.json").write_text(json.dumps(REPORT), encoding="utf-8")
    return tmp_path


def use_report(folder: Path, text: str, which: int = 0) -> dict[str, Any]:
    """What a report's text is to compare, against a valid report, itself or alone, and to pareto.

    Args:
        folder: that of the valid report.
        text: the report.
        which: of these comparisons and of pareto's axes.
    """
    file = folder / "new.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    outputs = {kind: folder / f"outcome.{kind}" for kind in ("json", "md", "junit")}
    table = folder / "pareto.json"
    for output in (*outputs.values(), table):
        output.unlink(missing_ok=True)
    base, new = ((folder / "base.json", file), (file, file), (file, None))[which % 3]
    outcome = compare(base, new, "5%", "total.p50,total.p99", -0.5, **outputs)
    strict(outputs["json"].read_text(encoding="utf-8"))
    suite = ElementTree.fromstring(outputs["junit"].read_bytes())
    assert int(suite.get("tests", "")) == len(suite) > 0
    assert outputs["md"].read_text(encoding="utf-8") and (not outcome["code"] or gate_report.sentence(outcome))
    try:
        pareto([file], ("latency", "energy", "size")[which // 3 % 3], json=table)
    except UsageError as error:
        assert "no point to draw" in str(error)
    else:
        strict(table.read_text(encoding="utf-8"))
    return outcome


def test_a_valid_report_passes_against_itself(folder: Path) -> None:
    assert use_report(folder, json.dumps(REPORT))["verdict"] == "pass"
    assert schema.read(folder / "new.json") == REPORT
    both = [{**r, "protocol": {**r["protocol"], "interleaved": True}} for r in REPORT * 2]
    assert use_report(folder, json.dumps(both), 2)["verdict"] == "pass"


@pytest.mark.slow
def test_reports(folder: Path) -> None:
    interleaved = [{**r, "protocol": {**r["protocol"], "interleaved": True}} for r in REPORT * 2]

    def use(wish: Wish) -> None:
        which = sum(sum(change) for change in (*wish.edits, *wish.typos))
        document = interleaved if which % 3 == 2 else REPORT
        use_report(folder, mistyped(json.dumps(changed(document, wish.edits)), wish.typos), which)

    fuzz(use, UsageError)
