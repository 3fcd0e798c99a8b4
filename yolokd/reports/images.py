"""Validation images with their objects, and what models find on them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.models.rtdetr import RTDETRValidator
from ultralytics.utils import ops
from ultralytics.utils.patches import imread

from yolokd.config.options import is_filter, read_classes
from yolokd.data.audit import Frame, look_through
from yolokd.data.labels import Form
from yolokd.data.mirror import mirrored_yaml
from yolokd.data.splits import find_data
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.opening import open_model
from yolokd.detectors.teachers import fetched
from yolokd.errors import UsageError
from yolokd.quiet import quiet
from yolokd.reports.scores import Array
from yolokd_edge.scores import Boxes, matched, overlaps

MOST = 100  # validation images that are scored
BATCH = 16  # images
LABELS = 500  # training images whose labels are counted


@dataclass(frozen=True)
class Sample:
    """Some images of the validation split, evenly spaced, with their objects."""

    files: tuple[Path, ...]
    images: tuple[Array, ...]  # BGR
    truths: tuple[Boxes, ...]
    of: int  # how many the split has
    names: dict[int, str]
    imgsz: int
    single: bool  # whether all classes count as one
    kept: frozenset[int] | None  # classes with labels, None for all
    data: dict[str, Any]  # the data set, as Ultralytics describes it

    def first(self, count: int) -> Sample:
        """The same of fewer images, again evenly spaced."""
        if count >= len(self.files):
            return self
        places = [i * len(self.files) // count for i in range(count)]
        return replace(
            self,
            files=tuple(self.files[i] for i in places),
            images=tuple(self.images[i] for i in places),
            truths=tuple(self.truths[i] for i in places),
        )


def sample(arguments: dict[str, Any], task: str, most: int = MOST) -> Sample:
    """Images and objects of a training's validation split.

    Args:
        arguments: the training's.
        task: the student's.
        most: how many images.

    Raises:
        UsageError: the data is not there, or its images have other than three channels.
    """
    if task == "obb":
        raise UsageError("rotated boxes are not scored here, only upright ones.")
    data = find_data(arguments.get("data") or "")
    if (channels := int(data.get("channels", 3))) != 3:
        raise UsageError(f"the images have {channels} channels, and only colour images are looked at here.")
    split, single = str(arguments.get("split") or "val"), bool(arguments.get("single_cls"))
    imgsz = int(arguments.get("imgsz") or 640)
    (seen,) = look_through(data, [split], Form.of(data, task, single), Frame(imgsz), most)
    given = arguments.get("classes")
    kept = None if given is None or not is_filter(given) else frozenset(np.atleast_1d(given).astype(int).tolist())
    files, images, truths = [], [], []
    for one in seen.used:
        image = imread(str(one.image))
        if image is None:
            continue
        objects = as_boxes(one.rows, image.shape[1], image.shape[0])
        if single:
            objects = replace(objects, cls=np.zeros_like(objects.cls))
        files.append(one.image)
        images.append(image)
        truths.append(objects if kept is None else objects.only(np.isin(objects.cls, list(kept))))
    if not files:
        raise UsageError(f"none of the images of the split {split} can be read.")
    names = {0: "object"} if single else {int(k): str(v) for k, v in data["names"].items()}
    return Sample(tuple(files), tuple(images), tuple(truths), seen.total, names, imgsz, single, kept, data)


def as_boxes(rows: Array, width: int, height: int) -> Boxes:
    """Label rows (n, 5) as boxes in pixels."""
    rows = np.asarray(rows, float).reshape(-1, 5)
    half = rows[:, 3:] / 2
    xyxy = np.concatenate((rows[:, 1:3] - half, rows[:, 1:3] + half), 1) * [width, height, width, height]
    return Boxes(xyxy, rows[:, 0].astype(int), np.ones(len(rows)))


def open_any(file: str, key: str, trust: bool) -> YOLO | RTDETR:
    """A student, or a teacher that Ultralytics can run."""
    if file.endswith(".onnx"):
        return YOLO(file, task="detect")
    if file.startswith("timm:"):
        raise UsageError(f"{key}={file} is a backbone, which detects nothing.")
    return open_model(fetched(file) if key == "teacher" else file, key, trust)


def detections(model: YOLO | RTDETR, given: Sample, classes: dict[str, str] | None, device: Any) -> list[Boxes]:
    """What Ultralytics' own validation of a model finds on the images, its classes taken for those of the data by name.

    Args:
        model: Ultralytics' own object.
        given: the images.
        classes: a class map, name in the model -> name in the data.
        device: where to run, as Ultralytics names it.
    """
    table = places(model.names, given, classes)
    found: dict[int, Boxes] = {}

    class Collector(model._smart_load("validator")):  # type: ignore[misc]
        """Keeps what was found; the figures are computed from it, since the model's classes may not be the data's."""

        def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
            """Of each image of a batch."""
            for i, pred in enumerate(preds):
                about = self._prepare_batch(i, batch)
                boxes = in_image(self, pred, about).cpu().numpy().astype(float)
                cls = table[pred["cls"].cpu().numpy().astype(int)]
                one = Boxes(boxes, cls, pred["conf"].cpu().numpy().astype(float))
                keep = cls >= 0
                found[int(Path(batch["im_file"][i]).stem)] = one.only(
                    keep if given.kept is None else keep & np.isin(cls, list(given.kept))
                )

        def get_stats(self) -> dict[str, Any]:
            return {}

        def print_results(self) -> None:
            """Nothing: see `get_stats`."""

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, quiet():
        (place := Path(folder, "data")).mkdir()
        files = list(given.files)
        file = mirrored_yaml(given.data, {"train": files[:1], "val": files}, place)
        model.val(
            Collector, data=str(file), imgsz=given.imgsz, device=device, workers=0, plots=False, verbose=False,
            batch=BATCH, single_cls=given.single, project=folder, conf=None, split="val", save_json=False,
            save_txt=False, rect=True,
        )  # fmt: skip
    torch.set_num_threads(threads)  # the choice of a device changes it
    return [found[i] for i in range(len(files))]


def in_image(validator: Any, pred: dict[str, Any], about: dict[str, Any]) -> torch.Tensor:
    """Boxes (n, 4) in the pixels of the original image, not cut off at its border: a validation compares them whole."""
    if isinstance(validator, RTDETRValidator):
        boxes: torch.Tensor = validator.scale_preds(validator._prepare_pred(pred), about)["bboxes"]
        return boxes
    whole = ops.xyxy2xywh(pred["bboxes"])
    scaled = ops.scale_boxes(about["imgsz"], whole, about["ori_shape"], ratio_pad=about["ratio_pad"], xywh=True)
    return torch.as_tensor(ops.xywh2xyxy(scaled))


def places(names: dict[int, str], given: Sample, classes: dict[str, str] | None) -> Array:
    """Class of a model -> class of the data, -1 for one that the data lacks."""
    count = max(names, default=-1) + 1
    if given.single:
        return np.zeros(count, int)
    shared = match_classes(given.names, names, classes)
    if shared is None:
        return np.arange(count)
    table = np.full(count, -1)
    for own, group in zip(shared.student.tolist(), shared.teacher.tolist(), strict=True):
        table[group] = own
    return table


def class_map(arguments: dict[str, Any]) -> dict[str, str] | None:
    """The class map of a training's arguments, None where equal names match."""
    stored = (arguments.get("kd") or {}).get("classes") if isinstance(arguments.get("kd"), dict) else None
    if isinstance(stored, dict):
        return stored
    given = arguments.get("classes")
    return None if given is None or is_filter(given) else read_classes(given)


