"""`val`: the accuracy of a file on this device, with ground truth in YOLO format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge import ground_truth, scores
from yolokd_edge.accuracy_record import SCHEMA, model_sum
from yolokd_edge.common import EdgeError, check_writable, json_text, one_line, printable
from yolokd_edge.contract import OBB, POSE, SEGMENT
from yolokd_edge.detect import engine_settings
from yolokd_edge.detector import Detector, load
from yolokd_edge.ground_truth import GroundTruth
from yolokd_edge.images import read_image
from yolokd_edge.progress import Progress

# As Ultralytics validates: nearly every box counts.
THRESHOLDS: dict[str, Any] = {"conf": 0.001, "iou": 0.7, "max_det": 300}

BOXES_ONLY = {
    POSE: "of boxes alone: keypoints are not measured",
    SEGMENT: "of boxes alone: masks are not measured",
}


def measure(detector: Detector, truth: GroundTruth) -> dict[str, Any]:
    """Detect in every image, and compare with its objects; accuracies are fractions, None where there is no object.

    The detector's conf should be low: precision at high recall is a part of the figure.
    """
    truths, found = [], []
    keypoints = detector.contract.keypoints[0] * detector.contract.keypoints[1]
    with Progress("validating", len(truth.images)) as progress:
        for image in truth.images:
            frame = read_image(image)
            boxes, classes = ground_truth.objects(image, frame.shape, truth.classes, keypoints)
            detections = detector.detect(frame).astype(np.float64)
            truths.append(scores.Boxes(boxes, classes, np.ones(len(boxes))))
            found.append(scores.Boxes(detections[:, :4], detections[:, 5].astype(int), detections[:, 4]))
            progress.step()
    tallies = scores.tally(truths, found)
    if not tallies:
        raise EdgeError(f"{truth.name} has no object in {len(truth.images)} images: there is nothing to find.")
    ap = scores.validated(tallies)
    return {
        "schema": SCHEMA,
        "model": {"file": detector.path.name, "sha256": model_sum(detector.path), "contract": detector.contract.output},
        "precision": detector.contract.precision,
        "provider": detector.active,
        "accuracy": {
            "dataset": truth.name,
            "split": truth.split,
            "n_images": len(truth.images),
            **scores.means(ap.values()),
            "conf": detector.conf,
            "iou": detector.iou,
            "source": f"yolokd_edge val on {detector.active}",
        },
        "classes": {
            detector.names[k]: {"objects": tallies[k].objects, "map50": ap50, "map50_95": mean}
            for k, (ap50, mean) in ap.items()
        },
        "sizes": scores.by_size(truths, found),
    }


def as_text(record: dict[str, Any]) -> str:
    """The figures as a table."""
    known = record["accuracy"]
    rows = [("", "objects", "mAP50", "mAP50-95")]
    everything = {"objects": sum(c["objects"] for c in record["classes"].values()), **known}
    for name, row in [("all", everything), *record["classes"].items(), *record["sizes"].items()]:
        figures = ["-" if row[key] is None else f"{100 * row[key]:.2f}" for key in ("map50", "map50_95")]
        rows.append((printable(name), str(row["objects"]), figures[0], figures[1]))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    lines.insert(2 + len(record["classes"]), "by size (COCO's areas in pixels of the image, COCO's average precision)")
    about = f"{record['model']['file']} ({record['precision']}) on {record['provider']}, {known['n_images']} images of "
    note = BOXES_ONLY.get(record["model"]["contract"])
    about = printable(f"{about}{known['dataset']} ({known['split']})")
    return "\n".join([about, *([note] if note else []), *lines])


def write(record: dict[str, Any], out: Path) -> None:
    """Write the record; a file that is there already was refused before, one that has appeared since stays."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(json_text(record, indent=1) + "\n")
    except OSError as error:
        raise EdgeError(f"--out {out} cannot be written ({one_line(error)}): name another file.") from None


def check_out(out: str | None) -> Path | None:
    """The file to write, refused now if it cannot be."""
    if out is None:
        return None
    if Path(out).exists():
        raise EdgeError(f"--out {out} exists already: name a new file.")
    check_writable(Path(out), f"--out {out}")
    return Path(out)


def val_command(args: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    out = check_out(args.out)
    detector = load(args.model, args.provider, args.threads, args.precision, **THRESHOLDS, **engine_settings(args))
    if detector.contract.output == OBB:
        raise EdgeError(f"{detector.path} finds rotated boxes, whose accuracy is not measured here: use `yolo val`.")
    detector.validating = True
    record = measure(detector, ground_truth.read(args.data, args.split, detector.names))
    print(json_text(record, indent=1) if args.json else as_text(record))  # first: no fault of a file may lose it
    if out is not None:
        write(record, out)
