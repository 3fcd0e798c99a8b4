"""MNN, Alibaba's runtime for phones and ARM CPUs, which reads a file that Ultralytics exports for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError
from yolokd_edge.runtimes.base import Opened, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.written import WrittenModel, boxes_first, from_json, silenced, unreadable


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open a file of `yolokd export format=mnn`."""
    return timed_session(Mnn, path, provider, threads)


class Mnn(WrittenModel):
    """A file of `yolokd export format=mnn` on MNN, in full precision unless it was exported in half."""

    def __init__(self, path: Path, threads: int) -> None:
        self._mnn = import_package("MNN", "mnn")
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        with silenced():
            self._manager = self._mnn.nn.create_runtime_manager((settings,))  # must live as long as the network
            self._net = self._loaded(path)
        if not self._net:
            raise EdgeError(f"{path} is not a model that MNN can load; export it again.")
        told = self._net.get_info()
        if "bizCode" not in told:
            raise unreadable(path)
        super().__init__(path, from_json(path, told["bizCode"]))
        self.version = str(self._mnn.version())

    def _loaded(self, path: Path) -> Any:
        try:
            return self._mnn.nn.load_module_from_file(str(path), [], [], runtime_manager=self._manager, rearrange=True)
        except (RuntimeError, ValueError, TypeError):
            return None

    def get_providers(self) -> list[str]:
        """The CPU, the backend that was asked for; MNN does without another."""
        return ["mnn:CPU"]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the outputs are copies."""
        blob = np.ascontiguousarray(feed[self.name])
        found = self._net.onForward([self._mnn.expr.const(blob, list(blob.shape))])
        if not found:
            raise EdgeError("MNN could not run the model: the board may be out of memory.")
        return boxes_first([variable.read().copy() for variable in found])
