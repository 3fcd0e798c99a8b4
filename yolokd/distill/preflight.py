"""Refuse a pair, data set or method that cannot work, before any folder is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO
from ultralytics.utils import SETTINGS

from yolokd.config.checks import check_writable
from yolokd.config.options import DistillOptions
from yolokd.data.splits import read_data
from yolokd.detectors import read
from yolokd.detectors.reader import Reader
from yolokd.distill.applicability import Plan, check_truth, plans, replan, rounded_imgsz
from yolokd.distill.pruned import refuse_other_classes
from yolokd.distill.quantization import check_student
from yolokd.distill.starting import frozen_layers
from yolokd.errors import UsageError
from yolokd.init import transfer


@dataclass(frozen=True, slots=True)
class Ready:
    """What a training will begin with."""

    data: dict[str, Any]  # Ultralytics' description of it
    student: Reader
    plans: list[Plan]  # one for each teacher
    side: int  # of the student's images, in pixels


def preflight(student: YOLO | RTDETR, arguments: dict[str, Any], trust: bool = False) -> Ready:
    """Refuse a pair, data set or method that cannot work; the trainer checks again, but after making its folder."""
    check_place(arguments, student.task)
    check_freeze(arguments.get("freeze"), student.model)
    data = read_data(arguments, trust)
    distillation, single_cls = DistillOptions.of(arguments), bool(arguments.get("single_cls"))
    if distillation.quantize:
        check_student(student.model)
    if single_cls:
        data = {**data, "names": {0: "item"}}
    refuse_other_classes(student.model, 1 if single_cls else len(data["names"]))
    reader = read(student.model)
    if student.task == "pose":  # the trainer will build the student for the data's number of keypoints
        if "kpt_shape" not in data:
            raise UsageError(f"data={arguments['data']} has no kpt_shape, such as [17, 3]: a pose model needs it.")
        reader.spec = replace(reader.spec, keypoints=data["kpt_shape"][0])
    varied = bool(arguments.get("multi_scale") or arguments.get("rect"))
    side = rounded_imgsz(arguments.get("imgsz") or 640, student.model)
    made = plans(reader, distillation, data, side, single_cls, varied, arguments.get("classes"))
    transfer.refuse_choice(distillation.init_channels, reader)
    transfer.candidates(distillation.init, reader, made[0].teacher, frozen_layers(arguments.get("freeze")))
    return Ready(data, reader, made, side)


def recheck(ready: Ready, arguments: dict[str, Any]) -> None:
    """Refuse what `preflight` would, of folded arguments that differ by method and start from those it has seen."""
    distillation = DistillOptions.of(arguments)
    made = [replan(ready.student, one, distillation, ready.data["names"]) for one in ready.plans]
    check_truth(distillation, made)
    transfer.candidates(distillation.init, ready.student, made[0].teacher, frozen_layers(arguments.get("freeze")))


def check_place(arguments: dict[str, Any], task: str) -> None:
    """Refuse a relative project=, or none, where no folder can be made; absolute ones are checked before."""
    project = arguments.get("project")
    if not arguments.get("save_dir") and not (project and Path(str(project)).is_absolute()):
        said = f"project={project}" if project else "the folder of runs in Ultralytics' settings"
        check_writable(Path(SETTINGS["runs_dir"]) / task / str(project or "") / "train", said)


def check_freeze(freeze: Any, model: Any) -> None:
    """Refuse to freeze every layer, as Ultralytics will after it made its folder."""
    layers = range(freeze) if isinstance(freeze, int) else freeze or ()
    frozen = (".dfl", *(f"model.{layer}." for layer in layers))
    if layers and all(any(layer in name for layer in frozen) for name, _ in model.named_parameters()):
        raise UsageError(
            f"freeze={freeze} leaves nothing to train: the model has {len(model.model)} layers, give a smaller number."
        )
