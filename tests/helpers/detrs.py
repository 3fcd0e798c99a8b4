"""RT-DETRs as Ultralytics' YAMLs describe them, a few channels wide."""

from __future__ import annotations

import torch
from ultralytics.nn.tasks import RTDETRDetectionModel

from helpers.models import NAMES, settled

# stem and stages; the channels that a factor narrows come first in each row
HGNET = (
    ("HGStem", 8, 8), ("HGBlock", 8, 16, 3), ("DWConv", 16, 3, 2, 1, False), ("HGBlock", 8, 32, 3),
    ("DWConv", 32, 3, 2, 1, False), ("HGBlock", 8, 32, 5, True, False), ("HGBlock", 8, 32, 5, True, True),
    ("DWConv", 32, 3, 2, 1, False), ("HGBlock", 8, 48, 5, True, False),
)  # fmt: skip
RESNET = (
    ("ResNetLayer", 3, 8, 1, True, 1), ("ResNetLayer", 8, 4, 1, False, 2), ("ResNetLayer", 16, 6, 2, False, 2),
    ("ResNetLayer", 24, 8, 2, False, 3), ("ResNetLayer", 32, 12, 2, False, 2),
)  # fmt: skip
WIDTHS = {"HGStem": (0, 1), "HGBlock": (0, 1), "DWConv": (0,), "ResNetLayer": (0, 1)}


def layout(
    backbone: tuple[tuple, ...], narrow: int = 1, width: float = 1.0, depth: float = 1.0, hidden: int = 32,
    layers: int = 2, queries: int = 20, feed: int = 48,
) -> dict:  # fmt: skip
    """The YAML of an RT-DETR.

    Args:
        backbone: HGNET or RESNET.
        narrow: what the backbone's channels are divided by.
        width, depth: Ultralytics' factors.
        hidden, layers, queries, feed: of the decoder; 4 heads with 2 points at each level.
    """
    rows = []
    for name, *numbers in backbone:
        for i in WIDTHS[name]:
            numbers[i] = numbers[i] // narrow if numbers[i] != 3 else 3
        rows.append([-1, 2 if name == "HGBlock" else 1, name, numbers])
    k, (p3, p4) = len(rows), (3, 6) if backbone is HGNET else (2, 3)

    def conv(source: int, *numbers: object) -> list:
        return [source, 1, "Conv", [32, *numbers]]

    def joined(*sources: int) -> list:
        return [list(sources), 1, "Concat", [1]]

    up, mixed, plain = [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [-1, 2, "RepC3", [32]], (1, 1, None, 1, 1, False)
    head = [conv(-1, *plain), [-1, 1, "AIFI", [48, 4]], conv(-1, 1, 1), up, conv(p4, *plain), joined(-2, -1), mixed]
    head += [conv(-1, 1, 1), up, conv(p3, *plain), joined(-2, -1), mixed, conv(-1, 3, 2), joined(-1, k + 7), mixed]
    head += [conv(-1, 3, 2), joined(-1, k + 2), mixed]
    head += [[[k + 11, k + 14, k + 17], 1, "RTDETRDecoder", ["nc", hidden, queries, 2, 4, layers, feed]]]
    return {"nc": len(NAMES), "scales": {"l": [depth, width, 1024]}, "scale": "l", "backbone": rows, "head": head}


def small(seed: int = 0, dtype: torch.dtype = torch.float64, backbone: tuple = HGNET, **more) -> RTDETRDetectionModel:
    """An RT-DETR in eval mode whose every output differs from place to place; more as in `layout`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return settled(RTDETRDetectionModel(layout(backbone, **more), nc=len(NAMES), verbose=False)).to(dtype)
