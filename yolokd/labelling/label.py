"""`yolokd label` and `yolokd.label()`: label images with a teacher, going on where a killed run stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolokd.config.checks import check_values
from yolokd.config.options import read_classes
from yolokd.config.parse import is_number, pixels, true_or_false
from yolokd.data.audit import Frame, look_through
from yolokd.data.findings import counted, named
from yolokd.data.labels import Form
from yolokd.data.splits import places, read_data
from yolokd.data.unlabeled import list_folder
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.teachers import digest, title
from yolokd.errors import Interrupted, UsageError, as_path, printable
from yolokd.labelling import hand_over, sheet
from yolokd.labelling.folder import SCHEMA, SHEET, SUMMARY, THRESHOLDS, Folder, Journal, new_name, read_json, write_text
from yolokd.labelling.teacher import Found, Teacher, read_image
from yolokd.labelling.thresholds import Threshold, choose
from yolokd_edge.progress import Progress

CONF = 0.4
FLOOR = 0.01  # confidence from which on detections on the validation split are looked at
IOU, MOST = 0.7, 300  # of NMS: highest overlap, and detections of an image


def label(
    teacher: str | Path,
    images: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    conf: float = CONF,
    beta: float = 1.0,
    classes: Any = None,
    imgsz: int | None = None,
    device: Any = None,
    copy: bool = False,
    sheet: int = 24,
    fiftyone: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Write a YOLO data set of a teacher's predictions over images without labels.

    Args:
        teacher: the trained model, a .pt or .onnx file.
        images: a folder of images, with its subfolders. Nothing is written there.
        out: the new data set's folder. The same command goes on with the images that are missing.
        data: a labelled data set's YAML. Labels get its classes, and each class the confidence at which F1 on its
            validation split is highest.
        conf: lowest confidence of a label without `data`, and of classes that have no object in its validation split.
        beta: F-beta in place of F1: 0.5 for fewer wrong labels, 2 for fewer missing ones.
        classes: with `data`, a YAML file that says which class of the teacher is which of the data; by default equal
            names match.
        imgsz: image size for the teacher in pixels; by default the one that it was trained at.
        device: where the teacher runs, such as cpu or 0; by default a GPU if there is one.
        copy: True: copy the images instead of linking them.
        sheet: images on the sheet to look at; 0 for none.
        fiftyone: True: hand the labels over to FiftyOne, which must be installed.
        trust: True: open files that may run code, such as a checkpoint's pickle or a data set's download script.

    Returns:
        What OUT/summary.json holds: images, with and without objects, unreadable ones, and for each class its objects
        and its threshold.

    Raises:
        UsageError: something asked for cannot be done; nothing was written.
    """
    work = prepare(Asked(teacher, images, out, data, conf, beta, classes, imgsz, device, copy, sheet, fiftyone, trust))
    work.folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.folder.path / ".lock", timeout=0):
            return work.run()
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"labelling was stopped: the same command goes on in {work.folder.path} with what is missing.", stop
        ) from stop
    except Timeout as error:
        raise UsageError(f"out={out} is being worked on by another process: wait for it or name another.") from error


def labelled(**arguments: Any) -> None:
    """The command line's label: what it returns, as text."""
    print(text(label(**arguments)))


@dataclass(frozen=True)
class Asked:
    """What a user gave, as `label` explains it."""

    teacher: Any
    images: Any
    out: Any
    data: Any
    conf: Any
    beta: Any
    classes: Any
    imgsz: Any
    device: Any
    copy: Any
    sheet: Any
    fiftyone: Any
    trust: Any

    def check(self) -> None:
        """What can be seen in the values alone."""
        for key in ("copy", "fiftyone", "trust"):
            true_or_false(key, getattr(self, key))
        if not is_number(self.conf) or not 0 < self.conf < 1:
            raise UsageError(f"conf={self.conf} is not a confidence between 0 and 1.")
        if not is_number(self.beta) or not 0 < self.beta <= 100:
            raise UsageError(f"beta={self.beta} is not a number above 0 and up to 100.")
        if type(self.sheet) is not int or not 0 <= self.sheet <= 1000:
            raise UsageError(f"sheet={self.sheet} is not a number of images from 0 to 1000.")
        for key, value in (("beta", None if self.beta == 1 else self.beta), ("classes", self.classes)):
            if self.data is None and value is not None:
                raise UsageError(f"{key}={value} is about the classes of data=: give data=my.yaml too.")
        if self.imgsz is not None:
            pixels("imgsz", self.imgsz)
        if isinstance(self.device, (list, tuple)) or "," in str(self.device):
            raise UsageError(f"device={self.device}: one device labels, name one.")
        check_values({} if self.device is None else {"device": self.device})


