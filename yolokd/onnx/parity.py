"""Does an exported file compute what its checkpoint computes? Both run on the same real images.

The checkpoint is run by Ultralytics with ``rect=False``, its fixed square input, because that is what a file of static
shape sees; the exported file by our own runtime, which shares no code with it. So pre- and postprocessing are
compared along with the network; of a raw output, NMS on the checkpoint's own, after it was compared with the file's.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.utils import ASSETS, LOGGER

from yolokd import compat
from yolokd.data.splits import split_images
from yolokd.detectors.opening import open_model
from yolokd.detectors.quantized import is_quantized
from yolokd.errors import ParityError, UsageError, printable
from yolokd_edge.boxes import match_detections
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import DETR
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image
from yolokd_edge.verify import ADDED, BEST, layout, off, score_sums

TOLERANCE = {
    "raw_box": 0.1,  # pixels of the input, any anchor point's side
    "raw_score": 1e-3,
    "box": 0.5,  # pixels of the image, any side of a detection
    "conf": 2e-3,
    "added": 1e-3,  # radians and scores that a task adds to an anchor point, coefficients, keypoints in 100 pixels
    "points": 0.5,  # pixels of the image, any keypoint that is seen or corner of a rotated box
    "masks": 0.02,  # share of a mask's pixels
}
# Of a student trained for INT8. PyTorch and ONNX Runtime sum in another order, so that now and then a value is rounded
# to the other of its two neighbours, and that spreads: single outputs are no measure, all that matter together are.
TOLERANCE_INT8 = {
    "mean_box": 0.5,  # pixels of the input, sides of the best boxes of an image on average
    "mean_score": 1e-2,  # their scores
    "score_scale": 1e-2,  # share, of the sum of each image's highest scores over all images
    "box": 0.5,  # a detection's, from equal outputs
    "conf": 2e-3,
}
LIMITS = {  # figure of the raw output -> its tolerance
    "max_abs_box": "raw_box", "max_abs_score": "raw_score", "mean_abs_box": "mean_box",
    "mean_abs_score": "mean_score", "score_scale": "score_scale", "max_added": "added",
}  # fmt: skip
MIN_CONF = 0.05  # detections from this confidence on are compared: enough of them also on images of another domain


def compare(
    checkpoint: str | Path,
    file: str | Path,
    images: list[Path],
    thresholds: dict[str, Any] | None = None,
    trust: bool = False,
    provider: str = "cpu",
) -> dict[str, Any]:
    """Largest differences over the images; fields as in the latency report's `parity`.

    Args:
        checkpoint: the .pt file, the reference.
        file: the ONNX file, or a model in another format.
        images: image files; colour and not square, else a swapped channel or a wrong letterbox goes unseen.
        thresholds: conf, iou, max_det and agnostic_nms that are part of the file's graph, where they are.
        trust: the user answers for what the checkpoint runs.
        provider: which runtime runs the file, see `yolokd_edge.runtimes.table`.

    Returns:
        ``pass`` and the figures it stands on, boxes in pixels. ``raw`` is the network's whole output for the raw
        contract; ``rows``, for the NMS-free ones, those rows that do not depend on how ties are broken.
    """
    settings = {"conf": MIN_CONF, "iou": 0.7, "max_det": 300, "agnostic_nms": False, **(thresholds or {})}
    detector = Detector(file, provider, conf=settings["conf"], iou=settings["iou"], max_det=settings["max_det"])
    detr, per_anchor = detector.contract.output == DETR, detector.output.per_anchor
    e2e = not per_anchor and detector.contract.exporter.get("end2end") == "True"
    reference = open_model(checkpoint, trust=trust)
    rounded = is_quantized(reference.model)
    tolerance, sums = TOLERANCE_INT8 if rounded else TOLERANCE, np.zeros(2)
    raw, rows, found, unmatched, box_error, conf_error, ious, added = [], [], 0, 0, 0.0, 0.0, [], 0.0
    for path in images:
        frame = read_image(path)
        blob, letterbox = detector.preprocess(frame)
        output = detector.infer(blob)
        with compat.boxes_by_axis():
            result = reference.predict(
                frame, rect=False, imgsz=list(detector.contract.hw), device="cpu", verbose=False, save=False,
                **compat.head_arguments("e2e" if e2e else "raw"), **settings,
            )[0]  # fmt: skip
        if per_anchor:
            theirs_raw = _torch_output(reference, blob)
            raw.append(_raw_difference(output, theirs_raw, detector))
            if rounded:
                raw[-1] |= _best_difference(output, theirs_raw)
                sums += score_sums(output, theirs_raw[0], np.arange(output.shape[2]), layout(detector))
            output = theirs_raw  # NMS decides near ties by the last digit: what follows starts from equal predictions
        elif e2e or detr:
            in_pixels = detector.output.in_pixels
            rows.append(row_difference(in_pixels(output), in_pixels(_torch_output(reference, blob))))
        ours = detector.postprocess(output, letterbox)
        theirs, their_things, our_things = result_rows(result), result_things(result), detector.output.things(ours)
        found += len(theirs)
        matched = match_detections(theirs, ours)
        unmatched += max(len(theirs), len(ours)) - len(matched)
        for i, j, iou in matched:
            box_error = max(box_error, float(np.abs(theirs[i, :4] - ours[j, :4]).max()))
            conf_error = max(conf_error, float(abs(theirs[i, 4] - ours[j, 4])))
            added = max(added, detector.output.apart(their_things[i], our_things[j]))
            ious.append(iou)
    figures: dict[str, Any] = {
        "reference": f"{Path(checkpoint).name}, PyTorch, rect=False",
        "n_images": len(images),
        "raw": _worst(raw),
        "rows": _worst(rows),
        "dets": {
            "n": found,
            "unmatched": unmatched,
            "max_box_diff": box_error,
            "max_conf_diff": conf_error,
            **({ADDED[detector.output.adds]: added} if detector.output.adds else {}),
            "mean_iou": float(np.mean(ious)) if ious else None,
            "f1_iou50": 2 * len(ious) / (2 * len(ious) + unmatched) if found or unmatched else None,
        },
        "tolerance": tolerance,
    }
    if rounded and figures["raw"]:
        figures["raw"]["score_scale"] = off(sums)
    figures["pass"] = bool(
        all(
            part[key] <= tolerance[limit]
            for part in (figures["raw"], figures["rows"])
            for key, limit in LIMITS.items()
            if part and key in part and limit in tolerance
        )
        and box_error <= tolerance["box"]
        and conf_error <= tolerance["conf"]
        and (not detector.output.adds or added <= tolerance[detector.output.adds])
        and unmatched == 0
    )
    return figures


def check(
    checkpoint: str | Path,
    file: str | Path,
    images: list[Path],
    thresholds: dict[str, Any] | None = None,
    trust: bool = False,
    provider: str = "cpu",
) -> dict[str, Any]:
    """`compare`, or ParityError in one sentence when a difference is above its tolerance.

    Raises:
        ParityError: the file differs.
        UsageError: the images show nothing to compare, which proves nothing either way.
    """
    figures = compare(checkpoint, file, images, thresholds, trust, provider)
    if not figures["pass"]:
        parts = ", ".join(f"{part} {figures[part]}" for part in ("raw", "rows", "dets") if figures[part])
        raise ParityError(
            f"the export of {checkpoint} does not compute what the checkpoint computes on {len(images)} images: "
            f"{parts}, tolerances {figures['tolerance']}; the file was not kept."
        )
    if not (figures["raw"] or figures["dets"]["n"] or (figures["rows"] or {}).get("n")):
        raise UsageError(
            f"{checkpoint} detects nothing on the {len(images)} images that the export is checked on, so nothing is "
            "proven and the file was not kept: give images of what it detects, source=images/."
        )
    return figures


def _torch_output(reference: YOLO | RTDETR, blob: np.ndarray) -> Any:
    """The checkpoint's decoded output, (1, 4 + K, N) or rows (1, N, 6), for the very same input; with prototypes as a
    tuple where it has such.
    """
    model = reference.predictor.model
    with torch.inference_mode():
        output = model(torch.from_numpy(blob).to(model.device))
    first = output[0] if isinstance(output, (list, tuple)) else output
    if isinstance(first, (list, tuple)):
        return tuple(part.float().cpu().numpy() for part in first)
    return first.float().cpu().numpy()


def result_rows(result: Any) -> np.ndarray:
    """Ultralytics' result as the runtime's detections, see `yolokd_edge.outputs`."""
    if result.obb is not None:
        found = result.obb.data.cpu().numpy()  # centre, size, angle, score, class
        return np.concatenate([result.obb.xyxy.cpu().numpy(), found[:, 5:], found[:, :5]], axis=1)
    boxes: np.ndarray = result.boxes.data.cpu().numpy()
    if result.keypoints is None:
        return boxes
    return np.concatenate([boxes, result.keypoints.data.cpu().numpy().reshape(len(boxes), -1)], axis=1)


def result_things(result: Any) -> np.ndarray:
    """What the runtime's `apart` compares, of Ultralytics' result: masks (n, H, W), else the rows."""
    things: np.ndarray = result_rows(result) if result.masks is None else result.masks.data.cpu().numpy()
    return things


def _raw_difference(ours: Any, theirs: Any, detector: Detector) -> dict[str, float]:
    """Largest differences of boxes (rows 0 to 3, pixels), scores and what a task adds, in its units, of two outputs
    (1, 4 + K and more, N), and the cosine of boxes and scores.
    """
    a, b, units = detector.output.in_pixels(ours), detector.output.in_pixels(theirs), detector.output.units()
    gap = np.abs(a.astype(np.float64) - b)
    end = 4 + detector.contract.nc
    one, other = a[:, :end], b[:, :end]
    cos = float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-12))
    added = {"max_added": float((gap[0, end:] / units[:, None]).max())} if len(units) else {}
    if isinstance(ours, tuple):  # a mask is where a sum of prototypes is positive: their scale is free
        apart = float(np.abs(ours[1] - theirs[1]).max() / (np.sqrt(np.square(theirs[1]).mean()) + 1e-12))
        added["max_added"] = max(added["max_added"], apart)
    return {"max_abs_box": float(gap[:, :4].max()), "max_abs_score": float(gap[:, 4:end].max()), **added, "cos": cos}


def _best_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean differences of the best boxes' sides, in pixels, and of all their scores."""
    best = np.argsort(-b[0, 4:].max(0), kind="stable")[:BEST]
    gap = np.abs(a[0][:, best].astype(np.float64) - b[0][:, best])
    return {"mean_abs_box": float(gap[:4].mean()), "mean_abs_score": float(gap[4:].mean())}


