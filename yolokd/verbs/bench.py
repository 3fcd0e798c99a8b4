"""The `bench` verb: latency of exported models on this machine, measured by the same file that runs on a board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd.deploy import yolokd_edge


def bench(
    models: str | Path | Sequence[str | Path],
    source: str | Path,
    profile: str = "smoke",
    threads: int | None = None,
    provider: str = "cpu",
    project: str | Path = "runs/bench",
    name: str | None = None,
    exist_ok: bool = False,
) -> list[dict[str, Any]]:
    """Measure exported models side by side, print a table and keep report, raw samples and plot in a new run folder.

    Args:
        models: ONNX files; several are interleaved frame by frame, so that they meet the same background load.
        source: An image or a folder of images, 32 or more if possible; they are decoded before the clock starts.
        profile: smoke (100 frames and 3 s) or standard (1,000 frames and 30 s).
        threads: CPU threads; all usable cores by default.
        provider: cpu, cuda, trt or auto.
        project: Folder of the run folders.
        name: Name of the run folder, "bench" by default; a number is added if it exists.
        exist_ok: Write into an existing run folder instead, replacing its report.

    Returns:
        One record a model, schema yolokd.latency/1, times in ms. `report.json` in the run folder holds the same.
    """
    paths = [models] if isinstance(models, str | Path) else list(models)
    if not isinstance(exist_ok, bool):  # a word such as `no` would count as yes and cost a report
        raise yolokd_edge.EdgeError(f"exist_ok={exist_ok} is neither True nor False: write one of the two.")
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        raise yolokd_edge.EdgeError(f"{source} is a data set file; bench needs an image or a folder of images.")
    frames = yolokd_edge.read_frames(source)
    records: list[dict[str, Any]]
    records, series = yolokd_edge.collect(paths, frames, profile, threads, provider)

    from ultralytics.utils.files import increment_path  # imports torch: after measuring, not before

    folder = Path(increment_path(Path(project) / (name or "bench"), exist_ok=exist_ok))
    yolokd_edge.write_report(records, series, folder / "report.json", overwrite=exist_ok)
    print(yolokd_edge.table(records))

    from yolokd.report import latency

    latency(records, series, folder / "latency.png")
    print(f"Report, raw samples and plot: {folder}")
    return records
