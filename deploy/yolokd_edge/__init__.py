#!/usr/bin/env python3
"""Detect with an exported YOLO model and measure its latency: numpy, OpenCV and ONNX Runtime, nothing else.

One file for Python 3.8 and newer; copy it to a board as it stands:

    python3 yolokd_edge.py detect --model model.onnx --source images/ --save drawn/
    python3 yolokd_edge.py verify --model name-edge.zip
    python3 yolokd_edge.py bench --model model.onnx --source images/ --out report.json
    python3 yolokd_edge.py doctor

A model is an ONNX file or a bundle (`yolokd bundle`): the zip file, or the folder that it was unpacked to.

Frames are BGR uint8 arrays (H, W, 3) as OpenCV decodes them. Detections are float32 arrays (n, 6): x1, y1, x2, y2 in
pixels of the frame, confidence, class index. Clocks count nanoseconds; reports give milliseconds.

OpenVINO and ncnn can run the model in place of ONNX Runtime, where they are installed. Sections of this file, in order:

- The model: its contract
- Before and after the network: letterbox and NMS
- ONNX Runtime: sessions, and the proof of where they run
- TensorRT: its engines and where they are kept
- Runtimes other than ONNX Runtime
- Detection
- Images
- The bundle
- Parity on this device
- Statistics
- What the system and the board say about themselves
- Telemetry: watching the board
- Measuring
- Judging the figures
- The record
- One process
- Fresh processes
- trtexec as a cross-check
- Bench
- Doctor
- Command line
"""

from __future__ import annotations

import time

_IMPORT_START = time.perf_counter()

import sys  # noqa: E402

_COLD = not {"numpy", "cv2", "onnxruntime"} & set(sys.modules)  # else the import time below says nothing

import argparse  # noqa: E402
import ast  # noqa: E402
import bisect  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import uuid  # noqa: E402
import zipfile  # noqa: E402
import zlib  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import redirect_stdout  # noqa: E402
from functools import lru_cache  # noqa: E402
from importlib import import_module  # noqa: E402
from importlib import metadata as packages  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from itertools import product  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import NormalDist, median  # noqa: E402
from typing import Any, NamedTuple, Tuple  # noqa: E402

try:
    import cv2
    import numpy as np
    import onnxruntime
except ImportError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"yolokd_edge: a package is missing or broken ({missing}): install this board's, "
        "python3 -m pip install -r requirements-cpu.txt, or -jp5, -jp6, -jp7 on a Jetson, -cuda with an NVIDIA GPU.",
        file=sys.stderr,
    )
    sys.exit(2)

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

IMPORT_S = time.perf_counter() - _IMPORT_START

VERSION = "0.1.0"
SCHEMA = "yolokd.latency/1"
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
USAGE, PROVIDER, PARITY = 2, 4, 5  # exit codes

RAW, E2E, NMS = "raw_xywh_scores", "e2e_xyxy_conf_cls", "nms_xyxy_conf_cls"
CONTRACTS = (RAW, E2E, NMS)
PAD = 114  # grey of the letterbox border
CLASS_OFFSET = 7680  # pixels between classes, so that one NMS pass never mixes them
MAX_CANDIDATES = 30000  # boxes that enter NMS, best first
NMS_BLOCK = 128  # boxes compared at a time

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "trt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "openvino": ("openvino:CPU",),  # these two are runtimes of their own
    "ncnn": ("ncnn:CPU",),
}
ON_CPU = tuple(PROVIDERS[name][0] for name in ("cpu", "openvino", "ncnn"))
AUTO = ("trt", "cuda", "cpu")  # the order in which `auto` tries them
PRECISIONS = ("fp32", "fp16", "int8")


class EdgeError(Exception):
    """What went wrong in one sentence, and the exit code: 2 bad input or usage, 4 provider not active, 5 no parity."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def check_provider(name: Any) -> None:
    """Refuse what is not a provider."""
    if name not in PROVIDERS and name != "auto":
        raise EdgeError(f"Unknown provider '{name}': choose {', '.join(PROVIDERS)} or auto.")


# --- The model: its contract ----------------------------------------------------------------------------------------


class Contract(NamedTuple):
    """What an ONNX file promises, read from its metadata: the shapes alone cannot tell two of the contracts apart."""

    output: str  # one of CONTRACTS
    names: dict[int, str]  # class index -> name
    hw: tuple[int, int]  # input height and width, pixels
    precision: str  # fp32, fp16 or int8
    meta: dict[str, Any]  # the yolokd entry, {} without one
    exporter: dict[str, str]  # the file's whole metadata as written

    @property
    def nc(self) -> int:
        return len(self.names)


def _literal(metadata: dict[str, str], key: str, path: Path) -> Any:
    try:
        return ast.literal_eval(metadata[key])
    except (ValueError, SyntaxError):
        raise EdgeError(f"{path}: the metadata entry '{key}' is unreadable: {metadata[key][:60]!r}.") from None


def _yolokd_entry(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if "yolokd" not in metadata:
        return {}
    try:
        entry = json.loads(metadata["yolokd"])
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or entry.get("output_contract") not in CONTRACTS:
        raise EdgeError(f"{path}: its 'yolokd' metadata names none of the output contracts {', '.join(CONTRACTS)}.")
    return entry


def _precision(args: dict[str, Any]) -> str:
    if args.get("quantize") == 8 or args.get("int8"):  # `int8` and `half` are what older exporters wrote
        return "int8"
    return "fp16" if args.get("quantize") == 16 or args.get("half") else "fp32"


def read_contract(metadata: dict[str, str], path: Path) -> Contract:
    """Read what the file declares: the yolokd entry first, else what Ultralytics' exporter wrote."""
    missing = [key for key in ("names", "imgsz", "task") if key not in metadata]
    if missing:
        raise EdgeError(f"{path} has no export metadata ({', '.join(missing)}), so its output cannot be interpreted.")
    if metadata["task"] != "detect" or metadata.get("head") == "RTDETRDecoder":
        what = metadata.get("head") if metadata["task"] == "detect" else metadata["task"]
        raise EdgeError(f"{path} is a {what} model; only YOLO detectors are read here.")
    if metadata.get("channels", "3") != "3":
        raise EdgeError(f"{path} takes {metadata['channels']} channels; only colour images (3) are read here.")
    entry = _yolokd_entry(metadata, path)
    args = _literal(metadata, "args", path) if "args" in metadata else {}
    end2end = _literal(metadata, "end2end", path) if "end2end" in metadata else False
    output = entry.get("output_contract") or (NMS if args.get("nms") else E2E if end2end else RAW)
    imgsz, names = _literal(metadata, "imgsz", path), _literal(metadata, "names", path)
    try:
        height, width = (imgsz, imgsz) if isinstance(imgsz, int) else map(int, imgsz)
        names = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
    except (TypeError, ValueError):
        raise EdgeError(f"{path}: the metadata entries 'imgsz' and 'names' are not a size and class names.") from None
    return Contract(output, names, (height, width), _precision(args), entry, metadata)


def check_output_shape(contract: Contract, shape: Sequence[Any], path: Path) -> None:
    """Refuse an output that contradicts the contract. A symbolic dimension (a name) contradicts nothing."""
    expected = ("1", str(4 + contract.nc), "anchors") if contract.output == RAW else ("1", "detections", "6")
    fits = len(shape) == 3
    for want, got in zip(expected, shape) if fits else ():  # noqa: B905
        fits &= not (want.isdigit() and isinstance(got, int)) or int(want) == got
    if not fits:
        raise EdgeError(
            f"{path} declares {contract.output} with {contract.nc} classes, ({', '.join(expected)}), "
            f"but its output is {tuple(shape)}."
        )


def check_input_shape(contract: Contract, shape: Sequence[Any], path: Path) -> None:
    """Refuse an input that is not (1, 3, H, W) with the declared H and W."""
    expected = (1, 3) + contract.hw
    fits = len(shape) == 4
    for want, got in zip(expected, shape) if fits else ():  # noqa: B905
        fits &= not isinstance(got, int) or want == got
    if not fits:
        raise EdgeError(f"{path} declares an input of {expected}, but takes {tuple(shape)}.")


# --- Before and after the network: letterbox and NMS ----------------------------------------------------------------


class Letterbox(NamedTuple):
    """How a frame was fitted into the input, to map boxes back."""

    frame_hw: tuple[int, int]  # of the original frame
    gain: tuple[float, float]  # x, y: input pixels a frame pixel
    pad: tuple[int, int]  # left, top: border in input pixels


def letterbox(frame: np.ndarray, hw: tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """Fit a frame (H, W, 3) into hw, aspect kept, centred on grey; scales up as well as down.

    The roundings are those of Ultralytics: half to even, and an odd border pixel goes to the bottom and the right.
    """
    height, width = frame.shape[:2]
    ratio = min(hw[0] / height, hw[1] / width)
    new_w, new_h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    half_w, half_h = (hw[1] - new_w) / 2, (hw[0] - new_h) / 2
    left, top = round(half_w - 0.1), round(half_h - 0.1)
    right, bottom = round(half_w + 0.1), round(half_h + 0.1)
    if (width, height) != (new_w, new_h):
        frame = cv2.resize(frame, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    frame = cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAD, PAD, PAD))
    return frame, Letterbox((height, width), (new_w / width, new_h / height), (left, top))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 4) and (m, 4) xyxy -> (n, m). Two empty boxes in one place: nan, which exceeds no threshold."""
    a, b = a.T[:, :, None], b.T[:, None]
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = inter / union
    return ratio


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Indices of the boxes (n, 4) that greedy NMS keeps, best first, at most max_det.

    Overlaps are computed for a block of the best boxes at a time: several times faster than box by box.
    """
    order = np.argsort(-scores, kind="stable")
    keep: list[int] = []
    while len(order) and len(keep) < max_det:
        best = order[:NMS_BLOCK]
        clash = overlaps(boxes[best], boxes[order]) > iou
        gone = np.zeros(len(order), bool)
        for i in range(len(best)):
            if not gone[i]:
                keep.append(best[i])
                gone |= clash[i]
        order = order[NMS_BLOCK:][~gone[NMS_BLOCK:]]
    return np.array(keep[:max_det], np.intp)


def unletterbox(detections: np.ndarray, box: Letterbox) -> np.ndarray:
    """Map boxes (n, 6) from input to frame pixels, in place, clipped to the frame."""
    height, width = box.frame_hw
    for axis, limit in ((0, width), (1, height)):
        side = detections[:, axis : axis + 3 : 2]
        side -= box.pad[axis]
        side /= np.float32(box.gain[axis])
        np.clip(side, 0, limit, out=side)
    return detections


# --- ONNX Runtime: sessions, and the proof of where they run --------------------------------------------------------


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: stderr belongs to our own sentences
    # Threads that keep spinning after a run would slow down pre- and postprocessing and every other model.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _one_line(error: Exception) -> str:
    """What an error says, without the place in C++ that ONNX Runtime puts before it: file, line and signature."""
    text = " ".join(str(error).split("failed:")[-1].split())
    return re.sub(r"^/\S+:\d+ .+?\) (\[with .*?\] )?(?=[A-Z])", "", text)[:200].rstrip(". ")


def _load_cuda() -> None:
    """Load the CUDA and cuDNN of pip's packages, where installed: ONNX Runtime does not find them by itself."""
    if find_spec("nvidia") is not None and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it may have advice
            onnxruntime.preload_dlls()


class Opened(NamedTuple):
    """A session that runs where it should, and the proof."""

    session: Any
    nodes: dict[str, int] | None  # graph nodes per provider, None where this ONNX Runtime cannot tell
    session_s: float  # how long the session took
    coverage: float | None  # share of the nodes (of their time, from a profile) that the first provider runs
    trt: dict[str, Any] | None  # the record's runtime.trt


LEAST_COVERAGE = 0.95  # of the nodes on the provider asked for