def row_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Largest differences of the rows (1, N, 6), best first, of an NMS-free head or an RT-DETR, boxes in pixels.

    Rows of equal score come in any order and are cut off at N at random. So each row that scores clearly above the last
    one is compared with the nearest row of its class, wherever that stands.
    """
    a, b = a[0].astype(np.float64), b[0].astype(np.float64)
    clear = a[a[:, 4] > 1.01 * a[-1, 4]]
    gap = np.abs(clear[:, None, :4] - b[None, :, :4]).max(-1)
    gap[clear[:, None, 5] != b[None, :, 5]] = np.inf
    box = float(gap.min(1).max()) if len(clear) else 0.0
    return {"n": len(clear), "max_abs_box": box, "max_abs_score": float(np.abs(a[:, 4] - b[: len(a), 4]).max())}


def _worst(figures: list[dict[str, float]]) -> dict[str, float] | None:
    """The worst of every figure over the images, and how many rows they stand on; None without any."""
    columns = {k: [f[k] for f in figures] for k in (figures[0] if figures else ())}
    worst = {k: min(v) if k == "cos" else sum(v) if k == "n" else max(v) for k, v in columns.items()}
    return worst or None


def real_images(data: dict[str, Any] | None, most: int = 8) -> list[Path]:
    """Images to compare on: the two colour photographs that Ultralytics installs and some of the validation split."""
    found = stock_images()
    try:
        own = split_images(data, "val") if data else []
    except UsageError as error:
        LOGGER.warning(f"Checked on stock photographs only: {error}")
        return found
    return [*found, *itertools.islice(filter(readable, own), most)]


def stock_images() -> list[Path]:
    """The photographs that Ultralytics installs."""
    return sorted(Path(ASSETS).glob("*.jpg"))


def is_stock(image: Path) -> bool:
    return image.parent == Path(ASSETS)


def readable(path: Path) -> bool:
    """Whether a file decodes as an image; of a data set's Ultralytics leaves out those that do not, with a warning."""
    try:
        read_image(path)
    except EdgeError as error:
        LOGGER.warning(printable(f"Left out an image: {error}"))
        return False
    return True
