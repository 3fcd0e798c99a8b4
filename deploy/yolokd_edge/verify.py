"""Does this device compute what was computed where the bundle was made?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from yolokd_edge.boxes import match_detections
from yolokd_edge.bundle import EXPECTED, EXPECTED_RAW, Bundle
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import RAW
from yolokd_edge.detector import Detector, check_manifest
from yolokd_edge.images import read_image
from yolokd_edge.runtimes.table import ON_CPU


def verify_bundle(
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
    expected, raws = read_expectations(bundle)
    detector.conf, detector.iou, detector.max_det = (expected[key] for key in ("conf", "iou", "max_det"))
    tolerated = "fp16" if precision == "fp32" and detector.active not in ON_CPU else precision
    tolerance, raw, dets, exact = expected["tolerance"][tolerated], [], [], True
    for name, image in expected["images"].items():
        blob, box = detector.preprocess(read_image(bundle.folder / "parity" / name))
        output = detector.infer(blob)
        if precision == "fp32":
            raw.append(raw_difference(output, raws[name], raws[name + "/index"], detector.contract.output))
        reference = np.array(image["detections"][detector.path.name], np.float32).reshape(-1, 6)
        ours = detector.postprocess(output, box)
        exact &= np.array_equal(reference, ours)
        dets.append(compare_detections(reference, ours, detector.conf + tolerance["conf"]))
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
        "pass": _within(worst_raw, found, tolerance),
    }


def _within(raw: dict[str, float], found: dict[str, Any], tolerance: dict[str, float]) -> bool:
    """Whether every figure keeps to the tolerance; of other precisions than FP32 there are no raw figures."""
    return bool(
        raw.get("max_abs_box", 0) <= tolerance["raw_box"]
        and raw.get("max_abs_score", 0) <= tolerance["raw_score"]
        and found["max_box_diff"] <= tolerance["box"]
        and found["max_conf_diff"] <= tolerance["conf"]
        and found["unmatched"] <= tolerance["unmatched"] * found["n"]
    )


def read_expectations(bundle: Bundle) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The reference detections with their tolerances, and the kept raw outputs by image."""
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
    """Largest differences of the detections (n, 6) and (m, 6) that match.

    One without a partner counts from the confidence `sure` on: below it, rounding alone can drop a detection.
    """
    left, right, box, conf = set(range(len(a))), set(range(len(b))), 0.0, 0.0
    for i, j, _ in match_detections(a, b):
        left.discard(i)
        right.discard(j)
        box = max(box, float(np.abs(a[i, :4] - b[j, :4]).max()))
        conf = max(conf, float(abs(a[i, 4] - b[j, 4])))
    unmatched = sum(a[i, 4] > sure for i in left) + sum(b[j, 4] > sure for j in right)
    return {"n": len(a), "unmatched": int(unmatched), "max_box_diff": box, "max_conf_diff": conf}


def parity_text(figures: dict[str, Any]) -> str:
    """What `verify_bundle` found, in one line."""
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