def prepare(asked: Asked) -> Work:
    """Everything checked; nothing is written yet."""
    asked.check()
    given = as_path("images", asked.images)
    root = given.resolve()
    files = [root / file.relative_to(given) for file in list_folder(asked.images, "images")]
    folder = Folder(asked.out, root)
    if asked.fiftyone:
        hand_over.check_free(folder.path)
    data = None if asked.data is None else read_data({"data": asked.data}, asked.trust)
    teacher = Teacher(asked.teacher, asked.trust)
    names = {int(k): str(v) for k, v in (teacher.names if data is None else data["names"]).items()}
    class_map = None if asked.classes is None else read_classes(asked.classes)
    if data is not None:
        teacher.use_classes(match_classes(names, teacher.names, class_map))
        check_fits(teacher, data, names, asked)
    settings = {
        "schema": SCHEMA,
        "teacher": title(teacher.file),
        "teacher_sha256": digest(teacher.file),
        "images": str(root),
        "data": None if data is None else str(data["yaml_file"]),
        "data_sha256": None if data is None else digest(str(data["yaml_file"])),
        "names": list(names.values()),
        "classes": class_map,
        "conf": asked.conf,
        "beta": asked.beta,
        "imgsz": asked.imgsz or teacher.imgsz,
        "copy": asked.copy,
    }
    folder.check(settings)
    return Work(teacher, files, root, folder, data, names, settings, asked)


def check_fits(teacher: Teacher, data: Mapping[str, Any], names: Mapping[int, str], asked: Asked) -> None:
    """Refuse a teacher that can say nothing of the data."""
    if not teacher.taught(names):
        raise UsageError(
            f"teacher={asked.teacher} knows no class of data={asked.data}, which has {named(list(names.values()))}: "
            "give classes=map.yaml with lines `name in teacher: name in data`, or another teacher."
        )
    if teacher.task == "pose" and list(data.get("kpt_shape") or ()) != teacher.keypoints:
        raise UsageError(
            f"teacher={asked.teacher} finds keypoints of shape {teacher.keypoints} and data={asked.data} has "
            f"{data.get('kpt_shape')}: give data with the teacher's keypoints."
        )


