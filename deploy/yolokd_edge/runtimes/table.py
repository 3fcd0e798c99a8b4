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
    formats: tuple[str, ...] = ("onnx",)  # of models that it reads, names of FORMATS
    bundle_files: str | None = None  # the provider whose files of a bundle it takes, if not its own
    coverage: float = 0.95  # share of the graph's nodes (of their time, from a profile) that it must run


class Format(NamedTuple):
    """How a model of a format lies on the disk: as a file, or as a folder."""

    suffix: str = ""  # of the file
    parts: tuple[str, ...] = ()  # of the folder: a pattern for each of its files


FORMATS = {  # as Ultralytics' exporter names them
    "onnx": Format(".onnx"),
    "openvino": Format(parts=("*.xml", "*.bin")),
    "ncnn": Format(parts=("*.param", "*.bin")),
    "mnn": Format(".mnn"),
    "litert": Format(".tflite"),
    "torchscript": Format(".torchscript"),
}
OPENVINO = ("onnx", "openvino")
CPU = "CPUExecutionProvider"
PROVIDERS: dict[str, Provider] = {
    "cpu": Provider("onnxruntime", (CPU,), on_cpu=True),
    "cuda": Provider("onnxruntime", ("CUDAExecutionProvider", CPU)),
    "trt": Provider("onnxruntime", ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)),
    "openvino": Provider("openvino", ("openvino:CPU",), True, "openvino", OPENVINO, bundle_files="cpu"),
    "ncnn": Provider("ncnn", ("ncnn:CPU",), on_cpu=True, package="ncnn", formats=("ncnn",)),
    "mnn": Provider("mnn", ("mnn:CPU",), on_cpu=True, package="MNN", formats=("mnn",)),
    "litert": Provider("litert", ("litert:CPU",), on_cpu=True, package="ai_edge_litert", formats=("litert",)),
    "torchscript": Provider("torchscript", ("torch:CPU",), on_cpu=True, package="torch", formats=("torchscript",)),
    "openvino-gpu": Provider("openvino", ("openvino:GPU",), False, "openvino", OPENVINO, bundle_files="cpu"),
    "openvino-npu": Provider("openvino", ("openvino:NPU",), False, "openvino", OPENVINO, bundle_files="cpu"),
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


def format_of(path: Path) -> str | None:
    """The format of a model, a name of FORMATS; None for a folder that is no model, and where there is nothing.

    A file with another ending is taken for ONNX, whose runtime says what is wrong with it.
    """
    if path.is_dir():
        return next((name for name in FORMATS if FORMATS[name].parts and len(_parts(path, name)) == 2), None)
    if not path.is_file():
        return None
    return next((name for name, form in FORMATS.items() if form.suffix == path.suffix.lower()), "onnx")


def check_format(path: Path, provider: str) -> None:
    """Refuse a model that a provider does not read, with one that does."""
    form, read = format_of(path) or "onnx", PROVIDERS[provider].formats
    if form in read:
        return
    if form == "onnx":
        raise EdgeError(
            f"{path} is an ONNX file, and {provider} reads what `yolokd export format={read[0]}` writes: give that, or "
            "the provider cpu."
        )
    able = next(name for name, one in PROVIDERS.items() if form in one.formats)
    raise EdgeError(f"{path} is a model for {form}: give the provider {able}.")


def _parts(folder: Path, form: str) -> list[Path]:
    """The files of a folder that make up a model of a format; fewer where one is missing or there are several."""
    found = [list(folder.glob(pattern)) for pattern in FORMATS[form].parts]
    return [files[0] for files in found if len(files) == 1]


def model_files(path: Path) -> list[Path]:
    """The file, or the files in its folder, that make up a model."""
    form = format_of(path)
    return _parts(path, form) if form and FORMATS[form].parts else [path]
