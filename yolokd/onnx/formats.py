"""The formats beside ONNX: written by Ultralytics' exporter, run by their own runtime, described in their metadata."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from yolokd import compat
from yolokd.config.parse import did_you_mean
from yolokd.errors import UsageError, one_line
from yolokd.onnx import metadata
from yolokd_edge.runtimes.written import silenced

TAKEN = ("imgsz", "device", "verbose")  # of Ultralytics' export arguments, for any format
THROUGH_ONNX = (*TAKEN, "opset", "simplify")
ALIASES = {"tflite": "litert"}  # names that a format had before
# MNN's converter installs a package of a cloud's with whatever `pip` is in the PATH, to report its use over the
# network. It does without where the module that asks for it cannot be imported.
REPORTING = "MNN.tools.utils.log"


class Written(NamedTuple):
    """A format that can be proven here."""

    provider: str  # of the runtime, that runs it
    ending: str  # of the file or folder, behind the checkpoint's name
    packages: tuple[str, ...] = ()  # that writing and running it need; the extra has the format's name
    takes: tuple[str, ...] = TAKEN


PROVEN = {
    "onnx": Written("cpu", ".onnx", takes=THROUGH_ONNX),
    "openvino": Written("openvino", "_openvino_model", ("openvino", "yaml")),
    "ncnn": Written("ncnn", "_ncnn_model", ("ncnn", "pnnx", "yaml")),
    "mnn": Written("mnn", ".mnn", ("MNN",), THROUGH_ONNX),
    "litert": Written("litert", ".tflite", ("litert_torch", "ai_edge_litert")),
    "torchscript": Written("torchscript", ".torchscript"),
}


def check_format(given: Any) -> str:
    """The name of a format, of those that are proven or that Ultralytics writes.

    Raises:
        UsageError: there is no such format, or a package that it needs is absent.
    """
    known = {**dict.fromkeys(PROVEN), **endings()}
    name = str(given).lower()
    name = ALIASES.get(name, name)
    if name not in known:
        raise UsageError(f"format={given} is unknown{did_you_mean(name, known)}.")
    for package in PROVEN[name].packages if name in PROVEN else ():
        if not _installed(package):
            raise UsageError(
                f"format={name} needs the Python package {package}, which is not installed: "
                f"pip install 'yolokd[{name}]'."
            )
    return name


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # blocked, or without a file of its own
        return False


def endings() -> dict[str, str]:
    """Format -> ending of what Ultralytics writes, behind the checkpoint's name."""
    from ultralytics.engine.exporter import export_formats

    table = export_formats()
    return {name: end for name, end in zip(table["Argument"], table["Suffix"], strict=True) if name != "-"}


def ending(name: str) -> str:
    """Of the file or folder of a format."""
    return PROVEN[name].ending if name in PROVEN else endings()[name]


def write(student: Any, name: str, arguments: dict[str, Any]) -> Path:
    """What Ultralytics' exporter writes beside the checkpoint; it installs nothing on the way.

    Raises:
        UsageError: it refuses, or what it needs is absent.
    """
    try:
        with compat.nothing_installed(), _unreported():
            return Path(student.export(format=name, **arguments))
    except ImportError as error:
        raise UsageError(
            f"Ultralytics' exporter for format={name} needs what is not installed ({one_line(error)})."
        ) from error
    except (AssertionError, RuntimeError, ValueError) as error:  # how exporters refuse an argument, such as opset=99
        raise UsageError(f"Ultralytics refuses to export: {one_line(error)}.") from error
    except Exception as error:
        if name == "onnx":
            raise
        raise UsageError(
            f"The exporter for format={name} failed ({type(error).__name__}: {one_line(error)})."
        ) from error


@contextmanager
def _unreported() -> Iterator[None]:
    before = sys.modules.get(REPORTING)
    sys.modules[REPORTING] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[REPORTING]
        if before is not None:
            sys.modules[REPORTING] = before


def describe(file: Path, name: str, described: dict[str, Any]) -> None:
    """Write what yolokd says about a model into its metadata, as the entry "yolokd"."""
    if name == "onnx":
        metadata.change(file, described)
    else:
        WRITERS[name](file, json.dumps(described))


def _into_yaml(folder: Path, text: str) -> None:
    yaml = import_module("yaml")
    place = folder / "metadata.yaml"
    known = yaml.safe_load(place.read_text(encoding="utf-8"))
    place.write_text(yaml.safe_dump({**known, metadata.OURS: text}, sort_keys=False), encoding="utf-8")


def _into_mnn(file: Path, text: str) -> None:
    """MNN's metadata is a part of the network, so the converter writes the network anew, with the same weights."""
    mnn, tools = import_module("MNN"), import_module("_tools")
    new = file.with_suffix(".new.mnn")
    with silenced():
        known = json.loads(mnn.nn.load_module_from_file(str(file), [], []).get_info()["bizCode"])
        code = json.dumps({**known, metadata.OURS: text})
        tools.mnnconvert(["", "-f", "MNN", "--modelFile", str(file), "--MNNModel", str(new), "--bizCode", code])
    new.replace(file)


def _into_zip(file: Path, text: str) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{metadata.OURS}.json", text)


def _into_torchscript(file: Path, text: str) -> None:
    torch = import_module("torch")
    kept = {"config.txt": ""}
    network = torch.jit.load(str(file), map_location="cpu", _extra_files=kept)
    network.save(
        str(file), _extra_files={"config.txt": json.dumps({**json.loads(kept["config.txt"]), metadata.OURS: text})}
    )


WRITERS = {
    "openvino": _into_yaml,
    "ncnn": _into_yaml,
    "mnn": _into_mnn,
    "litert": _into_zip,
    "torchscript": _into_torchscript,
}
