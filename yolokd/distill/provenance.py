"""How a student was made: written into its checkpoint, carried on whole to the exported file and to the board."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yolokd import __version__
from yolokd.detectors.teachers import digest, title
from yolokd.distill.checkpoints import SIGNED as OURS
from yolokd.distill.checkpoints import replacing


@dataclass(frozen=True)
class Provenance:
    """How a student was made, in plain values; None where nobody knows."""

    version: str | None = None  # of yolokd
    teachers: tuple[dict[str, Any], ...] = ()  # {"file": name, "sha256": hash or None} of each
    methods: dict[str, dict[str, Any]] | None = None  # key -> options
    gain: float | None = None
    start: str | None = None  # weights that the student began with: "own", or "head", "neck", "teacher": solved
    data: str | None = None  # path of the data set on the machine that trained
    dataset: str | None = None  # the data set's name
    accuracy: dict[str, Any] | None = None  # fields as in the latency report's `accuracy`

    @classmethod
    def of_checkpoint(cls, checkpoint: dict[str, Any]) -> Provenance:
        """What a checkpoint says; one that yolokd did not train says nothing."""
        return cls.from_dict(checkpoint.get(OURS) or {})

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Provenance:
        """From a checkpoint's entry, an ONNX file's, or a manifest's; the first ones named a single teacher only."""
        one = entry.get("teacher")
        teachers = entry.get("teachers") or ([one] if one else [])
        known = {key: entry.get(key) for key in ("methods", "gain", "start", "data", "dataset", "accuracy")}
        version = entry.get("version") or entry.get("yolokd_version")
        return cls(version=version, teachers=tuple(teachers), **known)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for the checkpoint, which stays on the machine that trained."""
        travels = self.without_paths()
        return {"version": self.version, "data": self.data, **travels, "accuracy": self.accuracy}

    def without_paths(self) -> dict[str, Any]:
        """What leaves the machine with the exported file, but for the accuracy, which is the checkpoint's."""
        return {
            "teacher": self.teachers[0] if self.teachers else None,
            "teachers": list(self.teachers),
            "start": self.start,
            "methods": self.methods,
            "gain": self.gain,
            "dataset": self.dataset,
        }


def trained(teachers: list[str], methods: dict[str, dict[str, Any]], gain: float, start: str, data: str) -> Provenance:
    """The provenance of a training that has just ended, its accuracy still open.

    Args:
        teachers: as `teachers.locate_all` gives them.
        methods: key -> options of the methods used.
        gain: the kd= of the training.
        start: "own", "head", "neck" or "teacher".
        data: path of the data set's YAML.
    """
    files = tuple({"file": title(teacher), "sha256": digest(teacher)} for teacher in teachers)
    return Provenance(__version__, files, methods, gain, start, data, Path(data).name)


def sign(file: Path, made_by: Provenance) -> None:
    """Write into a finished checkpoint how it was made."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)  # written by this process a moment ago
    for model in filter(None, (checkpoint.get("model"), checkpoint.get("ema"))):
        model.to(memory_format=torch.contiguous_format)  # older releases of Ultralytics cannot fuse another one
    with replacing(file) as part:
        torch.save({**checkpoint, OURS: made_by.to_dict()}, part)
