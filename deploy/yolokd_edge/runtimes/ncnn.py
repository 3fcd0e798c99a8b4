"""ncnn, Tencent's runtime for ARM CPUs, which reads a folder that Ultralytics exports for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError
from yolokd_edge.contract import precision_of
from yolokd_edge.runtimes.base import Meta, Opened, Port, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.table import PROVIDERS, folder_format, model_files


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open a folder of `yolo export format=ncnn`."""
    return timed_session(Ncnn, path, provider, threads)


class Ncnn:
    """A folder of `yolo export format=ncnn` on ncnn, with what is used here of ONNX Runtime's session.

    The exporter writes the raw contract only. ncnn would compute in half precision where the CPU can; a file that was
    not exported so is kept at full precision.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._ncnn, yaml = import_package("ncnn", "ncnn"), import_package("yaml", "ncnn", "pyyaml")
        self.version = str(self._ncnn.__version__)
        if folder_format(path) is not PROVIDERS["ncnn"]:
            raise EdgeError(f"{path} is not a folder of `yolo export format=ncnn`, and ncnn reads nothing else.")
        try:
            written = yaml.safe_load((path / "metadata.yaml").read_text(encoding="utf-8"))
            self._meta = {key: value if isinstance(value, str) else repr(value) for key, value in written.items()}
            half = precision_of(written.get("args") or {}) == "fp16"
            self._shape = [1, 3, *map(int, written["imgsz"])]
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
            raise EdgeError(f"{path}: its metadata.yaml is missing or unreadable; export it again.") from None
        self._net = self._ncnn.Net()
        options = self._net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        param, weights = model_files(path)
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise EdgeError(f"{path} is not a model that ncnn can load; export it again.")
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]

    def get_providers(self) -> list[str]:
        """The CPU: the use of a GPU is switched off."""
        return ["ncnn:GPU" if self._net.opt.use_vulkan_compute else "ncnn:CPU"]

    def get_modelmeta(self) -> Meta:
        """What the exporter wrote to metadata.yaml."""
        return Meta(self._meta)

    def get_inputs(self) -> list[Port]:
        """The one input, of the size that it was exported with."""
        return [Port(self._input, self._shape, "tensor(float)")]

    def get_outputs(self) -> list[Port]:
        """The one output; its size is known only once it is there."""
        return [Port(self._output, ["1", "values", "anchors"], "tensor(float)")]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the output is a copy."""
        with self._net.create_extractor() as extractor:
            extractor.input(self._input, self._ncnn.Mat(feed[self._input][0]))
            failed, found = extractor.extract(self._output)
            if failed:
                raise EdgeError("ncnn could not run the model: the board may be out of memory.")
            return [np.array(found)[None]]
