"""What is to be said of a data set that was looked through: problems, warnings and notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolokd.data.audit import Seen, Split
from yolokd.data.duplicates import equal_files, leaks, orphans, sharing_labels
from yolokd.data.findings import NOTE, PROBLEM, WARNING, Finding, counted, named, ordered
from yolokd.data.labels import FAULTS, Form

BACKGROUNDS = 0.1  # share of images without a label file from which on labels are probably missing
SMALL = 0.1  # share of boxes under the smallest stride from which on the image size is probably too small


def findings(splits: list[Split], names: dict[int, str], form: Form, stride: int, imgsz: int) -> list[Finding]:
    """All that is to be said, problems first.

    Args:
        splits: the training's first, then the validation's.
        names: class -> name.
        form: how the labels must look.
        stride: the student's smallest.
        imgsz: sides of the training's images.
    """
    train, val = splits
    found = [finding for split in splits for finding in [*of_images(split, form), *of_labels(split, form)]]
    found += of_duplicates(train, val) + of_classes(splits, names) + of_sizes(train, stride, imgsz)
    return ordered(found)


def of_images(split: Split, form: Form) -> list[Finding]:
    """Images that are skipped, restored, or have no object."""
    found = []
    if not split.used:
        one = split.seen[0]
        found.append(Finding(PROBLEM, f"{split.name}: no image can be used ({one.image}: {one.skipped}): mend them."))
    elif not split.with_objects:
        level = PROBLEM if split.name == "train" else WARNING
        found.append(Finding(level, f"{split.name}: no image has an object that can be used: mend the labels."))
    broken = [s for s in split.seen if s.skipped and not s.faults]
    if broken:
        said = f"{split.name}: {counted(len(broken), 'image')} will be skipped, "
        said += f"{named([f'{s.image} ({s.skipped})' for s in broken])}: mend or remove them."
        found.append(Finding(WARNING, said))
    if restored := [s.image for s in split.seen if s.restored]:
        said = f"{split.name}: {counted(len(restored), 'JPEG')} with a damaged end, {named(restored)}: a "
        found.append(Finding(WARNING, said + "training rewrites such files, look whether the pictures are whole."))
    if form.task in ("segment", "obb") and (boxes := [s.label for s in split.used if _is_boxes(s)]):
        said = f"{split.name}: {counted(len(boxes), 'label file')} with boxes, {named(boxes)}: task {form.task} trains "
        found.append(Finding(PROBLEM, said + f"with none; write {form.columns} a row."))
    return found


def _is_boxes(seen: Seen) -> bool:
    """Whether Ultralytics reads plain boxes from a label file that must have polygons."""
    return len(seen.rows) > 0 and "columns" in seen.faults and seen.faults["columns"].endswith(": 5 columns")


def of_labels(split: Split, form: Form) -> list[Finding]:
    """Label files that are missing, that lie elsewhere, that have faulty rows."""
    found = of_strays(split)
    stray = strays(split)
    if missing := [s.image for s in split.used if not s.labelled and s not in stray]:
        many = len(missing) > BACKGROUNDS * len(split.seen)
        said = f"{split.name}: {counted(len(missing), 'image')} of {len(split.seen)} without a label file, "
        said += f"{named(missing)}: they count as images without objects"
        said += "; if that is meant, add empty label files." if many else "."
        found.append(Finding(WARNING if many else NOTE, said))
    for kind, (what, remedy) in FAULTS.items():
        if bad := [s for s in split.seen if kind in s.faults]:
            skipped = sum(bool(s.skipped) for s in bad)
            said = f"{split.name}: {counted(len(bad), 'label file')} {what}, "
            said += named([f"{s.label} ({s.faults[kind]})" for s in bad])
            said += f"; {counted(skipped, 'image')} will be skipped" if skipped else ""
            remedy = remedy.format(columns=form.columns, last=(form.classes or 1) - 1)
            found.append(Finding(NOTE if kind == "twice" else WARNING, f"{said}: {remedy}."))
    return found


def strays(split: Split) -> list[Seen]:
    """Images without a label whose label file lies beside them."""
    return [s for s in split.used if not s.labelled and s.image.with_suffix(".txt").is_file()]


def of_strays(split: Split) -> list[Finding]:
    """Label files that lie where nothing reads them."""
    if not (stray := strays(split)):
        return []
    said = f"{split.name}: {counted(len(stray), 'label file')} beside the images, such as "
    said += f"{stray[0].image.with_suffix('.txt')}: a label is read from {stray[0].label}, move them there."
    return [Finding(WARNING, said)]


def of_duplicates(train: Split, val: Split) -> list[Finding]:
    """Images that come twice, label files of several images or of none."""
    here, there = ([s.image for s in split.seen] for split in (train, val))
    found = []
    if leaked := leaks(here, there):
        pairs = named([f"{image} = {taught}" for image, taught in leaked])
        said = f"{counted(len(leaked), 'validation image')} of {len(there)} among the training's too, {pairs}: "
        found.append(Finding(WARNING, said + "scores will be too good, remove them from one of the two."))
    for name, images in ((train.name, here), (val.name, there)):
        if groups := equal_files(images):
            pairs = named([f"{a} = {b}" for a, b, *_ in groups])
            extra = sum(len(group) - 1 for group in groups)
            found.append(Finding(NOTE, f"{name}: {counted(extra, 'image')} more than once, {pairs}."))
    if groups := sharing_labels([*here, *there]):
        pairs = named([" and ".join(map(str, group)) for group in groups])
        said = f"{counted(len(groups), 'label file')} of several images, {pairs}: rename all but one of each."
        found.append(Finding(WARNING, said))
    if lost := orphans([*here, *there]):
        said = f"{counted(len(lost), 'label file')} without an image, {named(lost)}: remove them, or add the images."
        found.append(Finding(WARNING, said))
    return found


def of_classes(splits: list[Split], names: dict[int, str]) -> list[Finding]:
    """Classes without an object."""
    found = []
    for split in splits:
        counts = split.histogram
        lost = [str(name) for k, name in names.items() if not counts[k]]
        if lost and counts and len(split.seen) == split.total:
            remedy = "label some, or remove the class" if split.name == "train" else "their scores will not count"
            said = f"{split.name}: no object of {counted(len(lost), 'class', 'classes')}, "
            found.append(Finding(WARNING if split.name == "train" else NOTE, f"{said}{named(lost)}: {remedy}."))
    return found


def of_sizes(train: Split, stride: int, imgsz: int) -> list[Finding]:
    """Boxes that are smaller than a cell of the student's finest map."""
    share = small_share(train, stride)
    if share is None or not share:
        return []
    said = f"{share:.1%} of the training's boxes have a side under {stride} px, the smallest stride, at imgsz={imgsz}"
    if share < SMALL:
        return [Finding(NOTE, f"{said}.")]
    return [Finding(WARNING, f"{said}: they are hard to find, train with a larger imgsz=.")]


def small_share(split: Split, stride: int) -> float | None:
    """Share of boxes whose smaller side is under a stride; None without boxes."""
    sides = [side for s in split.used for side in s.sides]
    return sum(bool(side < stride) for side in sides) / len(sides) if sides else None


def summary(splits: list[Split], names: dict[int, str], stride: int) -> dict[str, Any]:
    """The data set in numbers, by split."""
    return {
        split.name: {
            **split.counts(),
            "classes": {str(name): split.histogram[k] for k, name in names.items()},
            "small_boxes": small_share(split, stride),
        }
        for split in splits
    }


def files_of(split: Split) -> list[Path]:
    """The images that Ultralytics takes, of those looked at."""
    return [s.image for s in split.used]
