"""What is done beside a training leaves its random numbers as they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from yolokd.data.random_streams import kept_streams


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_streams_go_on_as_if_nothing_had_been_drawn():
    def seed() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    expected = drawn()
    seed()
    with kept_streams():
        first = drawn()
    assert first == expected == drawn()
    seed()
    with pytest.raises(KeyError), kept_streams():
        drawn()
        raise KeyError
    assert drawn() == expected
