"""The teacher cut down to a latency by Torch-Pruning, to compare a fit's student with.

Groups of channels that depend on each other are removed by the L2 norm of their weights, the same share of every layer.
Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) is an extra, `pip install 'yolokd[prune]'`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from ultralytics.nn.modules.block import C2PSA, ELAN1, PSA, A2C2f, AAttn, Attention, C2f, RepNCSPELAN4
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.modules.head import RTDETRDecoder

from yolokd.distill.pruned import MARK
from yolokd.errors import UsageError, one_line
from yolokd.init.teacher_statistics import raw_outputs

NEEDED = "torch_pruning"
WITHOUT = "or give prune=False for a comparison without it"
ROUND_TO = 8  # channels, as in Ultralytics' own sizes
MOST = 0.95  # of the channels that may go
STEPS = 7  # of the bisection
NEAR = 0.02  # of the target's latency, within which a pruned network may lie above it
SIDE = 64  # pixels of the image that is traced
ATTENDING = (C2PSA, PSA, A2C2f, Attention, AAttn)  # heads of attention, which must keep their size


def require() -> None:
    """Refuse to begin without Torch-Pruning."""
    if find_spec(NEEDED) is None:
        raise UsageError(
            f"the comparison prunes the teacher by Torch-Pruning, which is not installed: pip install 'yolokd[prune]', "
            f"{WITHOUT}."
        )


def refuse_unprunable(model: Any, given: str) -> None:
    """Refuse a teacher that cannot be pruned here."""
    if isinstance(model.model[-1], RTDETRDecoder):
        raise UsageError(f"{given} is an RT-DETR, whose transformers are not pruned here: give prune=False.")


# --- pruning --------------------------------------------------------------------------------------------------------


def prune(model: Any, ratio: float, given: str) -> Any:
    """A copy of a YOLO without a share of its channels, of Ultralytics' own layers, in eval mode.

    Args:
        model: a detection model of Ultralytics, for whatever task.
        ratio: the share of every layer's channels that goes, rounded to 8 channels.
        given: names the model in an error.

    Raises:
        UsageError: Torch-Pruning is not there, or cannot follow this model's layers.
    """
    require()
    import torch_pruning

    pruned = copy.deepcopy(model).float().eval().requires_grad_(True)
    image = torch.rand(1, int(pruned.yaml.get("channels", 3)), SIDE, SIDE)
    try:
        with halves_apart(pruned.model), raw_outputs(pruned), Attached():
            pruner = torch_pruning.pruner.BasePruner(
                pruned, image, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
                pruning_ratio_dict=shares(pruned, ratio), ignored_layers=kept_layers(pruned), round_to=ROUND_TO,
                global_pruning=False,
            )  # fmt: skip
            pruner.step()
        with torch.no_grad():
            pruned.eval()(image)
    except Exception as error:  # a layer that it cannot follow ends in whatever type
        raise UsageError(
            f"{given} cannot be pruned by Torch-Pruning ({type(error).__name__}: {one_line(error)}): give prune=False."
        ) from error
    setattr(pruned, MARK, True)
    return pruned.requires_grad_(False)


class Attached(TorchFunctionMode):
    """While active nothing is detached: a branch that Ultralytics trains apart depends on the same channels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.detach else func(*args, **(kwargs or {}))


def kept_layers(model: Any) -> list[nn.Module]:
    """Layers whose outputs must stay: predictions, fixed convolutions, mask prototypes, and what attention reads."""
    head = model.model[-1]
    kept: list[nn.Module] = [
        m for name, m in head.named_modules() if isinstance(m, nn.Conv2d) and not name.endswith("conv")
    ]
    if (proto := getattr(head, "proto", None)) is not None:
        kept.append(proto.cv3.conv)
    for module in model.modules():
        if isinstance(module, ATTENDING) or is_halved(module) and attends(module):
            last = getattr(module, "cv2", None)
            out = set(last.modules()) if isinstance(last, nn.Module) and not isinstance(module, Attention) else set()
            kept += [m for m in module.modules() if isinstance(m, nn.Conv2d) and m not in out]
    return kept


