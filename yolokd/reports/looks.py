"""The same images as each model sees them: its detections against the ground truth, and where its maps are active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.data.augment import LetterBox

from yolokd.detectors import read
from yolokd.distill.teacher import Teacher
from yolokd.errors import UsageError, one_line
from yolokd.reports.images import chosen, judged, open_any
from yolokd.reports.measure import Measured, Model
from yolokd.reports.parts import Part, Picture, Pictures, Text, picture
from yolokd.reports.scores import Array
from yolokd.reports.subject import ALONE, DISTILLED, TEACHER, Subject
from yolokd_edge.scores import Boxes

SHOWN, ATTENDED = 4, 2  # images
SURE = 0.25  # confidence from which on a detection is drawn, Ultralytics' own for predictions
DRAWN = 480  # pixels of the longer side that is drawn on
RIGHT, WRONG, MISSED = (178, 114, 0), (0, 94, 213), (66, 228, 240)  # BGR, told apart by the colour-blind
Colour = tuple[int, int, int]


def compared(subject: Subject, measured: Measured) -> list[Model]:
    """Teacher, student alone and each distilled arm, of the first seed, as far as they were run."""
    arms = list(dict.fromkeys(run.arm for run in subject.of(DISTILLED)))
    models = [measured.first(TEACHER), measured.first(ALONE), *(measured.first(DISTILLED, arm) for arm in arms)]
    return [m for m in models if m is not None]


def predictions(subject: Subject, measured: Measured) -> list[Part]:
    """The images with what each model found, differences to the ground truth marked."""
    given, models = measured.sample, compared(subject, measured)
    if given is None or not models:
        return [Text("Not measured: no model could be run on validation images.")]
    rows = []
    for i in chosen(given, SHOWN):
        truth = given.truths[i]
        cells = [picture(draw(given.images[i], truth), f"ground truth: {len(truth.cls)} objects")]
        for model in models:
            sure, right, hit = judged(truth, model.found[i], SURE)
            image = draw(given.images[i], sure, right, truth.only(~hit))
            words = f"{model.name}: {right.sum()} right, {(~right).sum()} wrong, {(~hit).sum()} missed"
            cells.append(picture(image, words))
        rows.append((given.files[i].name, cells))
    seed = next((m.seed for m in models if m.seed is not None), None)
    return [
        Text(
            f"Detections with a confidence of {SURE:g} or more. Blue, solid: right class, overlap of 0.5 or more. "
            "Orange with a cross: no such object. Yellow, dashed: an object that was missed. The images are evenly "
            "spaced among those with objects, not chosen by the outcome"
            + ("." if seed is None else f"; the students are those of seed {seed}.")
        ),
        Pictures("The same images, predicted side by side", ["ground truth", *(m.name for m in models)], rows),
    ]


def draw(image: Array, boxes: Boxes, right: Array | None = None, missed: Boxes | None = None) -> Array:
    """An image with boxes; without `right`, all are objects."""
    scale = DRAWN / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    drawn: Array = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for x0, y0, x1, y1 in (missed.xyxy * scale).round().astype(int).tolist() if missed is not None else ():
        dashed(drawn, (x0, y0), (x1, y1), MISSED)
    for i, (x0, y0, x1, y1) in enumerate((boxes.xyxy * scale).round().astype(int).tolist()):
        good = right is None or bool(right[i])
        cv2.rectangle(drawn, (x0, y0), (x1, y1), RIGHT if good else WRONG, 2)
        if not good:
            d = max(min(x1 - x0, y1 - y0) // 4, 4)
            cv2.line(drawn, (x0, y0), (x0 + d, y0 + d), WRONG, 2)
            cv2.line(drawn, (x0 + d, y0), (x0, y0 + d), WRONG, 2)
    return drawn


def dashed(image: Array, low: tuple[int, int], high: tuple[int, int], colour: Colour) -> None:
    """A rectangle of dashes."""
    (x0, y0), (x1, y1) = low, high
    for a, b in (((x0, y0), (x1, y0)), ((x0, y1), (x1, y1)), ((x0, y0), (x0, y1)), ((x1, y0), (x1, y1))):
        count = max(int(np.hypot(b[0] - a[0], b[1] - a[1])) // 12, 1)
        for k in range(count):
            start, end = ([round(p + (q - p) * s / count) for p, q in zip(a, b, strict=True)] for s in (k, k + 0.5))
            cv2.line(image, start, end, colour, 2)


# --- attention ------------------------------------------------------------------------------------------------------


def attention(subject: Subject, measured: Measured) -> list[Part]:
    """Where each model's neck is active, level by level."""
    given = measured.sample
    if given is None or not measured.models:
        return [Text("Not measured: no model could be run on validation images.")]
    shown = [given.images[i] for i in chosen(given, ATTENDED)]
    names = [given.files[i].name for i in chosen(given, ATTENDED)]
    files = [(m.name, m.file) for m in compared(subject, measured) if m.role != TEACHER]
    files = [*((TEACHER, file) for file in subject.teacher_files[:1]), *files]
    maps: dict[str, dict[int, list[Array]]] = {}
    parts: list[Part] = []
    for name, file in files:
        try:
            maps[name] = activity(file, "teacher" if name == TEACHER else "model", shown, given.imgsz, subject.trust)
        except Exception as error:
            parts.append(Text(f"Not measured of {name}: {one_line(error)}."))
    if not maps:
        return parts
    strides = sorted({s for levels in maps.values() for s in levels})
    rows = []
    for i, image in enumerate(shown):
        boxed = framed(image, given.imgsz)
        for stride in strides:
            cells = []
            for name, levels in maps.items():
                words = f"{name}, stride {stride}" + ("" if stride in levels else ": it has no such level")
                cells.append(overlaid(boxed, levels[stride][i] if stride in levels else None, words))
            rows.append((f"{names[i]}, stride {stride}", cells))
    said = (
        "Mean absolute activation over the channels of the maps that feed the head, a row for each level of the "
        "pyramid. Bright is high, each map on a scale of its own: places can be compared, strengths cannot."
    )
    return [Text(said), Pictures("Where teacher and student look", list(maps), rows), *parts]


