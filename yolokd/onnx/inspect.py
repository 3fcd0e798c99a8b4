"""The `inspect` verb: what an exported file costs, and where its time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolokd.errors import printable
from yolokd.onnx import profile
from yolokd_edge.common import EdgeError


def inspect(model: str | Path, threads: int = 1, top: int = 10) -> dict[str, Any]:
    """Print and return the static figures of an ONNX file and its slowest nodes on this machine's CPU.

    Args:
        model: the ONNX file, of fixed input shape.
        threads: onnxruntime's threads while the nodes are timed.
        top: how many nodes to show.
    """
    path = Path(str(model))
    for key, value in (("threads", threads), ("top", top)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EdgeError(f"{key}={value} is not a whole number of 1 or more.")
    if not path.is_file():
        raise EdgeError(f"There is no model file {path}.")
    figures = profile.figures(path)
    rows = profile.slowest(path, top, threads=threads)
    gflops, peak = figures["gflops"], figures["peak_activation_bytes"]
    work = "" if gflops is None else f"{gflops:.2f} GFLOPs an image, "
    memory = "unknown" if peak is None else f"{peak / 1e6:.2f} MB at most, at {figures['peak_node']}"
    lines = [
        f"{path}: {figures['parameters']:,} parameters, {work}{figures['bytes'] / 1e6:.2f} MB; "
        f"memory of activations {memory}"
    ]
    names = [printable(row["name"]) for row in rows]
    width = max(map(len, ["slowest nodes", *names]))
    lines.append(f"{'slowest nodes':<{width}}  {'operator':<20}{'ms':>8}{'share':>8}")
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{width}}  {row['op']:<20}{row['ms']:>8.3f}{row['share']:>8.1%}")
    print("\n".join(map(printable, lines)))
    return {**figures, "slowest": rows}
