"""The one reader of a data set's YAML and its splits: folders, lists of files, or several of either."""

from __future__ import annotations

import glob
import re
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tarfile import is_tarfile
from typing import Any

import ultralytics
from cv2 import IMREAD_UNCHANGED
from ultralytics.data.utils import (
    IMG_FORMATS,
    check_det_dataset,
    convert_ndjson_to_yolo_if_needed,
    find_dataset_yaml,
    img2label_paths,
)
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_file
from ultralytics.utils.patches import imread

from yolokd import compat
from yolokd.detectors.opening import refuse_code
from yolokd.errors import UsageError, one_line

MOST_CLASSES = 100_000  # Ultralytics makes a name for each of nc classes, and 2**31 names fill any memory
OWN_DATA = Path(ultralytics.__file__).parent / "cfg" / "datasets"


def read_data(arguments: dict[str, Any], trust: bool = False) -> dict[str, Any]:
    """The data set that a training's arguments name, as Ultralytics describes it, once its images are seen to exist.

    Args:
        arguments: the training's.
        trust: the user answers for what the data set's YAML runs to download it.
    """
    if not (data := arguments.get("data")):
        raise UsageError("no data: give a data set's YAML, data=my.yaml.")
    split = arguments.get("split") or "val"
    named = f"data={data}" + (f" split={split}" if arguments.get("split") else "")
    try:
        file = checked_data(data, split, arguments.get("fraction", 1.0), trust)
        found: dict[str, Any] = check_det_dataset(str(file), split=split)
    except UsageError:
        raise
    except Exception as error:  # FileNotFoundError, SyntaxError, RuntimeError ... by what is wrong
        raise UsageError(
            f"{named} cannot be used ({one_line(error)}); give a data set's YAML whose folders exist."
        ) from error
    for key in ("train", split):  # Ultralytics has looked for the validation's folders only, and into none
        for place in places(found, key) or [""]:
            if not place or next(list_images(Path(place)), None) is None:
                raise UsageError(f"{named} cannot be used ({key}: {place} has no images): mend its paths.")
    images = chain.from_iterable(list_images(Path(place)) for place in places(found, "train"))
    if (first := next(filter(is_labelled, images), None)) is None:
        raise UsageError(
            f"{named} cannot be used (train: no image with a label): labels are text files in a folder labels/ "
            "beside images/, one for each image, by its name."
        )
    if (channels := found.get("channels", 3)) not in (1, 3):  # to these OpenCV converts whatever it reads
        shape = imread(str(first), flags=IMREAD_UNCHANGED).shape
        if (own := shape[2] if len(shape) > 2 else 1) != channels:
            raise UsageError(
                f"{named} says channels: {channels}, and {first} has {own}: mend the number or the images."
            )
    return found


def describe_labels(dataset: Any) -> tuple[str, str | None]:
    """What a training will see of its images: a line for the log, and a warning where labels lie in a place that
    nothing reads.

    Args:
        dataset: Ultralytics', once it has read its labels.
    """
    images = [label["im_file"] for label in dataset.labels]
    bare = [label["im_file"] for label in dataset.labels if not len(label["cls"])]
    skipped = len(dataset.label_files) - len(images)
    said = f"{len(images) - len(bare)} training images have objects, {len(bare)} have none"
    if skipped:
        said += f", {skipped} {'is' if skipped == 1 else 'are'} skipped because image or label cannot be read"
    stray = [
        image
        for image, file in zip(bare, img2label_paths(bare), strict=True)
        if Path(image).with_suffix(".txt").is_file() and not Path(file).is_file()
    ]
    if not stray:
        return said, None
    return said, (
        f"{len(stray)} images count as images without objects although a label file lies beside them, such as "
        f"{Path(stray[0]).with_suffix('.txt')}: it is read from {img2label_paths(stray[:1])[0]}, move it there."
    )


def find_data(data: str | Path) -> dict[str, Any]:
    """A data set as Ultralytics describes it, whose images must be there: none are downloaded.

    Raises:
        UsageError: it is not on this machine, or it is no data set.
    """
    try:
        file = _yaml_file(str(data))
        refuse_many_classes(data, YAML.load(file).get("nc") if file else None)
        return check_det_dataset(str(data), autodownload=False)  # type: ignore[no-any-return]
    except UsageError:
        raise
    except Exception as error:  # FileNotFoundError, SyntaxError, RuntimeError ... by what is wrong
        raise UsageError(
            f"data={data} cannot be used ({one_line(error)}); give a data set's YAML whose folders exist."
        ) from error


