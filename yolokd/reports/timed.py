"""`yolokd.bench()`, also behind the command: the measurement, and the report that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolokd.config.parse import true_or_false
from yolokd.latency import bench as measuring
from yolokd.reports.after import after, told_as, typed


@told_as(measuring.bench)
def bench(models: Any, source: Any = None, *, report: bool = True, **options: Any) -> list[dict[str, Any]]:
    given = {
        "models": str(models) if isinstance(models, str | Path) else [*map(str, models)],
        "source": None if source is None else str(source),
    }
    return timed({"models": models, "source": source, **options}, report, typed("bench", given | options))


def timed(arguments: dict[str, Any], report: Any, command: str) -> list[dict[str, Any]]:
    """As `bench`; the page shows the command."""
    true_or_false("report", report)
    records, folder = measuring.bench_into(**arguments)
    if (
        report and (folder / "report.json").is_file()
    ):  # of a camera there is no page; what it imports is slow, and comes after the measuring
        after(folder / "report.json", command)
    return records
