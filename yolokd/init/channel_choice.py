"""Which of the teacher's channels a narrower student represents, where nothing before has determined it.

`solved` is yolokd's own choice. The other two are there to be compared with it: `copied` takes every k-th channel with
its weights as they are (weight selection, Xu et al. 2023, arXiv 2311.18823), `random` solves for channels that were
drawn.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from yolokd.init.least_squares import select_channels

SOLVED, COPIED, RANDOM = "solved", "copied", "random"


@dataclass(frozen=True, slots=True)
class ChannelChoice:
    """How channels are chosen."""

    how: str = SOLVED
    seed: int = 0  # of those that are drawn

    def channels(self, name: str, spread: Tensor, metric: Tensor, count: int) -> Tensor:
        """Channels in ascending order, padded with -1 if there are too few.

        Args:
            name: of the layer; every layer draws its own.
            spread: (C, C), covariance of the teacher's channels.
            metric: (C, C), the cost of errors in them.
            count: the number to choose.
        """
        if self.how == SOLVED:
            return select_channels(spread, metric, count)
        return self._without_looking(name, len(spread), count)

    def strongest(self, name: str, power: Tensor, count: int) -> Tensor:
        """Of things with so much power each, (N,), the indices of some, in ascending order."""
        if self.how == SOLVED:
            return power.topk(count).indices.sort().values.cpu()
        return self._without_looking(name, len(power), count)

    def _without_looking(self, name: str, width: int, count: int) -> Tensor:
        kept = min(count, width)
        if self.how == COPIED:
            chosen = evenly(width, kept)
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
            chosen = torch.randperm(width, generator=generator)[:kept].sort().values
        return torch.cat([chosen, chosen.new_full((count - kept,), -1)])


def evenly(width: int, count: int) -> Tensor:
    """Evenly spaced channels, from the first on."""
    return torch.arange(count) * width // count
