"""`yolokd export` and `yolokd.export()`: a checkpoint becomes an ONNX file that is proven to compute the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from yolokd import __version__, config, parity
from yolokd.deploy.yolokd_edge import E2E, NMS, RAW, Detector, list_images
from yolokd.errors import UsageError

CONTRACTS = {"raw": (None, RAW), "e2e": (False, E2E), "nms": (True, NMS)}  # choice -> (Ultralytics' nms=, contract)
REFUSED = {
    "format": "yolokd exports ONNX; for other formats use `yolo export`",
    "nms": "choose the output with contract=raw, contract=e2e or contract=nms",
    "dynamic": "the runtime measures files of one fixed shape; export one file a size",
    "quantize": "parity is proven for full precision only so far",
    "half": "parity is proven for full precision only so far",
    "int8": "parity is proven for full precision only so far",
}


def export(
    model: str | Path,
    out: str | Path | None = None,
    contract: str = "raw",
    source: str | Path | None = None,
    exist_ok: bool = False,
    **arguments: Any,
) -> Path:
    """Export a checkpoint to ONNX through Ultralytics, check it, and write down what it is.

    Args:
        model: the .pt file.
        out: the ONNX file to write; beside the checkpoint by default.
        contract: output of the file: "raw" (boxes and scores of every anchor point, NMS follows), "e2e" (the NMS-free
            head of YOLO26 and v10) or "nms" (NMS in the graph).
        source: image or folder to compare PyTorch and onnxruntime on; by default two photographs that Ultralytics
            installs and images of the checkpoint's own validation split, where it is present.
        exist_ok: whether `out` may replace a file.
        **arguments: Ultralytics' export arguments, such as imgsz or opset.

    Returns:
        Path of the ONNX file, whose metadata entry "yolokd" tells teacher, methods, data set, accuracy and parity.

    Raises:
        UsageError: something asked for cannot be done.
        ParityError: the file computes something else than the checkpoint; it is not kept.
    """
    checkpoint, target, nms, wanted = _check_request(model, out, contract, exist_ok, arguments)
    images = list_images(source) if source else None
    student = _open(checkpoint)
    if contract == "e2e" and getattr(student.model.model[-1], "one2one_cv2", None) is None:
        raise UsageError(f"contract=e2e needs an NMS-free head, which {checkpoint} has not: choose raw or nms.")
    made_by = student.ckpt.get("yolokd") or {}
    if "imgsz" not in arguments:
        arguments["imgsz"] = student.ckpt.get("train_args", {}).get("imgsz", 640)
    images = images or parity.real_images(_data(student.ckpt))
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because Ultralytics writes beside the checkpoint and over what is there.
        copy = Path(shutil.copy(checkpoint, folder))
        file = Path(YOLO(copy).export(format="onnx", nms=nms, **arguments))
        graph = onnx.load(file)
        onnx.checker.check_model(graph)
        if (got := Detector(file).contract.output) != wanted:
            raise UsageError(
                f"contract={contract} was asked for and Ultralytics exported {got}: choose another contract."
            )
        figures = parity.check(checkpoint, file, images)
        entry = describe(made_by, wanted) | {"parity": figures}
        onnx.helper.set_model_props(
            graph, {p.key: p.value for p in graph.metadata_props} | {"yolokd": json.dumps(entry)}
        )
        onnx.save(graph, file)
        shutil.move(file, target)
    LOGGER.info(f"Exported {target} ({wanted}, {target.stat().st_size / 1e6:.1f} MB); {_said(figures)}")
    return target


def describe(made_by: dict[str, Any], contract: str) -> dict[str, Any]:
    """The metadata entry "yolokd": what the file puts out and where the model comes from; null where nobody knows."""
    accuracy = made_by.get("accuracy")
    return {
        "schema": "yolokd.export/1",
        "yolokd_version": __version__,
        "output_contract": contract,
        "teacher": made_by.get("teacher"),
        "methods": made_by.get("methods"),
        "gain": made_by.get("gain"),
        "dataset": made_by.get("dataset"),
        # The accuracy was measured on the raw head with NMS; the NMS-free head's is another.
        "accuracy": accuracy if contract != E2E else None,
    }


def _check_request(
    model: str | Path, out: str | Path | None, contract: str, exist_ok: bool, arguments: dict[str, Any]
) -> tuple[Path, Path, bool | None, str]:
    checkpoint = Path(model).expanduser()
    if checkpoint.suffix != ".pt" or not checkpoint.is_file():
        raise UsageError(f"model={model} is not a checkpoint: give the trained student's .pt file.")
    for key, remedy in REFUSED.items():
        if arguments.get(key) and str(arguments[key]).lower() not in {"onnx", "32", "fp32"}:
            raise UsageError(f"{key}={arguments[key]} is not for `yolokd export`: {remedy}.")
        arguments.pop(key, None)
    config.check_keys(arguments, DEFAULT_CFG_DICT)
    if contract not in CONTRACTS:
        raise UsageError(f"contract={contract} is unknown{config.nearest(contract, CONTRACTS)}.")
    target = Path(out).expanduser() if out else checkpoint.with_suffix(".onnx")
    if target.suffix != ".onnx":
        raise UsageError(f"out={target} does not end in .onnx: name the file to write, such as out=student.onnx.")
    if target.exists() and not exist_ok:
        raise UsageError(f"{target} exists already: name another file with out=, or allow it with exist_ok=True.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return checkpoint, target, *CONTRACTS[contract]


def _open(checkpoint: Path) -> YOLO:
    try:
        student = YOLO(checkpoint)
    except Exception as error:  # damaged and foreign files end in a dozen exception types
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"model={checkpoint} is not a checkpoint that Ultralytics can open: {reason}") from error
    if student.task != "detect":
        raise UsageError(f"model={checkpoint} is for the task {student.task}: yolokd exports detection models so far.")
    return student


def _data(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The data set a checkpoint was trained on, if it is on this machine; never downloads it."""
    named = (checkpoint.get("yolokd") or {}).get("data") or (checkpoint.get("train_args") or {}).get("data")
    if not named or not Path(str(named)).is_file():
        return None
    try:
        return check_det_dataset(str(named), autodownload=False)  # type: ignore[no-any-return]
    except (FileNotFoundError, SyntaxError, RuntimeError):  # moved since: the photographs remain
        return None


def _said(figures: dict[str, Any]) -> str:
    dets = figures["dets"]
    return (
        f"on {figures['n_images']} images {dets['n']} detections agree with PyTorch within "
        f"{dets['max_box_diff']:.2g} px and {dets['max_conf_diff']:.2g} confidence"
    )
