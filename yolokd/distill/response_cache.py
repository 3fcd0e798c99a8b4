"""Teacher responses on disk: what a teacher predicts on a view of an image is stored once and read back afterwards.

Stored are the anchor points that the teacher scores highest, in half precision: of each its box, as sides in cells, and
its highest class logits. The rest of a head's N K scores is near 0, and is put back as one number a level and class:
the mean score of what was left out there, which keeps the sum of the scores, and with it the sum of a soft target's
gradients, as it was. Boxes left out are put back with their mean sides, weighted by score.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.utils import LOGGER, RANK

from yolokd.distill.teacher import Teacher
from yolokd.errors import UsageError, printable
from yolokd.methods import ops
from yolokd.views import View, ViewsAt

NEEDS = frozenset({"logits", "boxes"})  # fields of a view that are stored
FORMAT = 2  # 1: boxes decoded in a GPU's half precision
SCORE = 0.01  # as many anchor points are stored as have a higher one
# Highest logits stored of a point; where the teacher has no more, all are. Of ten classes the best four alone changed
# the gradient of a soft target by 7 %, all of them by 0.7 %.
CLASSES = 16
TINY = 1e-7  # a lower score is stored as this
GB = 1e9


def sizes(strides: Sequence[int], imgsz: int) -> list[int]:
    """Anchor points of every level of a square image, with their rows and columns alike."""
    return [math.ceil(imgsz / stride) ** 2 for stride in strides]


def layout(strides: Sequence[int], imgsz: int, classes: int, branches: int, points: int) -> np.dtype[Any]:
    """What is stored of one view.

    Args:
        strides: of the teacher's L levels.
        imgsz: side of the student's images.
        classes: of the teacher.
        branches: of the teacher's head that are stored.
        points: anchor points stored.
    """
    total, levels = sum(sizes(strides, imgsz)), len(strides)
    best = min(classes, CLASSES)
    return np.dtype(
        [
            ("points", "<u2" if total <= 2**16 else "<u4", (branches, points)),
            ("classes", "<u1" if classes <= 2**8 else "<u2", (branches, points, best if classes > best else 0)),
            ("logits", "<f2", (branches, points, best)),
            ("sides", "<f2", (branches, points, 4)),
            ("rest", "<f2", (branches, levels, classes)),  # logits of the mean scores left out
            ("rest_sides", "<f2", (branches, levels, 4)),
            ("check", "<u4"),
        ]
    )


class Grid:
    """The anchor points of square images: where a teacher's views become records, and records views.

    Args:
        strides: of the teacher's levels.
        imgsz: side of the student's images.
    """

    def __init__(self, strides: tuple[int, ...], imgsz: int, device: torch.device) -> None:
        self.strides, self.sizes = strides, sizes(strides, imgsz)
        centres = []
        for stride in strides:
            at = torch.arange(math.ceil(imgsz / stride), device=device) + 0.5
            centres.append(torch.cartesian_prod(at, at).flip(-1) * stride)
        self.centres = torch.cat(centres)
        self.pixels = torch.cat([torch.full((n, 1), float(s)) for s, n in zip(strides, self.sizes, strict=True)])
        self.pixels = self.pixels.to(device)

    def records(self, views: dict[str, View], kind: np.dtype[Any]) -> NDArray[Any]:
        """(B,) records of a batch's views by branch."""
        parts = [self._of_view(view, kind) for view in views.values()]
        records = np.zeros(len(parts[0]["points"]), kind)
        for field in parts[0]:
            records[field] = torch.stack([part[field] for part in parts], 1).cpu().numpy()
        return records

    def _of_view(self, view: View, kind: np.dtype[Any]) -> dict[str, Tensor]:
        assert view.logits is not None and view.boxes is not None
        logits, boxes = view.logits.float(), view.boxes.float()
        sides = torch.cat((self.centres - boxes[..., :2], boxes[..., 2:] - self.centres), -1) / self.pixels
        score, left = logits.sigmoid(), logits.new_ones(logits.shape)
        points = logits.amax(-1).topk(kind["points"].shape[1]).indices
        best, classes = rows(logits, points).topk(kind["logits"].shape[2])
        places = points[..., None] * logits.shape[-1] + classes
        left.flatten(1).scatter_(1, places.flatten(1), 0.0)
        rest = self._sums(score * left) / self._sums(left).clamp(min=1)
        weight = score.amax(-1, keepdim=True).scatter(1, points[..., None], 0.0)
        rest_sides = self._sums(weight * sides) / self._sums(weight).clamp(min=TINY)
        if not kind["classes"].shape[2]:  # all of them: their order says which
            best, classes = rows(logits, points), classes[..., :0]
        rest_logits = rest.clamp(TINY, 1 - TINY).logit()
        highest = {"points": points, "classes": classes, "logits": best, "sides": rows(sides, points)}
        return {**highest, "rest": rest_logits, "rest_sides": rest_sides}

    def _sums(self, x: Tensor) -> Tensor:
        """Sums over every level's points, (B, N, C) -> (B, L, C)."""
        return torch.stack([part.sum(1) for part in x.split(self.sizes, 1)], 1)

    def views(self, records: NDArray[Any], branches: Sequence[str]) -> dict[str, View]:
        """Views by branch from (B,) records."""
        device = self.centres.device
        wide: dict[str, Any] = {"points": np.int64, "classes": np.int64}
        # Half precision goes to the device as it is.
        stored = {
            f: torch.from_numpy(np.ascontiguousarray(records[f]).astype(wide.get(f, np.float16), copy=False)).to(device)
            for f in records.dtype.names or ()
            if f != "check"
        }
        return {b: self._view({f: x[:, i] for f, x in stored.items()}) for i, b in enumerate(branches)}

    def _view(self, stored: dict[str, Tensor]) -> View:
        points = stored["points"]
        logits, sides = self._spread(stored["rest"]), self._spread(stored["rest_sides"])
        if stored["classes"].shape[-1]:
            places = points[..., None] * logits.shape[-1] + stored["classes"]
            logits.flatten(1).scatter_(1, places.flatten(1), stored["logits"].float().flatten(1))
        else:
            logits.scatter_(1, points[..., None].expand_as(stored["logits"]), stored["logits"].float())
        sides.scatter_(1, points[..., None].expand_as(stored["sides"]), stored["sides"].float())
        sides = sides * self.pixels
        boxes = torch.cat((self.centres - sides[..., :2], self.centres + sides[..., 2:]), -1)
        return View(self.strides, logits=logits, boxes=boxes)

    def _spread(self, x: Tensor) -> Tensor:
        """Every level's numbers at all of its points, (B, L, C) -> (B, N, C)."""
        return torch.cat([x[:, i : i + 1].float().expand(-1, n, -1) for i, n in enumerate(self.sizes)], 1)

    def at(self, view: View, strides: tuple[int, ...]) -> View:
        """A view's levels at these strides."""
        if strides == self.strides:
            return view
        keep = torch.isin(self.pixels[:, 0], self.pixels.new_tensor(strides))
        assert view.logits is not None and view.boxes is not None
        return replace(view, strides=strides, logits=view.logits[:, keep], boxes=view.boxes[:, keep])


