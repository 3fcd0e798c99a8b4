"""What an exported file says of itself: how to read its output, its classes, size and precision."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolokd_edge.common import EdgeError

RAW, E2E, NMS = "raw_xywh_scores", "e2e_xyxy_conf_cls", "nms_xyxy_conf_cls"  # of a YOLO
DETR = "detr_cxcywh_conf_cls"  # of an RT-DETR
OBB, POSE = "obb_xywh_scores_angle", "pose_xywh_scores_keypoints"  # of a YOLO with another task
SEGMENT = "segment_xywh_scores_masks"
CONTRACTS = (RAW, E2E, NMS, DETR, OBB, POSE, SEGMENT)
TASKS = {"obb": OBB, "pose": POSE, "segment": SEGMENT}  # beside detect -> the one contract that is read
PRECISIONS = ("fp32", "fp16", "int8")
MAX_SIDE = 16384  # pixels of an input: from here on its memory is counted in gigabytes


class Contract(NamedTuple):
    """What an ONNX file promises, read from its metadata: the shapes alone cannot tell two of the contracts apart."""

    output: str  # one of CONTRACTS
    names: dict[int, str]  # class index -> name
    hw: tuple[int, int]  # input height and width, pixels
    precision: str  # fp32, fp16 or int8
    meta: dict[str, Any]  # the yolokd entry, {} without one
    exporter: dict[str, str]  # the file's whole metadata as written
    keypoints: tuple[int, int] = (0, 0)  # how many an object has, and the numbers of each: x, y and perhaps a score

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)


def _literal(metadata: dict[str, str], key: str, path: Path) -> Any:
    try:
        return ast.literal_eval(metadata[key])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise EdgeError(f"{path}: the metadata entry '{key}' is unreadable: {metadata[key][:60]!r}.") from None


def _yolokd_entry(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if "yolokd" not in metadata:
        return {}
    try:
        entry = json.loads(metadata["yolokd"], parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or entry.get("output_contract") not in CONTRACTS:
        raise EdgeError(f"{path}: its 'yolokd' metadata names none of the output contracts {', '.join(CONTRACTS)}.")
    for key in ("accuracy", "parity"):
        if not isinstance(entry.get(key) or {}, dict):
            raise EdgeError(f"{path}: the {key} in its 'yolokd' metadata is no object: {str(entry[key])[:60]!r}.")
    return entry


def _finite(text: str) -> float:
    """A number of JSON, which NaN, Infinity and 1e999 are not: a report could not repeat them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def precision_of(args: dict[str, Any]) -> str:
    """fp32, fp16 or int8, from the arguments of the export."""
    if args.get("quantize") == 8 or args.get("int8"):  # `int8` and `half` are what older exporters wrote
        return "int8"
    return "fp16" if args.get("quantize") == 16 or args.get("half") else "fp32"


def read_contract(metadata: dict[str, str], path: Path) -> Contract:
    """Read what the file declares: the yolokd entry first, else what Ultralytics' exporter wrote."""
    missing = [key for key in ("names", "imgsz", "task") if key not in metadata]
    if missing:
        raise EdgeError(f"{path} has no export metadata ({', '.join(missing)}), so its output cannot be interpreted.")
    task = metadata["task"]
    if task != "detect" and task not in TASKS:
        raise EdgeError(f"{path} is a {task} model; only models for detect, {', '.join(TASKS)} are read here.")
    if metadata.get("channels", "3") != "3":
        raise EdgeError(f"{path} takes {metadata['channels']} channels; only colour images (3) are read here.")
    entry = _yolokd_entry(metadata, path)
    args = _literal(metadata, "args", path) if "args" in metadata else {}
    if not isinstance(args, dict):
        raise EdgeError(f"{path}: the metadata entry 'args' holds no named arguments: {metadata['args'][:60]!r}.")
    end2end = _literal(metadata, "end2end", path) if "end2end" in metadata else False
    of_yolo = NMS if args.get("nms") else E2E if end2end else RAW
    if task != "detect" and of_yolo != RAW:
        raise EdgeError(f"{path} is a {task} model with {of_yolo} output; only its raw output is read: export that.")
    of_task = TASKS.get(task) or (DETR if metadata.get("head") == "RTDETRDecoder" else of_yolo)
    output = entry.get("output_contract") or of_task
    if (output in TASKS.values() or task in TASKS) and output != of_task:
        raise EdgeError(f"{path} is a {task} model, but its 'yolokd' metadata declares the output {output}.")
    imgsz, names = _literal(metadata, "imgsz", path), _literal(metadata, "names", path)
    try:
        height, width = (imgsz, imgsz) if isinstance(imgsz, int) else map(int, imgsz)
        names = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
        if (
            not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE
            or sorted(names) != list(range(len(names)))
            or not names
        ):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise EdgeError(
            f"{path}: the metadata entries 'imgsz' and 'names' are not a size and the names of classes "
            "0, 1, 2 and so on."
        ) from None
    keypoints = _keypoints(metadata, path) if output == POSE else (0, 0)
    return Contract(output, names, (height, width), precision_of(args), entry, metadata, keypoints)


def _keypoints(metadata: dict[str, str], path: Path) -> tuple[int, int]:
    shape: Any = _literal(metadata, "kpt_shape", path) if "kpt_shape" in metadata else ()
    good = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not good or not (1 <= shape[0] <= 1000 and shape[1] in (2, 3)):
        raise EdgeError(f"{path}: the metadata entry 'kpt_shape' is no number of keypoints with two or three values.")
    return shape[0], shape[1]


def check_input_shape(contract: Contract, shape: Sequence[Any], path: Path) -> None:
    """Refuse an input that is not (1, 3, H, W) with the declared H and W."""
    expected = (1, 3) + contract.hw
    fits = len(shape) == 4
    for want, got in zip(expected, shape) if fits else ():  # noqa: B905
        fits &= not isinstance(got, int) or want == got
    if not fits:
        raise EdgeError(f"{path} declares an input of {expected}, but takes {tuple(shape)}.")


def check_multiple(contract: Contract, hw: Sequence[int], path: Path) -> None:
    """Refuse an input size that is no multiple of the model's largest stride: its levels would not fit together."""
    stated = contract.exporter.get("stride", "")
    stride = int(stated) if re.fullmatch("[1-9][0-9]{0,3}", stated) else 1
    if any(side % stride for side in hw):
        near = [max(round(side / stride), 1) * stride for side in hw]
        raise EdgeError(
            f"{path} takes sides that are multiples of {stride}, not {size_text(hw)}: give a size such as "
            f"{size_text(near)}."
        )


def size_text(hw: Sequence[int]) -> str:
    """Height and width in words, of a size or of a frame's shape."""
    return f"{hw[0]}x{hw[1]}"


def metadata_entry(content: bytes, key: str) -> Any:
    """A literal of an ONNX file's metadata, looked up in the file itself while there is no session to ask.

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
    return isinstance(args, dict) and precision_of(args) == "fp16"
