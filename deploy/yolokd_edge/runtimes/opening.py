"""Opens a model where it was asked for, or on the first of several providers that is really active."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from yolokd_edge.common import PROVIDER, EdgeError
from yolokd_edge.runtimes.base import Opened, TensorRT
from yolokd_edge.runtimes.table import AUTO, OTHER_RUNTIMES, PROVIDERS, check_format, format_of


def open_model(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open a model on a provider, by the file of this folder that the table names, or raise."""
    check_format(path, provider)
    runtime = import_module(f"yolokd_edge.runtimes.{PROVIDERS[provider].module}")
    opened: Opened = runtime.open_session(path, provider, threads, tensorrt)
    return opened


def open_first_active(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """The first provider that is really active: of all for auto, else of the one asked for and those after it."""
    names: tuple[str, ...] = (provider, "cpu") if format_of(path) == "onnx" else (provider,)
    if provider not in OTHER_RUNTIMES:
        names = AUTO if provider == "auto" else AUTO[AUTO.index(provider) :]
    for name in names[:-1]:
        try:
            return open_model(path, name, threads, tensorrt)
        except EdgeError as error:
            if error.code != PROVIDER:
                raise
    return open_model(path, names[-1], threads, tensorrt)
