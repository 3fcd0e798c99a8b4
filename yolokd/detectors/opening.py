"""The one way in for models: every file by which one enters is looked at before anything in it can run.

A checkpoint's pickle may build known classes only, a model YAML may name plain activations and layers only; whatever
else is refused, unless the user answers for the file with trust=True.
"""

from __future__ import annotations

import ast
import hashlib
import os
from pathlib import Path
from typing import Any, NoReturn

import torchvision
import yaml
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn import tasks
from ultralytics.nn.tasks import BaseModel, DetectionModel, load_checkpoint, torch_safe_load, yaml_model_load
from ultralytics.utils import SETTINGS, USER_CONFIG_DIR
from ultralytics.utils.checks import check_file, check_model_file_from_stem
from ultralytics.utils.downloads import attempt_download_asset

from yolokd.detectors import TASKS, quantized
from yolokd.detectors.checkpoint_scan import UnknownContentError, scan
from yolokd.errors import UsageError, one_line

YAML = (".yaml", ".yml")
GIVE_MODEL = "give a YOLO, such as yolo11n.yaml or a trained .pt file"
GIVE_CHECKPOINT = "give a .pt file that `yolo val` opens"


def open_model(model: Any, key: str = "model", trust: bool = False, remedy: str = GIVE_MODEL) -> YOLO | RTDETR:
    """A model of whatever task as Ultralytics' own object, from a checkpoint or a model YAML.

    Args:
        model: path, or a name that Ultralytics finds or downloads.
        key: the argument that named it, for the error's sentence.
        trust: the user answers for what the file runs.
        remedy: what to give instead of a file that cannot be opened.

    Raises:
        UsageError: it cannot be opened, or holds what could run.
    """
    name = str(model).strip()
    is_yaml = name.lower().endswith(YAML)
    try:
        if is_yaml:
            layout = yaml_model_load(name)
            refuse_layout(layout, f"{key}={model}", trust)
            opener = RTDETR if layout["head"][-1][2] == "RTDETRDecoder" else YOLO  # YOLO() opens its .pt only
        else:
            name, opener = check_checkpoint(name, key, trust), YOLO
        opened = opener(name)
    except UsageError:
        raise
    except Exception as error:  # a missing, damaged or foreign file ends in a dozen exception types
        kind = "checkpoint" if name.lower().endswith(".pt") else "model"
        raise UsageError(
            f"{key}={model} is not a {kind} that Ultralytics can open ({one_line(error)}); {remedy}."
        ) from error
    if not isinstance(opened.model, nn.Module):
        raise UsageError(f"{key}={model} cannot be trained: give a model's YAML or a trained .pt file.")
    refuse_layouts_within(opened.model, f"{key}={model}", trust)
    refuse_non_finite(opened.model, f"{key}={model}")
    return opened


def open_student(model: Any, key: str = "model", trust: bool = False) -> YOLO | RTDETR:
    """`open_model` of a task that can be distilled."""
    student = open_model(model, key, trust)
    if student.task not in TASKS:
        raise UsageError(f"{key}={model} is for the task {student.task}: yolokd distils models for {', '.join(TASKS)}.")
    return student


def open_teacher(path: str, trust: bool = False) -> Any:
    """The bare model in a teacher's checkpoint, in eval mode on the CPU."""
    try:
        model, _ = read_checkpoint(path, "teacher", trust)
    except UsageError:
        raise
    except Exception as error:  # damaged, foreign and unreachable files end in a dozen exception types
        raise UsageError(
            f"teacher={path} is not a checkpoint that Ultralytics can load ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); {GIVE_CHECKPOINT}."
        ) from error
    if model.task not in TASKS:
        raise UsageError(
            f"teacher={path} is a model for the task {model.task}: give one for {', '.join(TASKS[:-1])} or {TASKS[-1]}."
        )
    if not isinstance(model, DetectionModel):
        raise UsageError(f"teacher={path} holds a {type(model).__name__}: give a detection model of Ultralytics.")
    if quantized.is_quantized(model):
        raise UsageError(
            f"teacher={path} is quantized, and a teacher teaches in full precision: give the checkpoint it was made of."
        )
    refuse_non_finite(model, f"teacher={path}")
    return model


