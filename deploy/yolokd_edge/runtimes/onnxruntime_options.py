"""How ONNX Runtime is set up, for detection and for the profile that tells where nodes run."""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import onnxruntime


def provider_options(provider: str, threads: int) -> dict[str, str]:
    """Options of an execution provider."""
    if provider == "xnnpack":
        return {"intra_op_num_threads": str(threads)}  # it has threads of its own
    if provider == "qnn":
        return {"backend_path": "QnnHtp.dll" if sys.platform == "win32" else "libQnnHtp.so"}
    return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"} if provider == "coreml" else {}


def session_options(threads: int, provider: str = "cpu") -> Any:
    """Options of every session: the threads, and nothing on stderr; and what the provider asks for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if provider == "xnnpack" else threads
    if provider == "dml":
        options.enable_mem_pattern = False
    options.log_severity_level = 4  # not even errors, which are raised as well: stderr belongs to our own sentences
    # Threads that keep spinning after a run would slow down pre- and postprocessing and every other model.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def onnxruntime_version() -> tuple[int, ...]:
    """Major and minor number of the ONNX Runtime installed."""
    return tuple(int(number) for number in re.findall(r"\d+", onnxruntime.__version__)[:2])


def load_cuda() -> None:
    """Load the CUDA and cuDNN of pip's packages, where installed: ONNX Runtime does not find them by itself."""
    if find_spec("nvidia") is not None and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it may have advice
            onnxruntime.preload_dlls()
