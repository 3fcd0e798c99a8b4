"""The one reader of a data set's splits: folders, lists of files, or several of either."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ultralytics.data.utils import (
    IMG_FORMATS,
    check_det_dataset,
    convert_ndjson_to_yolo_if_needed,
    img2label_paths,
)
from ultralytics.utils.patches import imread

from yolokd import compat
from yolokd.errors import UsageError, one_line


def read_data(arguments: dict[str, Any]) -> dict[str, Any]:
    """The data set that a training's arguments name, as Ultralytics describes it, once its images are seen to exist."""
    if not (data := arguments.get("data")):
        raise UsageError("no data: give a data set's YAML, data=my.yaml.")
    split = arguments.get("split") or "val"
    named = f"data={data}" + (f" split={split}" if arguments.get("split") else "")
    try:
        part = compat.known(convert_ndjson_to_yolo_if_needed, fraction=arguments.get("fraction", 1.0), split=split)
        file = convert_ndjson_to_yolo_if_needed(data, **part)
        found: dict[str, Any] = check_det_dataset(str(file), split=split)
    except Exception as error:  # FileNotFoundError, SyntaxError, RuntimeError ... by what is wrong
        raise UsageError(
            f"{named} cannot be used ({one_line(error)}); give a data set's YAML whose folders exist."
        ) from error
    for key in ("train", split):  # Ultralytics has looked for the validation's folders only, and into none
        places: Any = found.get(key)
        for place in places if isinstance(places, list) else [places]:
            if not place or next(list_images(Path(str(place))), None) is None:
                raise UsageError(f"{named} cannot be used ({key}: {place} has no images): mend its paths.")
    train = [Path(str(place)) for place in (found["train"] if isinstance(found["train"], list) else [found["train"]])]
    if not any(map(is_labelled, chain.from_iterable(map(list_images, train)))):
        raise UsageError(
            f"{named} cannot be used (train: no image with a label): labels are text files in a folder labels/ "
            "beside images/, one for each image, by its name."
        )
    return found


def list_images(place: Path) -> Iterator[Path]:
    """The image files in a folder and those below it, or those that a file lists as Ultralytics reads it."""
    if place.is_dir():
        yield from (file for file in place.rglob("*") if file.suffix[1:].lower() in IMG_FORMATS)
    elif place.is_file():
        for line in place.read_text(encoding="utf-8").strip().splitlines():
            yield place.parent / line if line.startswith("./") else Path(line)


def is_labelled(image: Path) -> bool:
    """Whether a readable image has a label file, be it empty."""
    return Path(img2label_paths([str(image)])[0]).is_file() and imread(str(image)) is not None
