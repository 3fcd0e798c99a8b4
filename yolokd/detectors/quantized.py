"""Quantized students: what Ultralytics' quantization-aware training needs, and which models have been through it.

Ultralytics builds it on nvidia-modelopt, which is an extra. It would install that by itself while a file is opened;
here a user reads what is missing before anything is opened.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.utils import torch_utils

from yolokd.errors import UsageError

NEEDED = ("modelopt", "huggingface_hub")  # modelopt.torch imports the second without declaring it
SINCE = "8.4.143"  # of Ultralytics
MARK = b"modelopt_state_dict"  # in the pickle of a checkpoint with a quantization state


def require(given: str) -> None:
    """Refuse what was given where quantized models cannot be trained or opened."""
    if not hasattr(torch_utils, "restore_qat"):
        raise UsageError(
            f"{given} needs Ultralytics {SINCE} or newer, which trains quantized models: "
            f"pip install -U 'ultralytics>={SINCE},<8.5'."
        )
    if any(find_spec(name) is None for name in NEEDED):
        raise UsageError(f"{given} needs nvidia-modelopt, which is not installed: pip install 'yolokd[qat]'.")


def is_quantized(model: nn.Module) -> bool:
    """Whether a model carries the fake quantization of Ultralytics' quantization-aware training."""
    return any(type(module).__name__ == "TensorQuantizer" for module in model.modules())


def holds_quantization(file: str | Path) -> bool:
    """Whether a checkpoint has a quantization state, found without loading anything; False for what is none."""
    with suppress(Exception):
        return MARK in torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")
    return False


def quantized_layers(model: nn.Module, branch: str = "") -> tuple[int, int]:
    """How many of a model's convolutions and linear layers compute in eight bits, and how many of them it has.

    Args:
        model: that carries fake quantization, or not.
        branch: those with this in their names do not count, such as the NMS-free branch of a dual head, which a file of
            its raw output lacks.
    """
    layers: list[Any] = [
        m
        for name, m in model.named_modules()
        if hasattr(m, "input_quantizer") and hasattr(m, "weight_quantizer") and not (branch and branch in name)
    ]
    return sum(bool(m.weight_quantizer.is_enabled and m.input_quantizer.is_enabled) for m in layers), len(layers)
