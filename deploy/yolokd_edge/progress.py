"""How far a long piece of work is, and how long it will still take: the one place that says so."""

from __future__ import annotations

import sys
import time
from types import TracebackType

EVERY = 10.0  # seconds between two lines where standard error is no terminal
OFTEN = 0.2  # seconds between two changes of the line on a terminal
SHORT = 2.0  # seconds of work of which nothing is said


class Progress:
    """Counts steps of about the same length; on a terminal one line that is rewritten, elsewhere a line now and then.

    It writes to standard error, so that what a command prints can still be read by a program. As a context it ends its
    line by itself.

    Args:
        what: what is done, such as "labelling".
        total: steps.
        done: of them before this run.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.before = what, total, done, done
        self.begun = self.said = time.monotonic()
        self.shown = False

    def announce(self, seconds: float) -> None:
        """Say how long all that is left should take, before the first step is done."""
        if self.done == self.before and seconds > SHORT:
            self._say(seconds, time.monotonic())

    def step(self, count: int = 1) -> None:
        """Some steps are done, one by default; with 0 what is already known is said again."""
        self.done += count
        now = time.monotonic()
        if now - self.begun >= SHORT and now - self.said >= (OFTEN if sys.stderr.isatty() else EVERY):
            fresh = self.done - self.before
            self._say((now - self.begun) / fresh * (self.total - self.done) if fresh else None, now)

    def end(self) -> None:
        """Leave the line that was rewritten."""
        if self.shown:
            print(file=sys.stderr, flush=True)
            self.shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _say(self, left: float | None, now: float) -> None:
        terminal = sys.stderr.isatty()
        text = f"{self.what}: {self.done} of {self.total}"
        text += "" if left is None else f", about {spoken(left)} left"
        print(f"\r{text:<79}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
        self.said, self.shown = now, terminal


def spoken(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
