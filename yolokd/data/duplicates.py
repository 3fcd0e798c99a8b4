"""Images that a data set has twice: files of equal content, and files that share a label because of equal names."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ultralytics.data.utils import img2label_paths


def equal_files(files: Iterable[Path]) -> list[list[Path]]:
    """Groups of files of equal content, also one file that is given twice; only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if file.is_file():
            by_size[os.path.getsize(file)].append(file)
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for same in by_size.values():
        for file in same if len(same) > 1 else ():
            groups[hashlib.blake2b(file.read_bytes()).digest()].append(file)
    return [group for group in groups.values() if len(group) > 1]


def leaks(train: list[Path], val: list[Path]) -> list[tuple[Path, Path]]:
    """(validation image, training image of equal content) for every validation image that has one."""
    taught = set(map(str, train))
    found = []
    for group in equal_files([*dict.fromkeys(train), *dict.fromkeys(val)]):
        ours = [file for file in group if str(file) in taught]
        found += [(file, ours[0]) for file in group if str(file) in set(map(str, val)) and ours]
    return list(dict.fromkeys(found))


def sharing_labels(images: Iterable[Path]) -> list[list[Path]]:
    """Groups of different images that have one label file, such as a.jpg and a.png."""
    by_label: dict[str, list[Path]] = defaultdict(list)
    for image in dict.fromkeys(images):
        by_label[img2label_paths([str(image)])[0]].append(image)
    return [group for group in by_label.values() if len(group) > 1]


def orphans(images: Iterable[Path]) -> list[Path]:
    """Label files without an image, in the folders in which the images' labels lie.

    An image that no split lists counts too: a list file may name some of a folder only.
    """
    folders: dict[str, str] = {}  # of labels -> of images
    for image in images:
        label = img2label_paths([str(image)])[0]
        folders[os.path.dirname(label)] = os.path.dirname(str(image))
    found = []
    for labels, pictures in folders.items():
        if labels == pictures or not os.path.isdir(labels):
            continue  # beside the images there may lie any text
        stems = {name.rpartition(".")[0] for name in os.listdir(pictures)}
        found += [Path(labels, n) for n in sorted(os.listdir(labels)) if n.endswith(".txt") and n[:-4] not in stems]
    return found
