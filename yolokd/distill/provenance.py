"""How a student was made: written into its checkpoint, carried on to the exported file and to the board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from yolokd.config.options import DistillOptions
from yolokd.detectors.teachers import digest, title


def provenance(
    distillation: DistillOptions, start: str, methods: dict[str, dict[str, Any]], data: str
) -> dict[str, Any]:
    """Plain values that say how a student was made: teacher files and their hashes, methods, gain, start, data set."""
    from yolokd import __version__

    files = [{"file": title(t), "sha256": digest(t)} for t in distillation.teacher]
    origin = {"teacher": files[0], "teachers": files, "methods": methods, "gain": distillation.gain}
    origin["start"] = start
    return {"version": __version__, **origin, "data": data, "dataset": Path(data).name}


def sign(file: Path, entry: dict[str, Any]) -> None:
    """Add the entry to a finished checkpoint under the key "yolokd"."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)  # written by this process a moment ago
    for model in filter(None, (checkpoint.get("model"), checkpoint.get("ema"))):
        model.to(memory_format=torch.contiguous_format)  # older releases of Ultralytics cannot fuse another one
    torch.save({**checkpoint, "yolokd": entry}, file)
