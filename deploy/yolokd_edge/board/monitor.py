"""Watches the board from a thread while frames are timed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from yolokd_edge.board.sensors import Sensors
from yolokd_edge.board.system import tool_output
from yolokd_edge.board.tools import parse_get_throttled, parse_jetson_clocks, parse_nvpmodel


class Monitor:
    """Samples the board beside a measurement: tegrastats where installed, else jetson-stats, and /sys.

    Args:
        power: Whether power is wanted; tegrastats then reports every 100 ms, else every second.
        clock: Nanoseconds, the clock that the frames are timed with.
    """

    def __init__(self, power: bool = False, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.power, self.clock = power, clock
        self.sensors = Sensors(power)
        self.readings: list[tuple[int, dict[str, Any]]] = []  # of /sys
        self.lines: list[tuple[int, str]] = []  # of tegrastats
        self.tegrastats = shutil.which("tegrastats")
        self.power_mode = parse_nvpmodel(tool_output("nvpmodel", "-q") or "")
        self.firmware: list[int] = []  # a Raspberry Pi's throttling flags, before and after
        self.locked: bool | None = parse_jetson_clocks(tool_output("jetson_clocks", "--show") or "")["locked"]
        self._process: Any = None
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def __enter__(self) -> Monitor:
        self.look()
        self._ask_firmware()
        if self.tegrastats:
            command = [self.tegrastats, "--interval", "100" if self.power else "1000"]
            try:
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
                )
            except OSError:
                self.tegrastats = None
            else:
                self._start(self._listen)
        if self.sensors.moving():
            self._start(self._watch)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._process is not None:
            self._end(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._end(signal.SIGKILL)
                self._process.wait()
        for thread in self._threads:
            thread.join(5)
        self.look()
        self.sensors.close()
        self._ask_firmware()

    def _end(self, how: int) -> None:
        try:
            os.killpg(self._process.pid, how)  # with what a wrapper script may have started
        except ProcessLookupError:
            pass  # it has ended by itself

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _ask_firmware(self) -> None:
        flags = parse_get_throttled(tool_output("vcgencmd", "get_throttled") or "")
        if flags is not None:
            self.firmware.append(flags)

    def look(self) -> None:
        """Read all sensors of /sys."""
        self.readings.append((self.clock(), self.sensors.read()))

    def _watch(self) -> None:
        while not self._stop.wait(0.1 if self.power and not self.tegrastats else 0.5):
            self.look()

    def _listen(self) -> None:
        for raw in self._process.stdout:
            line = raw.decode(errors="replace")
            if not line.endswith("\n"):  # cut off at the end: the last word may be half a number
                line = line.rpartition(" ")[0]
            if line.strip():
                self.lines.append((self.clock(), line.strip()))

    def ticks(self) -> np.ndarray:
        """When something was sampled, (n,) ns sorted."""
        return np.sort(np.array([t for t, _ in self.lines] + [t for t, _ in self.readings], np.int64))
