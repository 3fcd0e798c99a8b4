"""ONNX Runtime, the usual runtime: sessions on the CPU, CUDA and TensorRT, and the proof of where they run."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from yolokd_edge.common import PROVIDER, EdgeError, one_line
from yolokd_edge.runtimes.base import Opened, TensorRT
from yolokd_edge.runtimes.coverage import coverage_in_new_process
from yolokd_edge.runtimes.onnxruntime_binding import BoundRun, output_shapes, with_cuda_graph
from yolokd_edge.runtimes.onnxruntime_options import load_cuda, provider_options, session_options
from yolokd_edge.runtimes.requests import Requests, ThreadedRequests, shared_out
from yolokd_edge.runtimes.table import PROVIDERS
from yolokd_edge.runtimes.tensorrt import engine_options

UNREADABLE = ("InvalidProtobuf", "InvalidArgument", "InvalidGraph", "NoModel", "NoSuchFile")


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Create a session whose first provider is the one asked for and runs nearly all nodes, or raise."""
    names, available = PROVIDERS[provider].names, onnxruntime.get_available_providers()
    requested = names[0]
    if requested not in available:
        raise EdgeError(f"{requested} is not in this ONNX Runtime build ({', '.join(available)}).", PROVIDER)
    chain: list[Any] = [name for name in names if name in available]
    if settings := provider_options(provider, threads):
        chain[0] = (requested, settings)
    if provider in ("cuda", "trt"):
        load_cuda()
    trt = None
    if provider == "trt" and path.is_file():
        trt, options = engine_options(path, tensorrt)
        chain[0] = (chain[0], options)
    start = time.perf_counter()
    session = _create_session(path, provider, with_cuda_graph(chain) if tensorrt.cuda_graph else chain, threads)
    session_s, active = time.perf_counter() - start, session.get_providers()
    if active[0] != requested:
        raise EdgeError(f"{requested} was asked for, but ONNX Runtime runs {path} on {active[0]}.", PROVIDER)
    if trt is not None and trt["engine_cache"] == "miss":
        trt["build_s"] = round(session_s, 1)
    nodes = assigned_nodes(session)
    coverage = nodes.get(requested, 0) / sum(nodes.values()) if nodes else None
    if nodes is None:
        coverage = 1.0 if len(chain) == 1 else coverage_in_new_process(path, chain, threads, requested, tensorrt.hw)
    if coverage is not None and coverage < PROVIDERS[provider].coverage and provider != "cpu":
        raise EdgeError(f"{requested} was asked for, but took only {coverage:.0%} of the nodes of {path}.", PROVIDER)
    return Opened(session, nodes, session_s, coverage, trt)


def open_requests(
    path: Path, provider: str, streams: int | None, threads: int | None, tensorrt: TensorRT, blob: np.ndarray
) -> Requests:
    """A session for each stream, with inputs and outputs bound: a CUDA graph has one caller, threads one session."""
    streams, threads = shared_out(streams, threads)
    sessions = [open_session(path, provider, threads, tensorrt).session for _ in range(streams)]
    shapes = output_shapes(path, session_options(threads), blob) if tensorrt.cuda_graph else None
    how = "IO binding and a CUDA graph" if tensorrt.cuda_graph else "IO binding"
    return ThreadedRequests([BoundRun(session, path, blob, shapes) for session in sessions], threads, how)


def _create_session(path: Path, provider: str, chain: list[Any], threads: int) -> Any:
    try:
        options = session_options(threads, provider)
        return onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exception types share no base class
        if provider == "cpu" or type(error).__name__ in UNREADABLE:
            hint = "" if path.suffix.lower() == ".onnx" else "; export it to ONNX first"
            raise EdgeError(f"{path} is not an ONNX model that can be loaded ({one_line(error)}){hint}.") from None
        requested = PROVIDERS[provider].names[0]
        raise EdgeError(f"{requested} could not load {path} ({one_line(error)}).", PROVIDER) from None


def assigned_nodes(session: Any) -> dict[str, int] | None:
    """Graph nodes per execution provider, or None where this ONNX Runtime cannot tell."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # absent before 1.2x, and never a reason to stop
        return None
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)
