"""`yolokd plot report.json`: the pictures of a report that was made without matplotlib, such as on a board."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from yolokd.errors import UsageError, as_path, printable
from yolokd.latency import drawing, plots, schema
from yolokd_edge.common import check_writable


def plot(report: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw the distribution and stages of all models of a report, and each one's latency over time.

    Args:
        report: a report of `bench`, with its raw samples (.npz) beside it.
        out: folder to write into, by default the report's own; existing pictures are not overwritten.

    Returns:
        The PNG files.
    """
    file = as_path("report", report)
    records = schema.read(file)
    folder = as_path("out", out) if out is not None else file.parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out={out} is not a folder: name a folder to draw into.")
    check_writable(folder, f"out={folder}")
    series = read_series(file, records)
    pictures = [folder / f"{file.stem}-latency.png"]
    pictures += [folder / f"{file.stem}-time-{k}.png" for k in range(len(records))]
    for picture in pictures:
        if picture.exists():
            raise UsageError(f"{picture} exists already: name another folder with out=.")
    drawing.latency(records, series, pictures[0])
    for record, samples, picture in zip(records, series, pictures[1:], strict=True):
        plots.over_time(record, samples, picture)
    print("\n".join(printable(str(picture)) for picture in pictures))
    return pictures


def read_series(file: Path, records: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """The raw samples of each record, in ns, from the file named in the report; its checksum must match."""
    named = schema.get(records[0], "series.file")
    path = file.parent / Path(str(named)).name
    if not named or not path.is_file():
        raise UsageError(f"{file} has no raw samples beside it ({named}): put both files into one folder.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != schema.get(records[0], "series.sha256"):
        raise UsageError(f"{path} is not the file that {file} was written with: its checksum differs.")
    try:
        with np.load(path) as kept:
            series: list[dict[str, np.ndarray]] = [{} for _ in records]
            for key in kept.files:
                index, _, name = key.partition("/")
                series[int(index)][name] = kept[key]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UsageError(f"{path} cannot be read ({error}): measure again with `yolokd bench`.") from error
    if lacking := [k for k, s in enumerate(series) if not set(schema.STAGES) <= s.keys()]:
        raise UsageError(f"{path} lacks the samples of record {lacking[0]}: measure again with `yolokd bench`.")
    return series
