#!/usr/bin/env python3
"""Detect with an exported YOLO model and measure its latency: numpy, OpenCV and ONNX Runtime, nothing else.

One file for Python 3.8 and newer; copy it to a board as it stands:

    python3 yolokd_edge.py detect --model model.onnx --source images/ --save drawn/
    python3 yolokd_edge.py verify --model name-edge.zip
    python3 yolokd_edge.py bench --model model.onnx --source images/ --out report.json

A model is an ONNX file or a bundle (`yolokd bundle`): the zip file, or the folder that it was unpacked to.

Frames are BGR uint8 arrays (H, W, 3) as OpenCV decodes them. Detections are float32 arrays (n, 6): x1, y1, x2, y2 in
pixels of the frame, confidence, class index. Clocks count nanoseconds; reports give milliseconds.
"""

from __future__ import annotations

import time

_IMPORT_START = time.perf_counter()

import sys  # noqa: E402

_COLD = not {"numpy", "cv2", "onnxruntime"} & set(sys.modules)  # else the import time below says nothing

import argparse  # noqa: E402
import ast  # noqa: E402
import gc  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
import uuid  # noqa: E402
import zipfile  # noqa: E402
import zlib  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

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
}
AUTO = ("trt", "cuda", "cpu")  # the order in which `auto` tries them
PRECISIONS = ("fp32", "fp16", "int8")


