"""Hand-over to FiftyOne, where it is installed: the labels with their confidences as a data set of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolokd.errors import UsageError

FIELD = "teacher"  # of each sample


def fiftyone() -> Any:
    """The package."""
    try:
        import fiftyone
    except ImportError as error:
        raise UsageError(
            "fiftyone=True needs FiftyOne, which is not installed: pip install fiftyone, or leave it out."
        ) from error
    return fiftyone


def name_of(out: Path) -> str:
    """What the data set is called there."""
    return f"yolokd {out.name}"


def check_free(out: Path) -> None:
    """Refuse a name that somebody's other data set has."""
    fo, name = fiftyone(), name_of(out)
    if fo.dataset_exists(name) and fo.load_dataset(name).info.get("yolokd") != str(out):
        raise UsageError(f"FiftyOne has another data set named {name!r}: rename it there, or name another folder out=.")


def hand_over(records: Iterable[Mapping[str, Any]], root: Path, names: Mapping[int, str], out: Path) -> str:
    """Add the images that the data set does not have yet; returns its name."""
    fo, name = fiftyone(), name_of(out)
    known = fo.dataset_exists(name)
    dataset = fo.load_dataset(name) if known else fo.Dataset(name, persistent=True)
    if not known:
        dataset.info["yolokd"] = str(out)
        dataset.save()
    there = set(dataset.values("filepath")) if known else set()
    samples = []
    for record in records:
        if (file := str(root / record["image"])) in there:
            continue
        sample = fo.Sample(filepath=file)
        sample[FIELD] = fo.Detections(detections=[_detection(fo, thing, names) for thing in record["objects"]])
        samples.append(sample)
    dataset.add_samples(samples)
    return name


def _detection(fo: Any, thing: Mapping[str, Any], names: Mapping[int, str]) -> Any:
    x1, y1, x2, y2 = thing["box"]
    box = [x1, y1, x2 - x1, y2 - y1]
    return fo.Detection(label=str(names[thing["class"]]), bounding_box=box, confidence=thing["conf"])
