"""The random numbers of a training, which what is done beside it must not take."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_streams() -> Iterator[None]:
    """Leave the random streams of Python, numpy and torch (CPU) as they are found."""
    found = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(found[0])
        np.random.set_state(found[1])