def refuse_non_finite(model: nn.Module, given: str) -> None:
    """Refuse a model with weights or batch norm statistics that are no numbers: whatever it computes is none either."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(f"{given} has values that are not finite, first in {name}: give a checkpoint without.")


def read_content(path: str | Path, key: str, trust: bool = False) -> dict[str, Any]:
    """All that a .pt file holds, as it was stored; raises as `read_checkpoint` does."""
    content, _ = torch_safe_load(check_checkpoint(path, key, trust))
    return content  # type: ignore[no-any-return]


def read_checkpoint(path: str | Path, key: str, trust: bool = False) -> tuple[Any, dict[str, Any]]:
    """The model in a .pt file, in eval mode on the CPU, and all that the file holds.

    Raises:
        UsageError: it holds what could run.
        Exception: of a dozen types, where it cannot be read.
    """
    model, checkpoint = load_checkpoint(check_checkpoint(path, key, trust))
    refuse_layouts_within(model, f"{key}={path}", trust)
    return model, checkpoint


# --- nothing run ----------------------------------------------------------------------------------------------------


def refuse_code(given: str, content: str) -> NoReturn:
    """Refuse a file, as the argument that named it, by what it holds."""
    raise UsageError(
        f"{given} holds {' '.join(content.split())[:200]}, which could run as code on this machine: give trust=True "
        "if you trust whoever made the file."
    )


def check_checkpoint(name: str | Path, key: str, trust: bool = False) -> str:
    """The name that Ultralytics opens, once the checkpoint that it stands for is seen to build known classes only.

    A checkpoint that is not there yet is downloaded, as Ultralytics would when it opens it.
    """
    found = str(name)
    if "://" in found:
        found = str(check_file(found, download_dir=SETTINGS["weights_dir"]))
    if not (stem := str(check_model_file_from_stem(found))).lower().endswith(".pt"):
        return found  # Ultralytics unpickles no other
    file = attempt_download_asset(stem)
    if not trust and Path(file).is_file():
        try:
            scan(file)
        except UnknownContentError as unknown:
            refuse_code(f"{key}={name}", str(unknown))
    if quantized.holds_quantization(file):  # for which Ultralytics would install a package while it opens the file
        quantized.require(f"{key}={name} holds a quantized model, which")
    return found


def refuse_layouts_within(model: nn.Module, given: str, trust: bool) -> None:
    """Refuse a model that was stored with a layout which runs code when the model is built anew for a training."""
    for module in model.modules():
        if isinstance(module, BaseModel) and (layout := getattr(module, "yaml", None)) is not None:
            refuse_layout(layout, given, trust)


def refuse_layout(layout: Any, given: str, trust: bool) -> None:
    """Refuse a model YAML's content that Ultralytics evaluates or calls, but for activations and layers."""
    if trust:
        return
    if not isinstance(layout, dict):
        refuse_code(given, f"a layout that is {layout!r}")
    activation = layout.get("activation")
    if activation and not is_plain_activation(activation):
        refuse_code(given, f"activation: {activation}")
    for row in (*(layout.get("backbone") or ()), *(layout.get("head") or ())):
        layer = row[2] if isinstance(row, (list, tuple)) and len(row) > 2 else None
        if layer is not None and not is_layer(layer):
            refuse_code(given, f"{layer!r} in place of a layer")


def is_plain_activation(text: Any) -> bool:
    """Whether it is an activation of torch.nn with numbers, such as nn.LeakyReLU(0.1)."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return False
        owner, kind = ast.unparse(call.func.value), getattr(nn, call.func.attr, None)
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            ast.literal_eval(value)
    except (AttributeError, SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False
    return owner in ("nn", "torch.nn") and isinstance(kind, type) and issubclass(kind, nn.Module)


def is_layer(name: Any) -> bool:
    """Whether a row of a model YAML names a layer, or nothing that Ultralytics knows; a whole model is no layer."""
    if not isinstance(name, str):
        return False
    for prefix, home in (("nn.", nn), ("torchvision.ops.", torchvision.ops), ("", tasks)):
        if name.startswith(prefix):
            kind = getattr(home, name.removeprefix(prefix), None)
            is_class = isinstance(kind, type) and issubclass(kind, nn.Module) and not issubclass(kind, BaseModel)
            return kind is None or is_class
    return False


# --- students of other sizes ----------------------------------------------------------------------------------------


def scaled_yaml(model: str, width: float | None = None, depth: float | None = None, trust: bool = False) -> str:
    """Path of a model YAML with other width and depth factors than the family's scales have.

    Args:
        model: a YAML that Ultralytics finds, such as yolo11n.yaml, whose scale gives what is not given here.
        width: factor on the channels, such as 0.125.
        depth: factor on the number of repeated blocks, such as 0.5.
        trust: the user answers for what the file runs.
    """
    if Path(model).suffix not in YAML:
        raise UsageError(
            f"width= and depth= build a new model, and model={model} is not a YAML: give yolo11n.yaml or so."
        )
    for key, value in (("width", width), ("depth", depth)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value <= 4):
            raise UsageError(f"{key}={value} is out of range: give a factor above 0 and up to 4.")
    try:
        layout = yaml_model_load(model)
    except Exception as error:
        raise UsageError(f"model={model} cannot be read: {one_line(error)}.") from error
    refuse_layout(layout, f"model={model}", trust)
    scale = layout.pop("scale") or next(iter(layout.get("scales", {})), "")
    if scale not in layout.get("scales", {}):
        raise UsageError(f"model={model} has no scales: width= and depth= need a family's YAML, such as yolo11n.yaml.")
    layout.pop("yaml_file")
    own_depth, own_width, most = layout["scales"][scale]
    depth, width = (own if x is None else float(x) for x, own in ((depth, own_depth), (width, own_width)))
    layout["scales"] = {scale: [depth, width, most]}
    # the name keeps the scale's letter, by which Ultralytics finds it
    return stored_yaml(layout, f"{Path(model).stem}-w{width:g}-d{depth:g}")


def stored_yaml(layout: dict[str, Any], stem: str) -> str:
    """Path of a model YAML of ours with this layout, beside Ultralytics' settings; equal names have equal contents."""
    text = yaml.safe_dump(layout, sort_keys=False)
    file = Path(USER_CONFIG_DIR) / "yolokd" / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")  # others may be reading it
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
    return str(file)