def _open(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Create a session whose first provider is the one asked for and runs nearly all nodes, or raise."""
    if provider in RUNTIMES:
        return _open_runtime(path, provider, threads)
    if is_ncnn(path):
        raise EdgeError(f"{path} is a model for ncnn: give the provider ncnn.")
    wanted, available = PROVIDERS[provider], onnxruntime.get_available_providers()
    if wanted[0] not in available:
        raise EdgeError(f"{wanted[0]} is not in this ONNX Runtime build ({', '.join(available)}).", PROVIDER)
    chain: list[Any] = [name for name in wanted if name in available]
    if provider != "cpu":
        _load_cuda()
    trt = None
    if provider == "trt" and path.is_file():
        trt, options = _tensorrt(path, tensorrt)
        chain[0] = (chain[0], options)
    start = time.perf_counter()
    try:
        session = onnxruntime.InferenceSession(str(path), _session_options(threads), providers=chain, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exception types share no base class
        broken = type(error).__name__ in ("InvalidProtobuf", "InvalidArgument", "InvalidGraph", "NoModel", "NoSuchFile")
        if provider == "cpu" or broken:
            hint = "" if path.suffix.lower() == ".onnx" else "; export it to ONNX first"
            raise EdgeError(f"{path} is not an ONNX model that can be loaded ({_one_line(error)}){hint}.") from None
        raise EdgeError(f"{wanted[0]} could not load {path} ({_one_line(error)}).", PROVIDER) from None
    session_s, active = time.perf_counter() - start, session.get_providers()
    if active[0] != wanted[0]:
        raise EdgeError(f"{wanted[0]} was asked for, but ONNX Runtime runs {path} on {active[0]}.", PROVIDER)
    if trt is not None and trt["engine_cache"] == "miss":
        trt["build_s"] = round(session_s, 1)
    nodes = assigned_nodes(session)
    coverage = nodes.get(wanted[0], 0) / sum(nodes.values()) if nodes else None
    if nodes is None:
        coverage = 1.0 if len(chain) == 1 else _coverage_apart(path, chain, threads, wanted[0], tensorrt.hw)
    if coverage is not None and coverage < LEAST_COVERAGE and provider != "cpu":
        raise EdgeError(f"{wanted[0]} was asked for, but took only {coverage:.0%} of the nodes of {path}.", PROVIDER)
    return Opened(session, nodes, session_s, coverage, trt)


def _open_first(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """The first provider that is really active: of all for auto, else of the one asked for and those after it."""
    names: tuple[str, ...] = (provider,) if is_ncnn(path) else (provider, "cpu")
    if provider not in RUNTIMES:
        names = AUTO if provider == "auto" else AUTO[AUTO.index(provider) :]
    for name in names[:-1]:
        try:
            return _open(path, name, threads, tensorrt)
        except EdgeError as error:
            if error.code != PROVIDER:
                raise
    return _open(path, names[-1], threads, tensorrt)


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


def profile_coverage(events: Sequence[dict[str, Any]], provider: str) -> float | None:
    """Share of the nodes' time that a provider spent, from the events of ONNX Runtime's profile.

    Time, because a provider that fuses the whole graph appears as a single node.
    """
    spent: Counter[str] = Counter()
    for event in events:
        ran = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and ran:
            spent[ran] += event.get("dur", 0)
    total = sum(spent.values())
    return spent[provider] / total if total else None


def _coverage_apart(
    path: Path, chain: list[Any], threads: int, provider: str, hw: tuple[int, int] | None
) -> float | None:
    """The same for an ONNX Runtime that cannot tell its assignment: from a profile.

    In a process of its own, so that its session is in neither the memory nor the cold start of this one.
    """
    command = [sys.executable, os.path.abspath(__file__), "_coverage"]
    done = subprocess.run(
        [*command, json.dumps([str(path), chain, threads, provider, hw])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines, said = (text.decode(errors="replace").strip().splitlines() for text in (done.stdout, done.stderr))
    if done.returncode != 0 or not lines:
        why = said[-1][:200].rstrip(".") if said else f"code {done.returncode}"
        raise EdgeError(f"What {provider} runs of {path} could not be found out ({why}).", PROVIDER)
    share: float | None = json.loads(lines[-1])
    return share


def _profiled_coverage(
    path: Path, chain: Sequence[Any], threads: int, provider: str, hw: Sequence[int] | None = None
) -> float | None:
    """The provider's share in three runs on zeros, of which the first warms up."""
    chain = [name if isinstance(name, str) else tuple(name) for name in chain]  # JSON knows no tuples
    with tempfile.TemporaryDirectory() as folder:
        options = _session_options(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
        feed, own = {}, (1, 3, *(hw or read_contract(dict(session.get_modelmeta().custom_metadata_map), path).hw))
        for value in session.get_inputs():
            shape = [size if isinstance(size, int) else own[k] for k, size in enumerate(value.shape[:4])]
            feed[value.name] = np.zeros(shape, np.float16 if value.type == "tensor(float16)" else np.float32)
        for _ in range(3):
            session.run(None, feed)
        return profile_coverage(json.loads(Path(session.end_profiling()).read_text()), provider)


# --- TensorRT: its engines and where they are kept ------------------------------------------------------------------


INPUT = b"images"  # what Ultralytics' exporter calls a model's input


class TensorRT(NamedTuple):
    """How TensorRT builds an engine through ONNX Runtime."""

    fp16: bool = False  # half precision for a file that is not; one that is gets it anyway
    cache: str | None = None  # folder of the engine and timing caches; YOLOKD_CACHE or ~/.cache/yolokd by default
    hw: tuple[int, int] | None = None  # input size, for a file exported without a fixed one


def tensorrt_version() -> str | None:
    """Version of the TensorRT library on this machine, such as 8.5.2 or 10.3.0; None without one."""
    for name in ("libnvinfer.so", *(f"libnvinfer.so.{major}" for major in (11, 10, 9, 8, 7))):
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        return _version_text(number)
    return None


def _version_text(number: int) -> str:
    """8502 -> 8.5.2 and 100300 -> 10.3.0: the digits a part takes grew with TensorRT 10."""
    unit = 10000 if number >= 100000 else 1000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def _onnxruntime_version() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", onnxruntime.__version__)[:2])


def metadata_entry(content: bytes, key: str) -> Any:
    """A literal of an ONNX file's metadata, looked up in the file itself, as long as there is no session to ask.

    An entry is a tag, the key's length, the key, a tag, the value's length (in sevens of bits) and the value.
    """
    found = re.search(
        re.escape(bytes([0x0A, len(key)]) + key.encode() + b"\x12") + rb"([\x80-\xff]?[\x00-\x7f])", content
    )
    if not found:
        return None
    length = sum((byte & 0x7F) << 7 * k for k, byte in enumerate(found.group(1)))
    try:
        return ast.literal_eval(content[found.end() : found.end() + length].decode())
    except (ValueError, SyntaxError):
        return None  # read_contract says so as soon as the file is open


def says_fp16(content: bytes) -> bool:
    """Whether an ONNX file's metadata says half precision, which TensorRT up to 10 builds only where it may."""
    args = metadata_entry(content, "args")
    return isinstance(args, dict) and _precision(args) == "fp16"


def _one_size(content: bytes, hw: tuple[int, int] | None) -> dict[str, str]:
    """Options that let TensorRT build a file without a fixed size for the one size that it will run.

    Otherwise it would build at the first run, and again whenever another size came along.
    """
    args, size = metadata_entry(content, "args"), hw or metadata_entry(content, "imgsz")
    known = isinstance(args, dict) and args.get("dynamic") and isinstance(size, (list, tuple)) and len(size) == 2
    if not known or b"\x0a\x06" + INPUT not in content:
        return {}
    shape = f"{INPUT.decode()}:1x3x{size[0]}x{size[1]}"
    return {f"trt_profile_{end}_shapes": shape for end in ("min", "opt", "max")}


def check_fp16(fp16: bool, providers: Sequence[str]) -> None:
    """Refuse half precision of TensorRT where TensorRT will not run."""
    if fp16 and not {"trt", "auto"} & set(providers):
        raise EdgeError(
            "fp16 is an option of the provider trt; a bundle's FP16 file is chosen with the precision fp16."
        )


def _cache_root(tensorrt: TensorRT) -> Path:
    given = tensorrt.cache or os.environ.get("YOLOKD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "yolokd"


def engine_key(path: Path, precision: str, hw: tuple[int, int] | None = None) -> str:
    """Name of the cache folder of an engine: another model, precision, size, library or device gets another one.

    ONNX Runtime itself would load an engine that was built elsewhere or by another version.
    """
    parts = [
        _sha256(path),
        onnxruntime.__version__,
        tensorrt_version(),
        l4t_version(),
        gpu_architecture(),
        precision,
        hw,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _tensorrt(path: Path, settings: TensorRT) -> tuple[dict[str, Any], dict[str, str]]:
    """What the record says about TensorRT, and the provider's options."""
    content, version, runtime = path.read_bytes(), tensorrt_version(), _onnxruntime_version()
    int8 = b"QuantizeLinear" in content  # quantised in the graph: needs no calibration table, but the flag
    half = settings.fp16 or says_fp16(content)
    precision = "+".join(["fp32"] + ["fp16"] * half + ["int8"] * int8)
    folder = _cache_root(settings) / f"{path.stem}-{engine_key(path, precision, settings.hw)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError(f"The engine cache {folder} cannot be created ({error.strerror}).") from None
    hit = any(folder.glob("*.engine"))
    if not hit:
        print(f"Building a TensorRT engine for {path}: minutes, once; kept in {folder}", file=sys.stderr)
    options = {
        "trt_fp16_enable": str(half),
        "trt_int8_enable": str(int8),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
    }
    # An ONNX Runtime refuses the options that it does not know yet.
    if runtime >= (1, 15):
        options["trt_timing_cache_enable"] = "True"  # kept beside the engines
        options.update(_one_size(content, settings.hw))
    slow = version and version.startswith("10.") and int(version.split(".")[1]) < 8 and b"NonMaxSuppression" in content
    if slow and runtime >= (1, 21):  # of those before, 1.20 leaves these nodes out by itself
        options["trt_op_types_to_exclude"] = "NonMaxSuppression,NonZero,RoiAlign"  # very slow inside TensorRT then
    facts = {"version": version, "fp16": settings.fp16, "int8": int8, "engine_cache": "hit" if hit else "miss"}
    facts.update(cache_dir=str(folder), build_s=None)
    return facts, options


# --- Runtimes other than ONNX Runtime -------------------------------------------------------------------------------


class Port(NamedTuple):
    """Input or output of a model, as ONNX Runtime describes one."""

    name: str
    shape: list[Any]  # a size that is not fixed is a text
    type: str


class Meta(NamedTuple):
    """Metadata of a model, as ONNX Runtime gives it."""

    custom_metadata_map: dict[str, str]


def _package(name: str, provider: str, pip: str | None = None) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        what = f"The provider {provider} needs the Python package {name}, which cannot be imported ({_one_line(error)})"
        raise EdgeError(f"{what}: pip install {pip or name}.", PROVIDER) from None


class OpenVino:
    """An ONNX file on OpenVINO's own runtime, with what is used here of ONNX Runtime's session.

    Low latency rather than throughput, and full precision where the CPU could silently take less.
    """

    def __init__(self, path: Path, threads: int) -> None:
        openvino = _package("openvino", "openvino")
        self.version = str(openvino.__version__)
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            core = openvino.Core()
            self._model = core.read_model(str(path))
            self._compiled = core.compile_model(self._model, "CPU", hints)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise EdgeError(f"OpenVINO cannot load {path} ({_one_line(error)}).") from None

    def get_providers(self) -> list[str]:
        """The devices that the compiled model says it runs on."""
        return ["openvino:" + device for device in self._compiled.get_property("EXECUTION_DEVICES")]

    def get_modelmeta(self) -> Meta:
        """The ONNX file's metadata, which OpenVINO keeps under `framework`."""
        kept = dict(self._model.get_rt_info().items()).get("framework")
        return Meta({key: str(value.astype(str)) for key, value in kept.items()} if kept is not None else {})

    def _port(self, port: Any) -> Port:
        shape = [size.get_length() if size.is_static else str(size) for size in port.partial_shape]
        kinds = {"f32": "tensor(float)", "f16": "tensor(float16)"}
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


class Ncnn:
    """A folder of `yolo export format=ncnn` on ncnn, with what is used here of ONNX Runtime's session.

    The exporter writes the raw contract only. ncnn would compute in half precision where the CPU can; a file that was
    not exported so is kept at full precision.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._ncnn, yaml = _package("ncnn", "ncnn"), _package("yaml", "ncnn", "pyyaml")
        self.version = str(self._ncnn.__version__)
        if not is_ncnn(path):
            raise EdgeError(f"{path} is not a folder of `yolo export format=ncnn`, and ncnn reads nothing else.")
        try:
            told = yaml.safe_load((path / "metadata.yaml").read_text(encoding="utf-8"))
            self._meta = {key: value if isinstance(value, str) else repr(value) for key, value in told.items()}
            half = _precision(told.get("args") or {}) == "fp16"
            self._shape = [1, 3, *map(int, told["imgsz"])]
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
            raise EdgeError(f"{path}: its metadata.yaml is missing or unreadable; export it again.") from None
        self._net = self._ncnn.Net()
        options = self._net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        param, weights = model_files(path)
        if self._net.load_param(str(param)) or self._net.load_model(str(weights)):
            raise EdgeError(f"{path} is not a model that ncnn can load; export it again.")
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]

    def get_providers(self) -> list[str]:
        """The CPU: the use of a GPU is switched off."""
        return ["ncnn:GPU" if self._net.opt.use_vulkan_compute else "ncnn:CPU"]

    def get_modelmeta(self) -> Meta:
        """What the exporter wrote to metadata.yaml."""
        return Meta(self._meta)

    def get_inputs(self) -> list[Port]:
        """The one input, of the size that it was exported with."""
        return [Port(self._input, self._shape, "tensor(float)")]

    def get_outputs(self) -> list[Port]:
        """The one output; its size is known only once it is there."""
        return [Port(self._output, ["1", "values", "anchors"], "tensor(float)")]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; the output is a copy."""
        with self._net.create_extractor() as extractor:
            extractor.input(self._input, self._ncnn.Mat(feed[self._input][0]))
            failed, found = extractor.extract(self._output)
            if failed:
                raise EdgeError("ncnn could not run the model: the board may be out of memory.")
            return [np.array(found)[None]]


RUNTIMES: dict[str, Any] = {"openvino": OpenVino, "ncnn": Ncnn}


def _open_runtime(path: Path, provider: str, threads: int) -> Opened:
    start = time.perf_counter()
    session = RUNTIMES[provider](path, threads)
    session_s = time.perf_counter() - start
    active = session.get_providers()
    if active != list(PROVIDERS[provider]):
        raise EdgeError(f"{PROVIDERS[provider][0]} was asked for, but {path} runs on {', '.join(active)}.", PROVIDER)
    return Opened(session, None, session_s, 1.0, None)  # compiled for one device, which loads the whole graph or fails


def is_ncnn(path: Path) -> bool:
    """Whether a path is a folder as Ultralytics exports it for ncnn."""
    return path.is_dir() and len(list(path.glob("*.param"))) == 1 and len(list(path.glob("*.bin"))) == 1


def model_files(path: Path) -> list[Path]:
    """The file or, for ncnn, the two files that make up a model."""
    return [path] if path.is_file() else [next(path.glob(pattern)) for pattern in ("*.param", "*.bin")]


# --- Detection ------------------------------------------------------------------------------------------------------


class Detector:
    """An exported YOLO detector on ONNX Runtime, box for box what Ultralytics predicts with `rect=False`.

    Args:
        path: The ONNX file, or the folder for ncnn; its metadata says how to read its output.
        provider: cpu, cuda, trt, or auto (the first of trt, cuda, cpu that is really active); or another runtime in
            place of ONNX Runtime, openvino or ncnn, which take small differences for granted.
        threads: The runtime's threads within one run; all usable cores by default.
        conf: Detections at or below this score are dropped.
        iou: Overlap above which NMS drops the weaker box of a class (raw contract only).
        max_det: Most detections a frame.
        tensorrt: How TensorRT builds its engine (provider trt).
        allow_fallback: Take the next of trt, cuda, cpu where the provider asked for is not active.
        hw: Input height and width, for a file exported without a fixed size.

    A file with NMS inside has its own conf, iou and max_det baked in; conf and max_det can only narrow them.
    """

    def __init__(
        self,
        path: str | Path,
        provider: str = "cpu",
        threads: int | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        tensorrt: TensorRT | None = None,
        allow_fallback: bool = False,
        hw: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.provider = Path(path), provider
        self.conf, self.iou, self.max_det = conf, iou, max_det
        self.threads = threads or _usable_cores()
        self.candidates = 0  # boxes above conf before NMS, of the latest frame
        self.bundle: Bundle | None = None  # where the file comes from, if `load` took it from one
        check_provider(provider)
        if not self.path.is_file() and not is_ncnn(self.path):
            raise EdgeError(f"There is no model file {self.path}.")
        tensorrt = (tensorrt or TensorRT())._replace(hw=hw)
        opened = (_open_first if provider == "auto" or allow_fallback else _open)(
            self.path, provider, self.threads, tensorrt
        )
        self.session, self.nodes, self.session_s, self.coverage, self.trt = opened
        self.active: str = self.session.get_providers()[0]
        self.fallback = provider != "auto" and self.active != PROVIDERS[provider][0]
        self._read_interface(hw)

    def _read_interface(self, hw: tuple[int, int] | None) -> None:
        metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        self.contract = read_contract(metadata, self.path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise EdgeError(
                f"{self.path} has {len(inputs)} inputs and {len(outputs)} outputs; a detector has one each."
            )
        if hw is not None:
            if any(isinstance(size, int) for size in inputs[0].shape[2:]) and hw != self.contract.hw:
                own = "x".join(map(str, self.contract.hw))
                raise EdgeError(
                    f"{self.path} has a fixed input of {own}: export one file for each size to be measured."
                )
            self.contract = self.contract._replace(hw=hw)
        check_input_shape(self.contract, inputs[0].shape, self.path)
        check_output_shape(self.contract, outputs[0].shape, self.path)
        self._input, self._outputs = inputs[0].name, [outputs[0].name]
        self._dtype = np.float16 if inputs[0].type == "tensor(float16)" else np.float32

    @property
    def names(self) -> dict[int, str]:
        """Class index -> name."""
        return self.contract.names

    def preprocess(self, frame: np.ndarray) -> tuple[np.ndarray, Letterbox]:
        """Turn a frame (H, W, 3) into the input blob (1, 3, h, w), RGB in 0..1, and the way back."""
        fitted, box = letterbox(frame, self.contract.hw)
        blob = np.empty((1, 3) + fitted.shape[:2], np.float32)
        for k, plane in enumerate(cv2.split(fitted)):  # by plane: faster than one strided pass over three
            blob[0, 2 - k] = plane  # BGR to RGB
        blob /= 255
        return blob.astype(self._dtype, copy=False), box

    def infer(self, blob: np.ndarray) -> np.ndarray:
        """Run the model: host array in, host array out, so that copies to and from a GPU are inside."""
        raw: np.ndarray = self.session.run(self._outputs, {self._input: blob})[0]
        return raw

    def postprocess(self, raw: np.ndarray, box: Letterbox) -> np.ndarray:
        """Turn the model's output into detections (n, 6) in frame pixels, best first."""
        check_output_shape(self.contract, raw.shape, self.path)
        rows = raw[0].astype(np.float32, copy=False)
        detections = self._from_raw(rows) if self.contract.output == RAW else self._from_final(rows)
        return unletterbox(detections, box)

    def detect(self, frame: np.ndarray) -> np.ndarray:
        """Detect in one frame (H, W, 3) BGR uint8; detections (n, 6) in its pixels, best first."""
        blob, box = self.preprocess(frame)
        return self.postprocess(self.infer(blob), box)

    def _from_final(self, rows: np.ndarray) -> np.ndarray:
        kept = rows[rows[:, 4] > self.conf]  # padding rows have confidence 0
        self.candidates = len(kept)
        return kept[: self.max_det]

    def _from_raw(self, pred: np.ndarray) -> np.ndarray:
        """(4 + nc, A): centre, size, then a score a class -> (n, 6) in input pixels, after NMS."""
        pred = pred[:, pred[4:].max(0) > self.conf].T
        self.candidates = len(pred)
        classes = pred[:, 4:].argmax(1)
        rows = np.empty((len(pred), 6), np.float32)
        half = pred[:, 2:4] / 2
        rows[:, 0:2], rows[:, 2:4] = pred[:, :2] - half, pred[:, :2] + half
        rows[:, 4], rows[:, 5] = pred[np.arange(len(pred)), 4 + classes], classes
        if len(rows) > MAX_CANDIDATES:
            rows = rows[np.argsort(-rows[:, 4], kind="stable")[:MAX_CANDIDATES]]
        # float32 on purpose: far offsets round the boxes, and the reference rounds them the same way
        kept = nms(rows[:, :4] + rows[:, 5:6] * CLASS_OFFSET, rows[:, 4], self.iou, self.max_det)
        best: np.ndarray = rows[kept]
        return best


# --- Images ---------------------------------------------------------------------------------------------------------


def list_images(source: str | Path) -> list[Path]:
    """The image files of a folder by name, or the one file given."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise EdgeError(f"There is no image file or folder {source}.")
    found = sorted(p for p in source.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise EdgeError(f"The folder {source} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def read_image(path: Path) -> np.ndarray:
    """Decode an image file as a frame (H, W, 3) BGR uint8."""
    try:
        data = np.fromfile(str(path), np.uint8)
        frame: np.ndarray | None = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        frame = None
    if frame is None:
        raise EdgeError(f"{path} cannot be decoded as an image.")
    return frame


def read_frames(source: str | Path, seed: int = 0, most: int = 64) -> list[np.ndarray]:
    """Frames of a file or folder in a fixed shuffled order; at most `most`, so that memory stays small."""
    paths = list_images(source)
    random.Random(seed).shuffle(paths)
    return [read_image(p) for p in paths[:most]]


class Frame(NamedTuple):
    """A decoded frame and where it comes from."""

    source: str  # image file, video file or camera
    number: int | None  # of a video's or camera's frame, from 0; None for an image
    pixels: np.ndarray  # (H, W, 3) BGR uint8


def _is_stream(source: str) -> bool:
    """A camera by number, device, address or GStreamer pipeline: something that has no end."""
    return source.isdigit() or source.startswith("/dev/video") or "://" in source or " ! " in source


def read_source(source: str, most: int | None = None) -> Iterator[Frame]:
    """Frames of an image, a folder of images, a video file or a camera, at most `most`."""
    if _is_stream(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES:
        yield from _video_frames(source, most)
        return
    for path in list_images(source)[:most]:
        yield Frame(str(path), None, read_image(path))


NO_GSTREAMER = ": this OpenCV was built without GStreamer, as pip's are; use the board's own, see the bundle's README"


def _open_video(source: str) -> Any:
    if not _is_stream(source) and not Path(source).is_file():
        raise EdgeError(f"There is no video file {source}.")
    backend = cv2.CAP_GSTREAMER if " ! " in source else cv2.CAP_ANY
    video = cv2.VideoCapture(int(source) if source.isdigit() else source, backend)
    if not video.isOpened():
        lacking = backend == cv2.CAP_GSTREAMER and re.search(r"GStreamer:\s+NO\b", cv2.getBuildInformation())
        hint = NO_GSTREAMER if lacking else ""
        raise EdgeError(f"{source} cannot be opened as a {'camera' if _is_stream(source) else 'video'}{hint}.")
    return video


def _video_frames(source: str, most: int | None) -> Iterator[Frame]:
    """A video file ends when it ends; one that ends long before its own count is damaged, and a camera never ends."""
    video, number = _open_video(source), 0
    try:
        while most is None or number < most:
            good, pixels = video.read()
            if not good:
                break
            yield Frame(source, number, pixels)
            number += 1
        else:
            return
        count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        video.release()
    if _is_stream(source):
        raise EdgeError(f"The camera {source} gave no more pictures after {number} frames.")
    if number == 0 or number < 0.95 * count:  # some containers only estimate their count
        raise EdgeError(f"{source} ended after {number} of {max(int(count), number)} frames: the file is damaged.")


# --- The bundle -----------------------------------------------------------------------------------------------------

BUNDLE_SCHEMA = "yolokd.bundle/1"
MANIFEST = "bundle.json"
MANIFEST_PARTS = ("contract", "models", "files")
EXPECTED, EXPECTED_RAW = "parity/expected_dets.json", "parity/expected_raw.npz"
MAX_UNPACKED, MAX_MANIFEST, MAX_RATIO = 2 << 30, 4 << 20, 200  # bytes, bytes, times the size of the zip file
SYMLINK = 0o120000  # of a zip entry's file mode


class Bundle(NamedTuple):
    """A bundle whose every file has the checksum that its manifest says."""

    path: Path  # as given: the zip file or the folder
    folder: Path  # where the files lie
    manifest: dict[str, Any]
    unpacked: Any  # owner of the temporary folder of a zip file, else None

    def model(self, precision: str = "fp32", provider: str = "cpu") -> Path:
        """The ONNX file of a precision (fp32, fp16, int8) that is meant for a provider."""
        models, available = self.manifest["models"], onnxruntime.get_available_providers()
        provider = "cpu" if provider == "openvino" else provider
        for name in [p for p in AUTO if PROVIDERS[p][0] in available] if provider == "auto" else (provider,):
            for file, entry in models.items():
                if entry["precision"] == precision and name in entry["providers"]:
                    return self.folder / file
        held = ", ".join(f"{file} ({e['precision']} for {'/'.join(e['providers'])})" for file, e in models.items())
        raise EdgeError(f"{self.path} holds no {precision} model for the provider {provider}, only {held}.")

    def setting(self, key: str) -> Any:
        """A default of detection: conf, iou or max_det."""
        return self.manifest["contract"]["defaults"][key]


def is_bundle(path: Path) -> bool:
    """Whether a path is to be read as a bundle: a zip file or a folder."""
    return path.suffix.lower() == ".zip" or path.is_dir() and not is_ncnn(path)


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle and check every file in it; a zip file is unpacked to a temporary folder first."""
    path = Path(path)
    if path.is_dir():
        try:
            text = (path / MANIFEST).read_bytes()
        except OSError:
            raise EdgeError(f"The folder {path} is no bundle: it holds no readable {MANIFEST}.") from None
        bundle = Bundle(path, path, read_manifest(text, path), None)
    elif path.is_file():
        unpacked = tempfile.TemporaryDirectory(prefix="yolokd-")
        folder = Path(unpacked.name)
        bundle = Bundle(path, folder, _unpack(path, folder), unpacked)
    else:
        raise EdgeError(f"There is no bundle {path}.")
    for name, entry in bundle.manifest["files"].items():
        file = bundle.folder / name
        if not file.is_file():
            raise EdgeError(f"{path}: the file {name} is missing, so the bundle is not complete.")
        if bundle.folder.resolve() not in file.resolve().parents:
            raise EdgeError(f"{path}: {name} is a link that leaves the bundle's folder.")
        if _sha256(file) != entry["sha256"]:
            raise EdgeError(f"{path}: {name} is not the file that was bundled, its checksum differs.")
    return bundle


def read_manifest(text: bytes, path: Path) -> dict[str, Any]:
    """Parse and check a manifest: schema, parts, and that no file name leaves the folder."""
    try:
        manifest: dict[str, Any] = json.loads(text)
        family, version = manifest["schema"].split("/")
        newest = int(BUNDLE_SCHEMA.split("/")[1])
        if family != "yolokd.bundle" or int(version) < 1:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise EdgeError(f"{path}: {MANIFEST} is not a manifest of the schema {BUNDLE_SCHEMA}.") from None
    if int(version) > newest:
        raise EdgeError(
            f"{path} has the schema {manifest['schema']}, newer than {BUNDLE_SCHEMA} which this runtime reads: use the "
            "yolokd_edge.py that came with the bundle."
        )
    missing = [part for part in MANIFEST_PARTS if not isinstance(manifest.get(part), dict)]
    if missing:
        raise EdgeError(f"{path}: {MANIFEST} is incomplete ({', '.join(missing)}).")
    for name in manifest["files"]:
        _refuse_unsafe(name, path)
    try:
        _touch_all(manifest)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EdgeError(f"{path}: {MANIFEST} has entries that cannot be read.") from None
    return manifest


def _touch_all(manifest: dict[str, Any]) -> None:
    """Read everything once that is read later, so that what is malformed is found here."""
    for entry in manifest["files"].values():
        str(entry["sha256"]), int(entry["bytes"])
    for name, entry in manifest["models"].items():
        manifest["files"][name], str(entry["precision"]), list(entry["providers"])
    contract = manifest["contract"]
    (
        str(contract["output"]),
        [int(side) for side in contract["imgsz"]],
        {int(k): v for k, v in contract["names"].items()},
    )
    for key in ("conf", "iou", "max_det"):
        float(contract["defaults"][key])


def _refuse_unsafe(name: str, path: Path) -> None:
    parts = name.split("/")
    if not name or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
        raise EdgeError(f"{path}: the name {name!r} leaves the bundle's folder, so nothing was unpacked.")


def _unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Unpack a bundle's zip file into an empty folder and return its manifest; nothing it says is trusted."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            manifest = _check_archive(archive, entries, path)
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)  # ends at the size that the entry declares, checked before
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise EdgeError(f"{path} is not an intact zip file ({_one_line(error)}).") from None
    except OSError as error:
        raise EdgeError(f"{path} cannot be unpacked to {folder} ({error.strerror or _one_line(error)}).") from None
    return manifest


def _check_archive(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], path: Path) -> dict[str, Any]:
    for entry in entries:
        _refuse_unsafe(entry.filename, path)
        if (entry.external_attr >> 16) & 0o170000 == SYMLINK:
            raise EdgeError(f"{path}: {entry.filename} is a link, so nothing was unpacked.")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED or total > MAX_RATIO * path.stat().st_size:
        raise EdgeError(f"{path} would unpack to {total / 1e6:.0f} MB, more than a bundle can; nothing was unpacked.")
    sizes = {entry.filename: entry.file_size for entry in entries}
    if sizes.get(MANIFEST, MAX_MANIFEST + 1) > MAX_MANIFEST:
        raise EdgeError(f"{path} is no bundle: it holds no {MANIFEST} of a sensible size.")
    manifest = read_manifest(archive.read(MANIFEST), path)
    unknown = sorted(set(sizes) - set(manifest["files"]) - {MANIFEST})
    if unknown or len(sizes) < len(entries):
        what = f"{unknown[0]}, which its manifest does not list" if unknown else "a file twice"
        raise EdgeError(f"{path} holds {what}; nothing was unpacked.")
    return manifest


def check_manifest(bundle: Bundle, detector: Detector) -> None:
    """Refuse an ONNX file of a bundle that declares something else than the bundle's manifest."""
    said, found = bundle.manifest["contract"], detector.contract
    entry = bundle.manifest["models"][detector.path.name]
    pairs = {
        "output contract": (said["output"], found.output),
        "input size": (list(said["imgsz"]), list(found.hw)),
        "class names": ({int(k): v for k, v in said["names"].items()}, found.names),
        "precision": (entry["precision"], found.precision),
    }
    for what, (manifest, file) in pairs.items():
        if manifest != file:
            raise EdgeError(
                f"{bundle.path}: {detector.path.name} declares the {what} {file}, its manifest {manifest}: "
                "the bundle contradicts itself."
            )


def load(
    model: str | Path | None,
    provider: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    **settings: Any,
) -> Detector:
    """A Detector of an ONNX file, or of a bundle's file of a precision; None is the bundle that this file lies in.

    Thresholds that are None come from the bundle, or are those of Detector; further settings are Detector's own.
    """
    path = own_bundle() if model is None else Path(model)
    given = {key: value for key, value in (("conf", conf), ("iou", iou), ("max_det", max_det)) if value is not None}
    if not is_bundle(path):
        if precision is not None:
            raise EdgeError(f"A precision can be chosen from a bundle; {path} is one file with the precision it has.")
        return Detector(path, provider, threads, **given, **settings)
    bundle = open_bundle(path)
    settings.update({key: bundle.setting(key) for key in ("conf", "iou", "max_det")}, **given)
    detector = Detector(bundle.model(precision or "fp32", provider), provider, threads, **settings)
    check_manifest(bundle, detector)
    detector.bundle = bundle  # a zip file's temporary folder lives as long
    return detector


def own_bundle() -> Path:
    """The folder of this file, if it is an unpacked bundle."""
    folder = Path(__file__).resolve().parent
    if not (folder / MANIFEST).is_file():
        raise EdgeError("No model: give --model with an ONNX file or a bundle.")
    return folder


# --- Parity on this device ------------------------------------------------------------------------------------------


def verify(
    bundle: Bundle, provider: str = "cpu", threads: int | None = None, precision: str = "fp32", **settings: Any
) -> dict[str, Any]:
    """Compare what this device computes with what the bundle says was computed where it was made.

    Further settings are Detector's own.

    Returns:
        ``pass`` and the figures it stands on: ``raw``, the largest differences of the network's output (boxes in input
        pixels) and their cosine, of the FP32 file alone; ``dets``, those of the detections (pixels of the image). The
        tolerance is that of the file's precision; a GPU gets at least FP16's, because it computes FP32 in TF32, and
        TensorRT in FP16 where it is asked to.
    """
    detector = Detector(bundle.model(precision, provider), provider, threads, **settings)
    check_manifest(bundle, detector)
    expected, raws = _expectations(bundle)
    detector.conf, detector.iou, detector.max_det = (expected[key] for key in ("conf", "iou", "max_det"))
    judged = "fp16" if precision == "fp32" and detector.active not in ON_CPU else precision
    tolerance, raw, dets, exact = expected["tolerance"][judged], [], [], True
    for name, image in expected["images"].items():
        blob, box = detector.preprocess(read_image(bundle.folder / "parity" / name))
        output = detector.infer(blob)
        if precision == "fp32":
            raw.append(raw_difference(output, raws[name], raws[name + "/index"], detector.contract.output))
        theirs = np.array(image["detections"][detector.path.name], np.float32).reshape(-1, 6)
        ours = detector.postprocess(output, box)
        exact &= np.array_equal(theirs, ours)
        dets.append(compare_detections(theirs, ours, detector.conf + tolerance["conf"]))
    worst_raw = {k: min(r[k] for r in raw) if k == "cos" else max(r[k] for r in raw) for k in (raw[0] if raw else ())}
    found = {k: (sum if k in ("n", "unmatched") else max)(d[k] for d in dets) for k in dets[0]}
    return {
        "reference": expected["reference"],
        "model": detector.path.name,
        "provider": detector.active,
        "n_images": len(dets),
        "raw": worst_raw or None,
        "dets": found,
        "exact": bool(exact),
        "tolerance": tolerance,
        "pass": bool(
            worst_raw.get("max_abs_box", 0) <= tolerance["raw_box"]
            and worst_raw.get("max_abs_score", 0) <= tolerance["raw_score"]
            and found["max_box_diff"] <= tolerance["box"]
            and found["max_conf_diff"] <= tolerance["conf"]
            and found["unmatched"] <= tolerance["unmatched"] * found["n"]
        ),
    }


def _expectations(bundle: Bundle) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    missing = [name for name in (EXPECTED, EXPECTED_RAW) if name not in bundle.manifest["files"]]
    if missing:
        raise EdgeError(f"{bundle.path} holds no {' and no '.join(missing)}, so parity cannot be verified.")
    expected: dict[str, Any] = json.loads((bundle.folder / EXPECTED).read_text(encoding="utf-8"))
    with np.load(str(bundle.folder / EXPECTED_RAW), allow_pickle=False) as file:
        return expected, dict(file)


def raw_difference(output: np.ndarray, expected: np.ndarray, index: np.ndarray, contract: str) -> dict[str, float]:
    """Largest differences of boxes and scores of an output, and its cosine, at the places that were kept.

    For RAW these are anchor points, index (n,) of (1, 4 + nc, A); else all rows (1, N, 6), best first, of which those
    are compared whose place no rounding can change: they score 0.01 or more away from both neighbours.
    """
    output = output.astype(np.float64)
    if contract == RAW:
        gap, ours = np.abs(output[0][:, index] - expected), output[0][:, index]
        boxes, scores = gap[:4], gap[4:]
    else:
        rows, ours = expected.astype(np.float64), output[0][index]
        steps = np.abs(np.diff(rows[:, 4], prepend=np.inf, append=-np.inf))
        clear = (np.minimum(steps[:-1], steps[1:]) >= 0.01) & (rows[:, 4] > 0)
        boxes, scores = np.abs(ours - rows)[clear, :4], np.abs(ours - rows)[:, 4]
    cos = (ours * expected).sum() / (np.linalg.norm(ours) * np.linalg.norm(expected) + 1e-12)
    return {
        "max_abs_box": float(boxes.max(initial=0)),
        "max_abs_score": float(scores.max(initial=0)),
        "cos": float(cos),
    }


def compare_detections(a: np.ndarray, b: np.ndarray, sure: float) -> dict[str, float]:
    """Largest differences of detections (n, 6) and (m, 6) that match: one class, IoU of 0.5 or more, best first.

    One without a partner counts from the confidence `sure` on: below it, rounding alone can drop a detection.
    """
    one = np.float32([0, 0, 1, 1])  # a box clipped to nothing is still equal to itself
    iou = overlaps(a[:, :4] + one, b[:, :4] + one)
    iou[a[:, None, 5] != b[None, :, 5]] = 0
    left, right, box, conf = set(range(len(a))), set(range(len(b))), 0.0, 0.0
    while iou.size and iou.max() >= 0.5:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        iou[i], iou[:, j] = 0, 0
        left.discard(int(i))
        right.discard(int(j))
        box = max(box, float(np.abs(a[i, :4] - b[j, :4]).max()))
        conf = max(conf, float(abs(a[i, 4] - b[j, 4])))
    unmatched = sum(a[i, 4] > sure for i in left) + sum(b[j, 4] > sure for j in right)
    return {"n": len(a), "unmatched": int(unmatched), "max_box_diff": box, "max_conf_diff": conf}


def parity_text(figures: dict[str, Any]) -> str:
    """What `verify` found, in one line."""
    dets, raw, tolerance = figures["dets"], figures["raw"], figures["tolerance"]
    parts = [
        f"{dets['n']} detections, {dets['unmatched']} without a partner",
        f"boxes within {dets['max_box_diff']:.2g} px (tolerance {tolerance['box']:g})",
        f"confidences within {dets['max_conf_diff']:.2g} (tolerance {tolerance['conf']:g})",
    ]
    if raw:
        parts.append(
            f"raw outputs within {raw['max_abs_box']:.2g} px and {raw['max_abs_score']:.2g} "
            f"(tolerances {tolerance['raw_box']:g} and {tolerance['raw_score']:g})"
        )
    return f"{figures['model']} on {figures['provider']}, {figures['n_images']} images: {'; '.join(parts)}"


# --- Statistics -----------------------------------------------------------------------------------------------------

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
INTERVALS = ("p50", "p99")  # percentiles that get a two-sided interval
CONFIDENCE = 0.95
LEAST_CORRELATION = 0.02  # autocorrelation below which the sum over the lags stops
MOST_LAGS = 500
# Independent samples beyond a percentile, for an interval of it. They must be there even if the dependence is stronger
# than estimated by a standard error: else mostly series whose dependence was underestimated would get one.
LEAST_BEYOND = 5
CLINGING = 1.5  # times the expected clustering from which that of the exceedances themselves counts


def percentile(samples: Sequence[float] | np.ndarray, p: float) -> float:
    """The nearest-rank percentile: the ceil(p * n)-th smallest sample, for 0 < p <= 1."""
    if not len(samples) or not 0 < p <= 1:
        raise ValueError(f"percentile needs samples and 0 < p <= 1, got n={len(samples)}, p={p}")
    rank = math.ceil(p * len(samples) - 1e-9)  # p * n may land a rounding error above a whole number
    return float(np.sort(samples)[max(rank, 1) - 1])


def samples_needed(p: float, confidence: float = CONFIDENCE) -> int:
    """Samples below which no upper bound of percentile p exists at this confidence: 29 for p90, 299 for p99."""
    return math.ceil(math.log(1 - confidence) / math.log(p))


def beta_cdf(x: float, a: float, b: float) -> float:
    """P[X <= x] of the Beta(a, b) distribution, by its continued fraction (NIST DLMF 8.17.22, Lentz's method)."""
    if x <= 0 or b <= 0:
        return 0.0
    if x >= 1 or a <= 0:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1.0 - beta_cdf(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    numerator, value = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1))
    denominator = value
    for m in range(1, 1000):
        change = 1.0
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            denominator = 1.0 / ((1.0 + term * denominator) or 1e-300)
            numerator = (1.0 + term / numerator) or 1e-300
            change *= denominator * numerator
        value *= change
        if abs(change - 1) < 1e-12:
            break
    return front * value


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """The point between low and high where `below` turns from true to false."""
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def upper_bound_rank(n: int, p: float, confidence: float = CONFIDENCE) -> int | None:
    """The smallest rank r with P[Binomial(n, p) <= r - 1] >= confidence, or None where even the maximum is too low.

    The r-th smallest of n independent samples is then an upper bound of percentile p at this confidence.
    """
    if n < 1 or 1 - p**n < confidence:
        return None
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        enough = 1 - beta_cdf(p, middle, n - middle + 1) >= confidence  # P[Binomial(n, p) <= middle - 1]
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def upper_bound(ordered: np.ndarray, p: float, n_eff: float, confidence: float = CONFIDENCE) -> float | None:
    """Upper bound of percentile p from sorted samples that are worth only n_eff independent ones."""
    n, worth = len(ordered), min(int(n_eff), len(ordered))
    rank = upper_bound_rank(worth, p, confidence)
    return None if rank is None else float(ordered[math.ceil(rank * n / worth - 1e-9) - 1])


def autocorrelation(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Autocorrelation at lags 1, 2, ... up to the first at or below 0.02; lags never reach from one part to the next.

    Args:
        parts: Series (n,), one a process.

    Returns:
        The correlations (k,), k possibly 0, each raised by what subtracting the mean of a finite series hides.
    """
    lags = min(MOST_LAGS, max(len(part) for part in parts) // 4)
    sums = np.zeros(lags + 1)
    for part in parts:
        centred = part - part.mean()
        size = 1 << (2 * len(part)).bit_length()
        spectrum = np.fft.rfft(centred, size)
        own = np.fft.irfft(np.abs(spectrum) ** 2, size)[: lags + 1]
        sums[: len(own)] += own
    scale = sum(float(np.square(part).sum()) for part in parts) * 1e-12
    if not sums[0] > scale:  # a constant series
        return np.zeros(0)
    rho = sums[1:] / sums[0]
    low = np.flatnonzero(rho <= LEAST_CORRELATION)
    rho = rho[: low[0] if len(low) else len(rho)]
    bias = (1 + 2 * rho.sum()) / sum(len(part) for part in parts)
    return np.minimum(rho + bias, 1.0)


_NORMAL = NormalDist()


@lru_cache(maxsize=None)
def _normal_quantiles() -> tuple[np.ndarray, np.ndarray]:
    levels = np.linspace(0, 1, 4001)[1:-1]
    return levels, np.array([_NORMAL.inv_cdf(level) for level in levels.tolist()])


@lru_cache(maxsize=None)
def _exceedance_correlation(p: float) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of two normal variables -> correlation of the events that each exceeds its percentile p.

    The derivative of the bivariate normal orthant probability by the correlation is the density at (c, c), with c the
    normal quantile of p; it is integrated over the arc sine of the correlation, where it is smooth.
    """
    arc = np.linspace(0, math.pi / 2, 801)
    rho, c = np.sin(arc), _NORMAL.inv_cdf(p)
    density = np.exp(-c * c / (1 + rho)) / (2 * math.pi)
    joint = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(arc))])
    return rho, joint / (p * (1 - p))


def _normal_scores(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each sample's rank among all parts as a normal quantile; equal samples get their mean rank."""
    values, places, counts = np.unique(np.concatenate(parts), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2 + 0.5  # mean rank from 0.5 to n - 0.5
    scores = np.interp(ranks / counts.sum(), *_normal_quantiles())[places.reshape(-1)]
    return np.split(scores, np.cumsum([len(part) for part in parts])[:-1])


class Dependence(NamedTuple):
    """How far successive samples of a series repeat each other."""

    tau: float  # 1 + 2 * sum of the autocorrelations of the samples themselves
    scores: np.ndarray  # autocorrelations of their normal scores: one far outlier cannot hide the rest
    parts: list[np.ndarray]
    n: int

    @property
    def n_eff(self) -> float:
        """Independent samples that give the mean as precisely."""
        return self.n / self.tau

    def n_eff_of(self, p: float) -> float:
        """Independent samples that give percentile p as precisely.

        What counts is how long the series stays above its percentile p. For a rare event a short series shows little
        of that, so it is derived from all samples' correlation through the normal copula; the exceedances themselves
        decide where they plainly cling together more, as in bursts.
        """
        copula = 1 + 2 * float(np.interp(self.scores, *_exceedance_correlation(p)).sum())
        seen = [(part > percentile(np.concatenate(self.parts), p)).astype(float) for part in self.parts]
        direct = 1 + 2 * float(autocorrelation(seen).sum())
        return self.n / max(direct if direct > CLINGING * copula else copula, 1.0)

    @property
    def freedom(self) -> float:
        """Independent stretches that the estimate of the dependence rests on."""
        return max(self.n / (2 * len(self.scores) + 1), 2.0)

    def carries(self, p: float, worth: float) -> bool:
        """Whether samples worth so many independent ones are enough for an interval of percentile p."""
        return worth * (1 - p) / (1 + math.sqrt(2 / self.freedom)) >= LEAST_BEYOND

    @property
    def confidence(self) -> float:
        """The nominal level to ask for, so that 95 % remains when tau is itself estimated (Student's t)."""
        freedom = self.freedom
        t = _bisect(lambda t: 1 - beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5) < CONFIDENCE, 0.0, 20.0)
        return 2 * _NORMAL.cdf(t) - 1


def dependence(parts: Sequence[np.ndarray]) -> Dependence:
    """Judge series (n,), one a process."""
    tau = 1 + 2 * float(autocorrelation(parts).sum())
    return Dependence(tau, autocorrelation(_normal_scores(parts)), list(parts), sum(len(part) for part in parts))


def percentile_interval(
    ordered: np.ndarray, p: float, n_eff: float, confidence: float = CONFIDENCE
) -> list[float] | None:
    """Two-sided interval of percentile p from sorted samples that are worth n_eff independent ones.

    Fractional order statistics (Hutson 1999): the r-th smallest of n lies at a level that is Beta(r, n + 1 - r)
    distributed; both ranks are solved for as real numbers and interpolated. None where one lies outside the samples.
    """
    n, worth = len(ordered), n_eff / len(ordered)
    ends = []
    for level in ((1 + confidence) / 2, (1 - confidence) / 2):
        rank = _bisect(lambda r: beta_cdf(p, r * worth, (n + 1 - r) * worth) > level, 0.0, n + 1.0)  # noqa: B023
        if not 1 <= rank <= n:
            return None
        k = min(int(rank), n - 1)
        ends.append(float(ordered[k - 1] + (rank - k) * (ordered[min(k, n - 1)] - ordered[k - 1])))
    return ends


def summary(*runs: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Summarise samples in ns, one series a process, as milliseconds.

    No sample is deleted; a percentile, bound or interval that the samples cannot carry is None.
    """
    parts = [np.asarray(run, np.float64) / 1e6 for run in runs]
    ms = np.sort(np.concatenate(parts))
    shared = dependence(parts)
    points = {k: percentile(ms, p) if len(ms) >= samples_needed(p) else None for k, p in PERCENTILES.items()}
    worth = {k: shared.n_eff_of(p) for k, p in PERCENTILES.items() if points[k] is not None}
    bounds = {k: upper_bound(ms, p, worth[k]) if k in worth else None for k, p in PERCENTILES.items()}
    ends = {
        k: percentile_interval(ms, PERCENTILES[k], worth[k], shared.confidence)
        if shared.carries(PERCENTILES[k], worth.get(k, 0))
        else None
        for k in INTERVALS
    }
    out: dict[str, Any] = {"mean": float(ms.mean()), "min": float(ms[0])}
    out.update(points)
    out.update({"max": float(ms[-1]), "ci95": ends, "upper95": bounds})
    out.update({"n_eff": shared.n_eff, "n_eff_p99": worth.get("p99"), "tau": shared.tau})
    return out


# --- What the system and the board say about themselves -------------------------------------------------------------

COLDEST = -200.0  # zones of powered-off units report -256
CONSTANT_ZONES = ("pmic",)  # report one constant, so no maximum may see them
GPU_NODE = re.compile(r"gpu|gp10b|gv11b|ga10b|gb10b|gm20b", re.IGNORECASE)  # devfreq nodes of Jetson GPUs
NO_RAILS = ("NC", "RAM", "SWAP", "IRAM")  # not connected; and memory looks like a rail where a line is cut
TOTAL_RAILS = {"VDD_IN": "module_input", "POM_5V_IN": "module_input", "VIN": "board_input"}
JETPACK = {32: "4", 35: "5", 36: "6", 38: "7", 39: "7"}
JETPACK_EXACT = {"36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5": "6.2.2", "38.4": "7.1", "39.2": "7.2"}
GPU_ARCH = {"tegra210": "sm_53", "tegra186": "sm_62", "tegra194": "sm_72", "tegra234": "sm_87", "tegra264": "sm_110"}


def system_path(path: str) -> Path:
    """A path of the system, below YOLOKD_SYSROOT where that is set (a recorded system, for tests)."""
    return Path(os.environ.get("YOLOKD_SYSROOT") or "/") / path.lstrip("/")


def _text(path: Path) -> str | None:
    """What a file of the system says, or None: such files vanish, need rights, or answer with an I/O error."""
    try:
        return path.read_text(errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None


def _whole(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _entries(pattern: str) -> list[Path]:
    folder, _, name = pattern.rpartition("/")
    return sorted(system_path(folder).glob(name))


def tool_output(*command: str, timeout_s: float = 10.0) -> str | None:
    """What a program prints, or None where it is absent, may not run or hangs. A failing one may still have printed."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            (path, *command[1:]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") or None


_DATE = re.compile(r"^(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)(?=\s)")
_PAIR = re.compile(r"(?<!\S)(RAM|SWAP|IRAM) (\d+)/(\d+)([kMG])B(?=[\s(]|$)")
_LFB = re.compile(r"(?<!\S)RAM \S+ ?\(lfb (\d+x\d+[kMG]B)\)")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)(\]?)(?:@(\d+))?")
_CORE = re.compile(r"^(\d+)%(?:@(\d+))?$")
_LOAD = re.compile(r"(?<!\S)(GR3D|GR3D2|EMC)_FREQ (?:(\d+)%)?(?:@(?:\[([\d, ]*)\]|(\d+)))?(?=\s|$)")
_ENGINE = re.compile(r"(?<!\S)([A-Z][A-Z0-9]*?)(?:_FREQ)? (?:(?:\d+%)?@?(\d+)|(off))(?=\s|$)")
_ZONE = re.compile(r"(?<!\S)([A-Za-z][\w.-]*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?=\s|$)")
_RAIL = re.compile(
    r"(?<!\S)([A-Za-z]\w*) (\d+(?:\.\d+)?)(?:mW)?/\d+(?:\.\d+)?(?:mW)?(?:/\d+(?:\.\d+)?(?:mW)?)?(?=\s|$)"
)
_SIZE_MB = {"k": 1 / 1024, "M": 1, "G": 1024}


