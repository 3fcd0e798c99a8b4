"""`val`: the accuracy of a file on this device, with ground truth in YOLO format."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from yolokd_edge import ground_truth, scores
from yolokd_edge.accuracy_record import SCHEMA, model_sum
from yolokd_edge.common import EdgeError, check_writable, json_text, one_line, printable, tell
from yolokd_edge.contract import OBB, SEGMENT
from yolokd_edge.detect import engine_settings
from yolokd_edge.detector import Detector, load
from yolokd_edge.ground_truth import GroundTruth
from yolokd_edge.images import read_image
from yolokd_edge.likeness import KINDS
from yolokd_edge.progress import Progress

# As Ultralytics validates: nearly every box counts.
THRESHOLDS: dict[str, Any] = {"conf": 0.001, "iou": 0.7, "max_det": 300}

CORNERS = {SEGMENT: 3, OBB: 4}  # of the outline that each object of the data must have


def measure(detector: Detector, truth: GroundTruth) -> dict[str, Any]:
    """Detect in every image, and compare with its objects; accuracies are fractions, None where there is no object.

    The detector's conf should be low: precision at high recall is a part of the figure.
    """
    contract, truths, found, alike = detector.contract, [], [], []
    kind = KINDS.get(contract.output)
    if truth.sigmas and len(truth.sigmas) != contract.keypoints[0] > 0:
        raise EdgeError(
            f"{truth.name} has {len(truth.sigmas)} kpt_oks_sigmas, but {detector.path} finds {contract.keypoints[0]} "
            "keypoints: give one for each."
        )
    with Progress("validating", len(truth.images)) as progress:
        for image in truth.images:
            frame = read_image(image)
            corners = CORNERS.get(contract.output, 0)
            objects = ground_truth.objects(image, frame.shape, truth.classes, contract.keypoints, corners)
            blob, box = detector.preprocess(frame)
            rows = detector.postprocess(detector.infer(blob), box).astype(np.float64)
            truths.append(scores.Boxes(objects.boxes, objects.classes, np.ones(len(objects.boxes))))
            found.append(scores.Boxes(rows[:, :4], rows[:, 5].astype(int), rows[:, 4]))
            if kind:  # at once: the masks of all images would not fit into memory
                alike.append(kind.alike(detector, rows, objects, box, truth.sigmas))
            progress.step()
    instead = alike if kind and kind.name is None else None
    tallies = scores.tally(truths, found, alike=instead)
    if not tallies:
        raise EdgeError(f"{truth.name} has no object in {len(truth.images)} images: there is nothing to find.")
    figures = {"": scores.validated(tallies)}
    if kind and kind.name:
        figures[f"_{kind.name}"] = scores.validated(scores.tally(truths, found, alike=alike))
    return {
        "schema": SCHEMA,
        "model": {"file": detector.path.name, "sha256": model_sum(detector.path), "contract": contract.output},
        "precision": contract.precision,
        "provider": detector.active,
        "accuracy": {
            "dataset": truth.name,
            "split": truth.split,
            "n_images": len(truth.images),
            **{key + of: value for of, ap in figures.items() for key, value in scores.means(ap.values()).items()},
            "conf": detector.conf,
            "iou": detector.iou,
            "source": f"yolokd_edge val on {detector.active}",
        },
        "classes": {
            detector.names[k]: {
                "objects": tallies[k].objects,
                **{key + of: value for of, ap in figures.items() for key, value in scores.means([ap[k]]).items()},
            }
            for k in tallies
        },
        "sizes": scores.by_size(truths, found, instead),
    }


def as_text(record: dict[str, Any]) -> str:
    """The figures as a table."""
    known = record["accuracy"]
    kind = KINDS.get(record["model"]["contract"])
    columns = {"map50": "mAP50", "map50_95": "mAP50-95"}
    if kind and kind.name:
        columns.update({f"{key}_{kind.name}": f"{kind.name} {title[3:]}" for key, title in list(columns.items())})
    rows = [("", "objects", *columns.values())]
    everything = {"objects": sum(c["objects"] for c in record["classes"].values()), **known}
    for name, row in [("all", everything), *record["classes"].items(), *record["sizes"].items()]:
        figures = ["-" if row.get(key) is None else f"{100 * row[key]:.2f}" for key in columns]
        rows.append((printable(name), str(row["objects"]), *figures))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    around = "the boxes around them" if record["model"]["contract"] == OBB else "boxes"
    lines.insert(
        2 + len(record["classes"]),
        f"by size (COCO's, areas of {around} in pixels of the image; COCO's average precision)",
    )
    about = f"{record['model']['file']} ({record['precision']}) on {record['provider']}, {known['n_images']} images of "
    return "\n".join([printable(f"{about}{known['dataset']} ({known['split']})"), *lines])


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
    detector.validating = True
    record = measure(detector, ground_truth.read(args.data, args.split, detector.names))
    text = json_text(record, indent=1) if args.json else as_text(record)
    tell(text, None if out is None else partial(write, record, out))
