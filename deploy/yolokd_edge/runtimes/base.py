"""What a session of any runtime offers, and how one is opened that only this package makes look like ONNX Runtime's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from yolokd_edge.common import PROVIDER, EdgeError, one_line
from yolokd_edge.runtimes.table import PROVIDERS


class Port(NamedTuple):
    """Input or output of a model, as ONNX Runtime describes one."""

    name: str
    shape: list[Any]  # a size that is not fixed is a text
    type: str


class Meta(NamedTuple):
    """Metadata of a model, as ONNX Runtime gives it."""

    custom_metadata_map: dict[str, str]


class Session(Protocol):
    """What is used here of ONNX Runtime's InferenceSession; another runtime's class has the same methods."""

    version: str  # of the runtime's package

    def get_providers(self) -> list[str]:
        """Where it really runs, the provider that runs most of it first."""

    def get_modelmeta(self) -> Meta:
        """The metadata that the exporter wrote."""

    def get_inputs(self) -> list[Port]:
        """The model's inputs."""

    def get_outputs(self) -> list[Port]:
        """The model's outputs."""

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once, from host arrays to host arrays."""


class TensorRT(NamedTuple):
    """How TensorRT builds an engine through ONNX Runtime."""

    fp16: bool = False  # half precision for a file that is not; one that is gets it anyway
    cache: str | None = None  # folder of the engine and timing caches; YOLOKD_CACHE or ~/.cache/yolokd by default
    hw: tuple[int, int] | None = None  # input size, for a file exported without a fixed one
    batch: int = 1  # images in an input, for a file exported without a fixed number
    cuda_graph: bool = False  # record the GPU's work once and replay it (CUDA's own provider has this, too)


class Opened(NamedTuple):
    """A session that runs where it should, and the proof."""

    session: Any  # a Session, or ONNX Runtime's own
    nodes: dict[str, int] | None  # graph nodes per provider, None where this ONNX Runtime cannot tell
    session_s: float  # how long creating the session took
    coverage: float | None  # share of the nodes (of their time, from a profile) that the first provider runs
    trt: dict[str, Any] | None  # the record's runtime.trt


def import_package(name: str, provider: str, pip: str | None = None) -> Any:
    """A runtime's Python package, or the sentence that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        what = f"The provider {provider} needs the Python package {name}, which cannot be imported ({one_line(error)})"
        raise EdgeError(f"{what}: pip install {pip or name}.", PROVIDER) from None


def timed_session(make: Callable[[Path, int], Session], path: Path, provider: str, threads: int) -> Opened:
    """Open a session of a runtime that compiles for one device: it loads the whole graph or fails."""
    start = time.perf_counter()
    session = make(path, threads)
    session_s = time.perf_counter() - start
    active: Sequence[str] = session.get_providers()
    requested = PROVIDERS[provider].names
    if tuple(active) != requested:
        raise EdgeError(f"{requested[0]} was asked for, but {path} runs on {', '.join(active)}.", PROVIDER)
    return Opened(session, None, session_s, 1.0, None)
