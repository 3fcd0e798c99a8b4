"""Static figures of an ONNX file: parameters, FLOPs, memory of the activations; and its slowest nodes, measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from yolokd_edge.common import EdgeError, one_line
from yolokd_edge.profiling import timed_nodes
from yolokd_edge.runtimes.onnxruntime_options import session_options

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FREE = ("Constant", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")  # write no new memory
Shapes = dict[str, tuple[int, ...]]


def figures(file: str | Path) -> dict[str, Any]:
    """Static figures of a file, from onnx's shape inference.

    Returns:
        ``parameters``: weights and biases of convolutions and matrix products. ``gflops``: their work for one image,
        two operations a multiplication. ``bytes``: size of the file. ``peak_activation_bytes``: most memory that
        activations need at one time when nodes run in the file's order and each is freed after its last use; and
        ``peak_node``, where. A runtime that fuses nodes needs less. What hangs on a shape that is not fixed (a dynamic
        input, or NMS in the graph for the peak) is None.

    Raises:
        EdgeError: the file is no ONNX model.
    """
    path = Path(file)
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise EdgeError(f"{path} is not an ONNX model that can be read ({type(error).__name__}).") from error
    if not model.graph.node or not model.graph.output:
        raise EdgeError(f"{path} is not an ONNX model that can be read (it holds no graph).")
    shapes, sizes = _tensors(model.graph)
    work = [_operations(n, shapes) for n in model.graph.node if n.op_type in WEIGHTED]
    known = [operations for operations in work if operations is not None]
    names = [name for node in model.graph.node for name in node.output if name]
    peak, node = _peak(model.graph, sizes) if all(name in shapes for name in names) else (None, None)
    return {
        "parameters": _parameters(model.graph),
        "gflops": round(sum(known) / 1e9, 4) if len(known) == len(work) else None,
        "bytes": path.stat().st_size,
        "peak_activation_bytes": peak,
        "peak_node": node,
    }


def _tensors(graph: onnx.GraphProto) -> tuple[Shapes, dict[str, int]]:
    """Shapes of all tensors of fixed shape, and sizes in bytes of those that are computed."""
    shapes: Shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type and tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
            sizes[value.name] = int(np.prod(shapes[value.name], dtype=np.int64)) * item
    return shapes, sizes


def _parameters(graph: onnx.GraphProto) -> int:
    """Elements of the constants that weighted nodes read, directly or through a node that dequantizes or casts them."""
    stored = {t.name: int(np.prod(t.dims, dtype=np.int64)) for t in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                stored[node.output[0]] = int(numpy_helper.to_array(attribute.t).size)
    through = {n.output[0]: n.input[0] for n in graph.node if n.op_type in ("DequantizeLinear", "Cast")}
    read = {through.get(name, name) for n in graph.node if n.op_type in WEIGHTED for name in n.input}
    return sum(stored.get(name, 0) for name in read)


def _operations(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Floating-point operations of a weighted node, two a multiplication; None if a shape is not fixed."""
    if len(node.input) < 2 or not all(name in shapes for name in (*node.input[:2], *node.output[:1])):
        return None
    out = int(np.prod(shapes[node.output[0]], dtype=np.int64))
    if node.op_type in ("Gemm", "MatMul"):
        transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * out * shapes[node.input[0]][0 if transposed else -1]
    kernel = int(np.prod(shapes[node.input[1]][1:], dtype=np.int64))  # (out, in / groups, kh, kw)
    if node.op_type == "ConvTranspose":
        return 2 * kernel * int(np.prod(shapes[node.input[0]], dtype=np.int64))
    return 2 * out * kernel


def _peak(graph: onnx.GraphProto, sizes: dict[str, int]) -> tuple[int, str]:
    """Most bytes of activations alive at one node, and that node."""
    last = {name: k for k, node in enumerate(graph.node) for name in node.input}
    keep = {value.name for value in graph.output}
    alive = {value.name: sizes[value.name] for value in graph.input if value.name in sizes}
    peak, where, fixed = 0, "", {t.name for t in graph.initializer}
    for k, node in enumerate(graph.node):
        if all(name in fixed for name in node.input if name):  # computed from weights alone: done once, at the start
            fixed |= set(node.output)
        elif node.op_type not in FREE:
            alive |= {name: sizes.get(name, 0) for name in node.output if name}
        else:  # a view lives with what it shows
            alive |= {node.output[0]: alive.pop(node.input[0])} if node.input and node.input[0] in alive else {}
        if (total := sum(alive.values())) > peak:
            peak, where = total, node.name or node.output[0]
        alive = {name: size for name, size in alive.items() if name in keep or last.get(name, -1) > k}
    return peak, where


def slowest(file: str | Path, most: int = 10, runs: int = 30, threads: int = 1) -> list[dict[str, Any]]:
    """The nodes that take longest on this machine's CPU, from onnxruntime's profile, slowest first.

    They are the nodes of the optimized graph: several of the file's may have become one. The input is noise, which
    takes a convolution as long as an image does.

    Returns:
        Rows ``name``, ``op``, ``ms`` (median of the runs) and ``share`` of all nodes' medians.
    """
    try:
        session = onnxruntime.InferenceSession(str(file), session_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types share no base class
        raise EdgeError(f"{file} cannot be run by ONNX Runtime ({one_line(error)}), so nothing is timed.") from None
    feed = {value.name: _noise(value, file) for value in session.get_inputs()}
    nodes = timed_nodes(Path(file), ["CPUExecutionProvider"], threads, [feed], runs)
    return [{"name": n.name, "op": n.op, "ms": n.ms, "share": n.share} for n in nodes[:most]]


def _noise(entry: Any, file: str | Path) -> np.ndarray[Any, Any]:
    """Random numbers for an input of a session."""
    kind = re.fullmatch(r"tensor\((float|double|u?int\d+|float16)\)", entry.type)
    if not kind:
        raise EdgeError(f"{file} takes {entry.type}, which is no image, so nothing is timed.")
    if not entry.shape or not all(isinstance(side, int) for side in entry.shape):
        raise EdgeError(f"{file} has no fixed input shape ({entry.shape}), to time its nodes at: export it for one.")
    name = {"float": "float32", "double": "float64"}.get(kind[1], kind[1])
    random = np.random.default_rng(0).random(entry.shape, np.float32)
    noise: np.ndarray[Any, Any] = (random if "float" in name else 255 * random).astype(name)
    return noise
