"""`yolokd train` and `yolokd.train()`: build the student, refuse what cannot work, hand over to the trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.data.utils import (
    IMG_FORMATS,
    check_det_dataset,
    convert_ndjson_to_yolo_if_needed,
    img2label_paths,
)
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import USER_CONFIG_DIR
from ultralytics.utils.patches import imread

from yolokd import compat, config, inherit
from yolokd.detectors import TASKS, read
from yolokd.errors import UsageError
from yolokd.pairing import fitting_side, plans
from yolokd.trainer import trainer_for


def train(**arguments: Any) -> YOLO | RTDETR:
    """Train a student under a teacher.

    Args:
        **arguments: ``model``, ``teacher`` and ``data``; optionally ``method``, ``kd``, ``init``, ``width``, ``depth``
            and dotted options of a method (``**{"cwd.tau": 2}``); every other one goes to Ultralytics' training
            untouched.

    Returns:
        The trained student as Ultralytics' own object: ``.trainer.best`` is its checkpoint, ``.metrics`` its accuracy.

    Raises:
        UsageError: something asked for cannot be done; nothing was written and no epoch run.
    """
    if arguments.get("cfg"):
        arguments = {**config.read_arguments(arguments.pop("cfg")), **arguments}
    config.non_negative("kd", arguments.get("kd", 1.0))  # folded options, a dict, are not for users
    if arguments.get("resume"):
        return _resume(arguments)
    if not arguments.get("model"):
        raise UsageError("no student: give a model, such as model=yolo11n.yaml or model=yolo11n.pt.")
    scaling = {k: v for k in ("width", "depth") if (v := arguments.pop(k, None)) is not None}
    folded = config.fold(arguments)
    _check_arguments(folded)
    model = scaled(str(arguments["model"]), **scaling) if scaling else arguments["model"]
    student = _open_student(model)
    if (task := arguments.get("task") or student.task) != student.task:
        raise UsageError(f"task={task}: model={model} is for the task {student.task}, leave task= out.")
    preflight(student, folded)
    student.train(trainer=trainer_for(student.model), **{k: v for k, v in folded.items() if k != "model"})
    return student


def _resume(arguments: dict[str, Any]) -> YOLO | RTDETR:
    """Continue an interrupted run from its last.pt, given as model= with resume=True or as resume= itself."""
    given = arguments.pop("resume")
    checkpoint = arguments.pop("model", None) if given is True else given
    if not checkpoint or not Path(str(checkpoint)).is_file():
        raise UsageError(f"resume={checkpoint or given} is not a file: give the interrupted run's weights/last.pt.")
    config.fold({**arguments, "resume": True})
    student = _open_student(checkpoint)
    kd = (student.ckpt.get("train_args") or {}).get("kd")
    if student.ckpt.get("optimizer") is None or not isinstance(kd, dict):
        raise UsageError(f"resume={checkpoint} is not an interrupted run of yolokd: give such a run's weights/last.pt.")
    student.train(trainer=trainer_for(student.model), resume=True, **arguments)
    return student


def _is_rtdetr_yaml(model: str) -> bool:
    """Whether a model YAML ends in an RT-DETR decoder: YOLO() opens RT-DETR's checkpoints, but not its YAML."""
    return Path(model).suffix in {".yaml", ".yml"} and yaml_model_load(model)["head"][-1][2] == "RTDETRDecoder"


def _open_student(model: Any, key: str = "model") -> YOLO | RTDETR:
    try:
        student = RTDETR(str(model)) if _is_rtdetr_yaml(str(model)) else YOLO(str(model))
    except Exception as error:  # a missing, damaged or foreign file ends in a dozen exception types
        raise UsageError(
            f"{key}={model} is not a model that Ultralytics can open ({config.one_line(error)}); "
            "give a YOLO, such as yolo11n.yaml or a trained .pt file."
        ) from error
    if not isinstance(student.model, nn.Module):
        raise UsageError(f"{key}={model} cannot be trained: give a model's YAML or a trained .pt file.")
    if student.task not in TASKS:
        raise UsageError(f"{key}={model} is for the task {student.task}: yolokd distils models for {', '.join(TASKS)}.")
    return student


