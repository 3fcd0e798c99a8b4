"""Detections drawn on frames, and the folder that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolokd_edge.common import EdgeError
from yolokd_edge.images import VIDEO_SUFFIXES, Frame, is_stream, list_images, open_video
from yolokd_edge.outputs.pose import VISIBLE


def draw(
    frame: np.ndarray, detections: np.ndarray, names: dict[int, str], added: Sequence[dict[str, Any]]
) -> np.ndarray:
    """A copy of the frame with boxes, rotated where they are, class names, scores, masks and keypoints on it."""
    out = frame.copy()
    scale = max(out.shape[:2]) / 1200 + 0.2
    thick = max(1, round(2 * scale))
    for (x1, y1, x2, y2, conf, cls), more in zip(detections[:, :6].tolist(), added):  # noqa: B905
        colour = tuple(int(c) for c in np.random.RandomState(int(cls)).randint(60, 230, 3))
        corner = (int(x1), int(y1))
        if more.get("polygons"):
            filled = cv2.fillPoly(out.copy(), [np.array(p).round().astype(np.int32) for p in more["polygons"]], colour)
            out = cv2.addWeighted(filled, 0.4, out, 0.6, 0)
        if "corners" in more:
            cv2.polylines(out, [np.array(more["corners"]).round().astype(np.int32)], True, colour, thick, cv2.LINE_AA)
        else:
            cv2.rectangle(out, corner, (int(x2), int(y2)), colour, thick)
        for x, y, *seen in more.get("keypoints", ()):
            if not seen or seen[0] >= VISIBLE:
                cv2.circle(out, (round(x), round(y)), 2 * thick, colour, -1, cv2.LINE_AA)
        text = f"{names.get(int(cls), int(cls))} {conf:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        left, bottom = min(corner[0], max(out.shape[1] - width, 0)), max(corner[1], height + base)
        cv2.rectangle(out, (left, bottom - height - base), (left + width, bottom), colour, -1)
        cv2.putText(out, text, (left, bottom - base), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return out


class Drawings:
    """A folder for frames with boxes on them: an image each, or one video (Motion JPEG, which every OpenCV writes)."""

    def __init__(self, folder: str, source: str) -> None:
        self.folder = Path(folder)
        self.video: Any = None
        still = not is_stream(source) and Path(source).suffix.lower() not in VIDEO_SUFFIXES
        images = list_images(source) if still else []
        inside = bool(images) and self.folder.exists() and self.folder.resolve() == images[0].resolve().parent
        if inside or (self.folder.exists() and not self.folder.is_dir()):
            raise EdgeError(
                f"{self.folder} cannot take the drawn images: give a folder other than that of the source images."
            )
        stem = Path(source).stem if not is_stream(source) else "camera"
        self.clip = self.folder / f"{stem}.avi"
        self.rate = 30.0
        if not still:
            video = open_video(source)
            self.rate = video.get(cv2.CAP_PROP_FPS) or self.rate
            video.release()
        for path in map(self._target, images) if still else [self.clip]:
            if path.exists():
                raise EdgeError(f"{path} exists already: give a new folder for the drawn images.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeError(f"{self.folder} cannot be created ({error.strerror}).") from None

    def _target(self, image: Path) -> Path:
        """Where a drawn image is kept: under its own name, with another suffix where OpenCV cannot write its format."""
        return self.folder / (image.name if cv2.haveImageWriter(image.name) else image.name + ".png")

    def add(self, frame: Frame, drawn: np.ndarray) -> None:
        """Write one frame."""
        if frame.number is None:
            path = self._target(Path(frame.source))
            written = cv2.imwrite(str(path), drawn)
        else:
            path = self.clip
            if self.video is None:
                size = (drawn.shape[1], drawn.shape[0])
                self.video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), self.rate, size)
            written = self.video.isOpened()
            self.video.write(drawn)
        if not written:
            raise EdgeError(f"{path} cannot be written.")

    def close(self) -> None:
        """Finish the video."""
        if self.video is not None:
            self.video.release()
