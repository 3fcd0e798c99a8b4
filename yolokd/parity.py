"""Does an exported file compute what its checkpoint computes? Both run on the same real images.

The checkpoint is run by Ultralytics with ``rect=False``, its fixed square input, because that is what a file of static
shape sees; the exported file by our own runtime, which shares no code with it. So pre- and postprocessing are
compared along with the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO

from yolokd.deploy.yolokd_edge import RAW, Detector, list_images, read_image
from yolokd.errors import ParityError

TOLERANCE = {
    "raw_box": 0.1,  # pixels of the input, any anchor point's side
    "raw_score": 1e-3,
    "box": 0.5,  # pixels of the image, any side of a detection
    "conf": 2e-3,
}
LOW = 0.05  # detections from this confidence on are compared: enough of them also on images of another domain


def compare(checkpoint: str | Path, file: str | Path, images: list[Path]) -> dict[str, Any]:
    """Largest differences over the images; fields as in the latency report's `parity`.

    Args:
        checkpoint: the .pt file, the reference.
        file: the ONNX file.
        images: image files; colour and not square, else a swapped channel or a wrong letterbox goes unseen.

    Returns:
        ``pass`` and the figures it stands on. Boxes in pixels; ``raw`` is None for a contract whose rows are sorted by
        score, because ties may come in any order.
    """
    detector = Detector(file, conf=LOW)
    e2e = detector.contract.output != RAW and detector.contract.exporter.get("end2end") == "True"
    reference = YOLO(str(checkpoint))
    raw, found, unmatched, box_error, conf_error, ious = [], 0, 0, 0.0, 0.0, []
    for path in images:
        frame = read_image(path)
        blob, letterbox = detector.preprocess(frame)
        output = detector.infer(blob)
        result = reference.predict(
            frame, rect=False, imgsz=list(detector.contract.hw), conf=LOW, iou=detector.iou, max_det=detector.max_det,
            nms=False if e2e else None, device="cpu", verbose=False, save=False,
        )[0]  # fmt: skip
        if detector.contract.output == RAW:
            raw.append(_raw_difference(output, _torch_output(reference, blob)))
        ours = detector.postprocess(output, letterbox)
        theirs = result.boxes.data.cpu().numpy()
        found += len(theirs)
        matched = match(theirs, ours)
        unmatched += max(len(theirs), len(ours)) - len(matched)
        for i, j, iou in matched:
            box_error = max(box_error, float(np.abs(theirs[i, :4] - ours[j, :4]).max()))
            conf_error = max(conf_error, float(abs(theirs[i, 4] - ours[j, 4])))
            ious.append(iou)
    figures: dict[str, Any] = {
        "reference": f"{Path(checkpoint).name}, PyTorch, rect=False",
        "n_images": len(images),
        "raw": {k: max(r[k] for r in raw) if k != "cos" else min(r[k] for r in raw) for k in raw[0]} if raw else None,
        "dets": {
            "n": found,
            "unmatched": unmatched,
            "max_box_diff": box_error,
            "max_conf_diff": conf_error,
            "mean_iou": float(np.mean(ious)) if ious else None,
            "f1_iou50": 2 * len(ious) / (2 * len(ious) + unmatched) if found or unmatched else None,
        },
        "tolerance": TOLERANCE,
    }
    figures["pass"] = bool(
        (not raw or (figures["raw"]["max_abs_box"] <= TOLERANCE["raw_box"]))
        and (not raw or figures["raw"]["max_abs_score"] <= TOLERANCE["raw_score"])
        and box_error <= TOLERANCE["box"]
        and conf_error <= TOLERANCE["conf"]
        and unmatched == 0
    )
    return figures


def check(checkpoint: str | Path, file: str | Path, images: list[Path]) -> dict[str, Any]:
    """`compare`, or ParityError in one sentence when a difference is above its tolerance."""
    figures = compare(checkpoint, file, images)
    if not figures["pass"]:
        raise ParityError(
            f"{file} does not compute what {checkpoint} computes on {figures['n_images']} images: "
            f"raw {figures['raw']}, detections {figures['dets']}, tolerances {TOLERANCE}; the file was not kept."
        )
    return figures


def match(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs (row of a, row of b, IoU) of detections (n, 6) and (m, 6) of equal class and IoU >= 0.5, best first."""
    left, right = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    inter = (right - left).clip(0).prod(-1)
    areas = [(x[:, 2:4] - x[:, :2]).prod(-1) for x in (a, b)]
    iou = inter / (areas[0][:, None] + areas[1][None] - inter + 1e-9)
    iou[a[:, None, 5] != b[None, :, 5]] = 0
    pairs = []
    while iou.size and iou.max() >= 0.5:
        i, j = np.unravel_index(iou.argmax(), iou.shape)
        pairs.append((int(i), int(j), float(iou[i, j])))
        iou[i], iou[:, j] = 0, 0
    return pairs


def _torch_output(reference: YOLO, blob: np.ndarray) -> np.ndarray:
    """The checkpoint's decoded output (1, 4 + K, N) for the very same input."""
    model = reference.predictor.model
    with torch.inference_mode():
        output = model(torch.from_numpy(blob).to(model.device))
    return (output[0] if isinstance(output, (list, tuple)) else output).float().cpu().numpy()  # type: ignore[no-any-return]


def _raw_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Largest differences of boxes (rows 0 to 3, pixels) and scores of two outputs (1, 4 + K, N), and their cosine."""
    gap = np.abs(a.astype(np.float64) - b)
    cos = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12))
    return {"max_abs_box": float(gap[:, :4].max()), "max_abs_score": float(gap[:, 4:].max()), "cos": cos}


def real_images(data: dict[str, Any] | None, most: int = 8) -> list[Path]:
    """Images to compare on: the two colour photographs that Ultralytics installs and some of the validation split."""
    from ultralytics.utils import ASSETS

    found = [p for p in sorted(Path(ASSETS).glob("*.jpg"))]
    folder = (data or {}).get("val")
    if isinstance(folder, (str, Path)) and Path(folder).is_dir():
        found += list_images(folder)[:most]
    return found
