"""Does this device compute what was computed where the bundle was made?"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.boxes import match_detections
from yolokd_edge.bundle import EXPECTED, EXPECTED_RAW, Bundle
from yolokd_edge.common import EdgeError, printable
from yolokd_edge.contract import PRECISIONS
from yolokd_edge.detector import Detector, check_manifest
from yolokd_edge.images import read_image
from yolokd_edge.outputs.base import Output
from yolokd_edge.runtimes.table import ON_CPU

BEST, SURE = 64, 8  # places of an output, best first: those whose mean difference counts, those whose scores are summed
FIGURES = {  # of the raw output -> its tolerance
    "max_abs_box": "raw_box",
    "max_abs_score": "raw_score",
    "mean_abs_box": "mean_box",
    "score_scale": "score_scale",
}
ADDED = {"points": "max_point_diff", "masks": "max_mask_diff"}  # what a task adds -> its figure
TOLERANCES = ("raw_box", "raw_score", "box", "conf", "unmatched")  # that every bundle states


class Kept(NamedTuple):
    """What a file's output was at some of its places, boxes in input pixels."""

    places: np.ndarray  # (n,) anchor points or rows
    values: np.ndarray  # (4 + nc, n) or (n, 6)


def raw_key(file: str, image: str) -> str:
    """The name under which the raw outputs of a file are kept; those of model.onnx are the image's alone."""
    return image if file == "model.onnx" else f"{file}/{image}"


def verify_bundle(
    bundle: Bundle, provider: str = "cpu", threads: int | None = None, precision: str = "fp32", **settings: Any
) -> dict[str, Any]:
    """Compare what this device computes with what the bundle says was computed where it was made.

    Further settings are Detector's own.

    Returns:
        ``pass`` and the figures it stands on, and ``why`` it does not pass: ``raw``, the differences of the network's
        output (boxes in input pixels), see `raw_difference`, and how far its best scores are off together; ``dets``,
        those of the detections (pixels of the image). The tolerance is that of the file's precision; a GPU gets at
        least FP16's, because it computes FP32 in TF32, and TensorRT in FP16 where it is asked to. Nothing to compare
        is no pass.
    """
    detector = Detector(bundle.model(precision, provider), provider, threads, **settings)
    check_manifest(bundle, detector)
    expected, raws = read_expectations(bundle)
    detector.conf, detector.iou, detector.max_det = (expected[key] for key in ("conf", "iou", "max_det"))
    tolerated = "fp16" if precision == "fp32" and detector.active not in ON_CPU else precision
    tolerance, raw, dets, exact = expected["tolerance"][tolerated], [], [], True
    sums = np.zeros(2)  # of the best scores: ours, expected
    for name, image in expected["images"].items():
        blob, box = detector.preprocess(read_image(bundle.folder / "parity" / name))
        output = detector.infer(blob)
        ours = detector.postprocess(output, box)
        pixels, columns = detector.output.in_pixels(output), layout(detector)
        kept = kept_output(bundle, raws, detector, name, pixels)
        if kept is not None:
            raw.append(raw_difference(pixels, kept.values, kept.places, columns))
            sums += score_sums(pixels, kept.values, kept.places, columns)
        reference = _reference(bundle, image, detector)
        exact &= np.array_equal(reference, ours)
        things = _reference_things(bundle, raws, detector, name, reference), detector.output.things(ours)
        dets.append(compare_detections(reference, ours, detector.conf + tolerance["conf"], detector.output, things))
    worst_raw = worst(raw)
    if worst_raw:
        worst_raw["score_scale"] = off(sums)
    found = {k: (sum if k in ("n", "unmatched") else max)(d[k] for d in dets) for k in dets[0]}
    if detector.output.adds and not number(tolerance.get(detector.output.adds)):
        raise EdgeError(f"{bundle.path}: {EXPECTED} has no usable tolerance for {precision}: make the bundle again.")
    why = _problems(worst_raw, found, tolerance, precision)
    return {
        "reference": expected["reference"],
        "model": detector.path.name,
        "provider": detector.active,
        "n_images": len(dets),
        "raw": worst_raw or None,
        "dets": found,
        "exact": bool(exact),
        "tolerance": tolerance,
        "pass": not why,
        "why": why,
    }