class EdgeError(Exception):
    """What went wrong in one sentence, and the exit code: 2 bad input or usage, 4 provider not active, 5 no parity."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


# --- The model: its contract, and detection -------------------------------------------------------------------------


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


class Letterbox(NamedTuple):
    """How a frame was fitted into the input, to map boxes back."""

    frame_hw: tuple[int, int]  # of the original frame
    gain: tuple[float, float]  # x, y: input pixels a frame pixel
    pad: tuple[int, int]  # left, top: border in input pixels


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
    return " ".join(str(error).split("failed:")[-1].split())[:200].rstrip(". ")


def _open(path: Path, provider: str, threads: int) -> Any:
    """Create a session whose first provider is the one asked for, or raise."""
    wanted, available = PROVIDERS[provider], onnxruntime.get_available_providers()
    if wanted[0] not in available:
        raise EdgeError(f"{wanted[0]} is not in this ONNX Runtime build ({', '.join(available)}).", PROVIDER)
    chain = [name for name in wanted if name in available]
    try:
        session = onnxruntime.InferenceSession(str(path), _session_options(threads), providers=chain, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exception types share no base class
        broken = type(error).__name__ in ("InvalidProtobuf", "InvalidArgument", "InvalidGraph", "NoModel", "NoSuchFile")
        if provider == "cpu" or broken:
            hint = "" if path.suffix.lower() == ".onnx" else "; export it to ONNX first"
            raise EdgeError(f"{path} is not an ONNX model that can be loaded ({_one_line(error)}){hint}.") from None
        raise EdgeError(f"{wanted[0]} could not load {path} ({_one_line(error)}).", PROVIDER) from None
    active = session.get_providers()
    if active[0] != wanted[0]:
        raise EdgeError(f"{wanted[0]} was asked for, but ONNX Runtime runs {path} on {active[0]}.", PROVIDER)
    nodes = assigned_nodes(session)
    if nodes and not nodes.get(wanted[0]):
        raise EdgeError(f"{wanted[0]} was asked for, but took no node of {path}.", PROVIDER)
    return session


def _open_auto(path: Path, threads: int) -> Any:
    for provider in AUTO[:-1]:
        try:
            return _open(path, provider, threads)
        except EdgeError as error:
            if error.code != PROVIDER:
                raise
    return _open(path, AUTO[-1], threads)


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


class Detector:
    """An exported YOLO detector on ONNX Runtime, box for box what Ultralytics predicts with `rect=False`.

    Args:
        path: The ONNX file; its metadata says how to read its output.
        provider: cpu, cuda, trt, or auto (the first of trt, cuda, cpu that is really active).
        threads: ONNX Runtime's threads within one run; all usable cores by default.
        conf: Detections at or below this score are dropped.
        iou: Overlap above which NMS drops the weaker box of a class (raw contract only).
        max_det: Most detections a frame.

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
    ) -> None:
        self.path, self.provider = Path(path), provider
        self.conf, self.iou, self.max_det = conf, iou, max_det
        self.threads = threads or _usable_cores()
        self.candidates = 0  # boxes above conf before NMS, of the latest frame
        self.bundle: Bundle | None = None  # where the file comes from, if `load` took it from one
        if provider not in PROVIDERS and provider != "auto":
            raise EdgeError(f"Unknown provider '{provider}': choose cpu, cuda, trt or auto.")
        if not self.path.is_file():
            raise EdgeError(f"There is no model file {self.path}.")
        start = time.perf_counter()
        self.session = (
            _open_auto(self.path, self.threads) if provider == "auto" else _open(self.path, provider, self.threads)
        )
        self.session_s = time.perf_counter() - start
        self._read_interface()

    def _read_interface(self) -> None:
        metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        self.contract = read_contract(metadata, self.path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise EdgeError(
                f"{self.path} has {len(inputs)} inputs and {len(outputs)} outputs; a detector has one each."
            )
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


def _open_video(source: str) -> Any:
    if not _is_stream(source) and not Path(source).is_file():
        raise EdgeError(f"There is no video file {source}.")
    backend = cv2.CAP_GSTREAMER if " ! " in source else cv2.CAP_ANY
    video = cv2.VideoCapture(int(source) if source.isdigit() else source, backend)
    if not video.isOpened():
        raise EdgeError(f"{source} cannot be opened as a {'camera' if _is_stream(source) else 'video'}.")
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
    return path.suffix.lower() == ".zip" or path.is_dir()


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
) -> Detector:
    """A Detector of an ONNX file, or of a bundle's file of a precision; None is the bundle that this file lies in.

    Settings that are None come from the bundle, or are those of Detector.
    """
    path = own_bundle() if model is None else Path(model)
    given = {key: value for key, value in (("conf", conf), ("iou", iou), ("max_det", max_det)) if value is not None}
    if not is_bundle(path):
        if precision is not None:
            raise EdgeError(f"A precision can be chosen from a bundle; {path} is one file with the precision it has.")
        return Detector(path, provider, threads, **given)
    bundle = open_bundle(path)
    settings = {key: bundle.setting(key) for key in ("conf", "iou", "max_det")}
    detector = Detector(bundle.model(precision or "fp32", provider), provider, threads, **{**settings, **given})
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
    bundle: Bundle, provider: str = "cpu", threads: int | None = None, precision: str = "fp32"
) -> dict[str, Any]:
    """Compare what this device computes with what the bundle says was computed where it was made.

    Returns:
        ``pass`` and the figures it stands on: ``raw``, the largest differences of the network's output (boxes in input
        pixels) and their cosine, of the FP32 file alone; ``dets``, those of the detections (pixels of the image). The
        tolerance is that of the file's precision; a GPU gets at least FP16's, because it computes FP32 in TF32.
    """
    detector = Detector(bundle.model(precision, provider), provider, threads)
    check_manifest(bundle, detector)
    expected, raws = _expectations(bundle)
    detector.conf, detector.iou, detector.max_det = (expected[key] for key in ("conf", "iou", "max_det"))
    active = detector.session.get_providers()[0]
    judged = "fp16" if precision == "fp32" and active != "CPUExecutionProvider" else precision
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
        "provider": active,
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


def percentile(samples: Sequence[float] | np.ndarray, p: float) -> float:
    """The nearest-rank percentile: the ceil(p * n)-th smallest sample, for 0 < p <= 1."""
    if not len(samples) or not 0 < p <= 1:
        raise ValueError(f"percentile needs samples and 0 < p <= 1, got n={len(samples)}, p={p}")
    rank = math.ceil(p * len(samples) - 1e-9)  # p * n may land a rounding error above a whole number
    return float(np.sort(samples)[max(rank, 1) - 1])


def samples_needed(p: float, confidence: float = 0.95) -> int:
    """Samples below which no upper bound of percentile p exists at this confidence: 29 for p90, 299 for p99."""
    return math.ceil(math.log(1 - confidence) / math.log(p))