def device_of(arguments: dict[str, Any]) -> Any:
    """One of the devices that the training ran on; Ultralytics' choice where it named none."""
    device = arguments.get("device")
    if isinstance(device, (list, tuple)):
        return device[0] if device else None
    return device.split(",")[0] if isinstance(device, str) and device else device


def training_data(arguments: dict[str, Any], task: str) -> dict[str, Any]:
    """How many images and objects the training split has, of each class too, from the labels that were looked at."""
    data = find_data(arguments.get("data") or "")
    form = Form.of(data, task, bool(arguments.get("single_cls")))
    (seen,) = look_through(data, ["train"], form, Frame(int(arguments.get("imgsz") or 640)), LABELS)
    return {**seen.counts(), "classes": {str(k): n for k, n in sorted(seen.histogram.items())}}


def judged(truth: Boxes, found: Boxes, least_conf: float) -> tuple[Boxes, Array, Array]:
    """The confident detections of an image, whether each is right, and which objects were found, at an overlap of 0.5.

    Unlike for scores, an object goes to the most confident detection of its class that fits it, and a box counts for
    its likeliest class only.
    """
    sure = found.only(found.conf >= least_conf)
    sure = sure.only(np.argsort(-sure.conf, kind="stable"))
    sure = sure.only(np.sort(np.unique(sure.xyxy, axis=0, return_index=True)[1]))
    iou = overlaps(sure.xyxy, truth.xyxy) * (sure.cls[:, None] == truth.cls[None])
    taken = matched(iou, 0.5, np.ones(len(truth.cls), bool))
    hit = np.zeros(len(truth.cls), bool)
    hit[taken[taken >= 0]] = True
    return sure, taken >= 0, hit


def chosen(given: Sample, count: int) -> Sequence[int]:
    """Images to show: evenly spaced among those with objects, not chosen by what was found on them."""
    full = [i for i, truth in enumerate(given.truths) if len(truth.cls)] or list(range(len(given.files)))
    count = min(count, len(full))
    return [full[i * len(full) // count] for i in range(count)]
