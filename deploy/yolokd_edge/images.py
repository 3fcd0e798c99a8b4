"""Frames from images, videos and cameras."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from yolokd_edge.common import EdgeError

# All that Ultralytics takes as images (a test holds the two lists against each other). OpenCV decodes not all of them.
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
# A marker of a JPEG that is neither a byte of the picture nor stands alone in it: the kind follows 0xff.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
END_OF_IMAGE = 0xD9
PNG = b"\x89PNG\r\n\x1a\n"
VIDEO_SUFFIXES = (".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def silence_opencv() -> None:
    """Let OpenCV write nothing to stderr: what is wrong with a file or a camera is said here."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    elif hasattr(cv2, "setLogLevel"):  # OpenCV 4
        cv2.setLogLevel(0)


def list_images(source: str | Path) -> list[Path]:
    """The image files of a folder by name, or the one file given."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise EdgeError(f"There is no image file or folder {source}.")
    found = sorted(p for p in source.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise EdgeError(f"The folder {source} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def read_image(path: Path) -> np.ndarray:
    """Decode an image file as a frame (H, W, 3) BGR uint8."""
    try:
        data = np.fromfile(str(path), np.uint8)
        if is_cut_short(data.tobytes()):  # before it is decoded: libpng and libjpeg would write to stderr
            raise EdgeError(f"{path} is cut short, so that a part of the picture is missing: copy it again.")
        frame: np.ndarray | None = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, MemoryError, cv2.error) as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise EdgeError(
                f"{path} has more pixels than OpenCV decodes (2^30, or what OPENCV_IO_MAX_IMAGE_PIXELS says): make it "
                "smaller."
            ) from None
        if isinstance(error, MemoryError) or "Insufficient memory" in str(error):
            raise EdgeError(f"{path} takes more memory than there is: make it smaller.") from None
        frame = None
    if frame is None and path.suffix.lower() in VIDEO_SUFFIXES:
        raise EdgeError(f"{path} is a video, and images are needed here: give an image or a folder of images.")
    if frame is None:
        rare = path.suffix.lower() not in (".bmp", ".jpeg", ".jpg", ".png")
        hint = "; if this OpenCV cannot read its format, convert it to PNG or JPEG" if rare else ""
        raise EdgeError(f"{path} cannot be decoded as an image{hint}.")
    return frame


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG ends before its end: decoders fill what is missing and say nothing of it.

    The end is looked for where the picture ends: a preview inside has its own, and programs add data after it.
    """
    if data.startswith(b"\xff\xd8"):
        return _is_jpeg_cut(data)
    if data.startswith(PNG):
        place = len(PNG)  # of a part: four bytes of length, four of its kind, the content, four of a checksum
        while len(data) >= (after := place + 12 + int.from_bytes(data[place : place + 4], "big")):
            if data[place + 4 : place + 8] == b"IEND":
                return False
            place = after
        return True
    return False


def _is_jpeg_cut(data: bytes) -> bool:
    place = 2
    while (marker := MARKER.search(data, place)) is not None:
        kind, place = marker.group()[1], marker.end()
        if kind == END_OF_IMAGE:
            return False
        place += int.from_bytes(data[place : place + 2], "big")  # of the segment, these two bytes included
    return True


def read_frames(source: str | Path, seed: int = 0, max_frames: int = 64) -> list[np.ndarray]:
    """Frames of a file or folder in a fixed shuffled order; at most `max_frames`, so that memory stays small."""
    paths = list_images(source)
    random.Random(seed).shuffle(paths)
    return [read_image(p) for p in paths[:max_frames]]


def noise_frames(hw: tuple[int, int], seed: int = 0, count: int = 32) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of even noise, the same for the same seed: to measure where there are no images."""
    rng = np.random.RandomState(seed)
    return [rng.randint(0, 256, (*hw, 3), np.uint8) for _ in range(count)]


class Frame(NamedTuple):
    """A decoded frame and where it comes from."""

    source: str  # image file, video file or camera
    number: int | None  # of a video's or camera's frame, from 0; None for an image
    pixels: np.ndarray  # (H, W, 3) BGR uint8


def is_stream(source: str) -> bool:
    """A camera by number, device, address or GStreamer pipeline: something that has no end."""
    return source.isdigit() or source.startswith("/dev/video") or "://" in source or " ! " in source


def read_source(source: str, max_frames: int | None = None) -> Iterator[Frame]:
    """Frames of an image, a folder of images, a video file or a camera, at most `max_frames`."""
    if is_stream(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES:
        yield from _video_frames(source, max_frames)
        return
    for path in list_images(source)[:max_frames]:
        yield Frame(str(path), None, read_image(path))


NO_GSTREAMER = ": this OpenCV was built without GStreamer, as pip's are; use the board's own, see the bundle's README"


def open_video(source: str) -> Any:
    if not is_stream(source) and not Path(source).is_file():
        raise EdgeError(f"There is no video file {source}.")
    backend = cv2.CAP_GSTREAMER if " ! " in source else cv2.CAP_ANY
    video = cv2.VideoCapture(int(source) if source.isdigit() else source, backend)
    if not video.isOpened():
        lacking = backend == cv2.CAP_GSTREAMER and re.search(r"GStreamer:\s+NO\b", cv2.getBuildInformation())
        hint = NO_GSTREAMER if lacking else ""
        raise EdgeError(f"{source} cannot be opened as a {'camera' if is_stream(source) else 'video'}{hint}.")
    return video


def _video_frames(source: str, max_frames: int | None) -> Iterator[Frame]:
    """A video file ends when it ends; one that ends long before its own count is damaged, and a camera never ends."""
    video, number = open_video(source), 0
    try:
        while max_frames is None or number < max_frames:
            good, pixels = video.read()
            if not good:
                break
            yield Frame(source, number, pixels)
            number += 1
        else:
            return
        count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        video.release()
    if is_stream(source):
        raise EdgeError(f"The camera {source} gave no more pictures after {number} frames.")
    if number == 0 or number < 0.95 * count:  # some containers only estimate their count
        raise EdgeError(f"{source} ended after {number} of {max(int(count), number)} frames: the file is damaged.")
