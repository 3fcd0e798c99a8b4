"""Where a model can run: one line per provider, and everything that follows from a provider's name.

Nothing is imported for it: each runtime's file is loaded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolokd_edge.common import EdgeError


class Provider(NamedTuple):
    """What `--provider NAME` means."""

    module: str  # the file in this folder whose `open_session` opens a model for it
    names: tuple[str, ...]  # as the session's get_providers() tells them: the one asked for, then its helpers
    on_cpu: bool = False  # whether it leaves the GPU alone
    package: str | None = None  # the Python package that a runtime of its own needs
    model_format: str = "onnx"
    parts: tuple[str, ...] = ()  # of a model that is a folder: a pattern for each of its files
    bundle_files: str | None = None  # the provider whose files of a bundle it takes, if not its own
    coverage: float = 0.95  # share of the graph's nodes (of their time, from a profile) that it must run


CPU = "CPUExecutionProvider"
PROVIDERS: dict[str, Provider] = {
    "cpu": Provider("onnxruntime", (CPU,), on_cpu=True),
    "cuda": Provider("onnxruntime", ("CUDAExecutionProvider", CPU)),
    "trt": Provider("onnxruntime", ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)),
    "openvino": Provider("openvino", ("openvino:CPU",), on_cpu=True, package="openvino", bundle_files="cpu"),
    "ncnn": Provider(
        "ncnn", ("ncnn:CPU",), on_cpu=True, package="ncnn", model_format="ncnn", parts=("*.param", "*.bin")
    ),
    "openvino-gpu": Provider("openvino", ("openvino:GPU",), package="openvino", bundle_files="cpu"),
    "openvino-npu": Provider("openvino", ("openvino:NPU",), package="openvino", bundle_files="cpu"),
    "qnn": Provider("onnxruntime", ("QNNExecutionProvider", CPU), bundle_files="cpu"),
    "coreml": Provider("onnxruntime", ("CoreMLExecutionProvider", CPU), bundle_files="cpu"),
    "dml": Provider("onnxruntime", ("DmlExecutionProvider", CPU), bundle_files="cpu"),
    # it has convolutions and little else, which are a small share of the nodes and nearly all of the work
    "xnnpack": Provider(
        "onnxruntime", ("XnnpackExecutionProvider", CPU), on_cpu=True, bundle_files="cpu", coverage=0.2
    ),
    "triton": Provider("triton", ("triton:server",), bundle_files="cuda"),
}
OTHER_RUNTIMES = tuple(name for name, provider in PROVIDERS.items() if provider.module != "onnxruntime")
ON_CPU = tuple(provider.names[0] for provider in PROVIDERS.values() if provider.on_cpu)
AUTO = ("trt", "cuda", "cpu")  # the order in which `auto` tries them


def check_provider(name: Any) -> None:
    """Refuse what is not a provider."""
    if name not in PROVIDERS and name != "auto":
        raise EdgeError(f"Unknown provider '{name}': choose {', '.join(PROVIDERS)} or auto.")


def check_fp16(fp16: bool, providers: Sequence[str]) -> None:
    """Refuse half precision of TensorRT where TensorRT will not run."""
    if fp16 and not {"trt", "auto"} & set(providers):
        raise EdgeError(
            "fp16 is an option of the provider trt; a bundle's FP16 file is chosen with the precision fp16."
        )


def name_of(active: str) -> str | None:
    """The provider's name here, from how a session tells it."""
    return next((name for name, provider in PROVIDERS.items() if provider.names[0] == active), None)


def folder_format(path: Path) -> Provider | None:
    """The provider that reads a folder as one model, such as ncnn's; None for anything else."""
    if not path.is_dir():
        return None
    for provider in PROVIDERS.values():
        if provider.parts and all(len(list(path.glob(pattern))) == 1 for pattern in provider.parts):
            return provider
    return None


def model_files(path: Path) -> list[Path]:
    """The file, or the files in its folder, that make up a model."""
    provider = folder_format(path)
    return [next(path.glob(pattern)) for pattern in provider.parts] if provider else [path]
