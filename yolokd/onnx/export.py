"""`yolokd export` and `yolokd.export()`: a checkpoint becomes an ONNX file that is proven to compute the same, or a
model in another format, proven by its own runtime.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
from ultralytics.nn.modules.head import Detect, RTDETRDecoder
from ultralytics.utils import LOGGER

from yolokd import __version__, compat
from yolokd.config.checks import check_values, check_writable
from yolokd.config.parse import check_keys, did_you_mean, true_or_false
from yolokd.data.splits import find_data
from yolokd.detectors.opening import GIVE_CHECKPOINT, open_model
from yolokd.detectors.quantized import is_quantized
from yolokd.distill.provenance import Provenance
from yolokd.errors import UsageError, as_path, printable
from yolokd.onnx import formats, parity, qdq
from yolokd_edge.contract import DETR, E2E, NMS, RAW, TASKS
from yolokd_edge.detector import Detector
from yolokd_edge.images import list_images, read_image
from yolokd_edge.runtimes.table import format_of

CONTRACTS = {"raw": RAW, "e2e": E2E, "nms": NMS}  # choice -> output contract of the file
TASK_OF = {"OBB": "obb", "Pose": "pose", "Segment": "segment"}  # a head's class without its version -> its task
BAKED = {
    "raw": (),
    "e2e": ("max_det",),
    "nms": ("conf", "iou", "max_det", "agnostic_nms"),
}  # further ones, in the graph
CALIBRATED = (
    "a student that was trained with quantize=8 becomes an INT8 file without it, and of others `yolokd bundle "
    "int8=True` makes one"
)
REFUSED = {  # argument -> (its one value that says nothing new, what to do instead)
    "nms": (None, "choose the output with contract=raw, contract=e2e or contract=nms"),
    "dynamic": (None, "the runtime measures files of one fixed shape; export one file a size"),
    "batch": (1, "the runtime takes one image at a time"),
    "quantize": (32, CALIBRATED),
    "half": (None, "FP16 files come from `yolokd bundle fp16=True`"),
    "int8": (None, CALIBRATED),
}


def export(
    model: str | Path,
    out: str | Path | None = None,
    contract: str = "raw",
    source: str | Path | None = None,
    exist_ok: bool = False,
    trust: bool = False,
    format: str = "onnx",
    **arguments: Any,
) -> Path:
    """Export a checkpoint through Ultralytics, check it, and write down what it is.

    Args:
        model: the .pt file.
        out: the file or folder to write; beside the checkpoint by default.
        contract: output of a detecting YOLO's file: "raw" (boxes and scores of every anchor point, NMS follows), "e2e"
            (the NMS-free head of YOLO26 and v10) or "nms" (NMS in the graph). Another task's is always raw, an
            RT-DETR's always its detections, and other formats than ONNX are raw.
        source: image or folder to compare PyTorch and the file's runtime on; by default two photographs that
            Ultralytics installs and images of the checkpoint's own validation split, where it is present.
        exist_ok: whether `out` may replace a file, or a folder that is a model of this format.
        trust: whether the checkpoint may hold what runs as code: you answer for it.
        format: onnx; or openvino, ncnn, mnn, litert, torchscript, which their own runtime proves on this machine; or
            another of Ultralytics' formats, which nothing here runs, so that it stays unproven.
        **arguments: Ultralytics' export arguments: imgsz, device, verbose; opset and simplify for onnx and mnn; with
            contract="nms" also those that become part of the graph: conf (0.25 by default), iou, max_det, agnostic_nms.

    Returns:
        Path of the file or folder, whose metadata entry "yolokd" tells teacher, methods, data set, accuracy and parity.

    Raises:
        UsageError: something asked for cannot be done, or a package that the format needs is absent.
        ParityError: the file computes something else than the checkpoint; it is not kept.
    """
    true_or_false("trust", trust)
    format = formats.check_format(format)
    checkpoint, target = _check_request(model, out, format, contract, exist_ok, arguments)
    images = list_images(str(source)) if source else None
    if images:
        read_image(images[0])  # what is no image is found before the export
    student = open_detector(checkpoint, trust)
    wanted = _wanted(student.model.model[-1], checkpoint, contract)
    if (channels := int(student.model.yaml.get("channels", 3))) != 3:
        raise UsageError(f"model={checkpoint} takes images of {channels} channels: the runtime reads colour ones only.")
    _check_quantized(student, checkpoint, format, contract, wanted)
    if "imgsz" not in arguments:
        arguments["imgsz"] = student.ckpt.get("train_args", {}).get("imgsz", 640)
    images = images or parity.real_images(training_data(student.ckpt))
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because Ultralytics writes beside the checkpoint and over what is there.
        copy = Path(shutil.copy(checkpoint, folder))
        file = formats.write(open_detector(copy, trust), format, {**compat.head_arguments(contract), **arguments})
        said = ""
        if format in formats.PROVEN:
            thresholds = _thresholds(contract, arguments)
            said = _prove(file, format, student, checkpoint, wanted, images, thresholds, source, target, trust)
        _keep(file, target)
    size = f"{sum(part.stat().st_size for part in _all_files(target)) / 1e6:.1f} MB"
    LOGGER.info(printable(f"Exported {target} ({wanted}, {size}); {said or 'nothing was compared'}"))
    if not said:
        LOGGER.warning(
            printable(
                f"{target} is not proven: no runtime here runs format={format}, so whether it computes what the "
                "checkpoint computes has to be tested on its device."
            )
        )
    return target


def _prove(
    file: Path,
    format: str,
    student: Any,
    checkpoint: Path,
    wanted: str,
    images: list[Path],
    thresholds: dict[str, Any],
    source: Any,
    target: Path,
    trust: bool,
) -> str:
    """Compare a model in its own runtime with the checkpoint, and write into it what it is; returns what to tell."""
    provider = formats.PROVEN[format].provider
    rounded = {}
    if format == "onnx":
        graph = onnx.load(file)
        if is_quantized(student.model):
            rounded = {"int8": qdq.finish(graph, student.model, checkpoint)}
        onnx.save(graph, file)
        onnx.checker.check_model(graph)
    if (got := Detector(file, provider).contract).output != wanted:
        asked = next((f"contract={name}" for name, output in CONTRACTS.items() if output == wanted), wanted)
        raise UsageError(f"{asked} was asked for and Ultralytics exported {got.output}: choose another contract.")
    figures = parity.check(checkpoint, file, images, thresholds, trust, provider)
    stock = sum(map(parity.is_stock, images))
    proven_on = {"own_images": len(images) - stock, "stock_images": stock}
    made_by = Provenance.of_checkpoint(student.ckpt)
    described = describe(made_by.to_dict(), wanted, got.hw) | {"parity": figures, "proven_on": proven_on} | rounded
    formats.describe(file, format, described)
    if not source and not proven_on["own_images"]:
        said = f"{target} was proven on {stock} stock photographs only, which need not show what it is for: "
        LOGGER.warning(printable(f"{said}give images of its own, source=images/."))
    return _said(figures, proven_on, source)


def _keep(file: Path, target: Path) -> None:
    """Move what was exported to where it was asked for, in place of what may be replaced there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    shutil.move(file, target)


