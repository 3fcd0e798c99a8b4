"""`layers`: what each layer computes on two providers or in two precisions, and the first that goes wrong."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolokd_edge.bundle import own_bundle
from yolokd_edge.common import PARITY, EdgeError, json_text, one_line, printable
from yolokd_edge.detect import engine_settings
from yolokd_edge.detector import Detector, load
from yolokd_edge.graph_file import GraphNode, read_nodes, with_outputs
from yolokd_edge.images import list_images, read_image
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.opening import open_model
from yolokd_edge.runtimes.table import name_of

SCHEMA = "yolokd.layers/1"
LIMITS = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.3}  # of the relative difference, by the less precise of the two files


class Layer(NamedTuple):
    """How far a layer's output is from the reference's."""

    name: str
    op: str
    output: str
    difference: float  # ||a - b|| / ||a||; infinite where one has no finite numbers or another shape
    before: float  # the largest difference of its inputs


def relative_difference(reference: np.ndarray, other: np.ndarray) -> float:
    """||a - b|| / ||a||; infinite where the shapes differ or only one has finite numbers."""
    if reference.shape != other.shape:
        return float("inf")
    a, b = reference.astype(np.float64), other.astype(np.float64)
    if not np.isfinite(b).all() or not np.isfinite(a).all():
        same = np.array_equal(a, b, equal_nan=True)
        return 0.0 if same else float("inf")
    scale, apart = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
    return apart / scale if scale else 0.0 if apart == 0 else float("inf")


def compare_layers(
    nodes: Sequence[GraphNode], reference: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> list[Layer]:
    """The layers whose outputs both have, in the order of the graph."""
    differences: dict[str, float] = {}
    layers = []
    for node in nodes:
        before = max([differences.get(name, 0.0) for name in node.inputs] or [0.0])
        for output in node.outputs:
            if output in reference and output in other:
                differences[output] = relative_difference(reference[output], other[output])
                layers.append(Layer(node.name or output, node.op, output, differences[output], before))
            else:
                differences[output] = before  # what cannot be seen passes on what came in
    return layers


def first_wrong(layers: Sequence[Layer], limit: float) -> Layer | None:
    """The first layer beyond the limit whose inputs are within it."""
    return next((layer for layer in layers if layer.difference > limit >= layer.before), None)


def values_of(detector: Detector, names: Sequence[str], provider: str, settings: TensorRT, blob: np.ndarray) -> Any:
    """What a file computes on the way: value by name.

    Raises:
        EdgeError: the runtime cannot give these values.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / detector.path.name
        path.write_bytes(with_outputs(detector.path.read_bytes(), list(names)))
        session = open_model(path, provider, detector.threads, settings._replace(cache=folder)).session
        outputs = [port.name for port in session.get_outputs()]
        try:
            values = session.run(None, {session.get_inputs()[0].name: blob.astype(detector.input_type)})
        except Exception as error:  # the runtimes' own exception types share no base class
            raise EdgeError(f"{detector.path} cannot be run layer by layer ({one_line(error)}).") from None
    seen = {name: value for name, value in zip(outputs, values) if value is not None}  # noqa: B905
    if not seen.keys() & set(names):  # an old ONNX Runtime gives None for what it has optimised away
        raise EdgeError(f"{provider} tells nothing of what lies between the layers of {detector.path}.")
    return seen


def layer_record(reference: Detector, other: Detector, settings: TensorRT, image: Path, limit: float) -> dict[str, Any]:
    """Compare two detectors layer by layer on an image; the reference runs where it was opened."""
    for detector in (reference, other):
        if not detector.path.is_file():
            raise EdgeError(f"{detector.path} is not an ONNX file, and of no other are the layers known.")
    nodes, others = (read_nodes(d.path.read_bytes(), d.path) for d in (reference, other))
    given = {output for node in others for output in node.outputs}
    names = [output for node in nodes if node.op != "Constant" for output in node.outputs if output in given]
    graph_outputs = {port.name for port in other.session.get_outputs()}
    asked = [name for name in names if name and name not in graph_outputs]
    if not asked:
        raise EdgeError(
            f"{reference.path} and {other.path} have no layers of the same name: export both from one file."
        )
    blob = reference.preprocess(read_image(image))[0]
    plain = TensorRT(hw=reference.contract.hw)
    before = values_of(reference, asked, name_of(reference.active) or "cpu", plain, blob)
    after = values_of(other, asked, name_of(other.active) or "cpu", settings, blob)
    layers = compare_layers([node for node in nodes if node.op != "Constant"], before, after)
    wrong = first_wrong(layers, limit)
    return {
        "schema": SCHEMA,
        "reference": {"file": reference.path.name, "provider": reference.active},
        "other": {"file": other.path.name, "provider": other.active},
        "image": image.name,
        "limit": limit,
        "first_wrong": _plain(wrong) if wrong else None,
        "layers": [_plain(layer) for layer in layers],
    }


def _plain(layer: Layer) -> dict[str, Any]:
    """A layer for JSON, which knows no infinity: null means other shapes, or numbers that are not finite."""
    row: dict[str, Any] = layer._asdict()
    return {key: None if value == float("inf") else value for key, value in row.items()}


def as_text(record: dict[str, Any], most: int) -> str:
    """The first layer that goes wrong, and those that are furthest off."""
    sides = [f"{record[side]['file']} on {record[side]['provider']}" for side in ("reference", "other")]
    lines = [printable(f"{sides[1]} against {sides[0]}, {record['image']}: {len(record['layers'])} layers")]
    wrong = record["first_wrong"]
    if wrong is None:
        lines.append(f"No layer is the first to differ by more than {record['limit']:g} of its output.")
    else:
        lines.append(printable(f"first wrong: {wrong['name']} ({wrong['op']}): {_share(wrong['difference'])} of its "
                               f"output; its inputs differ by {_share(wrong['before'])}"))  # fmt: skip
    far = sorted(record["layers"], key=lambda row: -(float("inf") if row["difference"] is None else row["difference"]))
    width = max(len(row["name"]) for row in far[:most])
    lines += ["", f"{'furthest off':{width}}  {'operator':12}  difference  of its inputs"]
    for row in far[:most]:
        cells = f"{_share(row['difference']):>10}  {_share(row['before']):>13}"
        lines.append(printable(f"{row['name']:{width}}  {row['op']:12}  {cells}"))
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.2e}"


def layers_command(args: argparse.Namespace) -> None:
    """Compare, print, and end with 5 where a layer goes wrong."""
    images = list_images(args.source or str(own_bundle() / "parity"))
    settings = engine_settings(args)
    size = {"hw": args.imgsz} if args.imgsz else {}
    reference = load(args.model, "cpu", args.threads, None, **size)
    other = load(args.against or args.model, args.provider, args.threads, args.precision, **settings)
    if reference.contract.hw != other.contract.hw:
        raise EdgeError(
            f"{reference.path} and {other.path} take inputs of other sizes: compare files of the same size."
        )
    precisions = [detector.contract.precision for detector in (reference, other)]
    coarsest = max(["fp16" if args.fp16 else "fp32", *precisions], key=list(LIMITS).index)
    limit = args.limit or LIMITS[coarsest]
    tensorrt = settings["tensorrt"]._replace(hw=other.contract.hw)
    record = layer_record(reference, other, tensorrt, images[0], limit)
    print(json_text(record, indent=1) if args.json else as_text(record, args.top))
    wrong = record["first_wrong"]
    if wrong is not None:
        raise EdgeError(
            f"the layer {wrong['name']} ({wrong['op']}) is the first to differ by more than {limit:g}.", PARITY
        )
