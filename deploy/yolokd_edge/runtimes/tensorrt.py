"""TensorRT: its version, its engines and where they are kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from yolokd_edge.board.system import gpu_architecture, l4t_version
from yolokd_edge.common import EdgeError, printable, sha256
from yolokd_edge.contract import metadata_entry, says_fp16
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.onnxruntime_options import onnxruntime_version

INPUT = b"images"  # what Ultralytics' exporter calls a model's input


def tensorrt_version() -> str | None:
    """Version of the TensorRT library on this machine, such as 8.5.2 or 10.3.0; None without one."""
    for name in ("libnvinfer.so", *(f"libnvinfer.so.{major}" for major in (11, 10, 9, 8, 7))):
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        return version_text(number)
    return None


def version_text(number: int) -> str:
    """8502 -> 8.5.2 and 100300 -> 10.3.0: the digits a part takes grew with TensorRT 10."""
    unit = 10000 if number >= 100000 else 1000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def _one_size(content: bytes, hw: tuple[int, int] | None, batch: int) -> dict[str, str]:
    """Options that let TensorRT build a file without a fixed size for the one size that it will run.

    Otherwise it would build at the first run, and again whenever another size came along.
    """
    args, size = metadata_entry(content, "args"), hw or metadata_entry(content, "imgsz")
    known = isinstance(args, dict) and args.get("dynamic") and isinstance(size, (list, tuple)) and len(size) == 2
    if not known or b"\x0a\x06" + INPUT not in content:
        return {}
    shape = f"{INPUT.decode()}:{batch}x3x{size[0]}x{size[1]}"
    return {f"trt_profile_{end}_shapes": shape for end in ("min", "opt", "max")}


def _cache_root(tensorrt: TensorRT) -> Path:
    given = tensorrt.cache or os.environ.get("YOLOKD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "yolokd"


def engine_key(path: Path, precision: str, hw: tuple[int, int] | None = None, batch: int = 1) -> str:
    """Name of the cache folder of an engine: another model, precision, size, library or device gets another one.

    ONNX Runtime itself would load an engine that was built elsewhere or by another version.
    """
    parts = [
        sha256(path),
        onnxruntime.__version__,
        tensorrt_version(),
        l4t_version(),
        gpu_architecture(),
        precision,
        hw,
        *([batch] if batch > 1 else []),  # engines of a single image keep the names they have
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def engine_options(path: Path, settings: TensorRT) -> tuple[dict[str, Any], dict[str, str]]:
    """What the record says about TensorRT, and the provider's options."""
    content, version, runtime = path.read_bytes(), tensorrt_version(), onnxruntime_version()
    int8 = b"QuantizeLinear" in content  # quantised in the graph: needs no calibration table, but the flag
    half = settings.fp16 or says_fp16(content)
    precision = "+".join(["fp32"] + ["fp16"] * half + ["int8"] * int8)
    folder = _cache_root(settings) / f"{path.stem}-{engine_key(path, precision, settings.hw, settings.batch)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError(f"The engine cache {folder} cannot be created ({error.strerror}).") from None
    hit = any(folder.glob("*.engine"))
    if not hit:
        said = printable(f"Building a TensorRT engine for {path}: minutes, once; kept in {folder}")
        print(said, file=sys.stderr)
    options = {
        "trt_fp16_enable": str(half),
        "trt_int8_enable": str(int8),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
    }
    # An ONNX Runtime refuses the options that it does not know yet.
    if runtime >= (1, 15):
        options["trt_timing_cache_enable"] = "True"  # kept beside the engines
        options.update(_one_size(content, settings.hw, settings.batch))
    slow = version and version.startswith("10.") and int(version.split(".")[1]) < 8 and b"NonMaxSuppression" in content
    if slow and runtime >= (1, 21):  # of those before, 1.20 leaves these nodes out by itself
        options["trt_op_types_to_exclude"] = "NonMaxSuppression,NonZero,RoiAlign"  # very slow inside TensorRT then
    facts = {"version": version, "fp16": settings.fp16, "int8": int8, "engine_cache": "hit" if hit else "miss"}
    facts.update(cache_dir=str(folder), build_s=None)
    return facts, options
