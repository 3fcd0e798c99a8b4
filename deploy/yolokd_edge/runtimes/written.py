"""What the sessions of other formats than ONNX have in common: the exporter's metadata, and ports made from it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError
from yolokd_edge.contract import precision_of
from yolokd_edge.runtimes.base import Meta, Port, import_package


class WrittenModel:
    """A model in another format, with what is used here of ONNX Runtime's session; subclasses add `run`.

    Args:
        path: the model.
        written: what the exporter wrote about it.
    """

    name = "images"  # of the input

    def __init__(self, path: Path, written: Mapping[str, Any]) -> None:
        self.path = path
        try:
            height, width = map(int, written["imgsz"])
            self.shape = [1, int(written.get("channels", 3)), height, width]
            self.half = precision_of(written.get("args") or {}) == "fp16"
            self.task = str(written["task"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise unreadable(path) from None
        self._meta = {str(k): v if isinstance(v, str) else repr(v) for k, v in written.items()}

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once, from host arrays to host arrays."""
        raise NotImplementedError

    def get_modelmeta(self) -> Meta:
        """What the exporter wrote."""
        return Meta(self._meta)

    def get_inputs(self) -> list[Port]:
        """The one input, of the size that it was exported with."""
        return [Port(self.name, list(self.shape), "tensor(float)")]

    def get_outputs(self) -> list[Port]:
        """The outputs. Their sizes are known only once they are there, so that masks, which need them, take a run."""
        if self.task != "segment":
            return [Port("output0", ["1", "values", "anchors"], "tensor(float)")]
        found = self.run(None, {self.name: np.zeros(self.shape, np.float32)})
        return [Port(f"output{k}", list(array.shape), "tensor(float)") for k, array in enumerate(found)]


def unreadable(path: Path) -> EdgeError:
    """The sentence for a model whose metadata is damaged."""
    where = f"{path}: its metadata.yaml" if path.is_dir() else f"{path}: the exporter's metadata in it"
    return EdgeError(f"{where} is missing or unreadable; export it again.")


def from_json(path: Path, text: Any) -> dict[str, Any]:
    """The metadata of a file that holds it as JSON."""
    try:
        written = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise unreadable(path) from None
    if not isinstance(written, dict):
        raise unreadable(path)
    return written


def from_yaml(folder: Path, provider: str) -> dict[str, Any]:
    """The metadata of a folder, which lies in its metadata.yaml."""
    yaml = import_package("yaml", provider, "pyyaml")
    try:
        written = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        raise unreadable(folder) from None
    if not isinstance(written, dict):
        raise unreadable(folder)
    return written


def boxes_first(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs with the detections (1, values, anchors) before the prototypes (1, masks, height, width)."""
    return sorted(arrays, key=lambda array: array.ndim)


@contextmanager
def silenced() -> Iterator[None]:
    """Without what a library in C++ writes while it loads: standard output belongs to results, which may be JSON."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nothing, stream)
        yield
    finally:
        for stream, before in zip((1, 2), kept):  # noqa: B905
            os.dup2(before, stream)
        for handle in (*kept, nothing):
            os.close(handle)