@dataclass
class Work:
    """What is to be done, all of it checked."""

    teacher: Teacher
    files: list[Path]
    root: Path
    folder: Folder
    data: dict[str, Any] | None  # Ultralytics' description of the labelled data
    names: dict[int, str]
    settings: dict[str, Any]
    asked: Asked

    def run(self) -> dict[str, Any]:
        """Choose thresholds, label what is missing, write YAML, sheet and summary."""
        self.folder.begin(self.settings)
        thresholds = self.thresholds()
        journal, unreadable = self.label({k: t.conf for k, t in thresholds.items()})
        records = sorted(journal.records.values(), key=lambda record: str(record["image"]))
        summary = self.summary(records, thresholds, unreadable)
        self.folder.write_yaml(self.yaml())
        if self.asked.sheet and records:
            some = sheet.chosen(records, {k: t.conf for k, t in thresholds.items()}, self.asked.sheet)
            sheet.draw(some, self.root, self.names, self.folder.path / SHEET)
            summary["sheet"] = str(self.folder.path / SHEET)
        if self.asked.fiftyone:
            summary["fiftyone"] = hand_over.hand_over(records, self.root, self.names, self.folder.path)
        write_text(self.folder.path / SUMMARY, json.dumps(summary, indent=1) + "\n")
        return summary

    def look(self, image: Any, conf: float) -> list[Found]:
        """What the teacher finds, one image at a time: so it does not depend on where an earlier run stopped."""
        device = {} if self.asked.device is None else {"device": self.asked.device}
        return self.teacher.look(image, conf, imgsz=self.settings["imgsz"], iou=IOU, max_det=MOST, **device)

    def thresholds(self) -> dict[int, Threshold]:
        """Of each class, chosen once and then kept."""
        if self.data is None:
            return dict.fromkeys(self.names, Threshold(self.settings["conf"]))
        file = self.folder.path / THRESHOLDS
        if kept := read_json(file):
            return {int(k): Threshold(**v) for k, v in kept.items()}
        task = self.teacher.task
        (val,) = look_through(self.data, ["val"], Form.of(self.data, task), Frame(self.settings["imgsz"]), None)
        journal = Journal(self.folder.path / "validation.jsonl")
        missing = [s for s in val.used if str(s.image) not in journal.records]
        progress = Progress("choosing thresholds on the validation split", len(val.used), len(val.used) - len(missing))
        for seen in missing:
            image = read_image(seen.image)
            found = [] if image is None else self.look(image, FLOOR)
            journal.add(image=str(seen.image), found=[(f.cls, f.conf, f.box) for f in found])
            progress.step()
        progress.end()
        pairs = [(journal.records[str(s.image)]["found"], [truth(row) for row in s.rows.tolist()]) for s in val.used]
        chosen = choose(pairs, self.names, self.settings["beta"], FLOOR, self.settings["conf"])
        write_text(file, json.dumps({k: asdict(t) for k, t in chosen.items()}, indent=1) + "\n")
        return chosen

    def label(self, thresholds: Mapping[int, float]) -> tuple[Journal, list[str]]:
        """Label what has no label yet; returns all that is done, and the images that cannot be read."""
        journal = Journal(self.folder.path / "labels.jsonl")
        taken = {Path(record["as"]).stem.lower() for record in journal.records.values()}
        missing = [f for f in self.files if self.within(f) not in journal.records]
        progress = Progress("labelling", len(self.files), len(self.files) - len(missing))
        unreadable = []
        for file in missing:
            image = read_image(file)
            if image is None:
                unreadable.append(self.within(file))
            else:
                objects = [f for f in self.look(image, min(thresholds.values())) if f.conf >= thresholds[f.cls]]
                name = new_name(file, self.root, taken)
                self.folder.add(file, name, (f.line() for f in objects), self.settings["copy"])
                journal.add(**{"image": self.within(file), "as": name, "objects": [self.noted(f) for f in objects]})
            progress.step()
        progress.end()
        return journal, unreadable

    def noted(self, found: Found) -> dict[str, Any]:
        """An object in the journal, for the sheet and for FiftyOne."""
        outline = found.row if self.teacher.task in ("segment", "obb") else None
        return {"class": found.cls, "conf": found.conf, "box": found.box, "outline": outline}

    def within(self, file: Path) -> str:
        """An image's path below the folder of images."""
        return file.relative_to(self.root).as_posix()

    def yaml(self) -> dict[str, Any]:
        """The data set's YAML: validated on the labelled data's validation split, or else on itself."""
        val = places(self.data, "val") if self.data else ["images"]
        content: dict[str, Any] = {"path": str(self.folder.path), "train": "images"}
        content |= {"val": val[0] if len(val) == 1 else val, "names": dict(self.names)}
        if self.teacher.task == "pose":
            content |= {"kpt_shape": self.teacher.keypoints}
            content |= {"flip_idx": flip} if (flip := (self.data or {}).get("flip_idx")) else {}
        return content

    def summary(
        self, records: Iterable[Mapping[str, Any]], thresholds: Mapping[int, Threshold], unreadable: list[str]
    ) -> dict[str, Any]:
        """The data set in numbers."""
        records = list(records)
        objects = Counter(thing["class"] for record in records for thing in record["objects"])
        with_objects = sum(bool(record["objects"]) for record in records)
        taught = self.teacher.taught(self.names)
        return {
            "schema": SCHEMA,
            "data": str(self.folder.path / "data.yaml"),
            "task": self.teacher.task,
            "images": len(records),
            "with_objects": with_objects,
            "without_objects": len(records) - with_objects,
            "unreadable": unreadable,
            "not_taught": [self.names[k] for k in self.names if k not in taught],
            "classes": {name: {"objects": objects[k], **asdict(thresholds[k])} for k, name in self.names.items()},
        }


def truth(row: list[float]) -> tuple[int, tuple[float, ...]]:
    """An object of a label: its class, and its box by its corners."""
    cls, x, y, width, height = row
    return int(cls), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def text(summary: Mapping[str, Any]) -> str:
    """The summary to read."""
    width = max([5, *(len(printable(name)) for name in summary["classes"])])
    lines = [f"{'class':{width}}  objects  from confidence"]
    for name, about in summary["classes"].items():
        why = "" if about["f"] is None else f"  precision {about['precision']:.2f}, recall {about['recall']:.2f} on "
        why += "" if about["f"] is None else counted(about["validation_objects"], "validation object")
        lines.append(f"{printable(name):{width}}  {about['objects']:7}  {about['conf']:15.3f}{why}")
    lines += ["", f"{counted(summary['images'], 'image')}, {summary['without_objects']} without an object"]
    if summary["not_taught"]:
        lines.append(f"The teacher cannot find {printable(named(summary['not_taught']))}: such objects are background.")
    if summary["unreadable"]:
        lines.append(f"Left out, because they cannot be read: {printable(named(summary['unreadable']))}.")
    lines += [f"Look at {summary['sheet']}."] if "sheet" in summary else []
    lines += [f"In FiftyOne it is the data set {summary['fiftyone']!r}."] if "fiftyone" in summary else []
    return "\n".join([*lines, f"Data set: {summary['data']}"])
