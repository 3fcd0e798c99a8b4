"""OpenVINO, Intel's runtime, often faster on an Intel CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge.common import PROVIDER, EdgeError, one_line
from yolokd_edge.runtimes.base import Meta, Opened, Port, TensorRT, import_package, timed_session
from yolokd_edge.runtimes.requests import Clock, Done, Requests
from yolokd_edge.runtimes.table import PROVIDERS, format_of, model_files
from yolokd_edge.runtimes.written import from_yaml


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open an ONNX file or a folder of `yolokd export format=openvino` on one of OpenVINO's devices."""
    device = PROVIDERS[provider].names[0].partition(":")[2]
    return timed_session(lambda file, count: OpenVino(file, count, device), path, provider, threads)


def open_requests(
    path: Path, provider: str, streams: int | None, threads: int | None, tensorrt: TensorRT, blob: np.ndarray
) -> Requests:
    """OpenVINO's own asynchronous requests; streams and threads that are not given are left to its throughput hint."""
    device = PROVIDERS[provider].names[0].partition(":")[2]
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    if device != "NPU":
        hints["INFERENCE_PRECISION_HINT"] = "f32"
        if streams is not None:
            hints["NUM_STREAMS"] = streams
    if threads is not None and device == "CPU":
        hints["INFERENCE_NUM_THREADS"] = threads * (streams or 1)
    return AsyncRequests(path, device, hints, list(blob.shape))


class AsyncRequests:
    """OpenVINO's AsyncInferQueue of as many requests as the compiled model finds best.

    Args:
        path: the model.
        device: CPU, GPU or NPU.
        hints: for compiling.
        shape: of an input, (B, 3, H, W).
        clock: in ns.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        hints: Mapping[str, Any],
        shape: list[int],
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        openvino = import_package("openvino", "openvino")
        try:
            core = openvino.Core()
            model = core.read_model(str(model_files(path)[0]))
            model.reshape(shape)  # of one shape it computes faster than of any
            compiled = core.compile_model(model, device, dict(hints))
            self._queue = openvino.AsyncInferQueue(compiled)
            self.streams, self.threads = len(self._queue), 1
            if device == "CPU":
                self.streams = int(compiled.get_property("NUM_STREAMS"))
                self.threads = max(int(compiled.get_property("INFERENCE_NUM_THREADS")) // max(self.streams, 1), 1)
        except RuntimeError as error:
            raise EdgeError(f"OpenVINO cannot load {path} ({one_line(error)}).") from None
        self.how, self._clock, self._path = f"AsyncInferQueue of {len(self._queue)} requests", clock, path
        self._queue.set_callback(self._ended)

    def _ended(self, request: Any, asked: tuple[int, Done]) -> None:
        begun, done = asked
        done(begun, self._clock())

    def start(self, blob: np.ndarray, done: Done) -> None:
        self._queue.get_idle_request_id()  # waits for one, so that the time before is not the request's
        try:
            self._queue.start_async({0: blob}, (self._clock(), done), share_inputs=True)
        except RuntimeError as error:
            raise EdgeError(f"{self._path} cannot be run ({one_line(error)}).") from None

    def finish(self) -> None:
        try:
            self._queue.wait_all()
        except RuntimeError as error:
            raise EdgeError(f"{self._path} cannot be run ({one_line(error)}).") from None

    def close(self) -> None:
        del self._queue


class OpenVino:
    """A model on OpenVINO's own runtime, with what is used here of ONNX Runtime's session.

    Low latency rather than throughput, and full precision where the device could silently take less; an NPU has none.
    """

    def __init__(self, path: Path, threads: int, device: str = "CPU") -> None:
        openvino = import_package("openvino", "openvino")
        self.version = str(openvino.__version__)
        self._written = from_yaml(path, "openvino") if format_of(path) == "openvino" else None
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            hints["INFERENCE_NUM_THREADS"] = threads
        if device != "NPU":
            hints["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            core = openvino.Core()
            if device not in (held := {name.partition(".")[0] for name in core.available_devices}):
                raise EdgeError(f"OpenVINO sees no {device} here, only {', '.join(sorted(held))}.", PROVIDER)
            self._model = core.read_model(str(model_files(path)[0]))
            self._compiled = core.compile_model(self._model, device, hints)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise EdgeError(f"OpenVINO cannot load {path} ({one_line(error)}).") from None

    def get_providers(self) -> list[str]:
        """The kinds of devices that the compiled model says it runs on, of several GPUs the first one."""
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        return ["openvino:" + device.partition(".")[0] for device in devices]

    def get_modelmeta(self) -> Meta:
        """The ONNX file's metadata, which OpenVINO keeps under `framework`; of a folder that of its metadata.yaml."""
        if self._written is not None:
            return Meta({str(k): v if isinstance(v, str) else repr(v) for k, v in self._written.items()})
        kept = dict(self._model.get_rt_info().items()).get("framework")
        return Meta({key: str(value.astype(str)) for key, value in kept.items()} if kept is not None else {})

    def _port(self, port: Any, name: str) -> Port:
        shape = [size.get_length() if size.is_static else str(size) for size in port.partial_shape]
        kinds = {"f32": "tensor(float)", "f16": "tensor(float16)", "f64": "tensor(double)"}
        kind = port.element_type.get_type_name()
        return Port(name, shape, kinds.get(kind, kind))

    def get_inputs(self) -> list[Port]:
        """The model's inputs."""
        return [self._port(port, port.any_name) for port in self._model.inputs]

    def get_outputs(self) -> list[Port]:
        """The model's outputs; a folder's have no names."""
        named = self._written is None
        return [self._port(p, p.any_name if named else f"output{k}") for k, p in enumerate(self._model.outputs)]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the outputs are copies."""
        return list(self._request.infer(feed, share_inputs=True).values())
