"""Hand-over to NVIDIA DeepStream: a file and a configuration for Gst-nvinfer that need no parser of one's own.

DeepStream brings a parser for the four outputs of TensorRT's BatchedNMS (`NvDsInferParseCustomBatchedNMSTLT` in
libnvds_infercustomparser.so): how many boxes, their corners as shares of the input, scores, classes. A file with final
detections, from NMS in its graph or from a head without NMS, gets these outputs by a few nodes more. The keys of the
configuration are Gst-nvinfer's
(https://docs.nvidia.com/metropolis/deepstream/dev-guide/text/DS_plugin_gst-nvinfer.html).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from yolokd.errors import ParityError
from yolokd_edge.common import PACKAGE
from yolokd_edge.contract import DETR
from yolokd_edge.detector import Detector
from yolokd_edge.images import read_image

FILE, PARSER = "model_deepstream.onnx", "NvDsInferParseCustomBatchedNMSTLT"
LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser.so"
OUTPUTS = ("keep_count", "boxes", "scores", "classes")  # the parser goes by their order
MOST = 200  # boxes that the parser takes of a frame
PIXELS, SCORES = 1e-2, 1e-5  # by which boxes and scores may differ from our runtime's
CHECK = PACKAGE / "board_files" / "deepstream_check.py"
README = """# For DeepStream

Made by `yolokd bundle handover=deepstream`, for Gst-nvinfer. Nothing has to be compiled: the parser is the one that
DeepStream brings for TensorRT's BatchedNMS.

- `{file}`: the bundle's FP32 file with the outputs that this parser reads
- `nvinfer.txt`: Gst-nvinfer's configuration; give it to your pipeline (`nvinfer config-file-path=...`)
- `labels.txt`: the classes
- `app.txt`, `images/`, `expected.json`, `check.py`: a check on your device

Gst-nvinfer builds a TensorRT engine in half precision on the first start (`network-mode=2`; 0 is full precision), which
takes minutes. Run the check from within this folder:

```
mkdir -p found
deepstream-app -c app.txt
python3 check.py
```

It compares the boxes that DeepStream wrote to `found/` with those that were found where the bundle was made, and exits
with 5 where fewer than nine in ten agree.

What differs from `yolokd_edge` on the same frame: {fitting} The colours pass through NV12 on most pipelines. The parser
takes the {most} best boxes at most.

