"""`profile`: where the time of a network goes on this device, by node and by kind of operator, and what left it."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from yolokd_edge.bundle import own_bundle
from yolokd_edge.common import EdgeError, json_text, one_line, printable
from yolokd_edge.detect import engine_settings
from yolokd_edge.detector import Detector, load
from yolokd_edge.images import list_images, read_image
from yolokd_edge.runtimes.onnxruntime_options import session_options
from yolokd_edge.runtimes.table import OTHER_RUNTIMES, name_of

SCHEMA = "yolokd.profile/1"
WARM_UP, IMAGES = 5, 32


class Node(NamedTuple):
    """One node of the graph as the runtime runs it: several of the file's may have become one."""

    name: str
    op: str  # kind of operator; one fused by TensorRT or another compiler has a name of its own
    provider: str
    ms: float  # median of the runs
    share: float  # of all nodes' medians


def timed_nodes(
    path: Path, chain: Sequence[Any], threads: int, feeds: Sequence[Mapping[str, np.ndarray]], runs: int
) -> list[Node]:
    """The nodes by their time, slowest first, from ONNX Runtime's profile.

    Args:
        path: the ONNX file.
        chain: providers as ONNX Runtime takes them, names or (name, options).
        threads: of the CPU.
        feeds: inputs by name, used in turn.
        runs: that count, after a few that do not.

    Raises:
        EdgeError: the file cannot be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=list(chain), enable_fallback=0)
            for k in range(WARM_UP + runs):
                session.run(None, dict(feeds[k % len(feeds)]))
        except Exception as error:  # ONNX Runtime's own exception types share no base class
            raise EdgeError(f"{path} cannot be run by ONNX Runtime ({one_line(error)}), so nothing is timed.") from None
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return ranked(events)


def ranked(events: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The nodes of a profile's events, slowest first."""
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        name, facts = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = name[: -len("_kernel_time")], str(facts.get("op_name", "?")), str(facts.get("provider") or "?")
            times[key].append(event["dur"] / 1000)
    # the first runs warm up; a node that seldom runs, within a loop or a branch, has fewer
    medians = {key: float(np.median(values[WARM_UP:] or values)) for key, values in times.items()}
    total = sum(medians.values()) or 1.0
    nodes = [Node(*key, ms=ms, share=ms / total) for key, ms in medians.items()]
    return sorted(nodes, key=lambda node: -node.ms)


def summed(nodes: Sequence[Node], field: str) -> list[tuple[str, int, float, float]]:
    """(value, nodes, ms, share) for each value of a field, the most time first."""
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[getattr(node, field)].append(node)
    rows = [(value, len(own), sum(n.ms for n in own), sum(n.share for n in own)) for value, own in groups.items()]
    return sorted(rows, key=lambda row: -row[2])


def profile(detector: Detector, images: Sequence[Path], runs: int) -> dict[str, Any]:
    """The profile of a detector's network on images, as plain values; the session is one of its own."""
    if name_of(detector.active) in OTHER_RUNTIMES:
        raise EdgeError(f"{detector.active} tells no times of nodes: give the provider cpu, cuda or trt.")
    blobs = [detector.preprocess(read_image(path))[0] for path in images[:IMAGES]]
    name, options = detector.session.get_inputs()[0].name, detector.session.get_provider_options()
    chain = [(provider, options.get(provider, {})) for provider in detector.session.get_providers()]
    nodes = timed_nodes(detector.path, chain, detector.threads, [{name: blob} for blob in blobs], runs)
    columns = ("nodes", "ms", "share")
    return {
        "schema": SCHEMA,
        "model": detector.path.name,
        "provider": detector.active,
        "threads": detector.threads,
        "images": len(blobs),
        "runs": runs,
        "ms": sum(node.ms for node in nodes),
        "nodes": [node._asdict() for node in nodes],
        "operators": {op: dict(zip(columns, row)) for op, *row in summed(nodes, "op")},  # noqa: B905
        "providers": {provider: dict(zip(columns, row)) for provider, *row in summed(nodes, "provider")},  # noqa: B905
        "left": [node._asdict() for node in nodes if node.provider != detector.active],
    }


def as_text(found: Mapping[str, Any], most: int) -> str:
    """The slowest nodes, the kinds of operators, and what the provider asked for did not run."""
    about = f"{found['model']} on {found['provider']}, {found['threads']} threads, {found['runs']} runs on"
    lines = [printable(f"{about} {found['images']} images: {found['ms']:.2f} ms in {len(found['nodes'])} nodes")]
    shown = found["nodes"][:most]
    lines += _table(["slowest nodes", "operator", "ms", "share"], [(n["name"], n["op"], n) for n in shown])
    kinds = list(found["operators"].items())[:most]
    lines += _table(["operators", "nodes", "ms", "share"], [(op, str(row["nodes"]), row) for op, row in kinds])
    left = found["left"]
    if left:
        share = sum(node["share"] for node in left)
        head = f"not on {found['provider']}: {len(left)} nodes, {share:.1%} of the time"
        lines += _table([head, "provider", "ms", "share"], [(n["name"], n["provider"], n) for n in left[:most]])
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    cells = [head, *((name, what, f"{row['ms']:.3f}", f"{row['share']:.1%}") for name, what, row in rows)]
    cells = [[printable(cell) for cell in row] for row in cells]
    widths = [max(len(row[k]) for row in cells) for k in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in cells]
    return ["", *lines]


def profile_command(args: argparse.Namespace) -> None:
    """Profile and print."""
    source = args.source or str(own_bundle() / "parity")
    images = list_images(source)
    detector = load(args.model, args.provider, args.threads, args.precision, **engine_settings(args))
    found = profile(detector, images, args.runs)
    print(json_text(found, indent=1) if args.json else as_text(found, args.top))
