"""The demo on photographs: a data set and a teacher that Ultralytics downloads, and a student that nobody published.

What makes it honest. COCO128 are 128 of COCO's training images, and its YAML validates on the same images, so that a
score there is a score on training images: a quarter is held out here. A published student such as yolo11n.pt was
trained on all of COCO, the held-out images too; so the student is of a size that is not published, from random weights.
Only the teacher has seen the held-out images, which is said wherever its score stands.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import torch
from ultralytics.utils import SETTINGS, is_online

from yolokd.data.mirror import mirrored_yaml
from yolokd.data.splits import find_data, read_data, split_images
from yolokd.demo import setting
from yolokd.demo.setting import Setting
from yolokd.detectors.opening import open_model, open_student, scaled_yaml
from yolokd.detectors.teachers import fetched, locate
from yolokd.errors import UsageError, one_line

DATA, TEACHER = "coco128.yaml", "yolo11n.pt"
FAMILY = "yolo11n.yaml"  # of the student, where the teacher's is not known
WIDTH, DEPTH = 0.125, 0.5  # half the channels of the smallest published model, as the bundled student has
EVERY = 4  # every fourth image is held out
CHANGES = {"imgsz": 320, "epochs": 20}
NEEDS_NONE = "name files of this machine with data= and teacher=, or run `yolokd demo`, which needs no network"


def fetch(data: str | Path | None, teacher: str | Path | None) -> tuple[dict[str, Any], Path]:
    """The data set, as Ultralytics describes it, and the teacher's file; downloaded where they are not here.

    Raises:
        UsageError: one of them is not here and cannot be downloaded; nothing was written but what was downloaded.
    """
    file = locate(teacher or TEACHER)
    data = str(data or DATA)
    missing = [name for name, here in ((data, has_data(data)), (Path(file).name, has_teacher(file))) if not here]
    if missing and not (is_online() or getproxies()):
        raise UsageError(
            f"demo real=True has to download {' and '.join(missing)}, and this machine has no network (or "
            f"YOLO_OFFLINE is set): {NEEDS_NONE}."
        )
    try:
        found = Path(fetched(file))
        return read_data({"data": data}), found
    except UsageError as error:
        if not missing:
            raise
        raise UsageError(f"{one_line(error)}; {NEEDS_NONE}.") from error


def has_teacher(file: str) -> bool:
    """Whether a located teacher is where Ultralytics looks before it downloads."""
    return Path(file).exists() or (Path(SETTINGS["weights_dir"]) / file).exists()


def has_data(data: str) -> bool:
    """Whether a data set's images are on this machine."""
    try:
        find_data(data)
    except UsageError:
        return False
    return True


def photographs(out: Path, seed: int, data: dict[str, Any], teacher: Path) -> Setting:
    """The demo on a data set of photographs, read through a mirror: the data set stays as it is."""
    train, val, held_out = divided(split_images(data, "train"), split_images(data, "val"))
    (place := out / "data").mkdir(parents=True)
    file = mirrored_yaml(data, {"train": train, "val": val}, place)
    own = Path(shutil.copy(teacher, out / "teacher.pt"))
    opened = open_student(own, "teacher")
    student = out / "student.pt"
    torch.manual_seed(seed)
    new = open_model(scaled_yaml(family(opened.model), width=WIDTH, depth=DEPTH))
    new.save(student)
    count, teachers = (sum(p.numel() for p in m.model.parameters()) / 1e6 for m in (new, opened))
    about = (
        f"A student of {count:.2f} M parameters, smaller than any that is published and so without weights to begin "
        f"with, learns from {len(train)} images of {Path(str(data['yaml_file'])).name}, once alone and once under "
        f"{teacher.name} ({teachers:.2f} M parameters). "
    )
    if held_out:
        about += (
            f"The data set has no images to score on but those to train on: one in {EVERY} was held out. If the "
            "teacher's own training had them, as COCO's has COCO128, its score is too good; neither student saw them. "
        )
    about += (
        f"From {len(train)} images little can be learnt alone: the figures show how much of the teacher comes across, "
        "not how good such a student can be."
    )
    budget = {**setting.BUDGET, **CHANGES, "seed": seed}
    return Setting(about, file, place / "val" / "images", len(train), len(val), own, student, budget)


def divided(train: list[Path], val: list[Path]) -> tuple[list[Path], list[Path], bool]:
    """Images to train on and to score on, and whether these had to be held out, since the splits share images.

    Raises:
        UsageError: there are too few images.
    """
    shared = bool({image.resolve() for image in train} & {image.resolve() for image in val})
    if shared:
        everything = sorted(dict.fromkeys([*train, *val]))
        train, val = [image for i, image in enumerate(everything) if i % EVERY], everything[::EVERY]
    if len(train) < 2:
        raise UsageError(f"data= has {len(train)} images to train on: the demo needs more, give another data set.")
    return train, val, shared


def family(teacher: Any) -> str:
    """The YAML of the teacher's family, from which the student takes most; FAMILY where it is no published YOLO's."""
    name = Path(str(teacher.yaml.get("yaml_file", ""))).name
    try:
        scaled_yaml(name, width=WIDTH, depth=DEPTH)
    except UsageError:
        return FAMILY
    return name if name.startswith("yolo") else FAMILY