def rows(x: Tensor, points: Tensor) -> Tensor:
    """Those of N rows that are named, (B, N, C), (B, P) -> (B, P, C)."""
    return x.gather(1, points[..., None].expand(-1, -1, x.shape[-1]))


class Store:
    """Records of equal size in one file, by number. Several processes may use the file at the same time.

    A record carries a checksum, written last: one that was never written, or of which a killed process wrote a part,
    is not there. The file is as long as it will ever be from the start, and takes space on disk as it is filled.

    Args:
        file: the file, made if it is not there.
        kind: layout of a record.
        count: records.
    """

    def __init__(self, file: Path, kind: np.dtype[Any], count: int) -> None:
        self.kind, self.closed = kind, False
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()  # the time of the last use: the oldest files make room for new ones
            self.file = file.open("r+b", buffering=0)
            if file.stat().st_size < kind.itemsize * count:
                self.file.truncate(kind.itemsize * count)
        except OSError as error:
            raise UsageError(
                f"cache=teacher cannot write {file} ({error.strerror}): give a data set in a folder that can be "
                "written, or leave cache=teacher out."
            ) from error

    def read(self, number: int) -> Any:
        """The record of that number, a structured scalar; None if there is none."""
        self.file.seek(number * self.kind.itemsize)
        data = self.file.read(self.kind.itemsize)
        if len(data) < self.kind.itemsize:
            return None
        record: Any = np.frombuffer(data, self.kind)[0]
        return record if record["check"] == checksum(data) else None

    def write(self, number: int, record: Any) -> None:
        """Store a record. On a full disk this and later ones are left out."""
        if self.closed:
            return
        record["check"] = checksum(record.tobytes())
        try:
            self.file.seek(number * self.kind.itemsize)
            self.file.write(record.tobytes())
        except OSError as error:
            self.closed = True
            LOGGER.warning(f"No more teacher responses are stored ({error.strerror}): the teacher runs instead")


def checksum(data: bytes) -> int:
    """Of a record without its last four bytes; never 0, which is what a hole in a file holds."""
    return zlib.crc32(data[:-4]) or 1


