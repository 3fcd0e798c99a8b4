"""OpenVINO, Intel's runtime, often faster on an Intel CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.runtimes.base import Meta, Opened, Port, TensorRT, import_package, timed_session


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open an ONNX file on OpenVINO."""
    return timed_session(OpenVino, path, provider, threads)


class OpenVino:
    """An ONNX file on OpenVINO's own runtime, with what is used here of ONNX Runtime's session.

    Low latency rather than throughput, and full precision where the CPU could silently take less.
    """

    def __init__(self, path: Path, threads: int) -> None:
        openvino = import_package("openvino", "openvino")
        self.version = str(openvino.__version__)
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            core = openvino.Core()
            self._model = core.read_model(str(path))
            self._compiled = core.compile_model(self._model, "CPU", hints)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise EdgeError(f"OpenVINO cannot load {path} ({one_line(error)}).") from None

    def get_providers(self) -> list[str]:
        """The devices that the compiled model says it runs on."""
        return ["openvino:" + device for device in self._compiled.get_property("EXECUTION_DEVICES")]

    def get_modelmeta(self) -> Meta:
        """The ONNX file's metadata, which OpenVINO keeps under `framework`."""
        kept = dict(self._model.get_rt_info().items()).get("framework")
        return Meta({key: str(value.astype(str)) for key, value in kept.items()} if kept is not None else {})

    def _port(self, port: Any) -> Port:
        shape = [size.get_length() if size.is_static else str(size) for size in port.partial_shape]
        kinds = {"f32": "tensor(float)", "f16": "tensor(float16)", "f64": "tensor(double)"}
        kind = port.element_type.get_type_name()
        return Port(port.any_name, shape, kinds.get(kind, kind))

    def get_inputs(self) -> list[Port]:
        """The model's inputs."""
        return [self._port(port) for port in self._model.inputs]

    def get_outputs(self) -> list[Port]:
        """The model's outputs."""
        return [self._port(port) for port in self._model.outputs]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the outputs are copies."""
        return list(self._request.infer(feed, share_inputs=True).values())