def _cores(found: Any) -> list[dict[str, int] | None] | None:
    """Load and clock a core, None for one that is off; a core that a cut line ends in is left out."""
    if not found:
        return None
    words = found.group(1).split(",")
    if not found.group(2):
        words.pop()
    cores: list[dict[str, int] | None] = []
    for word in words:
        core = _CORE.match(word.strip())
        if core is None:
            cores.append(None)
            continue
        mhz = core.group(2) or found.group(3)
        cores.append({"load_pct": int(core.group(1)), "mhz": None if mhz is None else int(mhz)})  # type: ignore[dict-item]
    return cores


def parse_tegrastats(line: str) -> dict[str, Any]:
    """Read one line of tegrastats, of any L4T from 32 to 39, with or without root.

    Returns:
        time (as printed), ram_mb, swap_mb (used, total), lfb, cores (load_pct and mhz each, None where off), gpu_load
        and emc_load (%), gpu_mhz (a list, one a cluster), gpu2_load, gpu2_mhz, emc_mhz, engines_mhz, temps (zone in
        lower case -> deg C, powered-off zones dropped) and rails (name -> mW now). What the line does not tell is None
        or absent, never 0. Nothing raises: of a cut line the complete words are read.
    """
    date, pairs = _DATE.match(line), {}
    for name, used, total, unit in _PAIR.findall(line):
        pairs[name] = (int(used) * _SIZE_MB[unit], int(total) * _SIZE_MB[unit])
    out: dict[str, Any] = dict.fromkeys(("gpu_load", "gpu_mhz", "gpu2_load", "gpu2_mhz", "emc_load", "emc_mhz"))
    for name, load, many, one in _LOAD.findall(line):
        key = {"GR3D": "gpu", "GR3D2": "gpu2", "EMC": "emc"}[name]
        clocks = [int(v) for v in (many or one).replace(",", " ").split()]
        out[key + "_load"] = int(load) if load else None
        out[key + "_mhz"] = (clocks or None) if key != "emc" else (clocks[0] if clocks else None)
    lfb = _LFB.search(line)
    temps = {name.lower(): float(value) for name, value in _ZONE.findall(line)}
    out.update(
        time=date.group(1) if date else None,
        ram_mb=pairs.get("RAM"),
        swap_mb=pairs.get("SWAP"),
        lfb=lfb.group(1) if lfb else None,
        cores=_cores(_CPU.search(line)),
        engines_mhz={
            name: int(mhz) if mhz else None
            for name, mhz, _ in _ENGINE.findall(line)
            if name not in ("GR3D", "GR3D2", "EMC", "CPU")
        },
        temps={name: value for name, value in temps.items() if value > COLDEST},
        rails={name: float(now) for name, now in _RAIL.findall(line) if name not in NO_RAILS},
    )
    return out


