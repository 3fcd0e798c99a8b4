"""NVIDIA's Triton Inference Server, over HTTP: the file runs in the server, everything else here.

The protocol is the KServe predict protocol, version 2, with Triton's extensions for binary tensors and for the list of
models (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/README.html). The model
folder that `yolokd bundle handover=triton` writes tells which file each model is, so that no other one is taken for it.
"""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from yolokd_edge.common import PROVIDER, EdgeError, one_line, sha256
from yolokd_edge.runtimes.base import Meta, Opened, Port, TensorRT, timed_session

ADDRESS, VARIABLE = "http://localhost:8000", "YOLOKD_TRITON"
TIMEOUT = 60.0  # seconds for one answer; a server that hangs is an error, not a wait without end
DATATYPES = {"FP32": ("tensor(float)", np.float32), "FP16": ("tensor(float16)", np.float16)}
JSON_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON, behind which all is binary


def open_session(path: Path, provider: str, threads: int, tensorrt: TensorRT) -> Opened:
    """Open the server's model that was made of a file."""
    return timed_session(Triton, path, provider, threads)


class Triton:
    """The model of a Triton server that was made of an ONNX file, with what is used here of ONNX Runtime's session.

    The environment variable YOLOKD_TRITON names the server; http://localhost:8000 without it.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.address = os.environ.get(VARIABLE) or ADDRESS
        parts = urlsplit(self.address if "//" in self.address else f"http://{self.address}")
        try:
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
            self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
        except (KeyError, ValueError, http.client.InvalidURL):
            raise EdgeError(f"{VARIABLE}={self.address} is no address: give one such as {ADDRESS}.") from None
        self.version = str(self._ask("GET", "/v2", dict).get("version"))
        self._model, config = self._find(sha256(path), path)
        try:
            self._meta = {str(k): str(v) for k, v in json.loads(_parameter(config, "metadata")).items()}
            described = self._ask("GET", f"/v2/models/{self._model}", dict)
            self._ports = [[_port(one) for one in described[kind]] for kind in ("inputs", "outputs")]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EdgeError(
                f"{self.address}: the model {self._model} is not one of `yolokd bundle handover=triton`."
            ) from None

    def _find(self, wanted: str, path: Path) -> tuple[str, dict[str, Any]]:
        """Name and configuration of the server's model that was made of a file."""
        listed = self._ask("POST", "/v2/repository/index", list, b'{"ready": true}')
        names = [str(one["name"]) for one in listed if isinstance(one, dict) and one.get("name")]
        for name in (quote(n, safe="") for n in names):
            config = self._ask("GET", f"/v2/models/{name}/config", dict)
            if _parameter(config, "sha256") == wanted:
                return name, config
        held = ", ".join(names) or "no model"
        raise EdgeError(
            f"{self.address} serves {held}, none of which is {path}: give it the bundle's folder triton/models.",
            PROVIDER,
        )

    def _ask(self, method: str, where: str, kind: type, body: bytes | None = None) -> Any:
        """The answer to a question, read as JSON of a kind."""
        found, _ = self._send(method, where, body, {})
        try:
            answer = json.loads(found)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, kind):
            raise EdgeError(f"{self.address} answers {where} in other words: is it a Triton server?", PROVIDER)
        return answer

    def _send(self, method: str, where: str, body: bytes | None, headers: dict[str, str]) -> tuple[bytes, int]:
        """The answer's bytes, and how many of them are JSON."""
        try:
            self._connection.request(method, where, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise EdgeError(
                f"No Triton server answers at {self.address} ({one_line(error) or type(error).__name__}): start it, "
                f"or name another in the environment variable {VARIABLE}.",
                PROVIDER,
            ) from None
        if response.status != http.client.OK:
            said = one_line(content.decode("utf-8", "replace"))[:200]
            raise EdgeError(f"{self.address} answers {where} with {response.status} ({said}).", PROVIDER)
        return content, int(response.headers.get(JSON_LENGTH, len(content)))

    def get_providers(self) -> list[str]:
        """The server: what it runs the model on is its own affair."""
        return ["triton:server"]

    def get_modelmeta(self) -> Meta:
        """The file's metadata, which the model's configuration repeats."""
        return Meta(self._meta)

    def get_inputs(self) -> list[Port]:
        """The model's inputs, as the server tells them."""
        return self._ports[0]

    def get_outputs(self) -> list[Port]:
        """The model's outputs, as the server tells them."""
        return self._ports[1]

    def run(self, outputs: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once: the arrays go to the server and back as they are, without text in between."""
        names = {dtype: name for name, (_, dtype) in DATATYPES.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        asked = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": names[array.dtype.type],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in arrays.items()
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
        head = json.dumps(asked).encode()
        headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}
        body = b"".join([head, *(array.tobytes() for array in arrays.values())])
        content, length = self._send("POST", f"/v2/models/{self._model}/infer", body, headers)
        found, place = {}, length
        for one in json.loads(content[:length])["outputs"]:
            size = one["parameters"]["binary_data_size"]
            dtype = DATATYPES[one["datatype"]][1]
            found[one["name"]] = np.frombuffer(content[place : place + size], dtype).reshape(one["shape"])
            place += size
        return [found[name] for name in outputs]


def _parameter(config: dict[str, Any], key: str) -> str:
    """A text that the model's configuration holds; empty where it does not."""
    held = config.get("parameters")
    entry = held.get(key) if isinstance(held, dict) else None
    return str(entry.get("string_value", "")) if isinstance(entry, dict) else ""


def _port(described: dict[str, Any]) -> Port:
    """Input or output, as ONNX Runtime would describe it; a size that is not fixed is -1 here and a text there."""
    shape = [size if int(size) > 0 else "?" for size in map(int, described["shape"])]
    kind = DATATYPES.get(described["datatype"], (described["datatype"],))[0]
    return Port(described["name"], shape, kind)