def framed(image: Array, imgsz: int) -> Array:
    """The image as a detector gets it, letterboxed to a square."""
    side = max(round(imgsz / 32), 1) * 32
    made: Array = LetterBox(new_shape=(side, side), auto=False)(image=image)
    return made


def activity(file: str, key: str, shown: Sequence[Array], imgsz: int, trust: bool) -> dict[int, list[Array]]:
    """Stride -> for each image the mean absolute activation of the neck's map (H, W)."""
    model: Any = open_any(file, key, trust).model
    if not isinstance(model, torch.nn.Module):
        raise UsageError("an ONNX file does not show its maps")
    reader = read(model.float())
    teacher = Teacher(reader, frozenset({"neck"}), reader.branches[:1], torch.device("cpu"))
    found: dict[int, list[Array]] = {stride: [] for stride in reader.strides}
    for image in shown:
        boxed = framed(image, imgsz)
        tensor = torch.from_numpy(np.ascontiguousarray(boxed[..., ::-1].transpose(2, 0, 1))).float()[None] / 255
        view = next(iter(teacher(tensor)(reader.strides).values()))
        for stride, level in zip(reader.strides, view.neck or (), strict=True):
            found[stride].append(level[0].abs().mean(0).numpy())
    return found


def overlaid(image: Array, level: Array | None, words: str) -> Picture:
    """A map over its image; gray where there is none."""
    if level is None:
        return picture(np.full_like(image, 128), words, 200)
    low, high = float(level.min()), float(level.max())
    shares = (255 * (level - low) / max(high - low, 1e-12)).astype(np.uint8)
    heat = cv2.resize(shares, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    mixed: Array = cv2.addWeighted(image, 0.45, cv2.applyColorMap(heat, cv2.COLORMAP_VIRIDIS), 0.55, 0)
    return picture(mixed, words, 200)
