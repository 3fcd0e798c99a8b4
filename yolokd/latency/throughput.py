"""Throughput against latency of an exported model on this machine, by the same code that runs on a board."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from yolokd.latency.bench import with_options
from yolokd_edge.common import EdgeError, check_writable, printable, tell
from yolokd_edge.load.options import LoadOptions


def throughput(
    model: str | Path,
    *,
    project: str | Path = "runs/throughput",
    name: str | None = None,
    exist_ok: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Measure a model under load, print a table and keep the record and the curve's picture in a new run folder.

    Args:
        model: An ONNX file or bundle, or what `yolokd export format=` wrote.
        project: Folder of the run folders.
        name: Name of the run folder, "throughput" by default; a number is added if it exists.
        exist_ok: Write into an existing run folder instead, replacing its record.
        options: What to measure and for how long: `yolokd_edge.load.options.LoadOptions` says what each means.

    Returns:
        The record, schema yolokd.throughput/1. `throughput.json` in the run folder holds the same.
    """
    from yolokd_edge.load.command import measure_load
    from yolokd_edge.load.report import as_text, write

    if not isinstance(exist_ok, bool):  # a word such as `no` would count as yes, and cost a report
        raise EdgeError(f"exist_ok={exist_ok} is neither True nor False: write one of the two.")
    if options.get("source") is not None:
        options["source"] = str(options["source"])  # a folder's name may be a number
    elif not options.get("random"):
        raise EdgeError("No images: give source= with an image or a folder of images, or random=True for noise.")
    asked = LoadOptions(model, **options)
    runs = Path(str(project)).expanduser()
    check_writable(runs, f"project={project}")
    record = measure_load(asked)

    from ultralytics.utils.files import increment_path  # imports torch: after measuring, not before

    folder = Path(increment_path(runs / str(name or "throughput"), exist_ok=exist_ok))
    tell(as_text(record), partial(write, record, folder / "throughput.json"))
    if "points" in record["results"]:
        from yolokd.latency.drawing import throughput_curve

        throughput_curve(record, folder / "throughput.png")
    print(printable(f"Record: {folder}"))
    return record


throughput.__signature__ = with_options(throughput, LoadOptions)  # type: ignore[attr-defined]
