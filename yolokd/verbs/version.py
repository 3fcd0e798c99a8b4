"""`yolokd version`: the installed version."""

from __future__ import annotations

from yolokd.verbs.arguments import nothing
from yolokd.verbs.declaration import Verb

VERB = Verb(summary="prints the version", usage=("yolokd version",), examples=("yolokd version",))


def run(words: list[str]) -> None:
    """Print it."""
    nothing(words, "version")
    from yolokd import __version__

    print(__version__)