def _check_arguments(arguments: dict[str, Any]) -> None:
    """What can be seen in the arguments alone and would stop a run only after it made its folder."""
    config.check_values(arguments)
    if isinstance(pretrained := arguments.get("pretrained"), (str, Path)):
        _open_student(pretrained, "pretrained")
    optimizer = str(arguments.get("optimizer") or "auto").lower()
    if optimizer not in {"auto", "musgd", *(name.lower() for name in vars(torch.optim))}:
        raise UsageError(
            f"optimizer={arguments['optimizer']} is none that Ultralytics has: leave it out for its choice."
        )
    for key in ("project", "save_dir"):
        if (place := arguments.get(key)) and Path(str(place)).is_absolute():  # where else depends on settings
            config.check_writable(Path(str(place)), f"{key}={place}")
    folder = arguments.get("save_dir")
    if folder and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        # over what is there Ultralytics writes, and with several GPUs it empties the folder first
        raise UsageError(f"save_dir={folder} is not empty, perhaps by an earlier run: choose another folder.")


def preflight(student: YOLO | RTDETR, arguments: dict[str, Any]) -> None:
    """Refuse a pair, data set or method that cannot work; the trainer checks again, but after making its folder."""
    data = read_data(arguments)
    kd, single = arguments["kd"], bool(arguments.get("single_cls"))
    if single:
        data = {**data, "names": {0: "item"}}
    reader = read(student.model)
    if student.task == "pose":  # the trainer will build the student for the data's number of keypoints
        if "kpt_shape" not in data:
            raise UsageError(f"data={arguments['data']} has no kpt_shape, such as [17, 3]: a pose model needs it.")
        reader.spec = replace(reader.spec, keypoints=data["kpt_shape"][0])
    varied = bool(arguments.get("multi_scale") or arguments.get("rect"))
    made = plans(reader, kd, data, fitting_side(arguments.get("imgsz") or 640, student.model), single, varied)
    inherit.partners(kd["init"], reader, made[0].teacher)


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
            f"{named} cannot be used ({config.one_line(error)}); give a data set's YAML whose folders exist."
        ) from error
    for key in ("train", split):  # Ultralytics has looked for the validation's folders only, and into none
        places: Any = found.get(key)
        for place in places if isinstance(places, list) else [places]:
            if not place or next(_images(Path(str(place))), None) is None:
                raise UsageError(f"{named} cannot be used ({key}: {place} has no images): mend its paths.")
    train = [Path(str(place)) for place in (found["train"] if isinstance(found["train"], list) else [found["train"]])]
    if not any(map(_labelled, chain.from_iterable(map(_images, train)))):
        raise UsageError(
            f"{named} cannot be used (train: no image with a label): labels are text files in a folder labels/ "
            "beside images/, one for each image, by its name."
        )
    return found


def _images(place: Path) -> Iterator[Path]:
    """The image files in a folder and those below it, or those that a file lists as Ultralytics reads it."""
    if place.is_dir():
        yield from (file for file in place.rglob("*") if file.suffix[1:].lower() in IMG_FORMATS)
    elif place.is_file():
        for line in place.read_text(encoding="utf-8").strip().splitlines():
            yield place.parent / line if line.startswith("./") else Path(line)


def _labelled(image: Path) -> bool:
    """Whether a readable image has a label file, be it empty."""
    return Path(img2label_paths([str(image)])[0]).is_file() and imread(str(image)) is not None


def scaled(model: str, width: float | None = None, depth: float | None = None) -> str:
    """Path of a model YAML with other width and depth factors than the family's scales have.

    Args:
        model: a YAML that Ultralytics finds, such as yolo11n.yaml, whose scale gives what is not given here.
        width: factor on the channels, such as 0.125.
        depth: factor on the number of repeated blocks, such as 0.5.
    """
    if Path(model).suffix not in {".yaml", ".yml"}:
        raise UsageError(
            f"width= and depth= build a new model, and model={model} is not a YAML: give yolo11n.yaml or so."
        )
    for key, value in (("width", width), ("depth", depth)):
        if value is not None and not 0 < config.non_negative(key, value) <= 4:
            raise UsageError(f"{key}={value} is out of range: give a factor above 0 and up to 4.")
    try:
        layout = yaml_model_load(model)
    except Exception as error:
        raise UsageError(f"model={model} cannot be read: {config.one_line(error)}.") from error
    scale = layout.pop("scale") or next(iter(layout.get("scales", {})), "")
    if scale not in layout.get("scales", {}):
        raise UsageError(f"model={model} has no scales: width= and depth= need a family's YAML, such as yolo11n.yaml.")
    layout.pop("yaml_file")
    own_depth, own_width, most = layout["scales"][scale]
    depth, width = (own if x is None else float(x) for x, own in ((depth, own_depth), (width, own_width)))
    layout["scales"] = {scale: [depth, width, most]}
    text = yaml.safe_dump(layout, sort_keys=False)
    # The name keeps the scale's letter, by which Ultralytics finds it; equal names have equal contents.
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    file = Path(USER_CONFIG_DIR) / "yolokd" / f"{Path(model).stem}-w{width:g}-d{depth:g}-{mark}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)
