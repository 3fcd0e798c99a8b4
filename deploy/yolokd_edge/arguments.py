"""Numbers on the command line, refused with the bounds that they break."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


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