def shares(model: Any, ratio: float) -> dict[nn.Module, float]:
    """The share of each layer's channels that goes: 8 must be left, or Torch-Pruning would let the layer be."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return {m: max(min(ratio, 1 - (ROUND_TO + 0.5) / m.out_channels), 0.0) for m in layers}


def attends(module: nn.Module) -> bool:
    """Whether there is attention within."""
    return any(isinstance(m, ATTENDING) for m in module.modules())


def is_halved(module: nn.Module) -> bool:
    """Whether a block's first convolution outputs two halves that are processed separately."""
    return isinstance(module, (C2f, RepNCSPELAN4, ELAN1))


class Halves(nn.Module):
    """Stands for a block while it is pruned, with two convolutions in place of the first: each half depends on other
    layers, and Torch-Pruning would not leave them equal."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block, self.first, self.second = [block], *split(block.cv1)
        self.rest = nn.ModuleList([module for name, module in block.named_children() if name != "cv1"])
        self.i, self.f = block.i, block.f  # its place among the layers

    def forward(self, x: Tensor) -> Tensor:
        block, found = self.block[0], [self.first(x), self.second(x)]
        for module in block.m if isinstance(block, C2f) else (block.cv2, block.cv3):
            found.append(module(found[-1]))
        out: Tensor = (block.cv2 if isinstance(block, C2f) else block.cv4)(torch.cat(found, 1))
        return out

    def joined(self) -> Any:
        """The block, with what is left of the two convolutions."""
        block, halves = self.block[0], (self.first, self.second)
        widths = {half.conv.out_channels for half in halves}
        if len(widths) > 1:
            raise ValueError(f"the halves of {type(block).__name__} came out with {sorted(widths)} channels")
        conv, norm, width = block.cv1.conv, block.cv1.bn, 2 * widths.pop()
        conv.weight = nn.Parameter(torch.cat([half.conv.weight.data for half in halves]))
        conv.in_channels, conv.out_channels, norm.num_features = self.first.conv.in_channels, width, width
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(torch.cat([getattr(half.bn, name).data for half in halves])))
        for name in ("running_mean", "running_var"):
            setattr(norm, name, torch.cat([getattr(half.bn, name) for half in halves]))
        block.c = width // 2
        return block


def split(conv: Any) -> tuple[Conv, Conv]:
    """A convolution as two, one for each half of its outputs."""
    width, found = conv.conv.out_channels // 2, []
    for rows in (slice(0, width), slice(width, 2 * width)):
        half = copy.deepcopy(conv)
        half.conv.weight = nn.Parameter(conv.conv.weight.data[rows].clone())
        half.conv.out_channels = half.bn.num_features = width
        for name in ("weight", "bias"):
            setattr(half.bn, name, nn.Parameter(getattr(conv.bn, name).data[rows].clone()))
        for name in ("running_mean", "running_var"):
            setattr(half.bn, name, getattr(conv.bn, name)[rows].clone())
        found.append(half)
    return found[0], found[1]


@contextmanager
def halves_apart(layers: Any) -> Iterator[None]:
    """Within the block, blocks with halves are taken apart; those that attend are left alone."""
    places = [i for i, layer in enumerate(layers) if is_halved(layer) and not attends(layer)]
    for i in places:
        layers[i] = Halves(layers[i]).eval()
    yield
    for i in places:
        layers[i] = layers[i].joined()


# --- to a latency ---------------------------------------------------------------------------------------------------


def bisected(cost: Callable[[float], float], target: float) -> tuple[float, float]:
    """The smallest share of channels that has to go, and the latency then.

    Args:
        cost: the latency of a network without a share of its channels, ms.
        target: ms, which the network must not exceed by more than NEAR.

    Raises:
        UsageError: even the smallest network is slower.
    """
    low, high = 0.0, MOST
    best: tuple[float, float] | None = None
    for step in range(STEPS):
        ratio = high if step == 0 else (low + high) / 2
        ms = cost(ratio)
        if ms <= target * (1 + NEAR):
            best, high = (ratio, ms), ratio
        elif step == 0:
            raise UsageError(
                f"the teacher without {MOST:.0%} of its channels takes {ms:.2f} ms, more than the student's "
                f"{target:.2f} ms: give prune=False."
            )
        else:
            low = ratio
        if best and abs(best[1] / target - 1) <= NEAR:
            break
    assert best is not None
    return best
