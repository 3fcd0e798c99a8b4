"""The teacher: loaded from a checkpoint, frozen, and stripped of all work whose result no chosen method reads."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, torch_safe_load
from ultralytics.utils import WINDOWS
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

from yolokd.detectors import TASKS, vit
from yolokd.detectors.onnx import OnnxDetector
from yolokd.detectors.reader import Reader
from yolokd.errors import UsageError
from yolokd.views import View

AT_POINTS = ("logits", "boxes", "rotated", "keypoints", "coefficients")  # fields of a view (B, N, ...) of a dense head
Shown = Callable[[tuple[int, ...]], dict[str, View]]  # strides -> views by branch


def locate_all(teacher: Any) -> list[str]:
    """Where the teachers are that teacher= names, one or several with commas between or as a list."""
    given = teacher if isinstance(teacher, (list, tuple)) else str(teacher).split(",")
    found = [locate(t.strip() if isinstance(t, str) else t) for t in given]
    if doubled := next((t for i, t in enumerate(found) if t in found[:i]), None):
        raise UsageError(f"teacher={doubled} is given twice: keep one.")
    return found


def locate(teacher: Any) -> str:
    """Absolute path of a teacher's file, or the bare name of an official checkpoint that Ultralytics will download.

    A transformer of timm is named timm:NAME, or timm:NAME@FILE with a file of its weights.
    """
    if not isinstance(teacher, (str, Path)) or not str(teacher):
        raise UsageError(f"teacher={teacher!r} is not a path: give the trained model's checkpoint, teacher=big.pt.")
    if str(teacher).startswith(vit.PREFIX):
        name, weights = vit.split(str(teacher))
        if weights and not weights.is_file():
            raise UsageError(
                f"teacher={teacher}: there is no file {weights}; without @FILE timm downloads the weights."
            )
        return f"{vit.PREFIX}{name}" + (f"@{weights.resolve()}" if weights else "")
    path = Path(teacher).expanduser()
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
    """What `locate` gives, an official checkpoint by its file, which is downloaded if it is not there yet."""
    if path not in GITHUB_ASSETS_NAMES:
        return path
    try:
        return str(Path(attempt_download_asset(path)).resolve(strict=True))
    except Exception as error:  # no network, a full disk ... each its own type
        raise UsageError(
            f"teacher={path} cannot be downloaded ({type(error).__name__}): give the path of a checkpoint."
        ) from error


def title(path: str) -> str:
    """A teacher's file without its folder, for a record that leaves this machine."""
    if not path.startswith(vit.PREFIX):
        return Path(path).name
    name, weights = vit.split(path)
    return f"{vit.PREFIX}{name}" + (f"@{weights.name}" if weights else "")


def digest(path: str) -> str | None:
    """SHA-256 of a teacher's file; None when it is an official name without one."""
    file = vit.split(path)[1] if path.startswith(vit.PREFIX) else Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else None


def load(path: str, contract: str | None = None, names: dict[int, str] | None = None) -> Any:
    """The model in a checkpoint or an ONNX file, or from timm, in eval mode on the CPU.

    Args:
        path: as `locate` gives it.
        contract: of an ONNX file's output, None for the one in its metadata.
        names: class index -> name of an ONNX file, None for those in its metadata.

    The file is first read by Ultralytics' restricted loader, so that a checkpoint from a stranger can build known
    model classes only and run no code of its own.
    """
    if path.startswith(vit.PREFIX):
        return vit.load(path)
    if path.endswith(".onnx"):
        return OnnxDetector(path, contract, names)
    try:
        torch_safe_load(path, safe_only=True)
        model, _ = load_checkpoint(path)
    except Exception as error:  # damaged, foreign and unreachable files end in a dozen exception types
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"teacher={path} is not a checkpoint that Ultralytics can load ({type(error).__name__}: {reason}); "
            "give a .pt file that `yolo val` opens."
        ) from error
    if model.task not in TASKS:
        raise UsageError(
            f"teacher={path} is a model for the task {model.task}: give one for {', '.join(TASKS[:-1])} or {TASKS[-1]}."
        )
    if not isinstance(model, DetectionModel):
        raise UsageError(f"teacher={path} holds a {type(model).__name__}: give a detection model of Ultralytics.")
    return model


class Teacher:
    """A frozen network that shows views. Not an nn.Module: it can never become a student's child, a parameter of an
    optimizer, a DDP bucket or a checkpoint's entry.

    Args:
        reader: reads the model; the teacher takes the model over and changes it for good (fused, branches dropped).
        fields: fields of the views that the methods read.
        branches: head branches that a student will be compared with.
        device: where to run.
        scale: sides of the images that it sees, as a multiple of the student's.
    """

    def __init__(
        self,
        reader: Reader,
        fields: frozenset[str],
        branches: tuple[str, ...],
        device: torch.device,
        scale: float = 1.0,
    ) -> None:
        self.reader, self.fields, self.scale = reader, fields, scale
        reader.freeze(fields, branches)
        self.layout = layout(device)
        self.model = reader.model.to(device, memory_format=self.layout)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # AutoBatch deep-copies the training model

    @torch.no_grad()  # not inference_mode: its tensors cannot be saved for backward
    def __call__(self, images: Tensor) -> Shown:
        """What it makes of images (B, C, H, W) in [0, 1]: a function from strides to views by branch."""
        seen_images = scaled(images, self.scale, max(self.reader.strides))
        with self.reader.record(self.fields) as seen:
            self.model(seen_images.contiguous(memory_format=self.layout))

        @torch.no_grad()
        def views(strides: tuple[int, ...]) -> dict[str, View]:
            found = self.reader.views(seen, self.fields, strides)
            return {branch: settle(view, images, seen_images, self.reader.spec.dense) for branch, view in found.items()}

        return views


