"""Hand-over to NVIDIA's Triton Inference Server: a model folder for each file that a GPU takes.

The configuration follows Triton's `model_config.proto`
(https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto). Its parameters say which file
the model is and repeat the file's metadata, so that `yolokd_edge --provider triton` finds the right one and reads it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from yolokd.errors import printable
from yolokd.onnx import metadata
from yolokd_edge.common import sha256

TYPES = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16"}
README = """# For a Triton Inference Server

Made by `yolokd bundle handover=triton`. Copy this bundle to the server and start it:

```
docker run --rm --gpus all -p 8000:8000 -v $PWD/triton/models:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 \\
    tritonserver --model-repository=/models
```

Then compare what the server computes with what was computed where the bundle was made, detect with it, and measure it
with the way there and back, from any machine that has this bundle and Python:

```
export YOLOKD_TRITON=http://localhost:8000
python3 -m yolokd_edge verify --provider triton
python3 -m yolokd_edge detect --provider triton --source parity --save drawn
python3 -m yolokd_edge bench --provider triton --model . --source parity --out report.json
```

Input and output are those of the ONNX file: RGB from 0 to 1, fitted to the input as `manifest.json` says under
`preprocessing`, one image at a time. The server's ONNX Runtime decides where the file runs. For TensorRT, add this to
`config.pbtxt`; the first requests then wait for the engine:

```
optimization {{ execution_accelerators {{ gpu_execution_accelerator: [ {{
  name: "tensorrt" parameters {{ key: "precision_mode" value: "FP16" }} }} ] }} }}
```

Models here:

{models}

The configuration was checked against Triton's published schema, and the protocol against a small server that follows
it; no Triton server was at hand where yolokd is developed.
"""


def write(folder: Path, name: str, files: Iterable[Path]) -> None:
    """Write a model folder for each ONNX file, and instructions.

    Args:
        folder: is made; the server reads its `models`.
        name: of the first model; the others add what their file's name adds to model.onnx.
        files: ONNX files, the first one model.onnx.
    """
    lines = []
    for file in files:
        model = name + file.stem[len("model") :]
        place = folder / "models" / model / "1"
        place.mkdir(parents=True)
        shutil.copy(file, place / "model.onnx")
        (place.parent / "config.pbtxt").write_text(config(model, file), encoding="utf-8")
        lines.append(f"- `{printable(model)}`: {file.name}")
    (folder / "README.md").write_text(README.format(models="\n".join(lines)), encoding="utf-8")


def config(model: str, file: Path) -> str:
    """The text of a model's config.pbtxt."""
    loaded = onnx.load(file)
    stored = {"sha256": sha256(file), "metadata": json.dumps(metadata.of_graph(loaded))}
    parts = [f"name: {_text(model)}", 'backend: "onnxruntime"', "max_batch_size: 0  # the file's own batch is in dims"]
    parts += [f"input [ {_tensor(one)} ]" for one in loaded.graph.input]
    parts += [f"output [ {', '.join(map(_tensor, loaded.graph.output))} ]", "instance_group [ { kind: KIND_AUTO } ]"]
    parts += [f"parameters {{ key: {_text(k)} value {{ string_value: {_text(v)} }} }}" for k, v in stored.items()]
    return "\n".join(parts) + "\n"


def _tensor(port: Any) -> str:
    kind = port.type.tensor_type
    dims = ", ".join(str(d.dim_value or -1) for d in kind.shape.dim)
    return f"{{ name: {_text(port.name)} data_type: {TYPES[kind.elem_type]} dims: [ {dims} ] }}"


def _text(text: str) -> str:
    """A text in protobuf's text format, whose escapes are JSON's where only ASCII is left: others are octal bytes."""
    escaped = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode("utf-8"))
    return f'"{escaped}"'