def _problems(raw: dict[str, float], found: dict[str, Any], tolerance: dict[str, float], precision: str) -> list[str]:
    """Why it does not pass; a figure that is no number is above every tolerance."""
    why = []
    if not found["n"] and not found["unmatched"]:
        why.append(f"nothing was detected and nothing expected, which says nothing of the {precision} file")
    for key, limit in FIGURES.items():
        if key in raw and not raw[key] <= tolerance.get(limit, math.inf):
            why.append(f"raw output: {key} is {raw[key]:.3g}, above {tolerance[limit]:g}")
    of_added = [(figure, limit) for limit, figure in ADDED.items() if figure in found]
    for key, limit in (("max_box_diff", "box"), ("max_conf_diff", "conf"), *of_added):
        if not found[key] <= tolerance[limit]:
            why.append(f"detections: {key} is {found[key]:.3g}, above {tolerance[limit]:g}")
    if not found["unmatched"] <= tolerance["unmatched"] * found["n"]:
        why.append(f"{found['unmatched']} detections are without a partner")
    return why


# --- the expectations: checksums say that they are whole, not that they make sense -----------------------------------


def read_expectations(bundle: Bundle) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The reference detections with their tolerances, and the kept raw outputs by image, all of the right form."""
    missing = [name for name in (EXPECTED, EXPECTED_RAW) if name not in bundle.manifest["files"]]
    if missing:
        raise EdgeError(f"{bundle.path} holds no {' and no '.join(missing)}, so parity cannot be verified.")
    try:
        expected = json.loads((bundle.folder / EXPECTED).read_text(encoding="utf-8"))
        problem = _malformed(expected, bundle)
    except (OSError, ValueError, RecursionError):
        problem = "is no JSON text"
    if problem:
        raise EdgeError(f"{bundle.path}: {EXPECTED} {problem}: make the bundle again.")
    try:
        with np.load(str(bundle.folder / EXPECTED_RAW), allow_pickle=False) as file:
            raws = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, MemoryError):
        raise EdgeError(
            f"{bundle.path}: {EXPECTED_RAW} holds no arrays that can be read: make the bundle again."
        ) from None
    return expected, raws


def number(value: Any, least: float = 0.0, most: float = 1e9) -> bool:
    """Whether it is a number between the two, which nan and what no float holds are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _malformed(expected: Any, bundle: Bundle) -> str | None:
    """What is wrong with the expectations, None if nothing is."""
    if not isinstance(expected, dict):
        return "is no object"
    if not isinstance(expected.get("reference"), str):
        return "names no reference"
    for key, most in (("conf", 1.0), ("iou", 1.0), ("max_det", 1e6)):
        if not number(expected.get(key), 0, most) or key == "max_det" and not isinstance(expected[key], int):
            return f"has no usable {key}"
    tolerance = expected.get("tolerance")
    for precision in PRECISIONS:
        limits = tolerance.get(precision) if isinstance(tolerance, dict) else None
        if not isinstance(limits, dict) or not all(number(limits.get(key)) for key in {*limits, *TOLERANCES}):
            return f"has no usable tolerance for {precision}"
    images = expected.get("images")
    if not isinstance(images, dict) or not images:
        return "names no image, so there is nothing to compare"
    for name, image in images.items():
        if f"parity/{name}" not in bundle.manifest["files"] or "/" in name or "\\" in name:
            return f"names the image {printable(name)[:80]!r}, which is none of the bundle's in parity/"
        if not isinstance(image, dict) or not isinstance(image.get("detections"), dict):
            return f"has no detections of {printable(name)[:80]}"
    return None


def _reference(bundle: Bundle, image: dict[str, Any], detector: Detector) -> np.ndarray:
    """The detections that were found where the bundle was made."""
    rows, columns = image["detections"].get(detector.path.name), detector.output.columns
    good = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == columns and all(number(v, -1e6, 1e6) for v in row) for row in rows
    )
    if not good:
        raise EdgeError(
            f"{bundle.path}: {EXPECTED} has no detections of {printable(detector.path.name)} as rows of {columns} "
            "numbers: make the bundle again."
        )
    return np.array(rows, np.float32).reshape(-1, columns)