class Cache:
    """A teacher that runs once on a view and is then read from a store. What it predicts is the same both times.

    Args:
        teacher: a teacher of anchor points, whose views have the fields in NEEDS.
        branches: of its head that it provides, in their order.
        store: records of the layout of such views.
        imgsz: side of the student's images.

    Attributes:
        asked, ran: images whose views were asked for since the last `start_epoch`, and those that the teacher ran on.
    """

    def __init__(self, teacher: Teacher, branches: Sequence[str], store: Store, imgsz: int, device: torch.device):
        self.teacher, self.branches, self.store = teacher, branches, store
        self.grid = Grid(teacher.reader.strides, imgsz, device)
        self.start_epoch()

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return self  # as its teacher

    def start_epoch(self) -> None:
        """Count anew."""
        self.asked = self.ran = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, numbers: Sequence[int]) -> ViewsAt:
        """The teacher's views of images (B, C, H, W), which are stored under these numbers."""
        records: list[Any] = [self.store.read(number) for number in numbers]
        new = [i for i, record in enumerate(records) if record is None]
        if new:
            teacher_views = self.teacher(images if len(new) == len(images) else images[new])
            with torch.autocast(images.device.type, enabled=False):  # boxes are decoded in full precision, as for terms
                computed = self.grid.records(teacher_views(self.grid.strides), self.store.kind)
            for i, record in zip(new, computed, strict=True):
                self.store.write(numbers[i], record)
                records[i] = record
        self.asked, self.ran = self.asked + len(images), self.ran + len(new)
        views = self.grid.views(np.stack(records), self.branches)
        return lambda strides: {branch: self.grid.at(view, strides) for branch, view in views.items()}


def open_all(
    teachers: Sequence[tuple[Teacher, Sequence[str], str]],
    folder: Path,
    views: str,
    count: int,
    sample: Callable[[], Tensor],
    limit: float,
) -> list[Cache]:
    """A cache for each teacher, filled as far as earlier trainings did; says how large they may get.

    Args:
        teachers: each with the branches that it provides and the hash of its file.
        folder: where the files are, each named by its teacher's name, what it depends on, and the anchor points stored.
        views: hash of what the views depend on.
        count: number of views.
        sample: gives some images, by which the number of anchor points is chosen for a new cache.
        limit: bytes that all files in the folder may have.

    Raises:
        UsageError: they would be larger than the limit, or than the disk.
    """
    images = sample()
    imgsz = images.shape[-1]
    made = []
    for teacher, branches, file in teachers:
        reader = teacher.reader
        about = [FORMAT, views, file, teacher.scale, list(branches), reader.strides, SCORE, CLASSES]
        name = f"{reader.spec.name}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"
        known = sorted(int(f.stem.rpartition("-")[2]) for f in folder.glob(f"{glob.escape(name)}-*.bin"))
        points = known[-1] if known else points_above(teacher(images)(reader.strides))
        kind = layout(reader.strides, imgsz, reader.spec.classes, len(branches), points)
        made.append((teacher, branches, folder / f"{name}-{points}.bin", kind))
    files = [file for _, _, file, _ in made]
    needed = sum(kind.itemsize for *_, kind in made) * count
    size = f"{needed / GB:.3g} GB for {count} views, {needed / count / 1000:.3g} kB each"
    if needed > limit:
        raise UsageError(
            f"cache=teacher needs {size}, and cache_limit is {limit / GB:g} GB: raise it, or lower cache_views."
        )
    around = next(f for f in (folder, *folder.parents) if f.exists())
    if needed - sum(f.stat().st_size for f in files if f.exists()) > (free := shutil.disk_usage(around).free):
        raise UsageError(f"cache=teacher needs {size}, and {around} has {free / GB:.3g} GB left: lower cache_views.")
    if RANK in {-1, 0}:
        LOGGER.info(printable(f"Teacher cache in {folder}: at most {size}"))
        make_room(folder, files, needed, limit)
    return [
        Cache(teacher, branches, Store(file, kind, count), imgsz, images.device)
        for teacher, branches, file, kind in made
    ]


def points_above(views: dict[str, View]) -> int:
    """How many anchor points of an image score above SCORE, at most, rounded up to a power of two.

    So coarse that a small change of the scores does not ask for another file.
    """
    scores = [ops.confidence(ops.required(view.logits, "logits")) for view in views.values()]
    most = max(int((score > SCORE).sum(1).max()) for score in scores)
    return min(1 << math.ceil(math.log2(max(most, 16))), scores[0].shape[1])


def make_room(folder: Path, keep: Sequence[Path], needed: int, limit: float) -> None:
    """Remove the caches in a folder that were not used for longest, until all of them together fit the limit.

    Args:
        keep: files that are in use.
        needed: bytes of those.
        limit: bytes.
    """
    others = sorted((f for f in folder.glob("*.bin") if f not in keep), key=lambda f: f.stat().st_mtime)
    total = needed + sum(f.stat().st_size for f in others)
    for file in others:
        if total <= limit:
            break
        total -= file.stat().st_size
        file.unlink()
        LOGGER.info(printable(f"Removed the teacher cache {file}, to keep to cache_limit={limit / GB:g}"))
