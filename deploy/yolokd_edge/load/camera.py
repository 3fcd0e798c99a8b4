"""A camera, or a video file that delivers like one: frames come at their own pace, and only the newest one is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from yolokd_edge.common import EdgeError
from yolokd_edge.images import Frame, is_stream, open_video, read_source
from yolokd_edge.runtimes.requests import Clock

SILENCE_S = 10.0  # without a frame, after which a camera counts as gone
USUAL_FPS = 30.0  # of a file that tells no rate


class Captured(NamedTuple):
    """A frame and when it was there."""

    pixels: np.ndarray  # (H, W, 3) BGR uint8
    at: int  # ns on the clock


class Newest:
    """The newest frame that nobody has taken yet; one that another replaces is dropped."""

    def __init__(self) -> None:
        self.captured = self.dropped = 0
        self._frame: Captured | None = None
        self._ended: BaseException | bool = False
        self._change = threading.Condition()

    def put(self, frame: Captured) -> None:
        """A frame is there."""
        with self._change:
            self.captured += 1
            self.dropped += self._frame is not None
            self._frame = frame
            self._change.notify()

    def end(self, error: BaseException | None = None) -> None:
        """No more frames come."""
        with self._change:
            self._ended = error or True
            self._change.notify()

    def take(self, silence_s: float = SILENCE_S) -> Captured | None:
        """The newest frame, as soon as there is one; None at the end, or the error that ended it.

        Raises:
            TimeoutError: nothing came for `silence_s`.
        """
        with self._change:
            if not self._change.wait_for(lambda: self._frame is not None or self._ended, silence_s):
                raise TimeoutError
            frame, self._frame = self._frame, None
            if frame is None and isinstance(self._ended, BaseException):
                raise self._ended
            return frame


class Camera:
    """Reads a camera or a video file in a thread of its own; a file at the rate that it tells.

    Args:
        source: number, device, address or pipeline of a camera, or a video file.
        clock: in ns.
    """

    def __init__(self, source: str, clock: Clock = time.perf_counter_ns) -> None:
        self.source, self._clock = source, clock
        self.is_file = not is_stream(source)
        self.fps = _file_rate(source) if self.is_file else None  # which a file tells; None: it does not, or a camera
        self.newest = Newest()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join(1.0)  # one that hangs in the camera's driver is left behind

    def take(self) -> Captured | None:
        """The newest frame, as soon as there is one; None at a file's end.

        Raises:
            EdgeError: the camera went away, or the file is damaged.
        """
        try:
            return self.newest.take()
        except TimeoutError:
            raise EdgeError(
                f"The camera {self.source} gave no picture for {SILENCE_S:.0f} s, after {self.newest.captured} frames."
            ) from None

    def _read(self) -> None:
        try:
            for frame in self._paced(read_source(self.source)):
                if self._stop.is_set():
                    break
                self.newest.put(Captured(frame.pixels, self._clock()))
        except BaseException as error:  # raised where the frame is waited for
            self.newest.end(error)
        else:
            self.newest.end()

    def _paced(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Frames no earlier than a file's rate has them; decoding comes before, as in a camera."""
        begin: int | None = None
        for number, frame in enumerate(frames):
            now = self._clock()
            begin = now if begin is None else begin
            if self.is_file:
                due = begin + number * 1e9 / (self.fps or USUAL_FPS)
                if due > now:
                    time.sleep((due - now) / 1e9)
            yield frame


def _file_rate(source: str) -> float | None:
    video = open_video(source)
    try:
        fps = float(video.get(cv2.CAP_PROP_FPS))
    finally:
        video.release()
    return fps if 0 < fps < 10000 else None
