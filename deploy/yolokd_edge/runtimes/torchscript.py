"""TorchScript, for devices that have PyTorch anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.runtimes.base import Opened, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.written import WrittenModel, boxes_first, from_json


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open a file of `yolokd export format=torchscript`."""
    return timed_session(TorchScript, path, provider, threads)


class TorchScript(WrittenModel):
    """A file of `yolokd export format=torchscript` on PyTorch's CPU; its threads are the whole process's."""

    def __init__(self, path: Path, threads: int) -> None:
        self._torch = import_package("torch", "torchscript")
        kept = {"config.txt": ""}
        try:
            self._net = self._torch.jit.load(str(path), map_location="cpu", _extra_files=kept).eval()
        except (RuntimeError, ValueError) as error:
            raise EdgeError(f"{path} is not a model that PyTorch can load ({one_line(error)}).") from None
        super().__init__(path, from_json(path, kept["config.txt"]))
        self.version = str(self._torch.__version__)
        self._threads = threads

    def get_providers(self) -> list[str]:
        """Where the weights lie: the CPU."""
        places = {weight.device.type.upper() for weight in self._net.parameters()} or {"CPU"}
        return [f"torch:{place}" for place in sorted(places)]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the outputs are the host's."""
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)
        with self._torch.inference_mode():
            found = self._net(self._torch.from_numpy(feed[self.name]))
        return boxes_first([part.numpy() for part in (found if isinstance(found, (tuple, list)) else (found,))])
