"""One picture of many labelled images, to look at: some spread over the folder, some with the least sure labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from ultralytics.utils.plotting import colors

from yolokd.labelling.teacher import read_image

CELL, TITLE, COLUMNS = (320, 240), 18, 4


def chosen(records: Sequence[Mapping[str, Any]], thresholds: Mapping[int, float], most: int) -> list[Mapping[str, Any]]:
    """Half evenly spread, then those with an object nearest to its threshold; none twice."""
    if len(records) <= most:
        return list(records)
    half = most - most // 2
    picked = [i * len(records) // half for i in range(half)]

    def doubt(i: int) -> float:
        return min((o["conf"] - thresholds[o["class"]] for o in records[i]["objects"]), default=2.0)

    rest = sorted((i for i in range(len(records)) if i not in set(picked)), key=doubt)
    return [records[i] for i in picked + rest[: most // 2]]


def draw(records: Sequence[Mapping[str, Any]], root: Path, names: Mapping[int, str], file: Path) -> None:
    """The sheet of these images, with their objects' boxes, outlines and confidences."""
    rows = -(-len(records) // COLUMNS)
    width, height = CELL[0], CELL[1] + TITLE
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), (24, 24, 24))
    for i, record in enumerate(records):
        sheet.paste(cell(record, root, names), (i % COLUMNS * width, i // COLUMNS * height))
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    sheet.save(part, quality=90)
    part.replace(file)


def cell(record: Mapping[str, Any], root: Path, names: Mapping[int, str]) -> Image.Image:
    """One image of the sheet, its name above it."""
    font = ImageFont.load_default()
    picture = Image.new("RGB", (CELL[0], CELL[1] + TITLE), (24, 24, 24))
    pen = ImageDraw.Draw(picture)
    count = len(record["objects"])
    pen.text((4, 3), shown(f"{record['image'][-38:]}  {count or 'none'}"), (220, 220, 220), font)
    image = read_image(root / record["image"])
    if image is None:  # it was there when it was labelled
        return picture
    scale = min(CELL[0] / image.shape[1], CELL[1] / image.shape[0])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    corner = (CELL[0] - size[0]) // 2, TITLE + (CELL[1] - size[1]) // 2
    picture.paste(Image.fromarray(image[..., ::-1].copy()).resize(size), corner)

    def place(values: Sequence[float]) -> list[tuple[float, float]]:
        pairs = zip(values[::2], values[1::2], strict=True)
        return [(corner[0] + x * (size[0] - 1), corner[1] + y * (size[1] - 1)) for x, y in pairs]

    for thing in record["objects"]:
        colour = colors(thing["class"])
        outline = place(thing["outline"] or thing["box"])
        if thing["outline"]:
            pen.polygon(outline, outline=colour)
        else:
            pen.rectangle((*outline[0], *outline[1]), outline=colour, width=2)
        text, at = shown(f"{names[thing['class']]} {thing['conf']:.2f}"), outline[0]
        at = (min(at[0], CELL[0] - pen.textlength(text, font)), max(at[1] - 11, TITLE))
        pen.rectangle(pen.textbbox(at, text, font), fill=colour)
        dark = sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True)) < 128
        pen.text(at, text, (255, 255, 255) if dark else (0, 0, 0), font)
    return picture


def shown(text: str) -> str:
    """Text that every version's own font has letters for."""
    return text.encode("latin-1", "replace").decode("latin-1")