The file was run on this bundle's images, and what the parser does with its outputs gives the boxes of `yolokd_edge`.
The keys of `nvinfer.txt` are in DeepStream's published list. No DeepStream was at hand where yolokd is developed, so
nothing here has run in it.
"""
FITTING = {
    True: "frames are stretched to the input, as this model was trained.",
    False: "the border of a letterboxed frame is black here and grey (114) there, so boxes at a border move a little.",
}


def write(folder: Path, source: Path, images: Path) -> None:
    """Write the file, its configuration and a check, and see that the parser would find what our runtime finds.

    Args:
        folder: is made.
        source: the FP32 file, whose contract gives final detections.
        images: folder of images in which it detects something.

    Raises:
        ParityError: the parser would find other boxes.
    """
    detector = Detector(source, threads=1)
    (folder / "images").mkdir(parents=True)
    onnx.save(with_outputs(onnx.load(source), detector.contract.hw, detector.contract.output == DETR), folder / FILE)
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    expected: dict[str, Any] = {}
    for path in sorted(images.glob("*.png")):
        height, width = detector.contract.hw
        frame, _ = detector.output.fit(read_image(path))  # so that DeepStream has nothing to fit
        cv2.imwrite(str(folder / "images" / path.name), frame)
        blob, _ = detector.preprocess(frame)
        edge = [width - 1, height - 1, width - 1, height - 1, np.inf, np.inf]  # where the parser cuts boxes
        ours = np.clip(detector.detect(frame)[:MOST], 0, edge)
        found = parsed(session.run(None, {session.get_inputs()[0].name: blob}), detector.contract.hw, detector.conf)
        if not agree(ours, found):
            raise ParityError(f"{FILE} gives DeepStream's parser other boxes in {path.name}: no bundle was made.")
        expected[path.name] = [
            {"label": detector.names[int(row[5])], "conf": float(row[4]), "box": row[:4].tolist()} for row in ours
        ]
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    labels = "\n".join(detector.names[k] for k in sorted(detector.names))
    (folder / "labels.txt").write_text(labels + "\n", encoding="utf-8")
    (folder / "nvinfer.txt").write_text(configuration(detector), encoding="utf-8")
    (folder / "app.txt").write_text(application(sorted(expected), detector.contract.hw), encoding="utf-8")
    (folder / "check.py").write_bytes(CHECK.read_bytes())
    text = README.format(file=FILE, most=MOST, fitting=FITTING[detector.contract.output == DETR])
    (folder / "README.md").write_text(text, encoding="utf-8")


def with_outputs(graph: onnx.ModelProto, hw: tuple[int, int], centred: bool) -> onnx.ModelProto:
    """A file with the parser's four outputs in place of its rows (1, n, 6).

    Args:
        graph: a loaded file, changed in place.
        hw: its input, pixels.
        centred: whether a row has centre and size as shares of the input, not corners in pixels.
    """
    rows, made = graph.graph.output[0].name, []
    sides = [1.0] * 4 if centred else [hw[1], hw[0]] * 2

    def constant(name: str, values: Any, dtype: Any) -> str:
        graph.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), f"deepstream/{name}"))
        return f"deepstream/{name}"

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, inputs, [output], name=f"deepstream/{operator}/{output}", **attributes))
        return output

    def columns(name: str, first: int, last: int) -> str:
        edges = [constant(f"{name}/{what}", [k], np.int64) for what, k in (("from", first), ("to", last), ("axis", 2))]
        return node("Slice", [rows, *edges], f"deepstream/{name}")

    boxes = columns("corners", 0, 4)
    if centred:
        middle, size = columns("middle", 0, 2), columns("size", 2, 4)
        half = node("Mul", [size, constant("half", 0.5, np.float32)], "deepstream/half_size")
        ends = [node(o, [middle, half], f"deepstream/{o}") for o in ("Sub", "Add")]
        boxes = node("Concat", ends, "deepstream/corners_of_centred", axis=2)
    last = constant("last", [2], np.int64)
    node("Div", [boxes, constant("sides", sides, np.float32)], "boxes")
    scores = node("Squeeze", [columns("score", 4, 5), last], "scores")
    node("Squeeze", [columns("class", 5, 6), last], "classes")
    held = node("Greater", [scores, constant("zero", 0.0, np.float32)], "deepstream/held")
    counted = node("Cast", [held], "deepstream/held_as_numbers", to=TensorProto.INT32)
    node("ReduceSum", [counted, constant("first", [1], np.int64)], "keep_count", keepdims=1)
    number = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value or None
    shapes: dict[str, list[int | None]] = {
        "keep_count": [1, 1],
        "boxes": [1, number, 4],
        "scores": [1, number],
        "classes": [1, number],
    }
    graph.graph.node.extend(made)
    del graph.graph.output[:]
    graph.graph.output.extend(
        helper.make_tensor_value_info(n, TensorProto.INT32 if n == "keep_count" else TensorProto.FLOAT, shapes[n])
        for n in OUTPUTS
    )
    onnx.checker.check_model(graph)
    return graph


def parsed(outputs: list[np.ndarray], hw: tuple[int, int], conf: float) -> np.ndarray:
    """What DeepStream's parser makes of the four outputs: rows (n, 6) of corners in input pixels, score and class."""
    count, boxes, scores, classes = outputs
    edge = np.array([hw[1], hw[0]] * 2, np.float32)
    corners = np.clip(boxes[0] * edge, 0, edge - 1)
    rows = np.concatenate([corners, scores[0][:, None], classes[0][:, None]], axis=1)[: int(count[0, 0])]
    return rows[rows[:, 4] >= conf][:MOST]


def agree(ours: np.ndarray, found: np.ndarray) -> bool:
    """Whether two lists of detections are the same."""
    same = ours.shape == found.shape and bool(np.array_equal(ours[:, 5], found[:, 5]))
    return same and bool(
        np.allclose(ours[:, 4], found[:, 4], rtol=0, atol=SCORES)
        and np.allclose(ours[:, :4], found[:, :4], rtol=0, atol=PIXELS)
    )


def configuration(detector: Detector) -> str:
    """Gst-nvinfer's configuration."""
    height, width = detector.contract.hw
    letterboxed = int(detector.contract.output != DETR)
    return f"""[property]
gpu-id=0
gie-unique-id=1
onnx-file={FILE}
model-engine-file={FILE}_b1_gpu0_fp16.engine
labelfile-path=labels.txt
batch-size=1
process-mode=1
# a detector
network-type=0
# 0: full precision, 2: half
network-mode=2
num-detected-classes={detector.contract.nc}
infer-dims=3;{height};{width}
# RGB from 0 to 1
model-color-format=0
net-scale-factor={1 / 255:.16f}
maintain-aspect-ratio={letterboxed}
symmetric-padding={letterboxed}
# boxes come without overlaps: nothing is grouped
cluster-mode=4
parse-bbox-func-name={PARSER}
custom-lib-path={LIBRARY}

[class-attrs-all]
pre-cluster-threshold={detector.conf:g}
"""


def application(images: list[str], hw: tuple[int, int]) -> str:
    """deepstream-app's configuration for the check: each image is a source, each source's boxes a text."""
    sources = "\n".join(
        f"[source{k}]\nenable=1\ntype=2\nuri=file://images/{name}\nnum-sources=1\n" for k, name in enumerate(images)
    )
    return f"""[application]
enable-perf-measurement=0
gie-kitti-output-dir=found

[tiled-display]
enable=0

{sources}
[sink0]
enable=1
# writes nothing
type=1
sync=0

[streammux]
batch-size={len(images)}
batched-push-timeout=40000
width={hw[1]}
height={hw[0]}

[primary-gie]
enable=1
gie-unique-id=1
config-file=nvinfer.txt
"""
