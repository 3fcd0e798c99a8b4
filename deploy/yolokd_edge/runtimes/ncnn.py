"""ncnn, Tencent's runtime for ARM CPUs, which reads a folder that Ultralytics exports for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError
from yolokd_edge.runtimes.base import Opened, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.table import model_files
from yolokd_edge.runtimes.written import WrittenModel, boxes_first, from_yaml


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open a folder of `yolokd export format=ncnn`."""
    return timed_session(Ncnn, path, provider, threads)


class Ncnn(WrittenModel):
    """A folder of `yolokd export format=ncnn` on ncnn.

    The exporter writes the raw contract only. ncnn would compute in half precision where the CPU can; a file that was
    not exported so is kept at full precision.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._ncnn = import_package("ncnn", "ncnn")
        super().__init__(path, from_yaml(path, "ncnn"))
        self.version = str(self._ncnn.__version__)
        self._net = self._ncnn.Net()
        options = self._net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = self.half
        param, weights = model_files(path)
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise EdgeError(f"{path} is not a model that ncnn can load; export it again.")
        self.name, self._outputs = self._net.input_names()[0], sorted(self._net.output_names())

    def get_providers(self) -> list[str]:
        """The CPU: the use of a GPU is switched off."""
        return ["ncnn:GPU" if self._net.opt.use_vulkan_compute else "ncnn:CPU"]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the outputs are copies."""
        found = []
        with self._net.create_extractor() as extractor:
            extractor.input(self.name, self._ncnn.Mat(feed[self.name][0]))
            for name in self._outputs:
                failed, array = extractor.extract(name)
                if failed:
                    raise EdgeError("ncnn could not run the model: the board may be out of memory.")
                found.append(np.array(array)[None])
        return boxes_first(found)
