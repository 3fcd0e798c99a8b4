"""How far a file's outputs move where only rounding differs, and the tolerances of `verify` that follow from it.

Another CPU, a GPU or TensorRT sums in another order and decides ties otherwise. Here two things stand for that: the
file without graph optimizations, and an input that differs by an eighth of a grey level, which is what half precision
rounds it by and enough to decide the ties of eight bits otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from yolokd_edge.contract import PRECISIONS
from yolokd_edge.detector import Detector
from yolokd_edge.verify import Kept, layout, off, raw_difference, score_sums, worst

NUDGE = 1 / (8 * 255)  # of the input, which goes from 0 to 1
# A tolerance is FACTOR times what was measured, but not below the first number nor above the second. The ceilings are
# what makes `verify` a check: FP16 boxes that are 2 px off and INT8 scores that are 10 % off fail in any case.
FACTOR = 4
BOUNDS = {
    "fp16": {
        "raw_box": (0.5, 1.9), "raw_score": (5e-3, 2e-2), "mean_box": (0.1, 1.0), "score_scale": (5e-3, 2e-2),
        "box": (0.5, 1.9), "conf": (5e-3, 2e-2),
    },
    "int8": {
        "raw_box": (2.0, 8.0), "raw_score": (3e-2, 0.15), "mean_box": (0.3, 2.0), "score_scale": (1e-2, 5e-2),
        "box": (2.0, 8.0), "conf": (3e-2, 0.15),
    },
}  # fmt: skip
# FP32 as at export: it moves by its last digits only.
FP32 = {
    "raw_box": 0.1, "raw_score": 1e-3, "mean_box": 0.05, "score_scale": 2e-3, "box": 0.5, "conf": 2e-3,
    "unmatched": 0, "points": 0.5, "masks": 0.02,
}  # fmt: skip
POINTS = {"fp16": 2.0, "int8": 8.0}  # pixels of a frame: keypoints that are seen, and the corners of rotated boxes
MASKS = {"fp16": 0.1, "int8": 0.3}  # share of a mask's pixels
UNMATCHED = {"fp16": 0.0, "int8": 0.1}  # share of the detections that may lack a partner


def measure(detector: Detector, blobs: Sequence[np.ndarray], kept: Sequence[Kept]) -> dict[str, float]:
    """The largest differences of a file's outputs from those kept, over inputs (1, 3, H, W), under other rounding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    plain = onnxruntime.InferenceSession(str(detector.path), options, providers=["CPUExecutionProvider"])
    feed, columns, rng = plain.get_inputs()[0].name, layout(detector), np.random.default_rng(0)
    found, sums = [], np.zeros((2, 2))
    for blob, (places, values) in zip(blobs, kept, strict=True):
        outputs: list[Any] = [tuple(plain.run(None, {feed: blob}))]
        if detector.contract.precision != "fp32":  # which sees the image itself change
            outputs.append(detector.infer(blob + rng.choice([-NUDGE, NUDGE], blob.shape).astype(blob.dtype)))
        for way, output in enumerate(outputs):
            pixels = detector.output.in_pixels(output)
            found.append(raw_difference(pixels, values, places, columns))
            sums[way] += score_sums(pixels, values, places, columns)
    return {**worst(found), "score_scale": max(map(off, sums))}


def tolerances(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """What `verify` allows, by precision, from the measured figures of its files; without a file the least."""
    out: dict[str, dict[str, Any]] = {"fp32": dict(FP32)}
    of = {"raw_box": "max_abs_box", "raw_score": "max_abs_score", "mean_box": "mean_abs_box", "box": "max_abs_box"}
    for precision in PRECISIONS[1:]:
        files = measured.get(precision, ())
        out[precision] = {"unmatched": UNMATCHED[precision], "points": POINTS[precision], "masks": MASKS[precision]}
        for key, (least, most) in BOUNDS[precision].items():
            figure = {"conf": "max_abs_score", "score_scale": "score_scale"}.get(key) or of[key]
            moved = FACTOR * max([f[figure] for f in files], default=0.0)
            # without a file FP16's stand for a GPU that computes the FP32 file in TF32, of which nothing was measured
            out[precision][key] = float(f"{min(max(least, moved), most) if files else most:.3g}")
    return out
