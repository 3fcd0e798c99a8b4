"""Exported models measured on this machine, by the same code that runs on a board: report, samples and picture."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.common import EdgeError, check_writable, printable, tell


def bench(
    models: str | Path | Sequence[str | Path],
    source: str | Path | None = None,
    *,
    project: str | Path = "runs/bench",
    name: str | None = None,
    exist_ok: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure exported models side by side, print a table and keep report, raw samples and plot in a new run folder.

    Args:
        models: ONNX files or bundles, or what `yolokd export format=` wrote; several are interleaved frame by frame
            and so meet the same background load.
        source: An image or a folder of images, 32 or more if possible; they are decoded before the clock starts. Or a
            video file or a camera: then the latency from capture to result and the dropped frames. None with
            random=True.
        project: Folder of the run folders.
        name: Name of the run folder, "bench" by default; a number is added if it exists.
        exist_ok: Write into an existing run folder instead, replacing its report.
        options: What to measure, where and for how long: `yolokd_edge.bench.options.BenchOptions` says what each
            means.

    Returns:
        One record per model and combination, schema yolokd.latency/1, times in ms. `report.json` in the run folder
        holds the same. Of a video or a camera one record of schema yolokd.capture/1, in `capture.json`.
    """
    return bench_into(models, source, project=project, name=name, exist_ok=exist_ok, **options)[0]


def bench_into(
    models: str | Path | Sequence[str | Path],
    source: str | Path | None = None,
    *,
    project: str | Path = "runs/bench",
    name: str | None = None,
    exist_ok: bool = False,
    **options: Any,
) -> tuple[list[dict[str, Any]], Path]:
    """As `bench`, and says which folder holds the report."""
    from yolokd_edge.bench.report import text_table, write_report
    from yolokd_edge.bench.sweep import collect
    from yolokd_edge.load.capture import is_moving

    if not isinstance(exist_ok, bool):  # a word such as `no` would count as yes, and cost a report
        raise EdgeError(f"exist_ok={exist_ok} is neither True nor False: write one of the two.")
    paths = [models] if isinstance(models, str | Path) else list(models)
    source = None if source is None else str(source)  # a folder's name may be a number
    asked = BenchOptions(paths, source, **options)
    if source is None and not asked.random:
        raise EdgeError("No images: give source= with an image or a folder of images, or random=True for noise.")
    if source is not None and Path(source).suffix.lower() in (".yaml", ".yml"):
        raise EdgeError(f"{source} is a data set file; bench needs an image or a folder of images.")
    runs = Path(str(project)).expanduser()
    check_writable(runs, f"project={project}")
    if is_moving(source):
        return _bench_camera(asked, runs, str(name or "bench"), exist_ok)
    records, series = collect(asked)

    from ultralytics.utils.files import increment_path  # imports torch: after measuring, not before

    folder = Path(increment_path(runs / str(name or "bench"), exist_ok=exist_ok))
    tell(text_table(records), partial(write_report, records, series, folder / "report.json", overwrite=exist_ok))

    from yolokd.latency.drawing import latency

    latency(records, series, folder / "latency.png")
    print(printable(f"Report, raw samples and plot: {folder}"))
    return records, folder


def _bench_camera(asked: BenchOptions, runs: Path, name: str, exist_ok: bool) -> tuple[list[dict[str, Any]], Path]:
    from yolokd_edge.images import silence_opencv
    from yolokd_edge.load.capture import as_text, measure_capture
    from yolokd_edge.load.report import write

    silence_opencv()
    record = measure_capture(asked)

    from ultralytics.utils.files import increment_path  # imports torch: after measuring, not before

    folder = Path(increment_path(runs / name, exist_ok=exist_ok))
    tell(as_text(record), partial(write, record, folder / "capture.json"))
    print(printable(f"Report: {folder}"))
    return [record], folder


def with_options(function: Callable[..., Any], options: type[Any]) -> inspect.Signature:
    """What a function takes, with each of the options that its last parameter stands for by name: for help() and for
    the command line's check of keys."""
    taken = inspect.signature(function)
    own = [p for p in taken.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in own}
    keywords = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for option in dataclasses.fields(options)
        if option.name not in names
    ]
    return taken.replace(parameters=[*own, *keywords])


bench.__signature__ = with_options(bench, BenchOptions)  # type: ignore[attr-defined]
