"""Numbers and sizes on the command line, refused with the bounds that they break."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from yolokd_edge.contract import MAX_SIDE


def number(kind: Callable[[str], Any], at_least: float, at_most: float = math.inf) -> Callable[[str], Any]:
    """A type for argparse: a number of a kind (int, float) within bounds."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not at_least <= value <= at_most:
            bound = f"at least {at_least:g}" if at_most == math.inf else f"from {at_least:g} to {at_most:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a number {bound}")
        return value

    return read


def size(text: str) -> tuple[int, int]:
    """A type for argparse: (height, width) from 320 or 320x480."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 1 <= int(side) <= MAX_SIDE for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 320 or 320x480, of at most {MAX_SIDE} pixels")
    return int(sides[0]), int(sides[-1])
