"""The folder of a labelled data set: what it was made with, what is done, images, labels and the YAML.

Every image that is done has a line in a journal, written after its label. So a killed run goes on behind the last line,
and a label that somebody has mended since is left alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from yolokd.config.checks import check_writable
from yolokd.data.mirror import link
from yolokd.errors import UsageError, as_path

SCHEMA = "yolokd.label/1"
SETTINGS, THRESHOLDS, SUMMARY, YAML_FILE, SHEET = (
    "label.json",
    "thresholds.json",
    "summary.json",
    "data.yaml",
    "sheet.jpg",
)


class Folder:
    """One that is new, or that an earlier run with the same settings left.

    Args:
        out: what the user named.
        images: the folder of images, which must not hold the new one, nor lie in it.
    """

    def __init__(self, out: Any, images: Path) -> None:
        self.given, self.path = out, as_path("out", out).resolve()
        if images in (self.path, *self.path.parents):
            raise UsageError(f"out={out} lies in images={images}, whose images are labelled: name a folder elsewhere.")
        if self.path in images.parents:
            raise UsageError(f"images={images} lies in out={out}: name another folder for the labels.")
        if self.path.exists() and (not self.path.is_dir() or (any(self.path.iterdir()) and not self.is_ours())):
            raise UsageError(f"out={out} exists and is not the folder of earlier labels: name a new one.")
        check_writable(self.path, f"out={out}")
        self.images, self.labels = self.path / "images", self.path / "labels"

    def is_ours(self) -> bool:
        """Whether an earlier run made it, by what it noted."""
        return (self.path / SETTINGS).is_file()

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse to mix labels that were made otherwise with new ones."""
        if not self.is_ours():
            return
        before = read_json(self.path / SETTINGS)
        for key, now in json.loads(json.dumps(settings)).items():
            if (was := before.get(key)) != now:
                what = f"the file {key[:-7]}= has changed" if key.endswith("_sha256") else f"{key}: {was}, now {now}"
                raise UsageError(f"out={self.given} holds labels with other settings ({what}): name another folder.")

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder, or leave it as it is."""
        self.images.mkdir(parents=True, exist_ok=True)
        self.labels.mkdir(exist_ok=True)
        if not self.is_ours():
            write_text(self.path / SETTINGS, json.dumps(settings, indent=1) + "\n")

    def add(self, image: Path, name: str, lines: Iterable[str], copy: bool) -> None:
        """Link or copy an image and write its label, whole or not at all."""
        target = self.images / name
        if not target.is_symlink() and not target.exists():
            if copy:
                shutil.copyfile(image, part := target.with_name(f".{name}.part"))
                os.replace(part, target)
            else:
                link(image, target)
        write_text(self.labels / f"{Path(name).stem}.txt", "".join(f"{line}\n" for line in lines))

    def write_yaml(self, content: dict[str, Any]) -> Path:
        """The data set's YAML; one that is there may have been edited and is left alone."""
        file = self.path / YAML_FILE
        if not file.exists():
            write_text(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return file


class Journal:
    """One JSON object a line, by the name of an image; a last line that was cut short is forgotten."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.records: dict[str, dict[str, Any]] = {}
        whole = 0
        for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else []:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self.records[record["image"]] = record
        if file.is_file() and whole < file.stat().st_size:
            os.truncate(file, whole)

    def add(self, **record: Any) -> None:
        """Note that an image is done."""
        self.records[record["image"]] = record
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def new_name(image: Path, root: Path, taken: set[str]) -> str:
    """A name for an image in the one folder of images, of its path below root; no two have the label of one.

    Args:
        taken: names without their endings, in lower case; the new one is added.
    """
    flat = "-".join(image.relative_to(root).parts)
    stem, ending = flat[: len(flat) - len(image.suffix)], image.suffix
    name, count = stem, 2
    while name.lower() in taken:
        name, count = f"{stem}_{count}", count + 1
    taken.add(name.lower())
    return name + ending


def write_text(file: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def read_json(file: Path) -> dict[str, Any]:
    """What was written there, {} where nothing whole is."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