def _all_files(path: Path) -> list[Path]:
    return [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]


def _check_quantized(student: Any, checkpoint: Path, format: str, contract: str, wanted: str) -> None:
    """Refuse what a student that was trained for INT8 cannot become."""
    if not is_quantized(student.model):
        return
    if format != "onnx":
        raise UsageError(f"model={checkpoint} was trained for INT8, which is exported to ONNX only: leave format= out.")
    if wanted in (*TASKS.values(), DETR):
        raise UsageError(f"model={checkpoint} was trained for INT8, which is exported for detecting YOLOs only so far.")
    if contract != "raw":
        raise UsageError(
            f"contract={contract}: {checkpoint} was trained for INT8, whose rounding decides between detections that "
            "score alike, so that only the raw output can be compared: choose contract=raw."
        )


def describe(made_by: dict[str, Any], contract: str, hw: tuple[int, int]) -> dict[str, Any]:
    """The metadata entry "yolokd": what the file outputs and where the model comes from; null where nobody knows.

    The training's accuracy is the file's only where both see images of the same size, neither has decided on a
    confidence yet, and it is the same branch of a dual head.
    """
    origin = Provenance.from_dict(made_by)
    known = origin.accuracy or {}
    same = set(hw) == {known.get("imgsz")} and contract != NMS and known["end2end"] == (contract == E2E)
    return {
        "schema": "yolokd.export/1",
        "yolokd_version": __version__,
        "output_contract": contract,
        **origin.without_paths(),
        "accuracy": known if same else None,
    }


def _check_request(
    model: str | Path, out: str | Path | None, format: str, contract: str, exist_ok: bool, arguments: dict[str, Any]
) -> tuple[Path, Path]:
    checkpoint = as_path("model", model)
    if checkpoint.suffix != ".pt" or not checkpoint.is_file():
        raise UsageError(f"model={model} is not a checkpoint: give the trained student's .pt file.")
    if contract not in CONTRACTS:
        raise UsageError(f"contract={contract} is unknown{did_you_mean(contract, CONTRACTS)}.")
    for key, (same, remedy) in REFUSED.items():
        if (value := arguments.pop(key, None)) and value != same:
            raise UsageError(f"{key}={value} is not for `yolokd export`: {remedy}.")
    if format != "onnx" and contract != "raw":
        raise UsageError(f"contract={contract} is for ONNX files: leave it out with format={format}.")
    ours = ("model", "out", "format", "contract", "source", "exist_ok", "trust")
    check_keys(arguments, [*formats.THROUGH_ONNX, *BAKED["nms"], *ours])
    taken = formats.PROVEN[format].takes if format in formats.PROVEN else formats.THROUGH_ONNX
    for key in arguments:
        if key not in (*taken, *BAKED[contract]):
            what = f"contract={contract}" if format == "onnx" else f"format={format}"
            raise UsageError(f"{key}={arguments[key]} has no place in a file with {what}: leave it out.")
    check_values(arguments)
    if (opset := arguments.get("opset")) is not None and (type(opset) is not int or opset < 9):
        raise UsageError(f"opset={opset} is none that can be exported: give a whole number, opset>=9.")
    true_or_false("exist_ok", exist_ok)
    return checkpoint, _check_target(out, checkpoint, format, exist_ok)


