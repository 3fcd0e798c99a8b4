"""OpenVINO, Intel's runtime, often faster on an Intel CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import PROVIDER, EdgeError, one_line
from yolokd_edge.runtimes.base import Meta, Opened, Port, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.table import PROVIDERS


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open an ONNX file on one of OpenVINO's devices."""
    device = PROVIDERS[provider].names[0].partition(":")[2]
    return timed_session(lambda file, count: OpenVino(file, count, device), path, provider, threads)


class OpenVino:
    """An ONNX file on OpenVINO's own runtime, with what is used here of ONNX Runtime's session.

    Low latency rather than throughput, and full precision where the device could silently take less; an NPU has none.
    """

    def __init__(self, path: Path, threads: int, device: str = "CPU") -> None:
        openvino = import_package("openvino", "openvino")
        self.version = str(openvino.__version__)
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            hints["INFERENCE_NUM_THREADS"] = threads
        if device != "NPU":
            hints["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            core = openvino.Core()
            if device not in (held := {name.partition(".")[0] for name in core.available_devices}):
                raise EdgeError(f"OpenVINO sees no {device} here, only {', '.join(sorted(held))}.", PROVIDER)
            self._model = core.read_model(str(path))
            self._compiled = core.compile_model(self._model, device, hints)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise EdgeError(f"OpenVINO cannot load {path} ({one_line(error)}).") from None

    def get_providers(self) -> list[str]:
        """The kinds of devices that the compiled model says it runs on, of several GPUs the first one."""
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        return ["openvino:" + device.partition(".")[0] for device in devices]

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
