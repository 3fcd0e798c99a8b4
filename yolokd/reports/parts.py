"""What a report's page is made of: sections of texts, tables, drawings and pictures; and the page as one HTML file."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from yolokd.errors import one_line, printable

TEMPLATES = Path(__file__).parent / "templates"
NONE = "not measured"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """A command, as it was typed."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawing:
    """A drawing with its legend, one (colour number, words) for each line or bar."""

    kind: ClassVar[str] = "drawing"
    caption: str
    svg: Markup
    legend: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Picture:
    """An image within the page, with what it shows in words."""

    words: str
    uri: str


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures that stand side by side, a head over each column."""

    kind: ClassVar[str] = "pictures"
    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture]]]  # what a row shows, and its pictures


Part = Text | Code | Table | Drawing | Pictures


@dataclass(frozen=True)
class Section:
    """A part of the page that the list of contents names."""

    name: str
    title: str
    parts: Sequence[Part] = field(default_factory=tuple)


def section(name: str, title: str, make: Callable[[], Sequence[Part]]) -> Section:
    """A section, which says why where it cannot be made: the others do not suffer from it."""
    try:
        parts = make()
    except Exception as error:  # a file that was removed, a damaged checkpoint, a full disk ...
        parts = [Text(f"This part could not be made ({one_line(error) or type(error).__name__}).")]
    return Section(name, title, parts)


def picture(image: np.ndarray[Any, Any], words: str, side: int = 320) -> Picture:
    """An image (H, W, 3), BGR, as a JPEG within the page, its longer side of the given number of pixels."""
    scale = side / max(image.shape[:2])
    if scale != 1:
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise ValueError("OpenCV could not encode a picture")
    return Picture(words, f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}")


def render(title: str, about: str, sections: Sequence[Section]) -> str:
    """The page; whatever is text is escaped."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return templates.get_template("report.html").render(title=title, about=about, sections=sections, style=style)


def write(file: Path, text: str) -> Path:
    """Write a file that is either whole or not there."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(part, file)
    return file


def percent(value: float | None, signed: bool = False) -> str:
    """A share in percent, or the difference of two in points."""
    return NONE if value is None else f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def plain(value: Any) -> str:
    """Foreign text in one line."""
    return printable(str(value))
