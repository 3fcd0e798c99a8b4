"""The teacher: loaded from a checkpoint, frozen, and stripped of all work whose result no chosen method reads."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, torch_safe_load
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from yolokd.detectors.yolo import YoloReader
from yolokd.errors import UsageError
from yolokd.views import View


def locate(teacher: Any) -> str:
    """Absolute path of a teacher checkpoint, or the bare name of an official one that Ultralytics will download."""
    if not isinstance(teacher, (str, Path)) or not str(teacher):
        raise UsageError(f"teacher={teacher!r} is not a path: give the trained model's checkpoint, teacher=big.pt.")
    path = Path(teacher).expanduser()
    if path.suffix != ".pt":
        raise UsageError(f"teacher={teacher} is not a checkpoint: a teacher must be trained, give its .pt file.")
    if path.is_file():
        return str(path.resolve())
    if str(teacher) in GITHUB_ASSETS_NAMES:
        return str(teacher)
    raise UsageError(f"teacher={teacher} does not exist: give the path of the trained model's .pt file.")


def load(path: str) -> Any:
    """The detection model in a checkpoint, in eval mode on the CPU.

    The file is first read by Ultralytics' restricted loader, so that a checkpoint from a stranger can build known
    model classes only and run no code of its own.
    """
    try:
        torch_safe_load(path, safe_only=True)
        model, _ = load_checkpoint(path)
    except Exception as error:  # damaged, foreign and unreachable files end in a dozen exception types
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"teacher={path} is not a checkpoint that Ultralytics can load ({type(error).__name__}: {reason}); "
            "give a .pt file that `yolo val` opens."
        ) from error
    if model.task != "detect":
        raise UsageError(
            f"teacher={path} is a model for the task {model.task}: a detection student needs one for detect."
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
        strides: levels to show.
        branches: head branches that a student will be compared with.
        device: where to run.
    """

    def __init__(
        self,
        reader: YoloReader,
        fields: frozenset[str],
        strides: tuple[int, ...],
        branches: tuple[str, ...],
        device: torch.device,
    ) -> None:
        self.reader, self.fields, self.strides = reader, fields, strides
        model, head = reader.model, reader.head
        model.requires_grad_(False).eval()
        if len(reader.branches) > 1:
            if len(branches) > 1:
                head.fuse = types.MethodType(lambda _: None, head)  # keep both branches; the rest is fused all the same
            else:
                head.end2end = branches == ("one2one",)  # which branch fuse() keeps
        model.fuse(verbose=False)
        head.training = True  # this flag alone, not its children's: raw outputs, no decoding, no top-k
        if fields <= {"backbone", "neck"}:
            model.model[-1] = _without_head(head)
            reader.head = model.model[-1]
        # Convolutions run faster on channels-last maps, on CPU and CUDA alike.
        self.model = model.to(device, memory_format=torch.channels_last)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # AutoBatch deep-copies the training model

    @torch.no_grad()  # not inference_mode: its tensors cannot be saved for backward
    def __call__(self, images: Tensor) -> dict[str, View]:
        """Views by branch for images (B, C, H, W) in [0, 1]."""
        with self.reader.record(self.fields) as seen:
            self.model(images.contiguous(memory_format=torch.channels_last))
        return self.reader.views(seen, self.fields, self.strides)


def _without_head(head: Any) -> Any:
    """What takes the place of a head whose output nobody reads: the same inputs, no work."""
    stub: Any = nn.Identity()
    stub.i, stub.f, stub.type, stub.np = head.i, head.f, head.type, 0
    return stub
