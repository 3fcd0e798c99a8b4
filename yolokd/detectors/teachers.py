"""Locate and load teachers: checkpoints, ONNX files, transformers of timm."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

from yolokd.detectors import vit
from yolokd.detectors.onnx import OnnxDetector
from yolokd.detectors.opening import open_teacher, refuse_non_finite
from yolokd.errors import UsageError, as_path

EMA = "ema"  # among teacher=: the student's own moving average, which has no file


def locate_all(teacher: Any) -> list[str]:
    """Locations of the teachers in teacher=: one, or several separated by commas or as a list."""
    given = teacher if isinstance(teacher, (list, tuple)) else str(teacher).split(",")
    located = [locate(t.strip() if isinstance(t, str) else t) for t in given]
    if doubled := next((t for i, t in enumerate(located) if t in located[:i]), None):
        raise UsageError(f"teacher={doubled} is given twice: keep one.")
    return located


def locate(teacher: Any) -> str:
    """Absolute path of a teacher's file, or the bare name of an official checkpoint that Ultralytics will download.

    A transformer of timm is named timm:NAME, or timm:NAME@FILE with a file of its weights.
    """
    if str(teacher) == EMA:
        raise UsageError(
            f"teacher={EMA} is the moving average of a student in training, for `yolokd train` only: give a file here."
        )
    if not isinstance(teacher, (str, Path)) or not str(teacher):
        raise UsageError(f"teacher={teacher!r} is not a path: give the trained model's checkpoint, teacher=big.pt.")
    if str(teacher).startswith(vit.PREFIX):
        name, weights = vit.split(str(teacher))
        if weights and not weights.is_file():
            raise UsageError(
                f"teacher={teacher}: the file {weights} does not exist; without @FILE timm downloads the weights."
            )
        return f"{vit.PREFIX}{name}" + (f"@{weights.resolve()}" if weights else "")
    path = as_path("teacher", teacher)
    if path.suffix not in {".pt", ".onnx"}:
        raise UsageError(
            f"teacher={teacher} is not a checkpoint: a teacher must be trained, give its .pt or .onnx file."
        )
    if path.is_file():
        return str(path.resolve())
    if str(teacher) in GITHUB_ASSETS_NAMES:
        return str(teacher)
    raise UsageError(f"teacher={teacher} does not exist: give the path of the trained model's .pt file.")


def fetched(path: str) -> str:
    """The path of a located teacher; an official checkpoint is downloaded if it is missing."""
    if path not in GITHUB_ASSETS_NAMES:
        return path
    try:
        return str(Path(attempt_download_asset(path)).resolve(strict=True))
    except Exception as error:  # no network, a full disk ... each has its own type
        raise UsageError(
            f"teacher={path} cannot be downloaded ({type(error).__name__}): give the path of a checkpoint."
        ) from error


def title(path: str) -> str:
    """The name of a teacher's file without its folder, for records that leave this machine."""
    if not path.startswith(vit.PREFIX):
        return Path(path).name
    name, weights = vit.split(path)
    return f"{vit.PREFIX}{name}" + (f"@{weights.name}" if weights else "")


def digest(path: str) -> str | None:
    """SHA-256 of a teacher's file; None for an official name without a file."""
    if path == EMA:
        return None
    file = vit.split(path)[1] if path.startswith(vit.PREFIX) else Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else None


def load_teacher(
    path: str, contract: str | None = None, names: dict[int, str] | None = None, trust: bool = False
) -> Any:
    """The model from a checkpoint, an ONNX file or timm, in eval mode on the CPU.

    Args:
        path: as `locate` gives it.
        contract: that of an ONNX file's output; None for the one in its metadata.
        names: class index -> name, for an ONNX file; None for those in its metadata.
        trust: whether a checkpoint may run any code, for which the user answers; else it may build known classes only.
    """
    if path.startswith(vit.PREFIX):
        transformer = vit.load(path)
        refuse_non_finite(transformer, f"teacher={path}")
        return transformer
    if path.endswith(".onnx"):
        return OnnxDetector(path, contract, names)
    return open_teacher(path, trust)


def fit_channels(model: Any, channels: int) -> bool:
    """Adapt a teacher to images of the given number of channels, as Ultralytics adapts a student: one gray channel gets
    the sum of the filters, further channels are ignored. Returns whether anything was changed.
    """
    if isinstance(model, (OnnxDetector, vit.ViT)):
        return False  # these adapt the images themselves
    if int(model.yaml.get("channels", 3)) == channels:
        return False
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    weight = first.weight.detach()
    new = weight.new_zeros(len(weight), channels, *weight.shape[2:])
    if channels == 1:
        new.copy_(weight.sum(1, keepdim=True))
    else:
        both = min(channels, weight.shape[1])
        new[:, :both] = weight[:, :both]
    first.weight = nn.Parameter(new, requires_grad=False)
    first.in_channels, model.yaml["channels"] = channels, channels
    return True
