"""Exported models measured on this machine, by the same code that runs on a board: report, samples and picture."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.common import EdgeError, check_writable, printable


def bench(
    models: str | Path | Sequence[str | Path],
    source: str | Path,
    *,
    project: str | Path = "runs/bench",
    name: str | None = None,
    exist_ok: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure exported models side by side, print a table and keep report, raw samples and plot in a new run folder.

    Args:
        models: ONNX files or bundles, for ncnn the folders of `yolo export format=ncnn`; several are interleaved frame
            by frame and so meet the same background load.
        source: An image or a folder of images, 32 or more if possible; they are decoded before the clock starts.
        project: Folder of the run folders.
        name: Name of the run folder, "bench" by default; a number is added if it exists.
        exist_ok: Write into an existing run folder instead, replacing its report.
        options: What to measure, where and for how long: `yolokd_edge.bench.options.BenchOptions` says what each
            means.

    Returns:
        One record per model and combination, schema yolokd.latency/1, times in ms. `report.json` in the run folder
        holds the same.
    """
    return bench_into(models, source, project=project, name=name, exist_ok=exist_ok, **options)[0]


def bench_into(
    models: str | Path | Sequence[str | Path],
    source: str | Path,
    *,
    project: str | Path = "runs/bench",
    name: str | None = None,
    exist_ok: bool = False,
    **options: Any,
) -> tuple[list[dict[str, Any]], Path]:
    """As `bench`, and says which folder holds the report."""
    from yolokd_edge.bench.report import text_table, write_report
    from yolokd_edge.bench.sweep import collect

    if not isinstance(exist_ok, bool):  # a word such as `no` would count as yes, and cost a report
        raise EdgeError(f"exist_ok={exist_ok} is neither True nor False: write one of the two.")
    paths = [models] if isinstance(models, str | Path) else list(models)
    source = str(source)  # a folder's name may be a number
    asked = BenchOptions(paths, source, **options)
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        raise EdgeError(f"{source} is a data set file; bench needs an image or a folder of images.")
    runs = Path(str(project)).expanduser()
    check_writable(runs, f"project={project}")
    records, series = collect(asked)

    from ultralytics.utils.files import increment_path  # imports torch: after measuring, not before

    folder = Path(increment_path(runs / str(name or "bench"), exist_ok=exist_ok))
    print(text_table(records))
    write_report(records, series, folder / "report.json", overwrite=exist_ok)

    from yolokd.latency.drawing import latency

    latency(records, series, folder / "latency.png")
    print(printable(f"Report, raw samples and plot: {folder}"))
    return records, folder


def _signature() -> inspect.Signature:
    """What `bench` takes, with each of its options by name: for help() and for the command line's check of keys."""
    own = [p for p in inspect.signature(bench).parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in own}
    keywords = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for option in dataclasses.fields(BenchOptions)
        if option.name not in names
    ]
    return inspect.Signature([*own, *keywords], return_annotation=list[dict[str, Any]])


bench.__signature__ = _signature()  # type: ignore[attr-defined]