def summary(samples: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Summarise samples in ns as milliseconds. No sample is deleted; a percentile with too few samples is None."""
    ms = np.asarray(samples, np.float64) / 1e6
    points = {k: percentile(ms, p) if len(ms) >= samples_needed(p) else None for k, p in PERCENTILES.items()}
    out: dict[str, Any] = {"mean": float(ms.mean()), "min": float(ms.min())}
    out.update(points)
    out.update({"max": float(ms.max()), "ci95": None, "n_eff": None, "tau": None})
    return out


# --- Measuring ------------------------------------------------------------------------------------------------------

STAGES = ("pre", "infer", "post", "total")


class Limits(NamedTuple):
    """When to stop: enough frames a model and enough time, or out of time."""

    n_min: int  # frames a model
    t_min_s: float
    t_max_s: float


PROFILES = {"smoke": Limits(100, 3.0, 60.0), "standard": Limits(1000, 30.0, 600.0)}
WARM_UP_FRAMES, WARM_UP_CPU_S, WARM_UP_GPU_S, WARM_UP_CAP_S = 20, 2.0, 10.0, 60.0


def _switches() -> int:
    """Involuntary context switches of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


class Run:
    """One model's timed frames."""

    def __init__(self, detector: Any, clock: Callable[[], int], cpu_clock: Callable[[], int]) -> None:
        self.detector, self.clock, self.cpu_clock = detector, clock, cpu_clock
        self.times: list[tuple[int, int, int, int]] = []  # ns, in the order of STAGES
        self.cpu_ns = self.switches = self.candidates = self.detections = 0

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
        self.switches += _switches() - switches
        self.times.append((ready - start, inferred - ready, end - inferred, end - start))
        self.candidates += detector.candidates
        self.detections += len(found)

    def series(self) -> dict[str, np.ndarray]:
        """Every sample in ns (n,) int64, by stage."""
        columns = np.array(self.times, np.int64).reshape(-1, len(STAGES))
        return {stage: columns[:, k] for k, stage in enumerate(STAGES)}


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


def _warm_up(detectors: Sequence[Detector], frames: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    gpu = any(d.session.get_providers()[0] != "CPUExecutionProvider" for d in detectors)
    t_min = WARM_UP_GPU_S if gpu else WARM_UP_CPU_S
    runs, seconds = measure(detectors, frames, Limits(WARM_UP_FRAMES, t_min, WARM_UP_CAP_S), seed + 1)
    return {"frames": len(runs[0].times), "s": round(seconds, 3), "stable": None}


# --- The record -----------------------------------------------------------------------------------------------------

LATER = "not measured by this version"
UNAVAILABLE = {  # fields of the schema that no run of this version can fill
    "tool.git": "a single file knows no commit",
    "model.opset": "ONNX Runtime does not tell it",
    "model.ir": "ONNX Runtime does not tell it",
    "model.int8": LATER,
    "model.train_run": LATER,
    "runtime.trt": LATER,
    "runtime.cuda": LATER,
    "device.soc": LATER,
    "device.l4t": LATER,
    "device.jetpack": LATER,
    "device.gpu": LATER,
    "device.serial_hash": LATER,
    "clocks": LATER,
    "protocol.warmup.stable": LATER,
    "cold.engine_cache": LATER,
    "results.stages.*.ci95": LATER,
    "results.stages.*.n_eff": LATER,
    "results.stages.*.tau": LATER,
    "memory.sys_ram_delta_mb": LATER,
    "memory.gpu_mb": LATER,
    "memory.lfb": LATER,
    "power": LATER,
    "thermal": LATER,
    "stability.block_medians": LATER,
    "stability.drift_ratio": LATER,
    "stability.slope_pct_per_min": LATER,
    "stability.verdict": "drift, throttling and clocks are not judged by this version",
}
ACCURACY = ("dataset", "split", "n_images", "map50", "map50_95", "ci95", "conf", "iou", "source")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _first_match(path: str, key: str) -> str | None:
    """The value after the colon of the first line that starts with key, in a file such as /proc/cpuinfo."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line), None)


def _board() -> str | None:
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _device(missing: dict[str, str]) -> dict[str, Any]:
    board, memory = _board(), _first_match("/proc/meminfo", "MemTotal")
    if board is None:
        missing["device.board_model"] = "no device tree"
    cpu = _first_match("/proc/cpuinfo", "model name") or platform.processor() or None
    if cpu is None:
        missing["device.cpu_model"] = "the system does not name it"
    if memory is None:
        missing["device.mem_total_mb"] = "no /proc/meminfo"
    return {
        "kind": "jetson" if board and "jetson" in board.lower() else platform.machine(),
        "board_model": board,
        "soc": None,
        "l4t": None,
        "jetpack": None,
        "kernel": platform.release(),
        "cpu_model": cpu,
        "cores_online": os.cpu_count(),
        "gpu": None,
        "mem_total_mb": int(memory.split()[0]) // 1024 if memory else None,
        "serial_hash": None,
    }


def _model(detector: Detector, missing: dict[str, str]) -> dict[str, Any]:
    contract, path = detector.contract, detector.path
    for key in ("teacher", "student"):
        if contract.meta.get(key) is None:
            missing["model." + key] = "not in the model's metadata"
    return {
        "file": path.name,
        "sha256": _sha256(path),
        "bytes": path.stat().st_size,
        "format": "onnx",
        "opset": None,
        "ir": None,
        "task": contract.exporter["task"],
        "nc": contract.nc,
        "imgsz": list(contract.hw),
        "output_contract": contract.output,
        "precision": contract.precision,
        "int8": None,
        "teacher": contract.meta.get("teacher"),
        "student": contract.meta.get("student"),
        "train_run": None,
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
    nodes, active = assigned_nodes(detector.session), detector.session.get_providers()
    if nodes is None:
        missing["runtime.ep_nodes"] = missing["runtime.ep_coverage"] = "this ONNX Runtime cannot tell"
    total = sum(nodes.values()) if nodes else 0
    return {
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "provider_requested": detector.provider,
        "providers_active": active,
        "ep_nodes": nodes,
        "ep_coverage": round(nodes.get(active[0], 0) / total, 4) if nodes and total else None,
        "fallback": False,
        "intra_threads": detector.threads,
        "inter_threads": 1,  # ONNX Runtime's default, sequential execution
        "spin": "within a run",
        "graph_opt": "all",
        "io_binding": False,
        "trt": None,
        "cuda": None,
    }


def _results(run: Run, duration_s: float, missing: dict[str, str]) -> dict[str, Any]:
    series, n = run.series(), len(run.times)
    stages = {stage: summary(series[stage]) for stage in STAGES}
    for key, p in PERCENTILES.items():
        if n < samples_needed(p):
            missing["results.stages.*." + key] = f"{n} samples, {samples_needed(p)} needed"
    p50, wall = stages["total"]["p50"], int(series["total"].sum())
    return {
        "unit": "ms",
        "n": n,
        "duration_s": round(duration_s, 3),
        "stages": stages,
        "fps_from_p50": 1000 / p50 if p50 else None,
        "candidates_mean": run.candidates / n,
        "dets_mean": run.detections / n,
        "cpu_ratio": round(run.cpu_ns / (wall * run.detector.threads), 4) if wall else None,
        "nivcsw_per_frame": run.switches / n if resource else None,
    }


def _memory(own_process: bool, models: int, missing: dict[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = dict.fromkeys(("rss_mb", "peak_rss_mb", "sys_ram_delta_mb", "gpu_mb", "lfb"))
    reason = "the process is not this program's own" if not own_process else "several models share the process"
    if own_process and models == 1:
        rss, peak = _first_match("/proc/self/status", "VmRSS"), _first_match("/proc/self/status", "VmHWM")
        reason = "no /proc/self/status"
        if rss is not None and peak is not None:
            out["rss_mb"], out["peak_rss_mb"] = (round(int(v.split()[0]) / 1024, 1) for v in (rss, peak))  # from kB
            return out
    missing["memory.rss_mb"] = missing["memory.peak_rss_mb"] = reason
    return out


def _reasons(run: Run, limits: Limits, results: dict[str, Any], images: int) -> list[str]:
    """Doubts about the figures that this version can see."""
    out = []
    if results["n"] < limits.n_min:
        out.append(f"time limit of {limits.t_max_s:g} s reached after {results['n']} of {limits.n_min} frames")
    if images < 32:
        out.append(f"only {images} different images, at least 32 are recommended")
    if run.detector.threads == 1 and results["cpu_ratio"] is not None and results["cpu_ratio"] < 0.97:
        out.append(f"contended: the process had the CPU for {results['cpu_ratio']:.0%} of the measured time")
    return out


def _images(frames: Sequence[np.ndarray]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode())
        digest.update(frame.tobytes())
    sizes = sorted({frame.shape[:2] for frame in frames})
    return {"n": len(frames), "sha": digest.hexdigest(), "source_hw": [list(hw) for hw in sizes]}


def _record(run: Run, duration_s: float, limits: Limits, first_run_ms: float, shared: dict[str, Any]) -> dict[str, Any]:
    detector, missing = run.detector, dict(UNAVAILABLE)
    protocol = shared["protocol"]
    results = _results(run, duration_s, missing)
    cold = _COLD and shared["own_process"]
    if not cold:
        missing["cold.import_s"] = "the libraries were loaded before this program started"
    record = {
        "schema": SCHEMA,
        "id": uuid.uuid4().hex,
        "created_utc": shared["created_utc"],
        "tool": {"name": "yolokd_edge", "version": VERSION, "git": None},
        "command": shared["command"],
        "seed": shared["seed"],
        "model": _model(detector, missing),
        "accuracy": _accuracy(detector.contract, missing),
        "parity": _parity(detector.contract, missing),
        "runtime": _runtime(detector, missing),
        "device": _device(missing),
        "clocks": None,
        "protocol": protocol,
        "cold": {
            "import_s": round(IMPORT_S, 4) if cold else None,
            "session_s": round(detector.session_s, 4),
            "first_run_ms": round(first_run_ms, 3),
            "engine_cache": None,
        },
        "results": results,
        "memory": _memory(shared["own_process"], shared["models"], missing),
        "power": None,
        "thermal": None,
        "stability": {
            "block_medians": None,
            "drift_ratio": None,
            "slope_pct_per_min": None,
            "verdict": None,
            "reasons": _reasons(run, limits, results, protocol["images"]["n"]),
        },
        "series": {"file": None, "sha256": None},
        "notes": None,
    }
    record["unavailable"] = missing
    return record


# --- Bench ----------------------------------------------------------------------------------------------------------


def _first_run_ms(detector: Detector, frame: np.ndarray) -> float:
    blob, _ = detector.preprocess(frame)
    start = time.perf_counter()
    detector.infer(blob)
    return (time.perf_counter() - start) * 1000


def _limits(profile: str, time_limit_s: float | None) -> Limits:
    if profile not in PROFILES:
        raise EdgeError(f"Unknown profile '{profile}': choose {' or '.join(PROFILES)}.")
    if time_limit_s is not None and not time_limit_s > 0:
        raise EdgeError(f"The time limit must be above 0 s, not {time_limit_s:g}.")
    limits = PROFILES[profile]
    return limits if time_limit_s is None else limits._replace(t_max_s=time_limit_s)


def collect(
    paths: Sequence[str | Path],
    images: Sequence[np.ndarray],
    profile: str = "smoke",
    threads: int | None = None,
    provider: str = "cpu",
    seed: int = 0,
    time_limit_s: float | None = None,
    own_process: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, np.ndarray]]]:
    """Measure models on decoded frames, interleaved.

    Args:
        paths: ONNX files.
        images: Frames (H, W, 3) BGR uint8 in memory, cycled in the order given; at least 32 are recommended.
        profile: smoke (100 frames, 3 s) or standard (1,000 frames, 30 s); both must be reached.
        threads: Threads of ONNX Runtime and OpenCV; all usable cores by default.
        provider: As for Detector.
        seed: Of the models' random order in each round.
        time_limit_s: Stop here even if the profile's counts are not reached; a record then says so.
        own_process: Whether the process was started for this measurement, so that its memory is worth reporting.

    Returns:
        One record a model (schema yolokd.latency/1), and its samples in ns by stage.
    """
    limits = _limits(profile, time_limit_s)
    if not paths or not len(images):
        raise EdgeError("A measurement needs at least one model and one image.")
    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(threads or _usable_cores())
    try:
        detectors = [load(path, provider, threads) for path in paths]
        first = [_first_run_ms(d, images[0]) for d in detectors]
        warmup = _warm_up(detectors, images, seed)
        runs, duration_s = measure(detectors, images, limits, seed)
    finally:
        cv2.setNumThreads(cv_threads)
    protocol = {
        "profile": profile,
        "n_min": limits.n_min,
        "t_min_s": limits.t_min_s,
        "t_max_s": limits.t_max_s,
        "warmup": warmup,
        "repeats": 1,
        "interleaved": len(detectors) > 1,
        "images": _images(images),
        "percentile_rule": "nearest rank, ceil(p*n)",
        "gc_disabled": True,
    }
    shared = {
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": list(sys.argv),
        "seed": seed,
        "protocol": protocol,
        "own_process": own_process,
        "models": len(detectors),
    }
    records = [_record(run, duration_s, limits, first[k], shared) for k, run in enumerate(runs)]
    return records, [run.series() for run in runs]


def write_report(
    records: list[dict[str, Any]], series: list[dict[str, np.ndarray]], out: str | Path, overwrite: bool = False
) -> Path:
    """Write the records as a JSON list and the raw samples beside it (.npz, key 'model number/stage', ns int64).

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
        for record in records:
            record["series"] = {"file": npz.name, "sha256": _sha256(npz)}
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
    return out


def bench(
    paths: Sequence[str | Path], images: Sequence[np.ndarray], out: str | Path | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Measure models as `collect` does (same options) and write a report to `out` if given; one record a model."""
    if out is not None:
        _new_report(out)
    records, series = collect(paths, images, **options)
    if out is not None:
        write_report(records, series, out)
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Records as a text table; the stages are medians, all times in ms."""
    head = ("model", "MB", "precision", "pre", "infer", "post", "total p50", "p90", "p99", "fps", "cpu_ratio")
    rows = [head]
    for record in records:
        results, model = record["results"], record["model"]
        stages = results["stages"]
        times = [stages[s]["p50"] for s in STAGES] + [stages["total"]["p90"], stages["total"]["p99"]]
        cells = [model["file"], f"{model['bytes'] / 1e6:.1f}", model["precision"]]
        cells += ["-" if t is None else f"{t:.2f}" for t in times]
        cells += ["-" if v is None else f"{v:.2f}" for v in (results["fps_from_p50"], results["cpu_ratio"])]
        rows.append(tuple(cells))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["  ".join(c.ljust(widths[k]) if k == 0 else c.rjust(widths[k]) for k, c in enumerate(row)) for row in rows]
    return "\n".join(lines + [f"{r['model']['file']}: {why}" for r in records for why in r["stability"]["reasons"]])


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


def _detect_command(args: argparse.Namespace) -> None:
    detector = load(args.model, args.provider, args.threads, args.precision, args.conf, args.iou, args.max_det)
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
    figures = verify(open_bundle(path), args.provider, args.threads, args.precision)
    print(json.dumps(figures) if args.json else parity_text(figures))
    if not figures["pass"]:
        raise EdgeError("this device does not compute what the bundle says; see the figures above.", PARITY)


def _bench_command(args: argparse.Namespace) -> None:
    records = bench(
        args.model,
        read_frames(args.source, args.seed),
        args.out,
        profile=args.profile,
        threads=args.threads,
        provider=args.provider,
        seed=args.seed,
        time_limit_s=args.time_limit,
        own_process=True,
    )
    print(table(records))


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


def parser() -> argparse.ArgumentParser:
    """The command line, readable with --help."""
    top = argparse.ArgumentParser(prog="yolokd_edge.py", description="Run or measure an exported YOLO detector.")
    top.add_argument("--version", action="version", version=VERSION)
    verbs = top.add_subparsers(dest="verb", required=True)
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--provider", default="cpu", choices=("auto", *PROVIDERS), help="where to run (default cpu)")
    device.add_argument("--threads", type=_number(int, 1), help="CPU threads (default: all usable cores)")
    common = argparse.ArgumentParser(add_help=False, parents=[device])
    common.add_argument("--source", required=True, help="an image or a folder of images")
    measured = verbs.add_parser("bench", parents=[common], help="measure latency")
    measured.add_argument("--model", required=True, nargs="+", help="one or more ONNX files, measured interleaved")
    measured.add_argument("--profile", default="smoke", choices=tuple(PROFILES), help="how long (default smoke)")
    measured.add_argument(
        "--time-limit", type=_number(float, 0.001), metavar="S", help="seconds after which to stop anyway"
    )
    measured.add_argument("--seed", type=int, default=0, help="of image and model order (default 0)")
    measured.add_argument("--out", help="report to write, such as report.json; the raw samples go beside it")
    measured.set_defaults(run=_bench_command)
    _detect_arguments(verbs.add_parser("detect", parents=[device], help="detect in images, a video or a camera"))
    verified = verbs.add_parser("verify", parents=[device], help="compare this device with what a bundle says")
    verified.add_argument("--model", help="a bundle (default: the unpacked one that this file lies in)")
    verified.add_argument("--precision", default="fp32", choices=PRECISIONS, help="which file (default fp32)")
    verified.add_argument("--json", action="store_true", help="print the figures as JSON")
    verified.set_defaults(run=_verify_command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 0, 2 bad input or usage, 4 provider not active, 5 parity failure."""
    args = parser().parse_args(argv)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # stderr belongs to our own sentences
    if hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        args.run(args)
    except EdgeError as error:
        print(f"yolokd_edge: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