def _check_target(out: str | Path | None, checkpoint: Path, format: str, exist_ok: bool) -> Path:
    """Where to write; refused where something lies that may not be replaced."""
    end = formats.ending(format)
    target = as_path("out", out) if out else checkpoint.with_name(checkpoint.stem + end)
    if not target.name.endswith(end):
        raise UsageError(f"out={target} does not end in {end}: name what to write, such as out=student{end}.")
    if target.exists() and not exist_ok:
        raise UsageError(f"{target} exists already: name another file with out=, or allow it with exist_ok=True.")
    if target.is_dir() and format_of(target) != format:
        raise UsageError(f"{target} is a folder that is no model for {format}: name another one with out=.")
    check_writable(target, f"out={target}")
    return target


def _wanted(head: Any, checkpoint: Path, contract: str) -> str:
    """The output contract of the file: that of an RT-DETR is always the same."""
    if isinstance(head, RTDETRDecoder):
        if contract != "raw":
            raise UsageError(f"contract={contract} is for YOLOs, and {checkpoint} is an RT-DETR: leave contract= out.")
        return DETR
    if not isinstance(head, Detect):
        raise UsageError(f"model={checkpoint} is neither a YOLO nor an RT-DETR: yolokd exports these two so far.")
    if (task := TASK_OF.get(type(head).__name__.rstrip("0123456789"))) is not None:
        if contract != "raw":
            raise UsageError(f"contract={contract} is for detect, and {checkpoint} is for {task}: leave contract= out.")
        return TASKS[task]
    if contract == "e2e" and getattr(head, "one2one_cv2", None) is None:
        raise UsageError(f"contract=e2e needs an NMS-free head, which {checkpoint} does not have: choose raw or nms.")
    return CONTRACTS[contract]


def _thresholds(contract: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the file decides with, so that the reference can decide the same; Ultralytics bakes in conf 0.25."""
    baked = {k: arguments[k] for k in BAKED[contract] if arguments.get(k) is not None}
    return {"conf": 0.25, **baked} if contract == "nms" else baked


def open_detector(checkpoint: Path, trust: bool) -> Any:
    """A checkpoint as Ultralytics' own object, with a task that the runtime knows."""
    student = open_model(checkpoint, trust=trust, remedy=GIVE_CHECKPOINT)
    if student.task != "detect" and student.task not in TASKS:
        known = ", ".join(TASKS)
        raise UsageError(f"model={checkpoint} is for the task {student.task}: yolokd exports detect, {known} so far.")
    return student


def training_data(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The data set a checkpoint was trained on, if it is on this machine; never downloads it."""
    named = Provenance.of_checkpoint(checkpoint).data or (checkpoint.get("train_args") or {}).get("data")
    if not named or not Path(str(named)).is_file():
        return None
    try:
        return find_data(str(named))
    except UsageError as error:  # moved since: the photographs remain
        LOGGER.warning(f"The data set of the training is left out: {error}")
        return None


def _said(figures: dict[str, Any], proven_on: dict[str, int], source: Any) -> str:
    """The figures of a file that passed, and on which images."""
    dets, outputs = figures["dets"], figures["raw"] or figures["rows"]
    parts = [f"{dets['n']} detections within {dets['max_box_diff']:.2g} px and {dets['max_conf_diff']:.2g} confidence"]
    if "max_point_diff" in dets:
        parts[0] += f", their points within {dets['max_point_diff']:.2g} px"
    if "max_mask_diff" in dets:
        parts[0] += f", their masks apart by {dets['max_mask_diff']:.2%} at most"
    if outputs and "mean_abs_box" in outputs:
        parts.insert(
            0,
            f"the best boxes within {outputs['mean_abs_box']:.2g} px and {outputs['mean_abs_score']:.2g} score on "
            f"average, their scores together within {outputs['score_scale']:.2%}",
        )
    elif outputs:
        parts.insert(0, f"outputs within {outputs['max_abs_box']:.2g} px and {outputs['max_abs_score']:.2g} score")
    own, stock = proven_on.values()
    where = f"{own} images of {source}" if source else f"{own} images of the data and {stock} stock photographs"
    like = "as PyTorch with its eight bits" if "mean_box" in figures["tolerance"] else "equal to PyTorch"
    return f"{like} on {where}: {', '.join(parts)}"
