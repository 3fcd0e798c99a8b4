"""Requests that run beside each other: throughput is measured by starting them and being told when each is done."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from yolokd_edge.common import usable_cores
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.opening import open_model
from yolokd_edge.runtimes.table import PROVIDERS

if TYPE_CHECKING:
    from typing import TypeAlias  # Python 3.8 has none

Done: TypeAlias = "Callable[[int, int], None]"  # when a request began to run and when it ended, ns
Clock: TypeAlias = "Callable[[], int]"


class Requests(Protocol):
    """A model that computes several inputs at the same time."""

    streams: int  # inputs that are computed at the same time
    threads: int  # of the CPU, for each stream
    how: str  # by which interface of the runtime

    def start(self, blob: np.ndarray, done: Done) -> None:
        """Compute an input (B, 3, H, W) in the background, as soon as there is room; waits until then.

        `done` is called in another thread.
        """

    def finish(self) -> None:
        """Wait until nothing runs any more; raises what went wrong in the background."""

    def close(self) -> None:
        """Give the sessions back."""


class ThreadedRequests:
    """A thread for each stream, with what runs an input: a session of its own.

    A second input waits for each stream, so that none idles while the next one is handed over.

    Args:
        runs: for each stream what computes an input.
        threads: of the CPU, for each stream.
        how: the interface that `runs` use.
        clock: in ns.
    """

    def __init__(
        self, runs: Sequence[Callable[[np.ndarray], Any]], threads: int, how: str, clock: Clock = time.perf_counter_ns
    ) -> None:
        self.streams, self.threads, self.how, self._clock = len(runs), threads, how, clock
        self._waiting: Any = queue.Queue(2 * len(runs))
        self._room, self._error = threading.Semaphore(2 * len(runs)), None  # type: Any, Any
        self._workers = [threading.Thread(target=self._work, args=(run,), daemon=True) for run in runs]
        for worker in self._workers:
            worker.start()

    def start(self, blob: np.ndarray, done: Done) -> None:
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            self.finish()
        self._waiting.put((blob, done))

    def finish(self) -> None:
        self._waiting.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self, run: Callable[[np.ndarray], Any]) -> None:
        while True:
            task = self._waiting.get()
            try:
                if task is None:
                    return
                blob, done = task
                if self._error is None:
                    begun = self._clock()
                    run(blob)
                    done(begun, self._clock())
            except Exception as error:  # raised where the request was started from
                self._error = error
            finally:
                self._waiting.task_done()
                if task is not None:
                    self._room.release()


def open_requests(
    path: Path, provider: str, streams: int | None, threads: int | None, tensorrt: TensorRT, blob: np.ndarray
) -> Requests:
    """Open a model for several inputs at the same time, each of the shape of `blob`.

    Args:
        path: the model.
        provider: a name of the table, not auto.
        streams: None leaves it to the runtime, where it has an opinion; else one for each core.
        threads: of the CPU, for each stream; None shares the cores out.
        tensorrt: how engines are built, and whether CUDA graphs are used.
        blob: an input (B, 3, H, W).
    """
    module = import_module(f"yolokd_edge.runtimes.{PROVIDERS[provider].module}")
    if hasattr(module, "open_requests"):
        opened: Requests = module.open_requests(path, provider, streams, threads, tensorrt, blob)
        return opened
    streams, threads = shared_out(streams, threads)
    sessions = [open_model(path, provider, threads, tensorrt).session for _ in range(streams)]
    name = sessions[0].get_inputs()[0].name
    runs = [lambda blob, own=session: own.run(None, {name: blob}) for session in sessions]
    return ThreadedRequests(runs, threads, "a session for each stream")


def shared_out(streams: int | None, threads: int | None) -> tuple[int, int]:
    """Streams and threads for each, where not given: the usable cores are shared out."""
    streams = streams or max(usable_cores() // (threads or 1), 1)
    return streams, threads or max(usable_cores() // streams, 1)
