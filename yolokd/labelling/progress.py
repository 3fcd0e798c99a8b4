"""How far a long piece of work is, and how long it will still take."""

from __future__ import annotations

import sys
import time

EVERY = 10.0  # seconds between two lines where output is no terminal
SHORT = 2.0  # seconds up to which nothing is said


class Progress:
    """Counts steps of about the same length; on a terminal one line that is rewritten, elsewhere a line now and then.

    Args:
        what: what is done, such as "labelling".
        total: steps.
        done: of them before this run.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self.before = what, total, done, done
        self.begun = self.said = time.monotonic()
        self.shown = False

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if now - self.begun < SHORT or now - self.said < (0.2 if terminal else EVERY):
            return
        left = (now - self.begun) / (self.done - self.before) * (self.total - self.done)
        text = f"{self.what}: {self.done} of {self.total}, about {spoken(left)} left"
        print(f"\r{text:<79}" if terminal else text, end="" if terminal else "\n", flush=True)
        self.said, self.shown = now, terminal

    def end(self) -> None:
        """Leave the line that was rewritten."""
        if self.shown:
            print(flush=True)


def spoken(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