def total_power(rails: dict[str, float]) -> tuple[float, str, str] | None:
    """Total power in mW, its scope and the rails it is made of; None without rails.

    Where one rail feeds the whole module or board, the others are parts of it and are not added.
    """
    for name, scope in TOTAL_RAILS.items():
        if name in rails:
            return rails[name], scope, name
    return (sum(rails.values()), "sum_of_rails", "+".join(rails)) if rails else None


def junction(temps: dict[str, float]) -> float | None:
    """The hottest temperature that counts: the zone tj where there is one, else the maximum without the PMIC's."""
    for name, value in temps.items():
        if name.lower().replace("_", "-").split("-")[0] == "tj":
            return value
    real = [value for name, value in temps.items() if not name.lower().startswith(CONSTANT_ZONES)]
    return max(real) if real else None


def parse_nvpmodel(text: str) -> dict[str, Any] | None:
    """Power mode from `nvpmodel -q`: {id, name}, either possibly None; None where the text tells neither."""
    name = re.search(r"NV Power Mode\s*:\s*(\S+)", text)
    number = re.search(r"MODE ID\s*:\s*(\d+)", text) or re.search(r"^\s*(\d+)\s*$", text, re.MULTILINE)
    if not name and not number:
        return None
    return {"id": int(number.group(1)) if number else None, "name": name.group(1) if name else None}


def parse_jetson_clocks(text: str) -> dict[str, Any]:
    """Clocks from `jetson_clocks --show`: unit (cpu0, GPU, EMC) -> its numbers, and locked: these three kinds pinned.

    A unit is pinned where least and greatest clock agree; EMC where FreqOverride is 1. Others, such as an AGX Orin's
    DLA0_CORE, keep a range whatever jetson_clocks does. locked is None without units.
    """
    units: dict[str, Any] = {}
    for line in text.splitlines():
        head = re.match(r"\s*(\w+)\s*:?\s", line)
        numbers = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
        if head and "MinFreq" in numbers and "MaxFreq" in numbers and numbers.get("Online") != 0:
            units[head.group(1)] = numbers
    judged = [numbers for name, numbers in units.items() if re.match(r"(cpu\d+|GPU|EMC)$", name)]
    pinned = [u["MinFreq"] == u["MaxFreq"] or u.get("FreqOverride") == 1 for u in judged]
    return {"units": units, "locked": all(pinned) if pinned else None}


def parse_get_throttled(text: str) -> int | None:
    """The flags that a Raspberry Pi's `vcgencmd get_throttled` prints as throttled=0x50005."""
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", text)
    return int(found.group(1), 16) if found else None


FIRMWARE = ("under-voltage", "the CPU's clock was capped", "throttled by the firmware", "soft temperature limit")


def _firmware_signs(flags: Sequence[int]) -> tuple[list[str], list[str]]:
    """What a Raspberry Pi's flags before and after measuring say: certain signs of throttling, and doubtful ones.

    Bits 0 to 3 tell of now and 16 to 19 of any time since the start, so that one of those new since the first look
    came up while measuring, and one that was there already hides whether it came again.
    """
    certain, doubtful = [], []
    for bit, what in enumerate(FIRMWARE):
        ever = [f >> 16 + bit & 1 for f in flags]
        if any(f >> bit & 1 for f in flags) or ever and ever[-1] > ever[0]:
            certain.append(f"throttled: {what}")
        elif any(ever):
            doubtful.append(f"throttling: {what} since the board started, perhaps again; restart it to be sure")
    return certain, doubtful


def l4t_version() -> str | None:
    """L4T release such as 36.4.3, from /etc/nv_tegra_release."""
    found = re.search(
        r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", _text(system_path("/etc/nv_tegra_release")) or ""
    )
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack_version(l4t: str | None) -> str | None:
    """JetPack of an L4T release: exact where known, else its major number."""
    if l4t is None:
        return None
    plain = re.sub(r"(\.0)+$", "", l4t)
    return JETPACK_EXACT.get(plain) or JETPACK.get(int(l4t.split(".")[0]))


def soc() -> str | None:
    """The chip, such as tegra234, from the device tree."""
    names = re.split(r"[\0,]", _text(system_path("/proc/device-tree/compatible")) or "")
    return next((name for name in names if re.match(r"tegra\d+$", name)), None)


def _first_match(path: Path, key: str) -> str | None:
    """The value after the colon of the first line that starts with key, in a file such as /proc/cpuinfo."""
    lines = (_text(path) or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line), None)


def board() -> str | None:
    """The board's model as the device tree says it."""
    return _text(system_path("/proc/device-tree/model"))


def is_jetson() -> bool:
    """Whether this is a Jetson."""
    return l4t_version() is not None or "jetson" in (board() or "").lower()


@lru_cache(maxsize=None)
def _nvidia_smi(field: str) -> str | None:
    out = tool_output("nvidia-smi", "--query-gpu=" + field, "--format=csv,noheader,nounits")
    line = out.splitlines()[0].strip() if out else ""
    return line if line and "[" not in line and "fail" not in line.lower() else None


def gpu_architecture() -> str | None:
    """Compute capability such as sm_87: from the chip on a Jetson, else from nvidia-smi."""
    chip = soc()
    if chip in GPU_ARCH:
        return GPU_ARCH[chip]
    found = _nvidia_smi("compute_cap")
    return "sm_" + found.replace(".", "") if found else None


# --- Telemetry: watching the board ----------------------------------------------------------------------------------


class Sensors:
    """The files of /sys that tell clocks, temperatures and cooling; found once, so that a reading is cheap."""

    def __init__(self) -> None:
        self.cpus = [p for p in _entries("/sys/devices/system/cpu/cpu[0-9]*") if (p / "cpufreq").is_dir()]
        nodes = [p for p in _entries("/sys/class/devfreq/*") if GPU_NODE.search(p.name)]
        self.gpu = nodes[0] if nodes else None
        self.zones = [(_text(p / "type") or p.name, p) for p in _entries("/sys/class/thermal/thermal_zone*")]
        cooling = [(_text(p / "type") or p.name, p) for p in _entries("/sys/class/thermal/cooling_device*")]
        # Names repeat, so the number tells them apart.
        self.cooling = [(f"{p.name}:{kind}", p / "cur_state") for kind, p in cooling if _throttles(kind)]
        hwmon = [(_text(p / "name"), p) for p in _entries("/sys/class/hwmon/hwmon*")]
        self.oc = [p for name, folder in hwmon if name == "soctherm_oc" for p in sorted(folder.glob("oc*_event_cnt"))]
        self.rails = [folder for name, folder in hwmon if name and name.startswith("ina3221")]
        self.fans = [p / "pwm1" for name, p in hwmon if name in ("pwmfan", "pwm-fan") and (p / "pwm1").exists()]

    def read(self) -> dict[str, Any]:
        """Clocks (kHz, Hz), temperatures (deg C), cooling states, over-current counters and rails (mW) now."""
        temps = {}
        for name, zone in self.zones:
            value = _whole(zone / "temp")
            if value is not None and value / 1000 > COLDEST:
                temps[name] = value / 1000
        cpu = [v for v in (_whole(p / "cpufreq/scaling_cur_freq") for p in self.cpus) if v is not None]
        return {
            "cpu_khz": max(cpu) if cpu else None,
            "gpu_hz": _whole(self.gpu / "cur_freq") if self.gpu else None,
            "gpu_load": self._gpu_load(),
            "temps": temps,
            "cooling": {name: v for name, p in self.cooling for v in (_whole(p),) if v is not None},
            "oc": {p.name[: -len("_event_cnt")]: v for p in self.oc for v in (_whole(p),) if v is not None},
            "rails": self._rails(),
        }

    def _gpu_load(self) -> float | None:
        load = _whole(self.gpu / "device/load") if self.gpu else None  # per mille
        return None if load is None else load / 10

    def _rails(self) -> dict[str, float]:
        out = {}
        for folder in self.rails:
            for label in sorted(folder.glob("in*_label")):
                number = label.name[2 : -len("_label")]
                volt, ampere = _whole(folder / f"in{number}_input"), _whole(folder / f"curr{number}_input")
                if volt is not None and ampere is not None:
                    out[_text(label) or label.name] = volt * ampere / 1000  # mV * mA = uW
        out.pop("NC", None)
        return out

    def moving(self) -> bool:
        """Whether there is anything worth sampling while frames are timed."""
        return bool(self.cpus or self.gpu or self.zones or self.cooling or self.rails)

    def limits(self) -> dict[str, Any]:
        """Governor, and least and greatest clock allowed, of CPU and GPU."""
        governors = {g for g in (_text(p / "cpufreq/scaling_governor") for p in self.cpus) if g}
        low = [v for v in (_whole(p / "cpufreq/scaling_min_freq") for p in self.cpus) if v is not None]
        high = [v for v in (_whole(p / "cpufreq/scaling_max_freq") for p in self.cpus) if v is not None]
        return {
            "governor": ",".join(sorted(governors)) or None,
            "cpu_khz": (min(low), max(high)) if low and high else None,
            "gpu_hz": tuple(_whole(self.gpu / f"{end}_freq") for end in ("min", "max")) if self.gpu else None,
        }

    def passive_trip(self) -> float | None:
        """The lowest temperature (deg C) at which the board starts to throttle, over all zones."""
        trips = [
            _whole(kind.with_name(kind.name.replace("_type", "_temp")))
            for _, zone in self.zones
            for kind in zone.glob("trip_point_*_type")
            if _text(kind) == "passive" and not _only_warns(zone, kind.name[len("trip_point_") : -len("_type")])
        ]
        known = [t / 1000 for t in trips if t is not None and t > 0]
        return min(known) if known else None


def _throttles(kind: str) -> bool:
    """Whether a cooling device slows something down: a fan cools, and a Jetson's hot-surface-alert only warns."""
    return "fan" not in kind.lower() and kind != "hot-surface-alert"


def _only_warns(zone: Path, trip: str) -> bool:
    """Whether all cooling devices that a zone binds to a trip point throttle nothing; not where it names none."""
    bound = [p for p in zone.glob("cdev*_trip_point") if _text(p) == trip]
    kinds = [_text(zone / p.name[: -len("_trip_point")] / "type") for p in bound]
    return bool(kinds) and not any(kind is None or _throttles(kind) for kind in kinds)