# --- images ---------------------------------------------------------------------------------------------------------


def split_images(data: dict[str, Any], split: str) -> list[Path]:
    """Every image of a split, in the order in which Ultralytics reads them.

    Args:
        data: Ultralytics' description of the data set.
        split: "train", "val" or another that it has.

    Raises:
        UsageError: a place of the split is not there, or all of them hold no image.
    """
    found: list[str] = []
    for place in places(data, split):
        if not Path(place).exists():
            raise UsageError(
                f"the {split} split of {data.get('yaml_file')} holds no image in {place}, which does not exist."
            )
        found += map(str, list_images(Path(place)))
    if not found:
        raise UsageError(f"the {split} split of {data.get('yaml_file')} holds no image: check its paths.")
    return [Path(image) for image in sorted(found)]


def places(data: dict[str, Any], split: str) -> list[str]:
    """The folders and list files of a split."""
    given = data.get(split) or []
    return [str(place) for place in (given if isinstance(given, (list, tuple)) else [given])]


def list_images(place: Path) -> Iterator[Path]:
    """The image files in a folder and those below it, or those that a file lists, by Ultralytics' rules: a line that
    begins with ./ is relative to the list file, another one to the working directory.
    """
    if place.is_dir():
        found = glob.iglob(str(Path(glob.escape(str(place))) / "**" / "*.*"), recursive=True)
    elif place.is_file():
        try:
            lines = place.read_text(encoding="utf-8-sig").strip().splitlines()
        except (UnicodeDecodeError, OSError) as error:
            raise UsageError(
                f"{place} is not a list of images ({one_line(error)}): give a folder, or a text of one path a line."
            ) from error
        found = (str(place.parent / line[2:]) if line.startswith("./") else line for line in lines)
    else:
        found = iter(())
    yield from (Path(name) for name in found if name.rpartition(".")[-1].lower() in IMG_FORMATS)


def is_labelled(image: Path) -> bool:
    """Whether a readable image has a label file, be it empty."""
    return Path(img2label_paths([str(image)])[0]).is_file() and imread(str(image)) is not None


# --- nothing run ----------------------------------------------------------------------------------------------------


def checked_data(data: Any, split: str | None, fraction: Any = 1.0, trust: bool = False) -> Any:
    """The data set's file, converted as Ultralytics would, once it is seen that reading it runs no code from it.

    Code is what a YAML holds to download images that are not there, but for an address, which is downloaded, and for
    the programs of Ultralytics' own data sets.

    Raises:
        UsageError: it holds such code.
        Exception: of a dozen types, where it cannot be read.
    """
    converted = convert_ndjson_to_yolo_if_needed(
        data, **compat.known(convert_ndjson_to_yolo_if_needed, fraction=fraction, split=split)
    )
    file = None if trust else _yaml_file(str(converted))
    said = YAML.load(file) if file else {}
    refuse_many_classes(data, said.get("nc"))
    code = said.get("download")
    if not file or not code or re.fullmatch(r"https?://\S+", str(code)) or _is_ultralytics_own(file):
        return converted
    try:
        check_det_dataset(str(file), autodownload=False, split=split or "")
    except FileNotFoundError:
        refuse_code(f"data={data}", f"a program to download images that are not there (download: {code})")
    return converted


def refuse_many_classes(data: Any, count: Any) -> None:
    """Refuse a number of classes that is none; whether it is a number is Ultralytics' question."""
    try:
        too_many = float(count) > MOST_CLASSES
    except OverflowError:
        too_many = True
    except (TypeError, ValueError):
        too_many = False
    if too_many:
        raise UsageError(
            f"data={data} says nc: {str(count)[:20]}, more than {MOST_CLASSES:,} classes: write their number."
        )


def _yaml_file(data: str) -> Path | None:
    """The YAML that Ultralytics finds by a data set's name; None for an archive, whose YAML downloads nothing."""
    if "://" not in data and not Path(data).exists() and Path(data).suffix not in (".yaml", ".yml"):
        data = next((f"{data}{x}" for x in (".yaml", ".yml") if check_file(f"{data}{x}", hard=False)), data)
    file = Path(check_file(data))
    if file.is_dir():
        return Path(find_dataset_yaml(file))
    return None if zipfile.is_zipfile(file) or is_tarfile(file) else file


def _is_ultralytics_own(file: Path) -> bool:
    """Whether it is one of the installed Ultralytics' own data sets, or an equal copy of one."""
    own = OWN_DATA / file.name
    return file.resolve().parent == OWN_DATA.resolve() or own.is_file() and own.read_bytes() == file.read_bytes()
