"""LiteRT, Google's runtime that was TensorFlow Lite, which reads a file that Ultralytics exports for it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.contract import read_contract
from yolokd_edge.runtimes.base import Opened, Port, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.written import WrittenModel, boxes_first, from_json, silenced, unreadable


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open a file of `yolokd export format=litert`."""
    return timed_session(LiteRt, path, provider, threads)


class LiteRt(WrittenModel):
    """A file of `yolokd export format=litert` on LiteRT's interpreter.

    In the file, places and sizes are shares of the input, so that eight bits leave the scores room; here they are
    pixels again.
    """

    def __init__(self, path: Path, threads: int) -> None:
        interpreters = import_package("ai_edge_litert.interpreter", "litert", "ai-edge-litert")
        super().__init__(path, _metadata(path))
        self.version = str(import_package("ai_edge_litert", "litert", "ai-edge-litert").__version__)
        try:
            with silenced():
                self._net = interpreters.Interpreter(str(path), num_threads=threads)
                self._net.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EdgeError(f"{path} is not a model that LiteRT can load ({one_line(error)}).") from None
        (self._input, *others), self._found = self._net.get_input_details(), self._net.get_output_details()
        if (
            others
            or list(self._input["shape"]) != self.shape
            or any(d["dtype"] != np.float32 for d in (self._input, *self._found))
        ):
            raise EdgeError(
                f"{path} does not take images {tuple(self.shape)} in FP32: export it with this version's format=litert."
            )
        self._scale = self._shares()

    def _shares(self) -> np.ndarray:
        """What each value of an anchor point is to be multiplied by, (values, 1)."""
        height, width = self.shape[2:]
        contract = read_contract(self._meta, self.path)
        count = next((int(d["shape"][1]) for d in self._found if len(d["shape"]) == 3), 0)
        scale = np.ones((count, 1), np.float32)
        if self._meta.get("head") == "RTDETRDecoder" or self._meta.get("end2end") == "True":
            return scale
        scale[[0, 2]], scale[[1, 3]] = width, height
        if (each := contract.keypoints[1]) and self.task == "pose":
            scale[4 + contract.nc :: each], scale[5 + contract.nc :: each] = width, height
        return scale

    def get_providers(self) -> list[str]:
        """The CPU: no delegate for another device was given."""
        return ["litert:CPU"]

    def get_outputs(self) -> list[Port]:
        """The outputs, of the sizes that the file tells."""
        shapes = sorted(([int(n) for n in d["shape"]] for d in self._found), key=len)
        return [Port(f"output{k}", shape, "tensor(float)") for k, shape in enumerate(shapes)]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the outputs are copies."""
        self._net.set_tensor(self._input["index"], feed[self.name])
        self._net.invoke()
        found = boxes_first([self._net.get_tensor(detail["index"]) for detail in self._found])
        if self._scale.shape[0] == found[0].shape[1]:
            found[0] = found[0] * self._scale
        return found


def _metadata(path: Path) -> dict[str, Any]:
    """What Ultralytics' exporter and yolokd's wrote, which hang on the file as a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            written = from_json(path, archive.read("metadata.json"))
            if "yolokd.json" in archive.namelist():
                written["yolokd"] = archive.read("yolokd.json").decode()
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, UnicodeDecodeError):
        raise unreadable(path) from None
    return written
