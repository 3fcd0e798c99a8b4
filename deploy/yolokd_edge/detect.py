"""`detect`: detections of images, a video or a camera as text or JSON lines, and drawn where asked for."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from yolokd_edge.common import json_text, printable
from yolokd_edge.detector import Detector, load
from yolokd_edge.drawings import Drawings, draw
from yolokd_edge.images import Frame, read_source
from yolokd_edge.provenance import known_provenance, provenance_text
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.table import check_fp16


def as_json(frame: Frame, detections: np.ndarray, names: dict[int, str], added: Sequence[dict[str, Any]]) -> str:
    """A frame's detections as one JSON line, with what the task adds to each."""
    found = [
        {"box": [round(v, 3) for v in box], "conf": round(conf, 6), "cls": int(cls), "name": names[int(cls)], **more}
        for (*box, conf, cls), more in zip(detections[:, :6].tolist(), added)  # noqa: B905
    ]
    number = {} if frame.number is None else {"frame": frame.number}
    return json_text({"image": frame.source, **number, "hw": list(frame.pixels.shape[:2]), "detections": found})


def as_text(frame: Frame, detections: np.ndarray, names: dict[int, str]) -> str:
    """A frame's detections counted by class."""
    counts = Counter(names[int(c)] for c in detections[:, 5])
    number = "" if frame.number is None else f" frame {frame.number}"
    found = ", ".join(f"{n} {printable(name)}" for name, n in counts.most_common()) or "nothing"
    return f"{printable(frame.source)}{number}: {found}"


def origin_line(detector: Detector, as_json: bool) -> str:
    """Where the model comes from, as a line before the frames' own."""
    if as_json:
        return json_text({"model": detector.path.name, "provenance": known_provenance(detector.provenance)})
    text = provenance_text(detector.provenance) or "nothing is known of its training"
    return printable(f"{detector.path.name}: {text}")


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a Detector for TensorRT's engine, whether another provider will do, and the input's size."""
    check_fp16(args.fp16, [args.provider])
    size = {"hw": args.imgsz} if getattr(args, "imgsz", None) else {}
    return {"tensorrt": TensorRT(args.fp16, args.cache), "allow_fallback": args.allow_fallback, **size}


def detect_command(args: argparse.Namespace) -> None:
    """Detect in each frame of a source, until it ends or a person ends it."""
    thresholds = (args.conf, args.iou, args.max_det)
    detector = load(args.model, args.provider, args.threads, args.precision, *thresholds, **engine_settings(args))
    drawings = Drawings(args.save, args.source) if args.save else None
    if args.origin:
        print(origin_line(detector, args.json))
    try:
        for frame in read_source(args.source, args.frames):
            found = detector.detect(frame.pixels)
            added = detector.output.added(found) if args.json or drawings is not None else []
            line = as_json(frame, found, detector.names, added) if args.json else as_text(frame, found, detector.names)
            print(line, flush=frame.number is not None)
            if drawings is not None:
                drawings.add(frame, draw(frame.pixels, found, detector.names, added))
    except KeyboardInterrupt:  # how a person ends a camera
        pass
    finally:
        if drawings is not None:
            drawings.close()