class Monitor:
    """Samples the board beside a measurement: tegrastats where installed, and /sys.

    Args:
        power: Whether power is wanted; tegrastats then reports every 100 ms, else every second.
        clock: Nanoseconds, the clock that the frames are timed with.
    """

    def __init__(self, power: bool = False, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.power, self.clock = power, clock
        self.sensors = Sensors()
        self.readings: list[tuple[int, dict[str, Any]]] = []  # of /sys
        self.lines: list[tuple[int, str]] = []  # of tegrastats
        self.tegrastats = shutil.which("tegrastats")
        self.power_mode = parse_nvpmodel(tool_output("nvpmodel", "-q") or "")
        self.firmware: list[int] = []  # a Raspberry Pi's throttling flags, before and after
        self.locked = parse_jetson_clocks(tool_output("jetson_clocks", "--show") or "")["locked"]
        self._process: Any = None
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def __enter__(self) -> Monitor:
        self._look()
        self._ask_firmware()
        if self.tegrastats:
            command = [self.tegrastats, "--interval", "100" if self.power else "1000"]
            try:
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
                )
            except OSError:
                self.tegrastats = None
            else:
                self._start(self._listen)
        if self.sensors.moving():
            self._start(self._watch)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._process is not None:
            self._end(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._end(signal.SIGKILL)
                self._process.wait()
        for thread in self._threads:
            thread.join(5)
        self._look()
        self._ask_firmware()

    def _end(self, how: int) -> None:
        try:
            os.killpg(self._process.pid, how)  # with what a wrapper script may have started
        except ProcessLookupError:
            pass  # it has ended by itself

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _ask_firmware(self) -> None:
        flags = parse_get_throttled(tool_output("vcgencmd", "get_throttled") or "")
        if flags is not None:
            self.firmware.append(flags)

    def _look(self) -> None:
        self.readings.append((self.clock(), self.sensors.read()))

    def _watch(self) -> None:
        while not self._stop.wait(0.1 if self.power and not self.tegrastats else 0.5):
            self._look()

    def _listen(self) -> None:
        for raw in self._process.stdout:
            line = raw.decode(errors="replace")
            if not line.endswith("\n"):  # cut off at the end: the last word may be half a number
                line = line.rpartition(" ")[0]
            if line.strip():
                self.lines.append((self.clock(), line.strip()))

    def ticks(self) -> np.ndarray:
        """When something was sampled, (n,) ns sorted."""
        return np.sort(np.array([t for t, _ in self.lines] + [t for t, _ in self.readings], np.int64))


BUSY_GPU = 90  # % of load from which a governor has no reason to choose less than the highest clock
Window = Tuple[int, int]  # start and end of a measurement on the clock, ns


class Telemetry:
    """What a Monitor saw, judged over the windows in which frames were timed.

    Args:
        monitor: One that has ended.
        windows: Start and end (ns) of each measurement, in order, not overlapping.
        idle: Start and end (ns) of the idle baseline, or None.
    """

    def __init__(self, monitor: Monitor, windows: Sequence[Window], idle: Window | None = None) -> None:
        self.monitor, self.windows, self.idle = monitor, list(windows), idle
        self.stats = [(t, parse_tegrastats(line)) for t, line in monitor.lines]
        self.limits = monitor.sensors.limits()

    def _inside(self, samples: Sequence[tuple[int, Any]]) -> list[Any]:
        """Samples within a window, and the one before and after each, so that a short window has some."""
        times = [t for t, _ in samples]
        kept: dict[int, Any] = {}
        for start, end in self.windows:
            low, high = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
            for k in range(max(low - 1, 0), min(high + 1, len(samples))):
                kept[k] = samples[k][1]
        return [kept[k] for k in sorted(kept)]

    def gpu_mhz(self) -> list[float]:
        """GPU clock while measuring, MHz: from /sys, else from tegrastats."""
        values = [r["gpu_hz"] / 1e6 for r in self._inside(self.monitor.readings) if r["gpu_hz"]]
        return values or [float(max(s["gpu_mhz"])) for s in self._inside(self.stats) if s["gpu_mhz"]]

    def gpu_loads(self) -> list[float]:
        """GPU load while measuring, %."""
        values = [float(s["gpu_load"]) for s in self._inside(self.stats) if s["gpu_load"] is not None]
        return values or [r["gpu_load"] for r in self._inside(self.monitor.readings) if r["gpu_load"] is not None]

    def gpu_seen_busy(self) -> bool | None:
        """Whether the GPU did anything while measuring; None where the board does not tell."""
        loads = self.gpu_loads()
        return max(loads) > 0 if loads else None

    def clocks(self, missing: dict[str, str]) -> dict[str, Any] | None:
        """The record's `clocks`."""
        readings, stats, limits = self._inside(self.monitor.readings), self._inside(self.stats), self.limits
        cpu = [r["cpu_khz"] for r in readings if r["cpu_khz"] is not None]
        if not cpu:
            cores = [[c["mhz"] for c in s["cores"] or () if c and c["mhz"]] for s in stats]
            cpu = [max(row) * 1000 for row in cores if row]
        gpu, emc = self.gpu_mhz(), [s["emc_mhz"] for s in stats if s["emc_mhz"] is not None]
        fans = [v for v in (_whole(p) for p in self.monitor.sensors.fans) if v is not None]
        out = {
            "power_mode": self.monitor.power_mode,
            "jetson_clocks": self.pinned(),
            "governor": limits["governor"],
            "cpu_khz": _clock(limits["cpu_khz"], cpu),
            "gpu_hz": _clock(limits["gpu_hz"], [mhz * 1e6 for mhz in gpu]),
            "emc_hz": int(median(emc) * 1e6) if emc else None,
            "fan": fans[0] if fans else None,
        }
        if all(value is None for value in out.values()):
            missing["clocks"] = "the system tells neither clocks nor a power mode"
            return None
        why = {
            "power_mode": "nvpmodel is not installed or told none",
            "jetson_clocks": "neither jetson_clocks nor /sys tells clock limits",
            "governor": "no cpufreq in /sys",
            "cpu_khz": "no cpufreq in /sys and no tegrastats",
            "gpu_hz": "no GPU in /sys/class/devfreq and none in tegrastats",
            "emc_hz": "tegrastats is absent or not run as root",
            "fan": "no pwmfan in /sys/class/hwmon",
        }
        missing.update({"clocks." + key: why[key] for key, value in out.items() if value is None})
        for key in ("cpu_khz", "gpu_hz", "power_mode"):
            for part, value in (out[key] or {}).items():
                if value is None:
                    missing[f"clocks.{key}.{part}"] = "not told"
        return out

    def pinned(self) -> bool | None:
        """Whether CPU and GPU clocks are fixed; None where nothing tells."""
        if self.monitor.locked is not None:
            return self.monitor.locked
        ends = [pair for pair in (self.limits["cpu_khz"], self.limits["gpu_hz"]) if pair and None not in pair]
        return all(low == high for low, high in ends) if ends else None

    def _temps(self) -> list[tuple[int, dict[str, float]]]:
        from_stats = [(t, s["temps"]) for t, s in self.stats if s["temps"]]
        return from_stats or [(t, r["temps"]) for t, r in self.monitor.readings if r["temps"]]

    def thermal(self, missing: dict[str, str]) -> dict[str, Any] | None:
        """The record's `thermal`; temperatures in deg C."""
        temps = self._inside(self._temps())
        levels = [tj for tj in map(junction, temps) if tj is not None]
        inside = self._inside(self.monitor.readings)
        cooling = _rise([r["cooling"] for r in inside], peak=True)
        counters = _rise([r["oc"] for r in inside])
        if not levels and cooling is None and counters is None:
            missing["thermal"] = "no thermal zone can be read and tegrastats told none"
            return None
        zones: dict[str, float] = {}
        for row in temps:
            for name, value in row.items():
                zones[name] = max(value, zones.get(name, value))
        out = {
            "tj_start": levels[0] if levels else None,
            "tj_max": max(levels) if levels else None,
            "zones": zones or None,
            "cooling_delta": cooling,
            "oc_delta": counters,
        }
        why = {"cooling_delta": "no cooling device in /sys", "oc_delta": "no soctherm_oc in /sys/class/hwmon"}
        missing.update({"thermal." + k: why.get(k, "no thermal zone can be read") for k, v in out.items() if v is None})
        return out

    def _slow_gpu(self) -> str | None:
        """How far the GPU's clock stayed or fell below its highest, if it did."""
        gpu, top = self.gpu_mhz(), (self.limits["gpu_hz"] or (None, None))[1]
        if not gpu:
            return None
        highest, third = top / 1e6 if top else max(gpu), max(len(gpu) // 3, 1)
        if median(gpu) < 0.97 * highest:
            return f"the GPU ran at {median(gpu):.0f} of {highest:.0f} MHz"
        first, last = median(gpu[:third]), median(gpu[-third:])
        return f"the GPU clock fell from {first:.0f} to {last:.0f} MHz" if last < 0.97 * first else None

    def throttled(self, uses_gpu: bool) -> tuple[list[str], list[str]]:
        """Signs that the board slowed itself down: those that void the figures, and those that only cast doubt."""
        certain, doubtful = _firmware_signs(self.monitor.firmware)
        slow, loads = self._slow_gpu() if uses_gpu else None, self.gpu_loads()
        if slow and (self.pinned() or loads and median(loads) >= BUSY_GPU):
            certain.append(f"throttled: {slow}")
        elif slow:  # a governor gives a GPU that often waits less than its highest clock
            doubtful.append(f"dvfs: {slow}, with clocks that follow the load")
        heat = self.thermal({}) or {}
        for name, rise in sorted((heat.get("cooling_delta") or {}).items()):
            if rise > 0:
                certain.append(f"throttled: cooling device {name} rose by {rise}")
        for name, rise in sorted((heat.get("oc_delta") or {}).items()):
            if rise > 0:
                sign = f"throttled: {rise} over-current events of {name}"
                # OC3 ticks all the time on some boards at full power
                (doubtful if name == "oc3" and not certain else certain).append(sign)
        trip, levels = self.monitor.sensors.passive_trip(), [junction(t) for t in self._inside(self._temps())]
        known = [tj for tj in levels if tj is not None]
        if trip is not None and known and known[-1] > known[0] and max(known) > trip - 5:
            certain.append(f"throttled: {max(known):.1f} deg C and rising, throttling starts at {trip:.1f}")
        return certain, doubtful

    def lfb(self) -> str | None:
        """Largest free block of memory, as tegrastats prints it."""
        return next((s["lfb"] for s in self._inside(self.stats) if s["lfb"]), None)

    def _watts(self) -> tuple[list[tuple[int, float]], tuple[str, str, str] | None]:
        """(ns, W) samples of the total, with source, scope and rails; always the same rails, or the sample is left."""
        rows = [(t, s["rails"]) for t, s in self.stats if s["rails"]]
        source = "tegrastats"
        if not rows:
            rows, source = [(t, r["rails"]) for t, r in self.monitor.readings if r["rails"]], "ina3221"
        totals = [(t, total_power(rails)) for t, rails in rows]
        known = [(t, total) for t, total in totals if total is not None]
        if not known:
            return [], None
        (_, scope, rails), _ = Counter((source, *total[1:]) for _, total in known).most_common(1)[0]
        same = [(t, total[0] / 1000) for t, total in known if total[1:] == (scope, rails)]
        return same, (source, scope, rails)

    def power(self, frames: int, missing: dict[str, str], overhead_pct: float | None = None) -> dict[str, Any] | None:
        """The record's `power`: on-board sensors over the windows, energy by the trapezoidal rule."""
        if not self.monitor.power:
            missing["power"] = "not asked for (--power)"
            return None
        samples, origin = self._watts()
        if origin is None:
            why = "tegrastats told no rail" if self.monitor.lines else "tegrastats printed nothing"
            missing["power"] = why if self.monitor.tegrastats else "no tegrastats and no ina3221 sensor in /sys"
            return None
        source, scope, rail = origin
        times, watts = np.array([t for t, _ in samples], float), np.array([w for _, w in samples])
        energies = [_energy(times, watts, window) for window in self.windows]
        if any(energy is None for energy in energies):
            missing["power"] = f"{source} gave too few samples while frames were timed"
            return None
        joules, seconds = sum(e for e in energies if e), sum(end - start for start, end in self.windows) / 1e9
        loaded = np.concatenate([watts[(times >= a) & (times <= b)] for a, b in self.windows])
        before = watts[(times >= self.idle[0]) & (times <= self.idle[1])] if self.idle else watts[:0]
        idle = float(before.mean()) if len(before) else None
        if idle is None:
            missing["power.idle_w"] = missing["power.j_per_frame_net"] = "no sample of an idle baseline"
        if overhead_pct is None:
            missing["power.overhead_pct"] = "no run without the sampler"
        gaps = np.diff(times)
        return {
            "source": source,
            "scope": scope,
            "rail": rail,
            "interval_ms": round(float(np.median(gaps)) / 1e6, 1) if len(gaps) else None,
            "idle_w": idle,
            "mean_w": joules / seconds,
            "max_w": float(loaded.max()) if len(loaded) else joules / seconds,
            "j_per_frame": joules / frames,
            "j_per_frame_net": None if idle is None else (joules / seconds - idle) * seconds / frames,
            "overhead_pct": overhead_pct,
        }

    def series(self) -> dict[str, np.ndarray]:
        """What was sampled, for plots: name -> (n, 2) float64 of ns on the frames' clock and the value."""
        readings, rows = self.monitor.readings, {}
        rows["tj_c"] = [(t, junction(temps)) for t, temps in self._temps()]
        rows["cpu_mhz"] = [(t, r["cpu_khz"] / 1e3) for t, r in readings if r["cpu_khz"]]
        rows["gpu_mhz"] = [(t, r["gpu_hz"] / 1e6) for t, r in readings if r["gpu_hz"]] or [
            (t, float(max(s["gpu_mhz"]))) for t, s in self.stats if s["gpu_mhz"]
        ]
        rows["power_w"] = list(self._watts()[0])
        return {name: np.array([r for r in row if r[1] is not None], np.float64) for name, row in rows.items() if row}


def _clock(ends: Any, current: Sequence[float]) -> dict[str, Any] | None:
    low, high = ends or (None, None)
    if low is None and high is None and not current:
        return None
    return {"min": low, "max": high, "cur_median": int(median(current)) if current else None}


def _rise(rows: Sequence[dict[str, int]], peak: bool = False) -> dict[str, int] | None:
    """How far each counter rose from the first row to the last, or to its peak; None without counters."""
    if not rows or not rows[0]:
        return None
    return {
        name: (max(r.get(name, first) for r in rows) if peak else rows[-1].get(name, first)) - first
        for name, first in rows[0].items()
    }


def _energy(times: np.ndarray, watts: np.ndarray, window: Window) -> float | None:
    """Joules within a window (ns): trapezoids between the samples, its ends interpolated; None if not bracketed."""
    start, end = window
    inside = (times > start) & (times < end)
    if not len(times) or times[0] > start or times[-1] < end or end <= start:
        return None
    t = np.concatenate([[start], times[inside], [end]])
    w = np.interp(t, times, watts)
    return float(((w[1:] + w[:-1]) / 2 * np.diff(t)).sum() / 1e9)


# --- Measuring ------------------------------------------------------------------------------------------------------

STAGES = ("pre", "infer", "post", "total")


class Limits(NamedTuple):
    """When to stop: enough frames a model and enough time, or out of time."""

    n_min: int  # frames a model
    t_min_s: float
    t_max_s: float
    warm_up_cap_s: float = 60.0


PROFILES = {
    "smoke": Limits(100, 3.0, 60.0, 10.0),
    "standard": Limits(1000, 30.0, 600.0),
    "soak": Limits(1000, 600.0, 900.0),
}
REPEATS = {"smoke": 5, "standard": 5, "soak": 1}
WARM_UP_FRAMES, WARM_UP_CPU_S, WARM_UP_GPU_S = 20, 2.0, 10.0
WARM_UP_WINDOW = Limits(50, 0.0, 1.0)  # 50 frames or 1 s
WARM_UP_WINDOWS, STABLE = 3, 1.05  # so many successive windows whose medians differ by at most 5 %


def _switches() -> int:
    """Involuntary context switches of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


class Run:
    """One model's timed frames."""

    def __init__(self, detector: Any, clock: Callable[[], int], cpu_clock: Callable[[], int]) -> None:
        self.detector, self.clock, self.cpu_clock = detector, clock, cpu_clock
        self.times: list[tuple[int, int, int, int]] = []  # ns, in the order of STAGES
        self.starts: list[tuple[int, int]] = []  # when a frame began (ns), and involuntary switches during it
        self.cpu_ns = self.candidates = self.detections = 0

    def add(self, frame: np.ndarray) -> None:
        """Time one frame. Nothing but the three stages lies between the first and the last reading of the clock."""
        clock, detector = self.clock, self.detector
        switches, cpu = _switches(), self.cpu_clock()
        start = clock()
        blob, box = detector.preprocess(frame)
        ready = clock()
        raw = detector.infer(blob)
        inferred = clock()
        found = detector.postprocess(raw, box)
        end = clock()
        self.cpu_ns += self.cpu_clock() - cpu
        self.starts.append((start, _switches() - switches))
        self.times.append((ready - start, inferred - ready, end - inferred, end - start))
        self.candidates += detector.candidates
        self.detections += len(found)

    def series(self) -> dict[str, np.ndarray]:
        """Every sample (n,) int64: ns by stage, `start` on the clock, and `switches`."""
        columns = np.array(self.times, np.int64).reshape(-1, len(STAGES))
        out = {stage: columns[:, k] for k, stage in enumerate(STAGES)}
        starts = np.array(self.starts, np.int64).reshape(-1, 2)
        out["start"], out["switches"] = starts[:, 0], starts[:, 1]
        return out


def measure(
    detectors: Sequence[Any],
    frames: Sequence[np.ndarray],
    limits: Limits,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    cpu_clock: Callable[[], int] = time.process_time_ns,
) -> tuple[list[Run], float]:
    """Time the detectors, interleaved: each round shows one frame to all of them in a new random order.

    Returns:
        One Run a detector, and the seconds that all rounds took together.
    """
    runs = [Run(d, clock, cpu_clock) for d in detectors]
    order, rng = list(runs), random.Random(seed)
    rounds, elapsed, start = 0, 0.0, clock()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while elapsed < limits.t_max_s and (rounds < limits.n_min or elapsed < limits.t_min_s):
            rng.shuffle(order)
            for run in order:
                run.add(frames[rounds % len(frames)])
            rounds += 1
            elapsed = (clock() - start) / 1e9
    finally:
        if collecting:
            gc.enable()
    return runs, elapsed


def warm_up(
    detectors: Sequence[Any],
    frames: Sequence[np.ndarray],
    seed: int,
    t_min_s: float,
    cap_s: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Run until the medians of three successive windows differ by at most 5 % for every detector, or the cap.

    Returns:
        The record's protocol.warmup: frames a detector, s, and whether the latency had become stable.
    """
    medians: list[list[float]] = []
    count, seconds, stable = 0, 0.0, False
    while not stable and seconds < cap_s:
        runs, took = measure(detectors, frames, WARM_UP_WINDOW, seed + len(medians), clock)
        medians.append([median(row[-1] for row in run.times) for run in runs])
        count, seconds = count + len(runs[0].times), seconds + took
        latest = list(zip(*medians[-WARM_UP_WINDOWS:]))  # noqa: B905
        level = len(medians) >= WARM_UP_WINDOWS and all(max(row) <= STABLE * min(row) for row in latest)
        stable = level and count >= WARM_UP_FRAMES and seconds >= t_min_s
    return {"frames": count, "s": round(seconds, 3), "stable": stable}


# --- Judging the figures --------------------------------------------------------------------------------------------

BLOCKS = 10
LEAST_BLOCK = 20  # frames in a block, below which its median says little
DRIFT, DRIFT_THIRDS, DRIFT_VOID = 1.05, 1.03, 1.10
CONTENDED, CONTENDED_VOID = 0.97, 0.90  # CPU time over wall time, of a process that always has work
INTERRUPTED = 0.1  # share of the frames with an involuntary context switch
STOLEN, STOLEN_VOID = 0.01, 0.10  # share of the time that a hypervisor gave to others
MODE_SHARE, MODE_GAP = 0.1, 0.1  # of the frames on each side of a gap, and its width in medians


class Doubt(NamedTuple):
    """A reason to doubt the figures; one that voids them makes the record invalid."""

    text: str
    void: bool = False


class Drift(NamedTuple):
    """How the latency of one process moved while it was measured."""

    block_medians: list[float]  # ms
    ratio: float  # greatest over least block median
    slope: float  # Theil-Sen slope of the block medians, % of the median a minute
    thirds: float  # median of the last third over that of the first


def drift(series: dict[str, np.ndarray]) -> Drift | None:
    """Judge the total latency of one process; None with fewer than three frames a block."""
    total, start = np.asarray(series["total"]) / 1e6, np.asarray(series["start"]) / 6e10
    if len(total) < 3 * BLOCKS:
        return None
    levels = [float(np.median(block)) for block in np.array_split(total, BLOCKS)]
    minutes = [float(block.mean()) for block in np.array_split(start, BLOCKS)]
    pairs = [(i, j) for i in range(BLOCKS) for j in range(i) if minutes[i] > minutes[j]]
    slopes = [(levels[i] - levels[j]) / (minutes[i] - minutes[j]) for i, j in pairs]
    middle, third = float(np.median(total)), len(total) // 3
    thirds = float(np.median(total[-third:]) / np.median(total[:third]))
    return Drift(levels, max(levels) / min(levels), 100 * median(slopes or [0.0]) / middle, thirds)


def two_levels(samples: np.ndarray) -> tuple[float, float, float] | None:
    """(low, high, share of the high): the two levels of latencies that keep to two, or None.

    Two levels are seen where the ordered samples have a gap of a tenth of their median with at least a tenth of them
    on either side; both are medians.
    """
    ordered, edge = np.sort(np.asarray(samples, float)), max(int(len(samples) * MODE_SHARE), 1)
    if len(ordered) < 2 * edge + 2 or len(ordered) < 2 * LEAST_BLOCK:
        return None
    gaps = np.diff(ordered)[edge - 1 : len(ordered) - edge]
    k = int(gaps.argmax()) + edge
    if gaps.max() < MODE_GAP * float(np.median(ordered)):
        return None
    return float(np.median(ordered[:k])), float(np.median(ordered[k:])), 1 - k / len(ordered)


def _drift_doubts(drifts: Sequence[Drift], frames: int) -> list[Doubt]:
    out = []
    worst = max(drifts, key=lambda d: max(d.thirds, 1 / d.thirds))
    apart = max(worst.thirds, 1 / worst.thirds)
    if apart > DRIFT_THIRDS:
        change = f"drift: the last third of a run took {worst.thirds - 1:+.1%} against the first"
        out.append(Doubt(change, apart > DRIFT_VOID))
    ratio = max(d.ratio for d in drifts)
    if ratio > DRIFT and frames >= BLOCKS * LEAST_BLOCK:
        out.append(Doubt(f"drift: block medians differ by {ratio - 1:.1%}"))
    return out


def _disturbances(facts: Sequence[dict[str, Any]]) -> list[Doubt]:
    """Signs that other programs took the CPU."""
    out, first = [], facts[0]
    # On the CPU at least one thread always has work, so that less than one CPU was somebody else's doing.
    shares = [f["cpu_ratio"] * f["threads"] for f in facts if f["cpu_ratio"] is not None]
    if not first["uses_gpu"] and shares and min(shares) < CONTENDED:
        text = f"contended: the process had the CPU for {min(shares):.0%} of the measured time"
        out.append(Doubt(text, min(shares) < CONTENDED_VOID))
    # A process that waits for a GPU has no CPU to miss, but is interrupted where others want its core.
    interrupted = max(f["interrupted"] for f in facts)
    if first["uses_gpu"] and interrupted > INTERRUPTED:
        out.append(Doubt(f"contended: other programs interrupted {interrupted:.0%} of the frames"))
    stolen = max([f["steal"] for f in facts if f["steal"] is not None] or [0.0])
    if stolen > STOLEN:
        text = f"contended: the hypervisor took the CPU away for {stolen:.1%} of the time"
        out.append(Doubt(text, stolen > STOLEN_VOID))
    before, own = first["load"]["before"], first["threads"] * len({f["stream"] for f in facts})
    if before is not None and before > max(_usable_cores() - own, 0) + 0.5:
        out.append(Doubt(f"busy: load average {before:.1f} on {_usable_cores()} cores before the run"))
    return out


def doubts(
    trials: Sequence[Trial], limits: Limits, drifts: Sequence[Drift], telemetry: Telemetry | None
) -> list[Doubt]:
    """Every reason to doubt the figures of a record."""
    facts, first = [t.facts for t in trials], trials[0].facts
    out = []
    for f in facts:
        if f["n"] < limits.n_min or f["duration_s"] < limits.t_min_s:
            asked = f"{f['n']} of {limits.n_min} frames"
            out.append(Doubt(f"time limit of {limits.t_max_s:g} s reached after {asked}"))
            break
    if first["images"]["n"] < 32:
        out.append(Doubt(f"only {first['images']['n']} different images, at least 32 are recommended"))
    if not all(f["warmup"]["stable"] for f in facts):
        out.append(Doubt("warmup_not_stable: latency still moved by more than 5 % when the warm-up was cut off"))
    out += _disturbances(facts)
    if drifts:
        out += _drift_doubts(drifts, min(f["n"] for f in facts))
    levels = two_levels(np.concatenate([t.series["total"] for t in trials]) / 1e6)
    if levels:
        out.append(Doubt("bimodal: latency keeps to {:.2f} ms and {:.2f} ms ({:.0%})".format(*levels)))
    if first["runtime"]["fallback"]:
        out.append(Doubt(f"fallback: {first['runtime']['providers_active'][0]} ran, not what was asked for"))
    if telemetry is not None:
        certain, doubtful = telemetry.throttled(first["uses_gpu"])
        out += [Doubt(text, True) for text in certain] + [Doubt(text) for text in doubtful]
        if telemetry.pinned() is False:
            out.append(Doubt("dvfs_active: clocks are not locked"))
    return out


def tail_attribution(trials: Sequence[Trial], p99_ms: float | None, ticks: np.ndarray) -> dict[str, Any] | None:
    """What happened during the frames above p99: the share of them with an involuntary switch or a monitor's tick."""
    if p99_ms is None or resource is None:
        return None
    total, start, switches = (np.concatenate([t.series[k] for t in trials]) for k in ("total", "start", "switches"))
    slow = total > p99_ms * 1e6
    if not slow.any():
        return None
    first, last = np.searchsorted(ticks, start[slow]), np.searchsorted(ticks, (start + total)[slow], "right")
    return {
        "n": int(slow.sum()),
        "involuntary_switch": float((switches[slow] > 0).mean()),
        "monitor_tick": float((last > first).mean()),
        "gc": 0.0,  # it is off
        "involuntary_switch_all_frames": float((switches > 0).mean()),
    }


# --- The record -----------------------------------------------------------------------------------------------------

UNAVAILABLE = {  # fields of the schema that this program cannot fill
    "tool.git": "a single file knows no commit",
    "model.opset": "ONNX Runtime does not tell it",
    "model.ir": "ONNX Runtime does not tell it",
}
ACCURACY = ("dataset", "split", "n_images", "map50", "map50_95", "ci95", "conf", "iou", "source")
IN_METADATA = ("int8", "teacher", "student", "train_run")


class Trial(NamedTuple):
    """What one process measured of one model."""

    series: dict[str, np.ndarray]  # as Run.series
    facts: dict[str, Any]  # everything else, fit for JSON


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):  # noqa: B023
                digest.update(block)
    return digest.hexdigest()


def _serial_hash() -> str | None:
    """A hash that tells devices apart without telling the serial number."""
    serial = _text(system_path("/proc/device-tree/serial-number")) or _text(system_path("/etc/machine-id"))
    return hashlib.sha256(serial.encode()).hexdigest()[:16] if serial else None


def _device(missing: dict[str, str]) -> dict[str, Any]:
    cpuinfo = system_path("/proc/cpuinfo")
    memory, l4t, gpu = _first_match(system_path("/proc/meminfo"), "MemTotal"), l4t_version(), Sensors().gpu
    name = f"{gpu.name} ({gpu_architecture()})" if gpu else _nvidia_smi("name")
    out = {
        "kind": "jetson" if is_jetson() else platform.machine(),
        "board_model": board(),
        "soc": soc(),
        "l4t": l4t,
        "jetpack": jetpack_version(l4t),
        "kernel": platform.release(),
        "cpu_model": _first_match(cpuinfo, "model name") or platform.processor() or None,
        "cores_online": os.cpu_count(),
        "gpu": name,
        "mem_total_mb": int(memory.split()[0]) // 1024 if memory else None,
        "serial_hash": _serial_hash(),
    }
    why = {
        "cpu_model": "the system does not name it",
        "mem_total_mb": "no /proc/meminfo",
        "gpu": "neither a Jetson's GPU nor nvidia-smi",
        "serial_hash": "neither a serial number nor a machine id can be read",
        "l4t": "no /etc/nv_tegra_release",
        "jetpack": "no /etc/nv_tegra_release, or a release this program does not know",
    }
    missing.update({"device." + key: why.get(key, "no device tree") for key, value in out.items() if value is None})
    return out


def _model(detector: Detector, missing: dict[str, str]) -> dict[str, Any]:
    contract, path, files = detector.contract, detector.path, model_files(detector.path)
    for key in IN_METADATA:
        if contract.meta.get(key) is None:
            missing["model." + key] = "not in the model's metadata"
    return {
        "file": path.name,
        "sha256": _sha256(*files),
        "bytes": sum(file.stat().st_size for file in files),
        "format": "onnx" if path.is_file() else "ncnn",
        "opset": None,
        "ir": None,
        "task": contract.exporter["task"],
        "nc": contract.nc,
        "imgsz": list(contract.hw),
        "output_contract": contract.output,
        "precision": contract.precision,
        "int8": contract.meta.get("int8"),
        "teacher": contract.meta.get("teacher"),
        "student": contract.meta.get("student"),
        "train_run": contract.meta.get("train_run"),
        "ultralytics_version": contract.exporter.get("version"),
        "license": contract.exporter.get("license"),
    }


def _accuracy(contract: Contract, missing: dict[str, str]) -> dict[str, Any] | None:
    given = contract.meta.get("accuracy")
    if not given:
        missing["accuracy"] = "not in the model's metadata"
        return None
    out = {key: given.get(key) for key in ACCURACY}
    out["source"] = given.get("source") or "model metadata"
    missing.update({"accuracy." + k: "not in the model's metadata" for k, v in out.items() if v is None})
    return out


def _parity(contract: Contract, missing: dict[str, str]) -> dict[str, Any] | None:
    """What the export was checked with on the host; null for a file that nobody checked."""
    given: dict[str, Any] | None = contract.meta.get("parity")
    if not given:
        missing["parity"] = "not in the model's metadata"
    return given or None


def _runtime(detector: Detector, missing: dict[str, str]) -> dict[str, Any]:
    nodes, own = detector.nodes, next((n for n, kind in RUNTIMES.items() if isinstance(detector.session, kind)), None)
    versions = {name: detector.session.version if name == own else None for name in RUNTIMES}
    missing.update({"runtime." + name: "not the runtime" for name in RUNTIMES if name != own})
    if own:
        missing.update(
            {"runtime." + key: f"nothing that {own} tells" for key in ("inter_threads", "spin", "graph_opt")}
        )
    if nodes is None:
        missing["runtime.ep_nodes"] = "this runtime cannot tell"
    if detector.coverage is None:
        missing["runtime.ep_coverage"] = "this ONNX Runtime cannot tell"
    if detector.trt is None:
        missing["runtime.trt"] = "TensorRT was not asked for"
    else:
        told = {"version": "the library does not tell", "build_s": "the engine came from the cache"}
        missing.update({"runtime.trt." + k: told[k] for k, v in detector.trt.items() if v is None})
    cuda = _text(system_path("/usr/local/cuda/version.json"))
    version = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', cuda or "")
    if not version:
        missing["runtime.cuda"] = "no /usr/local/cuda/version.json"
    return {
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **versions,
        "provider_requested": detector.provider,
        "providers_active": detector.session.get_providers(),
        "ep_nodes": nodes,
        "ep_coverage": None if detector.coverage is None else round(detector.coverage, 4),
        "fallback": detector.fallback,
        "intra_threads": detector.threads,
        "inter_threads": None if own else 1,  # ONNX Runtime's default, sequential execution
        "spin": None if own else "within a run",
        "graph_opt": None if own else "all",
        "io_binding": False,
        "trt": detector.trt,
        "cuda": version.group(1) if version else None,
    }


def _null_statistics(stages: dict[str, Any], missing: dict[str, str]) -> None:
    """Give each percentile, bound and interval that is null its reason."""
    for stage, figures in stages.items():
        for key, p in PERCENTILES.items():
            needed, n = samples_needed(p), figures["n_eff_p99"] if key == "p99" else figures["n_eff"]
            if figures[key] is None:
                missing["results.stages.*." + key] = f"fewer samples than the {needed} needed"
            if figures["upper95"][key] is None:
                missing[f"results.stages.{stage}.upper95.{key}"] = f"worth fewer than {needed} independent samples"
            if key in INTERVALS and figures["ci95"][key] is None:
                worth = "too few samples" if n is None else f"worth only {n:.0f} independent samples"
                missing[f"results.stages.{stage}.ci95.{key}"] = worth
        if figures["n_eff_p99"] is None:
            missing[f"results.stages.{stage}.n_eff_p99"] = "no p99"


def _across(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of the runs' percentiles, by stage."""
    out: dict[str, Any] = {}
    for stage in STAGES:
        out[stage] = {}
        for key in ("p50", "p90", "p95", "p99"):
            values = [run["stages"][stage][key] for run in runs]
            if None not in values:
                out[stage][key] = {"median": median(values), "min": min(values), "max": max(values)}
    return out


def _run_summary(trial: Trial) -> dict[str, Any]:
    stages = {}
    for stage in STAGES:
        ms = np.sort(trial.series[stage]) / 1e6
        stages[stage] = {
            k: percentile(ms, p) if len(ms) >= samples_needed(p) else None
            for k, p in PERCENTILES.items()
            if k != "p999"
        }
    return {"n": trial.facts["n"], "cpu_ratio": trial.facts["cpu_ratio"], "stages": stages}


def busy_windows(trials: Sequence[Trial]) -> list[Window]:
    """The times in which frames were timed, overlapping ones merged, in order."""
    out: list[Window] = []
    for start, end in sorted((t.facts["window"][0], t.facts["window"][1]) for t in trials):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def results(trials: Sequence[Trial], missing: dict[str, str], models: int = 1) -> dict[str, Any]:
    """The record's `results`: all trials' frames pooled, times in ms; `runs` keeps the trials apart."""
    stages = {stage: summary(*(t.series[stage] for t in trials)) for stage in STAGES}
    _null_statistics(stages, missing)
    facts, runs = [t.facts for t in trials], [_run_summary(t) for t in trials]
    n, seconds = sum(f["n"] for f in facts), sum(end - start for start, end in busy_windows(trials)) / 1e9
    wall = sum(int(t.series["total"].sum()) * t.facts["threads"] for t in trials)
    p50, steal = stages["total"]["p50"], [f["steal"] for f in facts if f["steal"] is not None]
    if p50 is None:
        missing["results.fps_from_p50"] = "no p50"
    if models > 1:
        missing["results.throughput_fps"] = "several models share the time"
    if not steal:
        missing["results.steal"] = "no /proc/stat, or no time passed"
    return {
        "unit": "ms",
        "n": n,
        "duration_s": round(seconds, 3),
        "stages": stages,
        "fps_from_p50": 1000 / p50 if p50 else None,
        "throughput_fps": n / seconds if models == 1 and seconds else None,
        "candidates_mean": sum(f["candidates"] for f in facts) / n,
        "dets_mean": sum(f["detections"] for f in facts) / n,
        "cpu_ratio": round(sum(f["cpu_ns"] for f in facts) / wall, 4) if wall else None,
        "nivcsw_per_frame": sum(int(t.series["switches"].sum()) for t in trials) / n if resource else None,
        "steal": max(steal) if steal else None,
        "load_average": {"before": facts[0]["load"]["before"], "after": facts[-1]["load"]["after"]},
        "runs": runs,
        "across_runs": _across(runs),
    }


def _memory(own_process: bool, models: int, available_mb: float | None, missing: dict[str, str]) -> dict[str, Any]:
    """Memory after measuring; available_mb is what the system had to give before the first session."""
    out: dict[str, Any] = dict.fromkeys(("rss_mb", "peak_rss_mb", "sys_ram_delta_mb", "gpu_mb", "lfb"))
    missing["memory.gpu_mb"] = "ONNX Runtime does not tell it; on a Jetson it is part of sys_ram_delta_mb"
    reason = "the process is not this program's own" if not own_process else "several models share the process"
    if own_process and models == 1:
        status = Path("/proc/self/status")
        rss, peak, left = _first_match(status, "VmRSS"), _first_match(status, "VmHWM"), _available_mb()
        reason = "no /proc/self/status"
        if rss is not None and peak is not None and left is not None and available_mb is not None:
            out["rss_mb"], out["peak_rss_mb"] = (round(int(v.split()[0]) / 1024, 1) for v in (rss, peak))  # from kB
            out["sys_ram_delta_mb"] = round(available_mb - left, 1)
            return out
    missing.update({"memory." + key: reason for key in ("rss_mb", "peak_rss_mb", "sys_ram_delta_mb")})
    return out


def _available_mb() -> float | None:
    text = _first_match(system_path("/proc/meminfo"), "MemAvailable")
    return int(text.split()[0]) / 1024 if text else None


def _images(frames: Sequence[np.ndarray]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode())
        digest.update(frame.tobytes())
    sizes = sorted({frame.shape[:2] for frame in frames})
    return {"n": len(frames), "sha": digest.hexdigest(), "source_hw": [list(hw) for hw in sizes]}


def _versus(trials: Sequence[Trial], base: Sequence[Trial] | None, missing: dict[str, str]) -> dict[str, Any] | None:
    """Ratio of this model's percentiles to those of the first model, run by run: both met the same background load.

    The interval is a bootstrap over the runs, null below five of them, of which it could not hold 95 %.
    """
    if not base:
        missing["results.versus_first"] = "this is the first or only model"
        return None
    out: dict[str, Any] = {"model": base[0].facts["model"]["file"], "p50": None, "p99": None}
    pairs = [(_run_summary(a)["stages"]["total"], _run_summary(b)["stages"]["total"]) for a, b in zip(trials, base)]  # noqa: B905
    for key in ("p50", "p99"):
        if any(a[key] is None or not b[key] for a, b in pairs):
            missing["results.versus_first." + key] = "a run has too few samples"
            continue
        ratios, ends = np.array([a[key] / b[key] for a, b in pairs]), None
        if len(ratios) >= 5:
            draws = np.median(np.random.RandomState(0).choice(ratios, (1000, len(ratios))), 1)
            ends = [percentile(draws, 0.025), percentile(draws, 0.975)]
        else:
            missing[f"results.versus_first.{key}.ci95"] = "fewer than five runs"
        out[key] = {"ratio": float(np.median(ratios)), "ci95": ends}
    return out


def _stability(
    trials: Sequence[Trial], reasons: Sequence[Doubt], drifts: Sequence[Drift], missing: dict[str, str]
) -> Any:
    if not drifts:
        for key in ("block_medians", "drift_ratio", "slope_pct_per_min"):
            missing["stability." + key] = f"fewer than {3 * BLOCKS} frames a run"
    verdict = "invalid" if any(r.void for r in reasons) else "valid_with_warnings" if reasons else "valid"
    return {
        "block_medians": [level for d in drifts for level in d.block_medians] if drifts else None,
        "drift_ratio": max(d.ratio for d in drifts) if drifts else None,
        "slope_pct_per_min": median(d.slope for d in drifts) if drifts else None,
        "verdict": verdict,
        "reasons": [r.text for r in reasons],
    }


def record(
    trials: Sequence[Trial],
    plan: dict[str, Any],
    telemetry: Telemetry | None = None,
    base: Sequence[Trial] | None = None,
    overhead_pct: float | None = None,
    cross_check: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record (schema yolokd.latency/1) of one model.

    Args:
        trials: What each process measured of it.
        plan: How it was measured, as `collect` makes it.
        telemetry: What the board said meanwhile.
        base: The first model's trials, if this is a further one measured interleaved with it.
        overhead_pct: By how much sampling the power slowed the frames.
        cross_check: What trtexec measured.
    """
    limits, first, models = Limits(*plan["limits"]), trials[0].facts, len(plan["models"])
    missing = dict(UNAVAILABLE)
    for trial in reversed(trials):
        missing.update(trial.facts["missing"])
    if cross_check is None:
        missing["cross_check"] = plan.get("cross_check") or "trtexec was not asked for (--trtexec)"
    drifts = [d for d in (drift(t.series) for t in trials) if d is not None]
    figures = results(trials, missing, models)
    ticks = telemetry.monitor.ticks() if telemetry else np.zeros(0, np.int64)
    figures["tail_attribution"] = tail_attribution(trials, figures["stages"]["total"]["p99"], ticks)
    if figures["tail_attribution"] is None:
        missing["results.tail_attribution"] = "no p99, or the system counts no context switches"
    figures["versus_first"] = _versus(trials, base, missing)
    watched = _watched_board(telemetry, first, figures["n"], models, overhead_pct, missing)
    return {
        "schema": SCHEMA,
        "id": uuid.uuid4().hex,
        "created_utc": plan["created_utc"],
        "tool": {"name": "yolokd_edge", "version": VERSION, "git": None},
        "command": plan["command"],
        "seed": plan["seed"],
        "model": first["model"],
        "accuracy": first["accuracy"],
        "parity": first["parity"],
        "runtime": first["runtime"],
        "device": first["device"],
        "clocks": watched["clocks"],
        "protocol": _protocol(trials, plan, limits),
        "cold": first["cold"],
        "results": figures,
        "memory": dict(first["memory"], lfb=watched["lfb"]),
        "power": watched["power"],
        "thermal": watched["thermal"],
        "stability": _stability(trials, doubts(trials, limits, drifts, telemetry), drifts, missing),
        "series": {"file": None, "sha256": None},
        "cross_check": cross_check,
        "notes": None,
        "unavailable": missing,
    }


def _protocol(trials: Sequence[Trial], plan: dict[str, Any], limits: Limits) -> dict[str, Any]:
    warmups = [t.facts["warmup"] for t in trials]
    return {
        "profile": plan["profile"],
        "n_min": limits.n_min,
        "t_min_s": limits.t_min_s,
        "t_max_s": limits.t_max_s,
        "warmup": {
            "frames": int(median(w["frames"] for w in warmups)),
            "s": median(w["s"] for w in warmups),
            "stable": all(w["stable"] for w in warmups),
        },
        "repeats": len({t.facts["repeat"] for t in trials}),
        "streams": plan["streams"],
        "interleaved": len(plan["models"]) > 1,
        "images": trials[0].facts["images"],
        "percentile_rule": "nearest rank, ceil(p*n)",
        "gc_disabled": True,
    }


def _watched_board(
    telemetry: Telemetry | None,
    first: dict[str, Any],
    frames: int,
    models: int,
    overhead_pct: float | None,
    missing: dict[str, str],
) -> dict[str, Any]:
    """The record's clocks, power, thermal and memory.lfb, each None with its reason where nothing was seen."""
    out: dict[str, Any] = dict.fromkeys(("clocks", "power", "thermal", "lfb"))
    if telemetry is None:
        missing.update({key: "the board was not watched" for key in ("clocks", "power", "thermal", "memory.lfb")})
        return out
    if first["device"]["kind"] == "jetson" and first["uses_gpu"] and telemetry.gpu_seen_busy() is False:
        provider = first["runtime"]["providers_active"][0]
        raise EdgeError(f"{provider} is active, but the GPU was idle while {first['model']['file']} ran.", PROVIDER)
    out["clocks"], out["thermal"], out["lfb"] = telemetry.clocks(missing), telemetry.thermal(missing), telemetry.lfb()
    if models == 1:
        out["power"] = telemetry.power(frames, missing, overhead_pct)
    else:
        missing["power"] = "several models share the time: measure one at a time"
    if out["lfb"] is None:
        missing["memory.lfb"] = "tegrastats told none"
    return out


# --- One process ----------------------------------------------------------------------------------------------------


def _first_run_ms(detector: Detector, frame: np.ndarray) -> float:
    blob, _ = detector.preprocess(frame)
    start = time.perf_counter()
    detector.infer(blob)
    return (time.perf_counter() - start) * 1000


def _cpu_times() -> tuple[int, int] | None:
    """(stolen, all) clock ticks of all CPUs so far."""
    words = (_text(Path("/proc/stat")) or "").splitlines()[:1]
    ticks = [int(v) for v in words[0].split()[1:9]] if words else []
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def trial_of(run: Run, seconds: float, more: dict[str, Any]) -> Trial:
    """Pack one model's frames; `more` is what does not come from the frames themselves."""
    series, threads = run.series(), run.detector.threads
    wall = int(series["total"].sum()) * threads
    facts = {
        "n": len(run.times),
        "duration_s": round(seconds, 3),
        "threads": threads,
        "cpu_ns": run.cpu_ns,
        "cpu_ratio": round(run.cpu_ns / wall, 4) if wall else None,
        "candidates": run.candidates,
        "detections": run.detections,
        "interrupted": float((series["switches"] > 0).mean()) if run.times else 0.0,
    }
    facts.update(more)
    return Trial(series, facts)


def _cold(detector: Detector, first_run_ms: float, own_process: bool, missing: dict[str, str]) -> dict[str, Any]:
    cold = _COLD and own_process
    if not cold:
        missing["cold.import_s"] = "the libraries were loaded before this program started"
    if detector.trt is None:
        missing["cold.engine_cache"] = "TensorRT was not asked for"
    return {
        "import_s": round(IMPORT_S, 4) if cold else None,
        "session_s": round(detector.session_s, 4),
        "first_run_ms": round(first_run_ms, 3),
        "engine_cache": detector.trt["engine_cache"] if detector.trt else None,
    }


def run_trial(
    plan: dict[str, Any], frames: Sequence[np.ndarray], own_process: bool, go: Callable[[], None] = lambda: None
) -> list[Trial]:
    """Measure the plan's models in this process, interleaved; one Trial a model.

    Args:
        plan: As `collect` makes it.
        frames: Decoded frames, cycled in the order given.
        own_process: Whether the process was started for this, so that its memory and cold start are worth reporting.
        go: Called after the warm-up; returns when the timed part may begin.
    """
    limits, available = Limits(*plan["limits"]), _available_mb()
    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(plan["threads"] or _usable_cores())
    try:
        detectors = _detectors(plan)
        first = [_first_run_ms(d, frames[0]) for d in detectors]
        t_min = WARM_UP_CPU_S if all(d.active in ON_CPU for d in detectors) else WARM_UP_GPU_S
        warm = warm_up(detectors, frames, plan["seed"] + 1, t_min, limits.warm_up_cap_s)
        go()
        average, ticks, start = _load(), _cpu_times(), time.perf_counter_ns()
        runs, seconds = measure(detectors, frames, limits, plan["seed"] + plan["repeat"])
        end, later = time.perf_counter_ns(), _cpu_times()
    finally:
        cv2.setNumThreads(cv_threads)
    passed = later[1] - ticks[1] if ticks and later else 0
    shared = {
        "repeat": plan["repeat"],
        "stream": plan["stream"],
        "window": [start, end],
        "warmup": warm,
        "load": {"before": average, "after": _load()},
        "steal": (later[0] - ticks[0]) / passed if ticks and later and passed else None,
        "images": _images(frames),
    }
    trials = []
    for run, first_ms in zip(runs, first):  # noqa: B905
        missing: dict[str, str] = {}
        memory = _memory(own_process, len(detectors), available, missing)
        cold = _cold(run.detector, first_ms, own_process, missing)
        more = dict(shared, memory=memory, cold=cold, **_about(run.detector, missing), missing=missing)
        trials.append(trial_of(run, seconds, more))
    return trials


def _detectors(plan: dict[str, Any]) -> list[Detector]:
    settings = {
        "tensorrt": TensorRT(plan["fp16"], plan["cache"]),
        "allow_fallback": plan["allow_fallback"],
        "hw": tuple(plan["imgsz"]) if plan["imgsz"] else None,
    }
    given = (plan["provider"], plan["threads"], plan["precision"])
    return [load(path, *given, **settings) for path in plan["models"]]


def _about(detector: Detector, missing: dict[str, str]) -> dict[str, Any]:
    """What there is to say of a model, and of what it runs on."""
    return {
        "uses_gpu": detector.active not in ON_CPU,
        "model": _model(detector, missing),
        "accuracy": _accuracy(detector.contract, missing),
        "parity": _parity(detector.contract, missing),
        "runtime": _runtime(detector, missing),
        "device": _device(missing),
    }


# --- Fresh processes ------------------------------------------------------------------------------------------------

READY = "ready"


def _worker(folder: Path) -> int:
    """Measure what the plan in a folder says and leave the trials there; the parent gives the start signal.

    Only our own word goes to the parent's pipe: what a library prints may be mistaken for it, or fill the pipe.
    """
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def go() -> None:
        print(READY, file=parent, flush=True)
        if not sys.stdin.readline():
            raise EdgeError("The process that started this measurement has gone.")

    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    try:
        if plan["build"]:
            (folder / "built.json").write_text(json.dumps(_build_seconds(plan)), encoding="utf-8")
            return 0
        trials = run_trial(plan, read_frames(plan["source"], plan["seed"]), True, go)
    except EdgeError as error:
        (folder / "error.json").write_text(json.dumps({"message": str(error), "code": error.code}), encoding="utf-8")
        return error.code
    arrays = {f"{k}/{name}": values for k, trial in enumerate(trials) for name, values in trial.series.items()}
    np.savez(str(folder / "series.npz"), **arrays)
    (folder / "facts.json").write_text(json.dumps([t.facts for t in trials]), encoding="utf-8")
    return 0


def _build_seconds(plan: dict[str, Any]) -> list[float | None]:
    """Run each of the plan's models once, so that TensorRT's engines are kept; how long a new one took."""
    out = []
    for detector in _detectors(plan):
        start = time.perf_counter()
        detector.detect(np.full((*detector.contract.hw, 3), PAD, np.uint8))
        seconds = (detector.trt or {}).get("build_s")
        out.append(None if seconds is None else round(seconds + time.perf_counter() - start, 1))
    return out


def _start(folder: Path, plan: dict[str, Any], errors: Any) -> Any:
    """A process that does what a plan says, and whose words on stderr go to a file or, with None, to our own."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, os.path.abspath(__file__), "_worker", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)


def build_engines(plan: dict[str, Any]) -> list[float | None]:
    """Build the engines that the plan's processes will need, seen by the user and once; seconds by model.

    Each of those processes would build unseen, several of them at a time into one folder.
    """
    if plan["provider"] not in ("trt", "auto") or PROVIDERS["trt"][0] not in onnxruntime.get_available_providers():
        return [None] * len(plan["models"])
    with tempfile.TemporaryDirectory() as temporary:
        process = _start(Path(temporary), dict(plan, build=True), None)
        process.communicate()
        _check_end(Path(temporary), process)
        seconds: list[float | None] = json.loads((Path(temporary) / "built.json").read_text(encoding="utf-8"))
        return seconds


def _note_build(trials: Sequence[Trial], seconds: float | None) -> None:
    """Put down how long an engine took to build before these trials, which found it in the cache."""
    for trial in trials:
        if seconds is not None and trial.facts["runtime"]["trt"]:
            trial.facts["runtime"]["trt"]["build_s"] = seconds
            trial.facts["missing"].pop("runtime.trt.build_s", None)


def _check_end(folder: Path, process: Any) -> None:
    """Wait for a worker to end, and raise its error."""
    process.stdin.close()  # one that waits for the start signal ends
    process.wait()
    if (folder / "error.json").exists():
        told = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        raise EdgeError(told["message"], told["code"])
    if process.returncode != 0:
        said = (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else ""
        lines = said.strip().splitlines() or ["it said nothing"]
        raise EdgeError(f"A measuring process ended with code {process.returncode}: {lines[-1][:300]}")


def _outcome(folder: Path, process: Any) -> list[Trial]:
    """What a worker left, or its error."""
    _check_end(folder, process)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    with np.load(str(folder / "series.npz")) as kept:
        names = sorted({key.split("/", 1)[1] for key in kept})
        return [Trial({name: kept[f"{k}/{name}"] for name in names}, f) for k, f in enumerate(facts)]


def fresh_trials(plan: dict[str, Any]) -> list[list[Trial]]:
    """Measure in new processes, plan["streams"] at once, all starting to time together; one list of trials each."""
    with tempfile.TemporaryDirectory() as temporary:
        workers: list[tuple[Path, Any]] = []
        try:
            for stream in range(plan["streams"]):
                folder = Path(temporary) / str(stream)
                folder.mkdir()
                with (folder / "stderr").open("wb") as errors:
                    workers.append((folder, _start(folder, dict(plan, stream=stream), errors)))
            # what a library prints while it is imported comes first
            waiting = [p for _, p in workers if any(line.strip() == READY.encode() for line in p.stdout)]
            if len(waiting) == len(workers):
                for process in waiting:
                    process.stdin.write(b"go\n")
                    process.stdin.flush()
                return [_outcome(folder, process) for folder, process in workers]
            for folder, process in workers:
                if process not in waiting:
                    _outcome(folder, process)  # raises what went wrong
            raise EdgeError("A measuring process ended before it began to time frames.")
        finally:
            for _, process in workers:
                if process.poll() is None:
                    process.kill()
                process.wait()
                process.stdin.close()
                process.stdout.close()


# --- trtexec as a cross-check ---------------------------------------------------------------------------------------

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
_TRT_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_TRT_LINE = re.compile(
    r"(End-to-End Host Latency|Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency): (min = .*)$",
    re.MULTILINE,
)
_TRT_VALUE = re.compile(r"(min|max|mean|median|percentile\((\d+(?:\.\d+)?)%\)) = (\d+(?:\.\d+)?(?:e[+-]?\d+)?) ms")
_TRT_QPS = re.compile(r"Throughput: (\d+(?:\.\d+)?) qps")


def parse_trtexec(text: str) -> dict[str, Any]:
    """Read trtexec's report, of TensorRT 8.2 to 11.

    Returns:
        version (or None), throughput_qps (or None), passed (or None), and times: label such as "GPU Compute Time" ->
        {min, max, mean, median, p99, ...} in ms, as far as printed.
    """
    banner, qps = _TRT_BANNER.search(text), _TRT_QPS.search(text)
    times: dict[str, dict[str, float]] = {}
    for label, values in _TRT_LINE.findall(text):
        row = times.setdefault(label, {})
        for name, level, value in _TRT_VALUE.findall(values):
            row["p" + level if level else name] = float(value)
    passed = True if "&&&& PASSED" in text else False if "&&&& FAILED" in text else None
    return {
        "version": _version_text(int(banner.group(1))) if banner else None,
        "throughput_qps": float(qps.group(1)) if qps else None,
        "passed": passed,
        "times": times,
    }


def trtexec_flags(version: str, model: Path, fp16: bool, int8: bool, trace: Path, graph: bool = False) -> list[str]:
    """trtexec's arguments, with the same meaning for every version.

    Up to TensorRT 10 the latency includes the copies, and neither a CUDA graph nor spin-waiting is used; TensorRT 11
    turned all three defaults round, and takes the precision from the file alone. `graph` asks for the CUDA graph.
    """
    flags = [f"--onnx={model}", "--warmUp=2000", "--duration=30", f"--exportTimes={trace}"]
    major, minor = (int(v) for v in version.split(".")[:2])
    # 8.2 knows a single percentile
    flags.append("--percentile=99" if (major, minor) < (8, 5) else "--percentile=50,90,95,99")
    if major < 11:
        return flags + ["--fp16"] * fp16 + ["--int8"] * int8 + ["--useCudaGraph"] * graph
    return flags + ["--includeDataTransfers", "--noSpinWait"] + ["--noCudaGraph"] * (not graph)


def _trace_percentiles(trace: Path) -> dict[str, float] | None:
    """Our own percentiles of trtexec's raw times (ms), by our rule."""
    try:
        rows = json.loads(trace.read_text(encoding="utf-8"))
        latencies = [float(row["latencyMs"]) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not latencies:
        return None
    return {k: percentile(latencies, p) for k, p in PERCENTILES.items() if len(latencies) >= samples_needed(p)}


def cross_check(model: Path, fp16: bool, infer_p50: float) -> tuple[dict[str, Any] | None, str]:
    """Measure a model with trtexec, once as onnxruntime runs it and once with a CUDA graph; (result, why not)."""
    program = TRTEXEC if os.access(TRTEXEC, os.X_OK) else shutil.which("trtexec")
    if program is None:
        return None, "trtexec is not installed"
    version = parse_trtexec(tool_output(program, "--help") or "")["version"] or tensorrt_version()
    if version is None:
        return None, "trtexec does not tell its version"
    content = model.read_bytes()
    fp16, int8 = fp16 or says_fp16(content), b"QuantizeLinear" in content
    out: dict[str, Any] = {"tool": "trtexec", "version": version}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "gpu_graph"):
            trace = Path(folder) / f"{name}.json"
            flags = trtexec_flags(version, model, fp16, int8, trace, name == "gpu_graph")
            report = parse_trtexec(tool_output(program, *flags, timeout_s=3600) or "")
            if not report["times"] or report["passed"] is False:
                return None, f"trtexec {version} failed on {model.name}"
            out[name] = {
                "flags": [flag for flag in flags if "=/" not in flag],
                "latency_ms": _trace_percentiles(trace) or report["times"].get("Latency"),
                "gpu_compute_ms": report["times"].get("GPU Compute Time"),
                "throughput_qps": report["throughput_qps"],
            }
    latency = out["plain"]["latency_ms"] or {}
    middle = latency.get("p50", latency.get("median"))
    out["infer_p50_ratio"] = infer_p50 / middle if middle else None
    return out, ""


# --- Bench ----------------------------------------------------------------------------------------------------------


def _limits(profile: str | Limits, time_limit_s: float | None) -> Limits:
    if isinstance(profile, str) and profile not in PROFILES:
        raise EdgeError(f"Unknown profile '{profile}': choose {', '.join(PROFILES)}.")
    if time_limit_s is not None and not time_limit_s > 0:
        raise EdgeError(f"The time limit must be above 0 s, not {time_limit_s:g}.")
    limits = PROFILES[profile] if isinstance(profile, str) else profile
    if time_limit_s is None:
        return limits
    return limits._replace(t_max_s=time_limit_s, warm_up_cap_s=min(time_limit_s, limits.warm_up_cap_s))


def _listed(value: Any) -> list[Any]:
    """A sweep's values: a list as it is, a text split at its commas, anything else alone."""
    if isinstance(value, str):
        return [word for word in value.split(",") if word]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _counted(value: Any, what: str) -> int | None:
    """A number of at least 1; None and "all" mean every usable core."""
    if value is None or value == "all":
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, float) and value != number:
        raise EdgeError(f"{what} must be whole numbers of at least 1, not {value!r}.")
    return number


def _sized(value: Any) -> tuple[int, int] | None:
    """(height, width) from 320, "320" or "320x640"."""
    if value is None:
        return None
    sides = [_counted(side, "Input sizes") or 0 for side in str(value).split("x")]
    if len(sides) > 2 or 0 in sides:
        raise EdgeError(f"An input size is one number or HEIGHTxWIDTH, not {value!r}.")
    return sides[0], sides[-1]


def _cells(threads: Any, provider: Any, imgsz: Any, streams: Any, precision: Any) -> list[dict[str, Any]]:
    """The combinations that a sweep measures; a single one without lists."""
    axes = {
        "threads": [_counted(v, "Threads") for v in _listed(threads)],
        "provider": _listed(provider),
        "imgsz": [_sized(v) for v in _listed(imgsz)],
        "streams": [_counted(v, "Streams") or _usable_cores() for v in _listed(streams)],
        "precision": _listed(precision),
    }
    for name in axes["precision"]:
        if name not in (None, *PRECISIONS):
            raise EdgeError(f"Unknown precision '{name}': choose {', '.join(PRECISIONS)}.")
    for name in axes["provider"]:
        check_provider(name)
    if not all(axes.values()):
        raise EdgeError("A sweep over nothing: give at least one value for each option.")
    return [dict(zip(axes, values)) for values in product(*axes.values())]  # noqa: B905


def collect(
    paths: Sequence[str | Path],
    images: str | Path | Sequence[np.ndarray],
    profile: str | Limits = "smoke",
    threads: Any = None,
    provider: Any = "cpu",
    seed: int = 0,
    time_limit_s: float | None = None,
    own_process: bool = False,
    repeats: int | None = 1,
    streams: Any = 1,
    imgsz: Any = None,
    power: bool = False,
    idle_s: float = 10.0,
    fp16: bool = False,
    cache: str | None = None,
    allow_fallback: bool = False,
    trtexec: bool = False,
    precision: Any = None,
) -> tuple[list[dict[str, Any]], list[dict[str, np.ndarray]]]:
    """Measure models, interleaved.

    One run of one combination happens in this process. Several runs, several streams or a sweep get a new process a
    run; the combinations of a sweep take turns in random order, so that a drift of the machine meets all alike.

    Args:
        paths: ONNX files or bundles.
        images: An image file or folder, or frames (H, W, 3) BGR uint8 in memory, cycled in the order given; at least
            32 are recommended. New processes read the images themselves and need a path.
        profile: smoke (100 frames, 3 s), standard (1,000 frames, 30 s) or soak (600 s); counts and time must both be
            reached. Or limits of your own.
        threads: Threads of ONNX Runtime and OpenCV; all usable cores by default. A list or "1,2,all" is swept over,
            and so are lists in provider, imgsz, streams and precision.
        provider: As for Detector.
        seed: Of the images' order and the models' random order in each round.
        time_limit_s: Stop warming up and stop measuring here even if that is too early; a record then says so.
        own_process: Whether this process was started for this measurement, so that its memory is worth reporting.
        repeats: Runs; None for the profile's own number (5, for soak 1).
        streams: Processes that detect at the same time.
        imgsz: Input size, 320 or "320x640", for files without a fixed one.
        power: Sample the board's power, after an idle baseline.
        idle_s: Length of that baseline.
        fp16: Let TensorRT use half precision.
        cache: Folder of TensorRT's engines.
        allow_fallback: As for Detector.
        trtexec: Measure with trtexec as well, where it is installed.
        precision: Which file of a bundle: fp32, fp16 or int8.

    Returns:
        One record a model and combination (schema yolokd.latency/1), and its samples: ns (n,) by stage, `start`,
        `switches`, `run`, and telemetry (n, 2) of time and value under `telemetry/...`.
    """
    limits = _limits(profile, time_limit_s)
    cells = _cells(threads, provider, imgsz, streams, precision)
    check_fp16(fp16, [cell["provider"] for cell in cells])
    if repeats is None:
        repeats = REPEATS[profile] if isinstance(profile, str) else 1
    if not isinstance(repeats, int) or repeats < 1:
        raise EdgeError(f"The number of runs must be at least 1, not {repeats!r}.")
    fresh = repeats > 1 or len(cells) > 1 or cells[0]["streams"] > 1
    frames = _frames(paths, images, seed, fresh)
    shared = {
        "models": [str(path) for path in paths],
        "source": str(images) if isinstance(images, (str, Path)) else None,
        "profile": profile if isinstance(profile, str) else "custom",
        "limits": list(limits),
        "seed": seed,
        "fp16": fp16,
        "cache": cache,
        "allow_fallback": allow_fallback,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(sys.argv),
        "stream": 0,
        "repeat": 0,
        "build": False,
    }
    plans = [dict(shared, **cell) for cell in cells]

    def once(plan: dict[str, Any]) -> list[list[Trial]]:
        return fresh_trials(plan) if fresh else [run_trial(plan, frames, own_process)]

    builds = [build_engines(plan) if fresh else [None] * len(paths) for plan in plans]
    bare = [once(plan) if power and len(paths) == 1 else None for plan in plans]  # without the sampler
    trials, telemetries = _watched(plans, repeats, power, idle_s, once)
    records, series = [], []
    for plan, found, telemetry, unwatched, built in zip(plans, trials, telemetries, bare, builds):  # noqa: B905
        overhead = _overhead(found[0], unwatched[0]) if unwatched else None
        if unwatched and not fresh:  # then it was the bare run that built
            built = [(unwatched[0][0].facts["runtime"]["trt"] or {}).get("build_s")]
        for k, own in enumerate(found):
            _note_build(own, built[k])
            check, plan["cross_check"] = _cross_check(Path(paths[k]), plan, own) if trtexec else (None, None)
            records.append(record(own, plan, telemetry, found[0] if k else None, overhead, check))
            series.append(_joined(own, telemetry))
    return records, series


def _frames(paths: Sequence[Any], images: Any, seed: int, fresh: bool) -> Sequence[np.ndarray]:
    """The frames to measure on, once it is clear that there is something to measure."""
    in_memory = not isinstance(images, (str, Path))
    if not paths or in_memory and not len(images):
        raise EdgeError("A measurement needs at least one model and one image.")
    if fresh and in_memory:
        raise EdgeError("Several runs read the images in processes of their own: give the path of the images.")
    frames: Sequence[np.ndarray] = images if in_memory else read_frames(images, seed)
    for path in paths:
        if not Path(path).exists():
            raise EdgeError(f"There is no model file {path}.")
    return frames


def _cross_check(path: Path, plan: dict[str, Any], trials: Sequence[Trial]) -> tuple[dict[str, Any] | None, str]:
    p50 = median(int(v) for t in trials for v in t.series["infer"]) / 1e6
    bundle = open_bundle(path) if is_bundle(path) else None  # a zip file's temporary folder lives as long
    file = bundle.model(plan["precision"] or "fp32", plan["provider"]) if bundle else path
    return cross_check(file, plan["fp16"], p50)


def _watched(
    plans: Sequence[dict[str, Any]],
    repeats: int,
    power: bool,
    idle_s: float,
    once: Callable[[dict[str, Any]], list[list[Trial]]],
) -> tuple[list[list[list[Trial]]], list[Telemetry]]:
    """Run each plan so often, in random order within a repeat, while the board is watched.

    Returns:
        For each plan its trials by model, and what the board said while it ran.
    """
    found: list[list[list[Trial]]] = [[[] for _ in plan["models"]] for plan in plans]
    order, rng, idle = list(range(len(plans))), random.Random(plans[0]["seed"]), None
    with Monitor(power) as monitor:
        if power:
            start = monitor.clock()
            time.sleep(idle_s)
            idle = (start, monitor.clock())
        for repeat in range(repeats):
            rng.shuffle(order)
            for k in order:
                for stream in once(dict(plans[k], repeat=repeat)):
                    for model, trial in enumerate(stream):
                        found[k][model].append(trial)
        if monitor.tegrastats and power:
            time.sleep(0.3)  # a sample after the last frame, so that the energy is bracketed
    return found, [Telemetry(monitor, busy_windows([t for model in own for t in model]), idle) for own in found]


def _overhead(watched: Sequence[Trial], bare: Sequence[Trial]) -> float:
    """By how many percent the sampler slowed the median frame of the first run."""
    with_it, without = (float(np.median(t[0].series["total"])) for t in (watched, bare))
    return 100 * (with_it / without - 1)


def _joined(trials: Sequence[Trial], telemetry: Telemetry) -> dict[str, np.ndarray]:
    """All trials' samples one after the other, with the number of the run, and what was sampled beside them."""
    names = (*STAGES, "start", "switches")
    out = {name: np.concatenate([t.series[name] for t in trials]) for name in names}
    out["run"] = np.repeat(np.arange(len(trials)), [len(t.series["total"]) for t in trials])
    out.update({"telemetry/" + name: values for name, values in telemetry.series().items()})
    return out


def write_report(
    records: list[dict[str, Any]], series: list[dict[str, np.ndarray]], out: str | Path, overwrite: bool = False
) -> Path:
    """Write the records as a JSON list and the raw samples beside it (.npz, key 'record number/name', ns int64).

    Each record then names its series file and checksum. Returns the path of the .npz.
    """
    out = _new_report(out, overwrite)
    npz = out.with_suffix(".npz")
    arrays: dict[str, Any] = {
        f"{k}/{stage}": samples for k, stages in enumerate(series) for stage, samples in stages.items()
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with npz.open("wb") as file:
            np.savez_compressed(file, **arrays)
        for entry in records:
            entry["series"] = {"file": npz.name, "sha256": _sha256(npz)}
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"{out} cannot be written ({error.strerror}).") from None
    return npz


def _new_report(out: str | Path, overwrite: bool = False) -> Path:
    """Refuse a place where an earlier report would be lost; asked before measuring as well as before writing."""
    out = Path(out)
    if out.suffix.lower() == ".npz" or out.is_dir():
        raise EdgeError(f"{out} cannot be the report: give a file name such as report.json.")
    for path in (out, out.with_suffix(".npz")):
        if path.exists() and not overwrite:
            raise EdgeError(f"{path} exists already; choose another name for the report.")
    check_writable(out, str(out))
    return out


def check_writable(place: Path, said: str) -> None:
    """Refuse a file or folder that cannot be made there, now and not after minutes of measuring."""
    above = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    if not os.access(str(above), os.W_OK) or (above != place.absolute() and not above.is_dir()):
        raise EdgeError(f"{said} cannot be written, {above} is no folder of yours: name a place elsewhere.")


def bench(
    paths: Sequence[str | Path],
    images: str | Path | Sequence[np.ndarray],
    out: str | Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure models as `collect` does (same options) and write a report to `out` if given; one record a model."""
    if out is not None:
        _new_report(out)
    records, series = collect(paths, images, **options)
    if out is not None:
        write_report(records, series, out)
    return records


def _cell_name(entry: dict[str, Any]) -> str:
    runtime, size = entry["runtime"], "x".join(map(str, entry["model"]["imgsz"]))
    provider = runtime["providers_active"][0].replace("ExecutionProvider", "").lower()
    provider += " fp16" if (runtime.get("trt") or {}).get("fp16") else ""
    return f"{provider} {size}, threads {runtime['intra_threads']}, streams {entry['protocol']['streams']}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Records as a text table; the stages are medians, all times in ms. Then what casts doubt on them."""
    head = ("model", "where", "MB", "precision", "pre", "infer", "post", "total p50", "95 %", "p90", "p99", "fps")
    rows = [(*head, "cpu_ratio", "verdict")]
    for entry in records:
        figures, model = entry["results"], entry["model"]
        stages = figures["stages"]
        ends = stages["total"]["ci95"]["p50"]
        cells = [model["file"], _cell_name(entry), f"{model['bytes'] / 1e6:.1f}", model["precision"]]
        cells += [_cell(stages[s]["p50"]) for s in STAGES]
        cells.append("-" if ends is None else "{:.2f}..{:.2f}".format(*ends))
        cells += [_cell(stages["total"][key]) for key in ("p90", "p99")]
        cells += [_cell(figures[key]) for key in ("fps_from_p50", "cpu_ratio")]
        rows.append((*cells, entry["stability"]["verdict"]))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(widths[k]) if k < 2 else c.rjust(widths[k]) for k, c in enumerate(row)) for row in rows]
    return "\n".join(lines + [f"{r['model']['file']}: {why}" for r in records for why in r["stability"]["reasons"]])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# --- Doctor ---------------------------------------------------------------------------------------------------------

ERROR, WARNING, NOTE = "error", "warning", "note"
JETPACK_WHEELS = {
    "4": "JetPack 4 has Python 3.6, too old for this program: upgrade the board, or run it in a container",
    "5": "install the wheel for JetPack 5 from NVIDIA's Jetson Zoo",
    "6": "pip install onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126",
    "7": "pip install onnxruntime-gpu",
}


class Finding(NamedTuple):
    """Something that is wrong, and what to do about it."""

    level: str  # error: does not work, or its figures mean nothing; warning: costs speed or comparability; note
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}\n  -> {self.remedy}"


def installed() -> dict[str, str]:
    """Installed distributions -> version, names in lower case with dashes."""
    names: dict[str, str] = {}
    for distribution in packages.distributions():
        name = distribution.metadata["Name"]
        if name:
            names[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return names


def doctor(model: str | Path | None = None, provider: str = "auto") -> list[Finding]:
    """Look for what is wrong with this installation and this board; the worst first.

    Args:
        model: An ONNX file that should run here.
        provider: Where it should run: cpu, cuda, trt or auto.
    """
    found = _check_packages(installed()) + _check_providers(provider) + _check_tensorrt(provider)
    sensors = Sensors()
    found += _check_clocks(sensors) + _check_power_mode() + _check_memory() + _check_load() + _check_heat(sensors)
    if model is not None:
        found += _check_model(Path(model), provider)
    order = (ERROR, WARNING, NOTE)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _check_packages(names: dict[str, str]) -> list[Finding]:
    out = []
    runtimes = sorted(n for n in names if re.match(r"onnxruntime(-(gpu|openvino|directml|qnn|rocm|training))?$", n))
    if len(runtimes) > 1:
        keep = "onnxruntime-gpu" if "onnxruntime-gpu" in runtimes else runtimes[-1]
        out.append(
            Finding(
                ERROR,
                f"{' and '.join(runtimes)} are installed side by side; they overwrite each other's files, and the GPU "
                "is silently lost",
                f"pip uninstall -y {' '.join(runtimes)}, then install {keep} alone",
            )
        )
    views = sorted(n for n in names if re.match(r"opencv-(contrib-)?python(-headless)?$", n))
    if len(views) > 1:
        out.append(
            Finding(
                WARNING,
                f"{' and '.join(views)} are installed side by side; which one runs is a matter of chance",
                f"pip uninstall -y {' '.join(views)}, then install one of them",
            )
        )
    jetpack = jetpack_version(l4t_version()) or ""
    if jetpack[:1] in ("5", "6") and int(np.__version__.split(".")[0]) >= 2:
        out.append(
            Finding(
                WARNING,
                f"numpy {np.__version__} is newer than what the wheels for JetPack {jetpack} were built with",
                'pip install "numpy<2"',
            )
        )
    return out


def _check_providers(provider: str) -> list[Finding]:
    if provider == "cpu":
        return []
    if provider in RUNTIMES:
        try:
            _package(provider, provider)
        except EdgeError as error:
            return [Finding(ERROR, str(error), "install it, or use --provider cpu")]
        return []
    available = onnxruntime.get_available_providers()
    jetpack = (jetpack_version(l4t_version()) or "")[:1]
    wheel = JETPACK_WHEELS.get(jetpack, "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu")
    if provider != "auto" and PROVIDERS[provider][0] not in available:
        return [Finding(ERROR, f"ONNX Runtime {onnxruntime.__version__} has no {PROVIDERS[provider][0]}", wheel)]
    if is_jetson() and PROVIDERS["trt"][0] not in available:
        what = "no TensorRT provider: this ONNX Runtime cannot use the Jetson's GPU as TensorRT does"
        if PROVIDERS["cuda"][0] not in available:
            what = "no TensorRT and no CUDA provider: this ONNX Runtime runs everything on the CPU"
        return [Finding(ERROR, what, wheel)]
    if not is_jetson() and _nvidia_smi("name") and PROVIDERS["cuda"][0] not in available:
        what = f"the {_nvidia_smi('name')} is not used: this ONNX Runtime has no CUDA provider"
        return [Finding(WARNING, what, wheel)]
    return []


def _check_tensorrt(provider: str) -> list[Finding]:
    listed = PROVIDERS["trt"][0] in onnxruntime.get_available_providers()
    if provider not in ("auto", "trt") or not (is_jetson() or listed and provider == "trt"):
        return []
    version = tensorrt_version()
    if version is None:
        remedy = "sudo apt install nvidia-jetpack" if is_jetson() else "install TensorRT, or use --provider cuda"
        return [
            Finding(ERROR if provider == "trt" else WARNING, "the TensorRT library (libnvinfer) is missing", remedy)
        ]
    numbers = [int(v) for v in version.split(".")[:2]]
    if numbers < [8, 5]:
        what = f"TensorRT {version} cannot build NMS-free models, and before 8.4 half precision gives wrong scores"
        return [Finding(WARNING, what, "export with the raw head and full precision, or upgrade JetPack")]
    if numbers == [10, 3]:
        what = f"TensorRT {version} fails to build NMS-free models in INT8"
        return [Finding(NOTE, what, "for INT8 use the model with the raw head")]
    return []


def _check_clocks(sensors: Sensors) -> list[Finding]:
    limits, shown = sensors.limits(), parse_jetson_clocks(tool_output("jetson_clocks", "--show") or "")["locked"]
    governors = set((limits["governor"] or "performance").split(","))
    ends = [pair for pair in (limits["cpu_khz"], limits["gpu_hz"]) if pair and None not in pair]
    if shown or not shown and all(low == high for low, high in ends) or not ends and shown is None:
        return []
    remedy = (
        "sudo jetson_clocks (until the next restart)" if is_jetson() else "sudo cpupower frequency-set -g performance"
    )
    if shown is None and governors == {"performance"} and not limits["gpu_hz"]:
        return []
    return [Finding(WARNING, "clocks are not locked: latency will depend on what the board did just before", remedy)]


def _power_modes() -> dict[str, int]:
    """Names and ids of the power modes that this board knows."""
    text = _text(system_path("/etc/nvpmodel.conf")) or ""
    return {name: int(k) for k, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text)}


def _check_power_mode() -> list[Finding]:
    if not is_jetson():
        return []
    mode, modes = parse_nvpmodel(tool_output("nvpmodel", "-q") or ""), _power_modes()
    if mode is None:
        remedy = "run sudo nvpmodel -q; in a container, run this program on the host"
        return [Finding(WARNING, "the power mode cannot be read, so reports will not tell it", remedy)]
    name = mode["name"] or f"number {mode['id']}"
    if name.upper().startswith("MAXN"):
        return []
    best = sorted(m for m in modes if m.upper().startswith("MAXN"))
    remedy = (
        f"sudo nvpmodel -m {modes[best[-1]]} ({best[-1]})" if best else "list the modes: sudo nvpmodel -p --verbose"
    )
    return [
        Finding(WARNING, f"the power mode is {name}, which limits the clocks", remedy + ", if its power may be drawn")
    ]


def _check_memory() -> list[Finding]:
    meminfo = system_path("/proc/meminfo")
    total, swap, left = (_first_match(meminfo, key) for key in ("MemTotal", "SwapTotal", "MemAvailable"))
    out = []
    if swap is not None and int(swap.split()[0]) == 0 and (is_jetson() or total and int(total.split()[0]) < 4 << 20):
        what = "there is no swap: building an engine may be killed for want of memory"
        remedy = "sudo fallocate -l 8G /swap; sudo chmod 600 /swap; sudo mkswap /swap; sudo swapon /swap"
        out.append(Finding(WARNING, what, remedy))
    if left is not None and int(left.split()[0]) < 1 << 20:
        what = f"only {int(left.split()[0]) // 1024} MB of memory are free"
        out.append(
            Finding(WARNING, what, "end other programs; sudo systemctl isolate multi-user.target stops the desktop")
        )
    return out


def _check_load() -> list[Finding]:
    load = _load()
    if load is None or load < 0.5 * _usable_cores():
        return []
    what = f"the machine is busy: load average {load:.1f} on {_usable_cores()} cores"
    return [Finding(WARNING, what, "measure when nothing else runs (look with top)")]


def _check_heat(sensors: Sensors) -> list[Finding]:
    tj, trip = junction(sensors.read()["temps"]), sensors.passive_trip()
    if tj is not None and trip is not None and tj > trip - 5:
        what = f"the chip is at {tj:.0f} deg C and slows itself down at {trip:.0f}"
        return [Finding(ERROR, what, "cool it: fan, heat sink, a lower power mode")]
    if is_jetson() and shutil.which("tegrastats") is None:
        return [
            Finding(
                WARNING, "tegrastats is not in PATH, so power cannot be measured", "run on the host, not in a container"
            )
        ]
    return []


def _check_model(path: Path, provider: str) -> list[Finding]:
    try:
        detector = load(path, provider)
    except EdgeError as error:
        return [Finding(ERROR, str(error), "see above" if error.code == PROVIDER else "export the model again")]
    out = []
    flags = _first_match(system_path("/proc/cpuinfo"), "flags") or _first_match(
        system_path("/proc/cpuinfo"), "Features"
    )
    quick = {"avx512_vnni", "avx_vnni", "asimddp"}
    if (
        detector.contract.precision == "int8"
        and detector.active == PROVIDERS["cpu"][0]
        and flags
        and not quick & set(flags.split())
    ):
        what = f"{path.name} is INT8, and this CPU has no instructions for it: it may be slower than FP32"
        out.append(Finding(WARNING, what, "measure both: bench --model int8.onnx fp32.onnx"))
    return out + [Finding(NOTE, f"{path.name} runs on {detector.active}", "nothing to do")]


# --- Command line ---------------------------------------------------------------------------------------------------


def draw(frame: np.ndarray, detections: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """A copy of the frame with boxes, class names and scores on it."""
    out = frame.copy()
    scale = max(out.shape[:2]) / 1200 + 0.2
    for x1, y1, x2, y2, conf, cls in detections.tolist():
        colour = tuple(int(c) for c in np.random.RandomState(int(cls)).randint(60, 230, 3))
        corner = (int(x1), int(y1))
        cv2.rectangle(out, corner, (int(x2), int(y2)), colour, max(1, round(2 * scale)))
        text = f"{names.get(int(cls), int(cls))} {conf:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        left, bottom = min(corner[0], max(out.shape[1] - width, 0)), max(corner[1], height + base)
        cv2.rectangle(out, (left, bottom - height - base), (left + width, bottom), colour, -1)
        cv2.putText(out, text, (left, bottom - base), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return out


def _as_json(frame: Frame, detections: np.ndarray, names: dict[int, str]) -> str:
    found = [
        {"box": [round(v, 3) for v in box], "conf": round(conf, 6), "cls": int(cls), "name": names[int(cls)]}
        for *box, conf, cls in detections.tolist()
    ]
    number = {} if frame.number is None else {"frame": frame.number}
    return json.dumps({"image": frame.source, **number, "hw": list(frame.pixels.shape[:2]), "detections": found})


def _as_text(frame: Frame, detections: np.ndarray, names: dict[int, str]) -> str:
    counts = Counter(names[int(c)] for c in detections[:, 5])
    number = "" if frame.number is None else f" frame {frame.number}"
    return f"{frame.source}{number}: " + (", ".join(f"{n} {name}" for name, n in counts.most_common()) or "nothing")


class Drawings:
    """A folder for frames with boxes on them: an image each, or one video (Motion JPEG, which every OpenCV writes)."""

    def __init__(self, folder: str, source: str) -> None:
        self.folder, self.video = Path(folder), None
        still = not _is_stream(source) and Path(source).suffix.lower() not in VIDEO_SUFFIXES
        images = list_images(source) if still else []
        inside = bool(images) and self.folder.exists() and self.folder.resolve() == images[0].resolve().parent
        if inside or (self.folder.exists() and not self.folder.is_dir()):
            raise EdgeError(
                f"{self.folder} cannot take the drawn images: give a folder other than that of the source images."
            )
        stem = Path(source).stem if not _is_stream(source) else "camera"
        self.clip = self.folder / f"{stem}.avi"
        self.rate = 30.0
        if not still:
            video = _open_video(source)
            self.rate = video.get(cv2.CAP_PROP_FPS) or self.rate
            video.release()
        for path in [self.folder / image.name for image in images] if still else [self.clip]:
            if path.exists():
                raise EdgeError(f"{path} exists already: give a new folder for the drawn images.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeError(f"{self.folder} cannot be made ({error.strerror}).") from None

    def add(self, frame: Frame, drawn: np.ndarray) -> None:
        """Write one frame."""
        if frame.number is None:
            path = self.folder / Path(frame.source).name
            written = cv2.imwrite(str(path), drawn)
        else:
            path = self.clip
            if self.video is None:
                size = (drawn.shape[1], drawn.shape[0])
                self.video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), self.rate, size)
            written = self.video.isOpened()
            self.video.write(drawn)
        if not written:
            raise EdgeError(f"{path} cannot be written.")

    def close(self) -> None:
        """Finish the video."""
        if self.video is not None:
            self.video.release()


def _engine(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a Detector for TensorRT's engine, and whether another provider will do."""
    check_fp16(args.fp16, [args.provider])
    return {"tensorrt": TensorRT(args.fp16, args.cache), "allow_fallback": args.allow_fallback}


def _detect_command(args: argparse.Namespace) -> None:
    thresholds = (args.conf, args.iou, args.max_det)
    detector = load(args.model, args.provider, args.threads, args.precision, *thresholds, **_engine(args))
    drawings = Drawings(args.save, args.source) if args.save else None
    try:
        for frame in read_source(args.source, args.frames):
            found = detector.detect(frame.pixels)
            print((_as_json if args.json else _as_text)(frame, found, detector.names), flush=frame.number is not None)
            if drawings is not None:
                drawings.add(frame, draw(frame.pixels, found, detector.names))
    except KeyboardInterrupt:  # how a person ends a camera
        pass
    finally:
        if drawings is not None:
            drawings.close()


def _verify_command(args: argparse.Namespace) -> None:
    path = own_bundle() if args.model is None else Path(args.model)
    if not is_bundle(path):
        raise EdgeError(f"{path} is no bundle: verify compares with what a bundle says, made with `yolokd bundle`.")
    figures = verify(open_bundle(path), args.provider, args.threads, args.precision, **_engine(args))
    print(json.dumps(figures) if args.json else parity_text(figures))
    if not figures["pass"]:
        raise EdgeError("this device does not compute what the bundle says; see the figures above.", PARITY)


def _bench_command(args: argparse.Namespace) -> None:
    models, source = args.model or [str(own_bundle())], args.source
    if source is None:
        if args.model:
            raise EdgeError("No images: give --source with an image or a folder of images.")
        source = str(own_bundle() / "parity")
    records = bench(
        models,
        source,
        args.out,
        profile=args.profile,
        threads=args.threads,
        provider=args.provider,
        seed=args.seed,
        time_limit_s=args.time_limit,
        own_process=True,
        repeats=1 if args.quick else args.repeats,
        streams=args.streams,
        imgsz=args.imgsz,
        power=args.power,
        idle_s=args.idle,
        fp16=args.fp16,
        cache=args.cache,
        allow_fallback=args.allow_fallback,
        trtexec=args.trtexec,
        precision=args.precision,
    )
    print(table(records))


def _doctor_command(args: argparse.Namespace) -> int:
    found = doctor(args.model, args.provider)
    if args.json:
        print(json.dumps([f._asdict() for f in found], indent=1))
    else:
        print("\n".join(str(f) for f in found) or "Nothing is wrong.")
    return 1 if any(f.level == ERROR for f in found) else 0


def _number(kind: Callable[[str], Any], least: float, most: float = math.inf) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            bound = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a number {bound}")
        return value

    return read


def _detect_arguments(detected: argparse.ArgumentParser) -> None:
    detected.add_argument(
        "--source", required=True, help="image, folder, video, or camera (0, /dev/video0, rtsp://...)"
    )
    detected.add_argument("--model", help="an ONNX file or a bundle (default: the bundle that this file lies in)")
    detected.add_argument("--precision", choices=PRECISIONS, help="which file of a bundle (default fp32)")
    detected.add_argument("--conf", type=_number(float, 0, 1), help="least confidence (default the bundle's, or 0.25)")
    detected.add_argument("--iou", type=_number(float, 0, 1), help="NMS overlap (default the bundle's, or 0.7)")
    detected.add_argument("--max-det", type=_number(int, 1), help="most detections (default the bundle's, or 300)")
    detected.add_argument("--frames", type=_number(int, 1), metavar="N", help="stop after N frames")
    detected.add_argument("--save", metavar="DIR", help="folder for the images or the video with drawn boxes")
    detected.add_argument("--json", action="store_true", help="print one JSON line a frame")
    detected.set_defaults(run=_detect_command)


def _bench_arguments(measured: argparse.ArgumentParser) -> None:
    measured.add_argument("--model", nargs="+", help="ONNX files or bundles (default: the bundle this file lies in)")
    measured.add_argument("--source", help="an image or a folder, 32 or more if possible (default: the bundle's own)")
    measured.add_argument("--precision", help="which file of a bundle, or a list: fp32,int8 (default fp32)")
    measured.add_argument("--profile", default="smoke", choices=tuple(PROFILES), help="how long (default smoke)")
    measured.add_argument(
        "--provider",
        default="cpu",
        help="auto or one of {}; a list is swept over: cpu,trt".format(", ".join(PROVIDERS)),
    )
    measured.add_argument("--threads", help="CPU threads, or a list: 1,2,all (default all usable cores)")
    measured.add_argument("--streams", default="1", help="processes that detect at the same time, or a list: 1,2,4")
    measured.add_argument("--imgsz", help="input size for files without a fixed one, or a list: 320,480x640")
    measured.add_argument("--repeats", type=_number(int, 1), help="runs, each a new process (default 5, for soak 1)")
    measured.add_argument("--quick", action="store_true", help="a single run")
    measured.add_argument(
        "--time-limit", type=_number(float, 0.001), metavar="S", help="seconds after which to stop a run anyway"
    )
    measured.add_argument("--power", action="store_true", help="sample the board's power")
    measured.add_argument(
        "--idle", type=_number(float, 0), default=10.0, metavar="S", help="idle baseline (default 10)"
    )
    measured.add_argument("--trtexec", action="store_true", help="measure with trtexec as well, where installed")
    measured.add_argument("--seed", type=int, default=0, help="of image and model order (default 0)")
    measured.add_argument("--out", help="report to write, such as report.json; the raw samples go beside it")
    measured.set_defaults(run=_bench_command)


def parser() -> argparse.ArgumentParser:
    """The command line, readable with --help."""
    top = argparse.ArgumentParser(prog="yolokd_edge.py", description="Run or measure an exported YOLO detector.")
    top.add_argument("--version", action="version", version=VERSION)
    verbs = top.add_subparsers(dest="verb", required=True)
    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--fp16", action="store_true", help="half precision in TensorRT (provider trt)")
    engine.add_argument("--cache", metavar="DIR", help="TensorRT's engines (default YOLOKD_CACHE or ~/.cache/yolokd)")
    engine.add_argument("--allow-fallback", action="store_true", help="take the next provider if one is not active")
    device = argparse.ArgumentParser(add_help=False, parents=[engine])
    device.add_argument("--provider", default="cpu", choices=("auto", *PROVIDERS), help="where to run (default cpu)")
    device.add_argument("--threads", type=_number(int, 1), help="CPU threads (default: all usable cores)")
    _bench_arguments(verbs.add_parser("bench", parents=[engine], help="measure latency"))
    checked = verbs.add_parser("doctor", help="say what is wrong with this installation and board")
    checked.add_argument("--model", help="an ONNX file or bundle that should run here")
    checked.add_argument("--provider", default="auto", choices=("auto", *PROVIDERS), help="where (default auto)")
    checked.add_argument("--json", action="store_true", help="print the findings as JSON")
    checked.set_defaults(run=_doctor_command)
    _detect_arguments(verbs.add_parser("detect", parents=[device], help="detect in images, a video or a camera"))
    verified = verbs.add_parser("verify", parents=[device], help="compare this device with what a bundle says")
    verified.add_argument("--model", help="a bundle (default: the unpacked one that this file lies in)")
    verified.add_argument("--precision", default="fp32", choices=PRECISIONS, help="which file (default fp32)")
    verified.add_argument("--json", action="store_true", help="print the figures as JSON")
    verified.set_defaults(run=_verify_command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 0, 1 `doctor` found an error, 2 bad input or usage, 4 provider not
    active, 5 parity failure.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["_worker"]:  # a process that `bench` started
        return _worker(Path(words[1]))
    if words[:1] == ["_coverage"]:  # one that a session started
        path, *asked = json.loads(words[1])
        print(json.dumps(_profiled_coverage(Path(path), *asked)))
        return 0
    args = parser().parse_args(words)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # stderr belongs to our own sentences
    if hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return args.run(args) or 0
    except EdgeError as error:
        print(f"yolokd_edge: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