def _reference_things(
    bundle: Bundle, raws: dict[str, np.ndarray], detector: Detector, image: str, rows: np.ndarray
) -> np.ndarray:
    """What the reference detections have beside their boxes: the rows themselves, or masks (n, H, W) packed in bits."""
    if detector.output.adds != "masks":
        return rows
    packed, shape = raws.get(raw_key(detector.path.name, image) + "/masks"), (len(rows),) + detector.contract.hw
    count = int(np.prod(shape))
    if packed is None or packed.dtype != np.uint8 or packed.shape != (-(-count // 8),):
        raise EdgeError(
            f"{bundle.path}: {EXPECTED_RAW} does not hold the masks of {printable(detector.path.name)} for "
            f"{printable(image)}: make the bundle again."
        )
    return np.unpackbits(packed)[:count].reshape(shape)


def kept_output(
    bundle: Bundle, raws: dict[str, np.ndarray], detector: Detector, image: str, output: np.ndarray
) -> Kept | None:
    """The part of a file's output that was kept, None where a bundle of before 0.2 has kept only that of model.onnx."""
    key = raw_key(detector.path.name, image)
    if key not in raws and detector.path.name != "model.onnx" and not any(k.startswith("model_") for k in raws):
        return None
    values, index = raws.get(key), raws.get(key + "/index")
    axis = 2 if detector.output.per_anchor else 1
    if values is not None and index is not None and index.ndim == 1 and index.dtype.kind in "iu" and len(index):
        shape = (output.shape[1], len(index)) if axis == 2 else (len(index), output.shape[2])
        inside = 0 <= index.min() and index.max() < output.shape[axis]
        if inside and values.shape == shape and values.dtype.kind == "f" and np.isfinite(values).all():
            return Kept(index, values)
    raise EdgeError(
        f"{bundle.path}: {EXPECTED_RAW} does not hold the output of {printable(detector.path.name)} for "
        f"{printable(image)}: make the bundle again."
    )


# --- comparisons ----------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How boxes and scores lie in an output."""

    per_anchor: bool  # (1, 4 + nc and more, A), else rows (1, N, 6), best first
    scores: slice  # the rows of an anchor point's scores


def layout(detector: Detector) -> Layout:
    """That of a file's first output."""
    return Layout(detector.output.per_anchor, slice(4, 4 + detector.contract.nc))


def _at(output: np.ndarray, expected: np.ndarray, index: np.ndarray, way: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Ours and theirs at the kept places, as float64: (4 + nc, n) or rows (n, 6)."""
    ours = output[0].astype(np.float64)
    ours, theirs = (ours[:, index] if way.per_anchor else ours[index]), expected.astype(np.float64)
    return (ours[: way.scores.stop], theirs[: way.scores.stop]) if way.per_anchor else (ours, theirs)


def raw_difference(output: np.ndarray, expected: np.ndarray, index: np.ndarray, way: Layout) -> dict[str, float]:
    """Largest differences of boxes and scores of an output, the mean one of its best boxes' sides, and its cosine, at
    the places that were kept.

    These are anchor points, index (n,) of (1, 4 + nc and more, A); else all rows (1, N, 6), best first, of which those
    are compared whose place no rounding can change: they score 0.01 or more away from both neighbours.
    """
    ours, theirs = _at(output, expected, index, way)
    if way.per_anchor:
        gap = np.abs(ours - theirs)
        boxes, scores = gap[:4], gap[4:]
        near = boxes[:, np.argsort(-theirs[4:].max(0), kind="stable")[:BEST]]
    else:
        steps = np.abs(np.diff(theirs[:, 4], prepend=np.inf, append=-np.inf))
        clear = (np.minimum(steps[:-1], steps[1:]) >= 0.01) & (theirs[:, 4] > 0)
        boxes, scores = np.abs(ours - theirs)[clear, :4], np.abs(ours - theirs)[:, 4]
        near = boxes[:BEST]
    cos = (ours * theirs).sum() / (np.linalg.norm(ours) * np.linalg.norm(theirs) + 1e-12)
    return {
        "max_abs_box": float(boxes.max(initial=0)),
        "max_abs_score": float(scores.max(initial=0)),
        "mean_abs_box": float(near.mean()) if near.size else 0.0,
        "cos": float(cos),
    }


def worst(figures: list[dict[str, float]]) -> dict[str, float]:
    """The worst of every figure over the images; a nan stays one."""
    out = {}
    for key in figures[0] if figures else ():
        out[key] = float((np.min if key == "cos" else np.max)([f[key] for f in figures]))
    return out


def score_sums(output: np.ndarray, expected: np.ndarray, index: np.ndarray, way: Layout) -> np.ndarray:
    """Ours and theirs: the sum of the scores at the places of the best ones.

    Rounding moves single scores up and down. What moves them all one way is no rounding, however little it is.
    """
    ours, theirs = _at(output, expected, index, way)
    scores = [v[4:].max(0) if way.per_anchor else v[:, 4] for v in (ours, theirs)]
    best = np.argsort(-scores[1], kind="stable")[:SURE]
    return np.array([scores[0][best].sum(), scores[1][best].sum()])


def off(sums: np.ndarray) -> float:
    """By which share ours are off."""
    return float(abs(sums[0] - sums[1]) / max(sums[1], 1e-9))


def compare_detections(
    a: np.ndarray,
    b: np.ndarray,
    sure: float,
    output: Output | None = None,
    things: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Largest differences of the detections (n, 6) and (m, 6) that match, and of what the output's task adds.

    One without a partner counts from the confidence `sure` on: below it, rounding alone can drop a detection.
    """
    left, right, box, conf, apart = set(range(len(a))), set(range(len(b))), 0.0, 0.0, 0.0
    for i, j, _ in match_detections(a, b):
        left.discard(i)
        right.discard(j)
        box = max(box, float(np.abs(a[i, :4] - b[j, :4]).max()))
        conf = max(conf, float(abs(a[i, 4] - b[j, 4])))
        apart = max(apart, output.apart(things[0][i], things[1][j])) if output and things else 0.0
    unmatched = sum(a[i, 4] > sure for i in left) + sum(b[j, 4] > sure for j in right)
    added = {ADDED[output.adds]: apart} if output and output.adds else {}
    return {"n": len(a), "unmatched": int(unmatched), "max_box_diff": box, "max_conf_diff": conf, **added}


def parity_text(figures: dict[str, Any]) -> str:
    """What `verify_bundle` found, in one line."""
    dets, raw, tolerance = figures["dets"], figures["raw"], figures["tolerance"]
    parts = [
        f"{dets['n']} detections, {dets['unmatched']} without a partner",
        f"boxes within {dets['max_box_diff']:.2g} px (tolerance {tolerance['box']:g})",
        f"confidences within {dets['max_conf_diff']:.2g} (tolerance {tolerance['conf']:g})",
    ]
    if "max_point_diff" in dets:
        parts.append(f"points within {dets['max_point_diff']:.2g} px (tolerance {tolerance['points']:g})")
    if "max_mask_diff" in dets:
        parts.append(f"masks apart by {dets['max_mask_diff']:.2%} at most (tolerance {tolerance['masks']:.0%})")
    if raw:
        parts.append(
            f"raw outputs within {raw['max_abs_box']:.2g} px and {raw['max_abs_score']:.2g} "
            f"(tolerances {tolerance['raw_box']:g} and {tolerance['raw_score']:g})"
        )
        if {"mean_box", "score_scale"} <= tolerance.keys():
            parts.append(
                f"best boxes by {raw['mean_abs_box']:.2g} px on average and best scores by {raw['score_scale']:.2%} "
                f"together (tolerances {tolerance['mean_box']:g} px and {tolerance['score_scale']:.2%})"
            )
    model = printable(figures["model"])
    return f"{model} on {figures['provider']}, {figures['n_images']} images: {'; '.join(parts)}"
