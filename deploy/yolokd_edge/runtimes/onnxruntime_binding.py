"""ONNX Runtime's inputs and outputs bound to memory of a session's own (IO binding), as CUDA graphs need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from yolokd_edge.common import PROVIDER, EdgeError, one_line

CUDA_GRAPH = {  # provider -> its option that records the GPU's work once and then replays it
    "CUDAExecutionProvider": ("enable_cuda_graph", "1"),
    "TensorrtExecutionProvider": ("trt_cuda_graph_enable", "True"),
}


def with_cuda_graph(chain: list[Any]) -> list[Any]:
    """A chain of providers as ONNX Runtime takes it, whose first one records a CUDA graph.

    Raises:
        EdgeError: the first provider has no such thing.
    """
    name, options = chain[0] if isinstance(chain[0], tuple) else (chain[0], {})
    if name not in CUDA_GRAPH:
        raise EdgeError(f"A CUDA graph is recorded by the providers cuda and trt only, not by {name}.")
    key, value = CUDA_GRAPH[name]
    return [(name, {**options, key: value}), *chain[1:]]


class BoundRun:
    """Computes inputs of one shape on one session.

    On the CPU the input is not copied; on an NVIDIA GPU it goes to memory that stays where it is, and the outputs come
    back to the host.

    Args:
        session: ONNX Runtime's, used by nobody else.
        path: its file, for what is said of it.
        blob: an input (B, 3, H, W).
        shapes: of the outputs, where they too must stay in place: for a CUDA graph.
    """

    def __init__(
        self, session: Any, path: Path, blob: np.ndarray, shapes: list[tuple[list[int], Any]] | None = None
    ) -> None:
        self.session, self.path = session, path
        self.on_host = session.get_providers()[0] not in CUDA_GRAPH  # whose memory ONNX Runtime lets us keep inputs in
        self._name, self._binding = session.get_inputs()[0].name, session.io_binding()
        if not self.on_host:
            self._input = onnxruntime.OrtValue.ortvalue_from_numpy(blob, "cuda", 0)
            self._binding.bind_ortvalue_input(self._name, self._input)
        for k, output in enumerate(session.get_outputs()):
            if shapes is None:
                self._binding.bind_output(output.name, "cpu")
            else:
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(*shapes[k], "cuda", 0)
                self._binding.bind_ortvalue_output(output.name, value)
        self._in_place = shapes is not None

    def __call__(self, blob: np.ndarray) -> None:
        try:
            if self.on_host:
                self._binding.bind_cpu_input(self._name, blob)
            else:
                self._input.update_inplace(blob)
            self.session.run_with_iobinding(self._binding)
            if self._in_place:
                self._binding.copy_outputs_to_cpu()
        except Exception as error:  # ONNX Runtime's own exception types share no base class
            what = " with a CUDA graph" if self._in_place else ""
            raise EdgeError(f"{self.path} cannot be run{what} ({one_line(error)}).", PROVIDER) from None


def output_shapes(path: Path, options: Any, blob: np.ndarray) -> list[tuple[list[int], Any]]:
    """Shape and type of each output for an input, from one run on the CPU."""
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: blob})
    return [(list(output.shape), output.dtype.type) for output in found]
