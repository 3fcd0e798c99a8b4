"""How far the runs of a study are: read from the epochs that they write, whoever carries them out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ultralytics.utils import DEFAULT_CFG_DICT

from yolokd.studies.plan import Job
from yolokd_edge.progress import Progress

LOOK = 2.0  # seconds between two looks


@contextmanager
def watched(jobs: Sequence[Job]) -> Iterator[Callable[[str], None]]:
    """Say now and then how many epochs of the jobs' trainings are done, and how long the others will take.

    Yields:
        What prints a line in between.
    """
    trainings = [job for job in jobs if job.spec["kind"] == "train"]
    before = sum(map(epochs_done, trainings))
    progress = Progress("training epochs of all runs", sum(map(epochs_of, trainings)), before)
    ended, lock = threading.Event(), threading.Lock()

    def look() -> None:
        while not ended.wait(LOOK):
            done = sum(map(epochs_done, trainings))
            with lock:
                # a run that begins anew has thrown some away; they are counted when they are done again
                progress.step(max(done - progress.done, 0))

    def told(line: str) -> None:
        with lock:
            progress.end()
            print(line, flush=True)

    watcher = threading.Thread(target=look, daemon=True)
    if trainings:
        watcher.start()
    try:
        yield told
    finally:
        ended.set()
        if trainings:
            watcher.join()
        progress.end()


def epochs_of(job: Job) -> int:
    """How many epochs a training is to have."""
    return int(job.spec["arguments"].get("epochs") or DEFAULT_CFG_DICT["epochs"])


def epochs_done(job: Job) -> int:
    """How many a training has; all of them once it has a result, be it by patience= or time=."""
    if job.result() is not None:
        return epochs_of(job)
    try:
        return max((job.folder / "train" / "results.csv").read_bytes().count(b"\n") - 1, 0)
    except OSError:  # it has not begun
        return 0
