"""The command line: `yolokd VERB key=value ...`, in the style of `yolo`. What the verbs are is in yolokd/verbs."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from yolokd.errors import printable
from yolokd.verbs import VERBS, load

CODES = (1, 2, 3, 4, 5)
DEFECT = 70  # not 1, by which Python ends and a gate means a regression
INTERRUPTED, TERMINATED = 130, 143  # as of a program that SIGINT or SIGTERM ends
READER_GONE = 141  # as of a program that SIGPIPE ends
HELP = {"-h", "--help"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; what a user can mend is one sentence on stderr with its exit code, never a traceback."""
    verb, *words = list(sys.argv[1:] if argv is None else argv) or ["help"]
    if verb in HELP:
        verb = "help"
    elif HELP & set(words):
        verb, words = "help", [verb]
    verb = verb.removeprefix("--")
    try:
        if verb not in VERBS:
            from yolokd.config.parse import did_you_mean
            from yolokd.errors import UsageError

            raise UsageError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}.")
        module = load(verb)
        if module.VERB.stands_on_ultralytics:
            from yolokd import compat

            compat.check()
        with ended_by_sigterm():
            module.run(words)
        code = 0
    except KeyboardInterrupt as stop:
        print(f"yolokd: {stop}" if str(stop) else f"yolokd: {verb} was stopped.", file=sys.stderr)
        code = getattr(stop, "code", INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():  # as `| head` does; another pipe's break is a defect
            _flush()
            return READER_GONE
        given = getattr(error, "code", None)
        if not isinstance(given, int) or given not in CODES:  # an HTTP error has a code too
            traceback.print_exc()
            return DEFECT
        print(f"yolokd: {printable(str(error))}", file=sys.stderr)
        code = given
    _flush()
    return code


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what is at work as Ctrl-C does, so that it can tidy up and say how to go on."""
    if threading.current_thread() is not threading.main_thread():  # others may not handle signals
        yield
        return

    def end(*_: object) -> None:
        from yolokd.errors import Interrupted

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the tidying short
        raise Interrupted("", code=TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError):  # a system without poll; a standard output that is no file
        return False


def _flush() -> None:
    """Write out what is printed; where nobody reads it, let it go, or Python would complain when it ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
