"""`yolokd bundle` and `yolokd.bundle()`: everything a person with a board needs, in one zip file, checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
import ultralytics
from ultralytics import RTDETR, YOLO
from ultralytics.utils import LOGGER

from yolokd import __version__, compat
from yolokd.config.checks import check_writable
from yolokd.config.parse import true_or_false
from yolokd.data.splits import find_data, split_images
from yolokd.detectors.quantized import is_quantized
from yolokd.distill.provenance import Provenance
from yolokd.errors import ParityError, UsageError, as_path, printable
from yolokd.onnx import (
    calibration,
    export,
    hand_over,
    parity,
    rounding,
    summary,
    trials,
    twins,
    validation,
)
from yolokd_edge.boxes import PAD
from yolokd_edge.bundle import BUNDLE_SCHEMA, EXPECTED, EXPECTED_RAW, MANIFEST, open_bundle
from yolokd_edge.common import PACKAGE
from yolokd_edge.contract import DETR
from yolokd_edge.detector import Detector, check_manifest
from yolokd_edge.images import list_images, read_image
from yolokd_edge.verify import Kept, Layout, layout, raw_key

BOARD_FILES, TESTS = PACKAGE / "board_files", PACKAGE / "jetson"
NOT_IN_A_BUNDLE = shutil.ignore_patterns("board_files", "jetson", "__pycache__", "*.py[co]")
CALIBRATION = 300  # images
PARITY_IMAGES, CANDIDATES = 6, 64
KEPT_ANCHORS, KEPT_OF_TWINS = 1024, 256  # of the raw output, for each parity image
MAX_DROP = 5.0  # points of mAP50-95 that a twin may lose against the FP32 file

FITTING: dict[str, dict[str, Any]] = {  # how a frame becomes the input, for the manifest
    "letterbox": {
        "letterbox": {"pad": PAD, "centred": True, "scale_up": True, "interpolation": "linear"},
        "rounding": "half to even; an odd border pixel goes to the bottom and the right",
    },
    "stretch": {"stretch": {"interpolation": "linear"}},
}


def bundle(
    model: str | Path,
    out: str | Path | None = None,
    data: str | Path | None = None,
    fp16: bool = False,
    int8: bool = False,
    contract: str = "raw",
    imgsz: int | list[int] | None = None,
    source: str | Path | None = None,
    calib: int = CALIBRATION,
    calibrator: str = "auto",
    float_layers: int | None = None,
    max_error: float | None = None,
    max_drop: float = MAX_DROP,
    handover: str | Sequence[str] | None = None,
    trust: bool = False,
) -> Path:
    """Export a checkpoint and pack it with twins, a parity pack, the runtime and instructions.

    Args:
        model: the .pt file.
        out: the zip file to write, which must not exist; the checkpoint's name with `-edge.zip` by default.
        data: data set YAML to measure accuracy on (validation split) and to calibrate on (training split); by default
            the one the checkpoint was trained on, if it is on this machine. Twins need it.
        fp16: whether to add an FP16 file.
        int8: whether to add two INT8 files, for CPUs and for TensorRT; a student trained for INT8 has one anyway.
        contract: as for `export`.
        imgsz: input size, pixels; the checkpoint's training size by default.
        source: image or folder for the parity pack; by default images of the validation split, else two photographs
            that Ultralytics installs.
        calib: most training images to calibrate on.
        calibrator: what gives INT8 its ranges: minmax, percentile, entropy, or auto for the one that changes the
            detections least.
        float_layers: how many layers stay in float in the INT8 files, those that cost most, found by measurement; none
            by default.
        max_error: percent that detections of the INT8 files may be off; as many layers stay in float as that takes, at
            most `float_layers` where both are given.
        max_drop: most points of mAP50-95 that an FP16 or INT8 file may lose against the FP32 file.
        handover: add what another program needs: `deepstream`, `triton`, or both as a list or joined by a comma.
        trust: whether the checkpoint may hold what runs as code: you answer for it.

    Returns:
        Path of the zip file. The same inputs and versions on the same machine give the same bytes.

    Raises:
        UsageError: something asked for cannot be done.
        ParityError: a file computes something else than it should, or a twin loses more than `max_drop`; nothing is
            written.
    """
    checkpoint = as_path("model", model)
    wishes = trials.Wishes(calibrator, float_layers, max_error)
    target = _check_request(checkpoint, out, {"fp16": fp16, "int8": int8, "trust": trust}, calib, max_drop)
    wishes.check()
    programs = hand_over.read(handover)
    student = export.open_detector(checkpoint, trust)
    hand_over.refuse(programs, student, contract)
    dataset = find_data(data) if data else export.training_data(student.ckpt)
    trained = is_quantized(student.model)  # for INT8: its files need no calibration
    given = [*([f"calib={calib}"] if calib != CALIBRATION else []), *wishes.given()]
    if trained and given:
        raise UsageError(
            f"{given[0]}: {checkpoint} was trained for INT8 and has its ranges, nothing is calibrated: leave it out."
        )
    if not int8 and wishes.given():
        raise UsageError(f"{wishes.given()[0]} is for the INT8 files: add int8=True, or leave it out.")
    if (fp16 or int8 and not trained) and not dataset:
        raise UsageError(
            "fp16= and int8= need the data set, to calibrate on and to measure with: give its YAML, data=my.yaml."
        )
    if int8 and dataset and not trained:
        split_images(dataset, "train")  # that it has images must be seen before a minute of exporting
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        how = {"contract": contract, "source": source, "trust": trust, **({} if imgsz is None else {"imgsz": imgsz})}
        models = twins.make(checkpoint, root, student, dataset, fp16, int8, how, calib, wishes)
        validation.refuse_losses(models, max_drop)
        images = list_images(str(source)) if source else _candidates(dataset)
        tolerance = _parity_pack(root, models, images)
        hand_over.write(programs, root, target.stem, models)
        _instructions(root, target.stem, models, tolerance, max_drop)
        manifest = _manifest(root, target.stem, checkpoint, student.ckpt, models, max_drop)
        (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        check_manifest(open_bundle(root), Detector(root / "model.onnx", threads=1))
        _zip(root, target)
    LOGGER.info(f"Bundled {printable(str(target))} ({target.stat().st_size / 1e6:.1f} MB)\n{summary.table(models)}")
    return target


def _check_request(checkpoint: Path, out: str | Path | None, flags: dict[str, Any], calib: Any, max_drop: Any) -> Path:
    if checkpoint.suffix != ".pt" or not checkpoint.is_file():
        raise UsageError(f"model={checkpoint} is not a checkpoint: give the trained student's .pt file.")
    for key, value in flags.items():
        true_or_false(key, value)
    if isinstance(calib, bool) or not isinstance(calib, int) or calib < 1:
        raise UsageError(f"calib={calib} is not a number of images: give 1 or more, such as {CALIBRATION}.")
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop <= 100:
        raise UsageError(f"max_drop={max_drop} is not a number of points from 0 to 100: give one such as {MAX_DROP:g}.")
    target = as_path("out", out) if out else checkpoint.with_name(f"{checkpoint.stem}-edge.zip")
    if target.suffix != ".zip":
        raise UsageError(f"out={target} does not end in .zip: name the file to write, such as out=student-edge.zip.")
    if target.exists():
        raise UsageError(f"{target} exists already: name another file with out=.")
    check_writable(target, f"out={target}")
    return target


# --- images ---------------------------------------------------------------------------------------------------------


def _candidates(dataset: dict[str, Any] | None) -> list[Path]:
    own = filter(parity.readable, calibration.spread(split_images(dataset, "val"), CANDIDATES)) if dataset else ()
    return [*own, *parity.stock_images()]


def varied(image: np.ndarray, number: int, hw: tuple[int, int]) -> np.ndarray:
    """An image that can show a wrong letterbox and swapped colours: not square, not grey, smaller than the input
    or larger."""
    height, width = image.shape[:2]
    if max(height, width) < 1.2 * min(height, width):
        image = image[: height * 3 // 4] if number % 2 else image[:, : width * 3 // 4]
    if int(np.ptp(image.astype(np.int16), axis=2).max()) < 8:
        image = (image * np.array([1.0, 0.8, 0.6])).astype(np.uint8)
    scale = (0.8, 1.3)[number // 2 % 2] * max(hw) / max(image.shape[:2])
    size = [max(round(side * scale), 8) for side in image.shape[1::-1]]
    resized: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized


# --- the parity pack ------------------------------------------------------------------------------------------------


def _parity_pack(
    root: Path, models: dict[str, dict[str, Any]], candidates: Sequence[Path]
) -> dict[str, dict[str, float]]:
    """Write the images, and what each file makes of them here; returns the tolerances by precision.

    The FP32 detections are those of Ultralytics' `predict(rect=False)` on the same file, and our runtime has to find
    exactly them; the twins' are our runtime's.
    """
    detectors = {name: Detector(root / name, threads=1) for name in models}
    full = detectors["model.onnx"]
    task = full.contract.exporter["task"]
    opened = RTDETR(root / "model.onnx") if full.contract.output == DETR else YOLO(root / "model.onnx", task=task)
    (root / "parity").mkdir()
    images: dict[str, Any] = {}
    raws: dict[str, np.ndarray] = {}
    outputs: dict[str, list[Kept]] = {name: [] for name in models}
    blobs = []
    for path in candidates:
        if len(images) == PARITY_IMAGES:
            break
        frame = varied(read_image(path), len(images), full.contract.hw)
        found = full.detect(frame)
        if not len(found):
            continue
        name = f"{len(images)}.png"
        with compat.boxes_by_axis():
            result = opened.predict(frame, rect=False, conf=full.conf, iou=full.iou, device="cpu", verbose=False)[0]
        if not _equal(found, result, full):
            raise ParityError(
                f"the runtime finds other boxes than Ultralytics' predict(rect=False) in {path}: no bundle was made."
            )
        cv2.imwrite(str(root / "parity" / name), frame)
        blobs.append(full.preprocess(frame)[0])
        for file, detector in detectors.items():
            output = detector.output.in_pixels(detector.infer(blobs[-1]))
            kept = _kept(output, layout(full), KEPT_ANCHORS if detector is full else KEPT_OF_TWINS)
            key = raw_key(file, name)
            raws[f"{key}/index"], raws[key] = kept
            outputs[file].append(kept)
        detections = {}
        for file, detector in detectors.items():
            rows = detector.detect(frame)
            detections[file] = rows.tolist()
            if detector.output.adds == "masks":
                raws[f"{raw_key(file, name)}/masks"] = np.packbits(detector.output.things(rows))
        images[name] = {"hw": list(frame.shape[:2]), "detections": detections}
    if not images:
        raise UsageError(
            f"the model detects nothing in {len(candidates)} images, so parity could not be verified on the board: "
            "give images of what it detects, source=images/."
        )
    for file in models:
        if not any(image["detections"][file] for image in images.values()):
            raise ParityError(
                f"{file} detects nothing in {len(images)} images in which the FP32 file does, so no bundle was made: "
                f"calibrate on other images, or leave {models[file]['precision']}=True out."
            )
    moved = {file: rounding.measure(detectors[file], blobs, outputs[file]) for file in models}
    if wild := [file for file, figures in moved.items() if not np.isfinite(list(figures.values())).all()]:
        raise ParityError(
            f"{wild[0]} computes values that are no finite numbers where ONNX Runtime does not optimize it, so no "
            f"bundle was made: leave {models[wild[0]]['precision']}=True out, or update ONNX Runtime."
        )
    precisions = {models[file]["precision"] for file in models}
    tolerance = rounding.tolerances(
        {p: [moved[file] for file in models if models[file]["precision"] == p] for p in precisions}
    )
    expected = {
        "reference": f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider; FP32 detections equal to "
        f"predict(rect=False) of ultralytics {ultralytics.__version__}",
        "conf": full.conf,
        "iou": full.iou,
        "max_det": full.max_det,
        "tolerance": tolerance,
        "rounding": moved,
        "images": images,
    }
    (root / EXPECTED).write_text(json.dumps(expected, allow_nan=False) + "\n", encoding="utf-8")
    np.savez_compressed(root / EXPECTED_RAW, **raws)  # type: ignore[arg-type]
    return tolerance


def _equal(ours: np.ndarray, result: Any, detector: Detector) -> bool:
    """Whether boxes, scores and classes are those of Ultralytics' result to the last digit; and the rest up to
    rounding: a rotated box's corners come from another sine.
    """
    theirs, output = parity.result_rows(result), detector.output
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-5, atol=1e-3):
        return False
    pairs = zip(output.things(ours), parity.result_things(result), strict=True)
    same = not output.adds or all(output.apart(a, b) <= parity.TOLERANCE[output.adds] for a, b in pairs)
    return same and (ours.shape[1] == 11 or np.array_equal(ours[:, :6], theirs[:, :6]))


def _kept(output: np.ndarray, way: Layout, most: int) -> Kept:
    """Places of the output worth keeping, and what stands there: the best anchor points and some more, or all rows."""
    if not way.per_anchor:
        return Kept(np.arange(output.shape[1]), output[0])
    best = np.argsort(-output[0, way.scores].max(0), kind="stable")[: most // 2]
    spread = np.linspace(0, output.shape[2] - 1, most // 2).round().astype(int)
    index = np.unique(np.concatenate([best, spread]))
    return Kept(index, output[0][:, index])


# --- instructions, manifest, zip ------------------------------------------------------------------------------------


def _instructions(
    root: Path, name: str, models: summary.Models, tolerance: dict[str, dict[str, float]], max_drop: float
) -> None:
    """Runtime, tests, requirement files, run.sh, README, licence and notice."""
    shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=NOT_IN_A_BUNDLE)
    for file in sorted(BOARD_FILES.iterdir()):
        if file.suffix in (".txt", ".sh"):
            shutil.copy(file, root)
    (root / "jetson").mkdir()
    shutil.copy(TESTS / "test_board.py", root / "jetson")
    shutil.copy(TESTS / "options.py", root / "jetson/conftest.py")
    text = (BOARD_FILES / "README.md").read_text(encoding="utf-8")
    filled = text.format(
        name=name,
        files=summary.table(models),
        advice=summary.advice(models, max_drop),
        tolerances=summary.allowed(models, tolerance),
        int8=next((n for n, e in models.items() if e["precision"] == "int8"), "model_int8_cpu.onnx"),
    )
    (root / "README.md").write_text(filled, encoding="utf-8")
    # all of that name: a build leaves one without licence beside a checkout
    texts = [d.read_text("licenses/LICENSE") for d in distributions(name="yolokd")]
    licence = next((text for text in texts if text), None)
    if not licence:
        raise UsageError("the installation of yolokd lacks its LICENSE file: install it again.")
    (root / "LICENSE").write_text(licence, encoding="utf-8")
    (root / "NOTICE").write_text(
        f"Runtime and tests: yolokd {__version__}, AGPL-3.0.\n"
        f"Model files: exported with Ultralytics {ultralytics.__version__}, which puts them under AGPL-3.0 "
        "(https://ultralytics.com/license) unless you hold its enterprise licence.\n"
        "The images in parity/ come from the data that the bundle was made with and keep their own licence.\n",
        encoding="utf-8",
    )


def _manifest(
    root: Path, name: str, checkpoint: Path, ckpt: dict[str, Any], models: summary.Models, max_drop: float
) -> dict[str, Any]:
    full = Detector(root / "model.onnx", threads=1)
    contract, described = full.contract, full.contract.meta
    files = sorted(p for p in root.rglob("*") if p.is_file())
    names = [p.relative_to(root).as_posix() for p in files]
    return {
        "schema": BUNDLE_SCHEMA,
        "name": name,
        "made_with": {
            "yolokd": __version__,
            "ultralytics": ultralytics.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "license": contract.exporter.get("license"),
        "contract": {
            "output": contract.output,
            "task": contract.exporter["task"],
            "names": {str(k): v for k, v in contract.names.items()},
            "imgsz": list(contract.hw),
            "preprocessing": {
                "input": "BGR uint8 image to float32 (1, 3, H, W), RGB, divided by 255",
                **FITTING[full.output.fitting],
            },
            "defaults": {"conf": full.conf, "iou": full.iou, "max_det": full.max_det},
        },
        "models": models,
        "recommended": {"max_drop": max_drop, "files": summary.recommended(models, max_drop)},
        "provenance": {
            "student": {"file": checkpoint.name, "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()},
            **Provenance.from_dict(described).without_paths(),
            "accuracy": described.get("accuracy"),
            "training": _recipe(ckpt),
        },
        "files": {
            n: {"bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
            for n, f in zip(names, files, strict=True)
        },
    }


def _recipe(ckpt: dict[str, Any]) -> dict[str, Any]:
    """The training's settings that are numbers, and its optimizer: paths and names are left at home."""
    arguments = ckpt.get("train_args") or {}
    numbers = {k: v for k, v in arguments.items() if isinstance(v, (bool, int, float)) or k == "optimizer"}
    return dict(sorted(numbers.items()))


def _zip(root: Path, target: Path) -> None:
    """Pack a folder: sorted, with fixed times and permissions, so that equal contents are equal bytes."""
    packed = root.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(root).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED  # 3: Unix, for the permissions
            program = file.name == "run.sh"
            entry.external_attr = (0o100755 if program else 0o100644) << 16
            archive.writestr(entry, file.read_bytes())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file_out, packed.open("rb") as file_in:  # x: what appeared meanwhile is not replaced
            shutil.copyfileobj(file_in, file_out)
    except FileExistsError:
        raise UsageError(f"{target} exists already: name another file with out=.") from None
    finally:
        packed.unlink()