def layout(device: torch.device) -> torch.memory_format:
    """The memory format in which convolutions run fastest: channels last on x86 CPUs and CUDA, where that is right (MPS
    computes something else then) and fast (under Windows CUDA does not gain).
    """
    on_cpu = device.type == "cpu" and platform.machine() in {"AMD64", "x86_64"} and torch.backends.mkldnn.is_available()
    on_cuda = device.type == "cuda" and not WINDOWS
    return torch.channels_last if on_cpu or on_cuda else torch.contiguous_format


def fitting(side: int, stride: int) -> int:
    """The side in pixels as a network of this largest stride can take it: the next multiple."""
    return math.ceil(side / stride) * stride


def scaled(images: Tensor, scale: float, stride: int) -> Tensor:
    """Images with sides scaled and rounded to a multiple of the stride; untouched if they are as they should be."""
    if scale == 1 and not any(side % stride for side in images.shape[-2:]):
        return images
    size = [max(round(side * scale / stride), 1) * stride for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)


def settle(view: View, images: Tensor, seen: Tensor, dense: bool) -> View:
    """A teacher's view of scaled images as one of the student's: boxes in its pixels, predictions at its anchor points.

    An anchor point takes what the teacher says at the nearest one of the same level. No field learns from the student.
    """
    changed: dict[str, Any] = {}
    if view.decode is not None:
        changed["decode"] = torch.no_grad()(view.decode)
    if images.shape[-2:] == seen.shape[-2:]:
        return replace(view, **changed) if changed else view
    height, width = (a / b for a, b in zip(images.shape[-2:], seen.shape[-2:], strict=True))
    ratio = images.new_tensor([width, height, width, height])
    for field in ("boxes", "references"):
        if getattr(view, field) is not None:
            changed[field] = getattr(view, field) * ratio
    if view.layer_boxes is not None:
        changed["layer_boxes"] = tuple(b * ratio for b in view.layer_boxes)
    if view.rotated is not None:
        changed["rotated"] = stretched(view.rotated, width, height)
    if view.keypoints is not None:
        changed["keypoints"] = torch.cat((view.keypoints[..., :2] * ratio[:2], view.keypoints[..., 2:]), -1)
    if view.decode is not None:
        decode = changed["decode"]

        def decode_scaled(content: Tensor, references: Tensor) -> dict[str, tuple[Tensor, ...]]:
            found = decode(content, references / ratio)
            return {**found, "layer_boxes": tuple(b * ratio for b in found["layer_boxes"])}

        changed["decode"] = decode_scaled
    at_points = {f: changed.get(f, getattr(view, f)) for f in AT_POINTS if getattr(view, f) is not None}
    if dense and at_points:
        places = nearest(images, seen, view.strides)
        changed.update({field: value[:, places] for field, value in at_points.items()})
    return replace(view, **changed)


def stretched(rotated: Tensor, width: float, height: float) -> Tensor:
    """Rotated boxes (B, N, 5) of an image whose sides are multiplied; what is no rectangle then keeps its two sides."""
    centre, sides, angle = rotated.split((2, 2, 1), -1)
    along, across = ((width * a, height * b) for a, b in ((angle.cos(), angle.sin()), (-angle.sin(), angle.cos())))
    lengths = torch.cat((torch.hypot(*along), torch.hypot(*across)), -1)
    angle = torch.atan2(along[1], along[0])
    return torch.cat((centre * centre.new_tensor([width, height]), sides * lengths, angle), -1)


def nearest(images: Tensor, seen: Tensor, strides: tuple[int, ...]) -> Tensor:
    """For every anchor point of images (B, C, H, W) the nearest of the same level on their scaled form seen, (N,)."""
    places, start = [], 0
    for stride in strides:
        rows, columns, there_rows, there_columns = (
            math.ceil(side / stride) for side in (*images.shape[-2:], *seen.shape[-2:])
        )
        grid = torch.arange(there_rows * there_columns, device=images.device, dtype=torch.float32)
        grid = grid.reshape(1, 1, there_rows, there_columns)
        chosen = F.interpolate(grid, size=(rows, columns), mode="nearest-exact")
        places.append(chosen.flatten().long() + start)
        start += there_rows * there_columns
    return torch.cat(places)


def fit_channels(model: Any, channels: int) -> bool:
    """Let a teacher see images of so many channels, as Ultralytics fits a student's: one gray channel takes the sum of
    the filters, further channels are ignored. Whether there was anything to do.
    """
    if isinstance(model, (OnnxDetector, vit.ViT)):
        return False  # these fit the images
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
