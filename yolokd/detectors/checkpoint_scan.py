"""What a checkpoint's pickle would build and call, found out without building or calling any of it.

A pickle names classes and functions and says what to do with them. Here every name stands for an empty object, so
that reading the pickle runs nothing; a name that no honest checkpoint of Ultralytics holds ends the reading. Model
classes may only be filled with their stored state: one that is called, as a function is, could be given a
configuration, parts of which Ultralytics evaluates.
"""

from __future__ import annotations

import collections
import datetime
import importlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

# Data that is built as it is: nothing in these runs anything, whatever they are given.
CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    **{f"builtins.{t.__name__}": t for t in (set, frozenset, complex, bytes, bytearray, slice, range)},
    **{f"datetime.{t}": getattr(datetime, t) for t in ("date", "datetime", "time", "timedelta", "timezone")},
}
CALLED = {  # what rebuilds tensors, arrays and plain data: called with whatever the pickle gives
    *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{where}.{kind}Path" for where in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(f"{where}.Pure{kind}Path" for where in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    "types.SimpleNamespace",
    "ultralytics.utils.IterableSimpleNamespace",
    "torchvision.transforms.functional.InterpolationMode",
}
FILLED = {  # classes that are only filled with their state, beside the modules of torch and Ultralytics
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.storage.UntypedStorage",
    "torch.storage.TypedStorage",
    "torch.torch_version.TorchVersion",
    *(f"torchvision.transforms.transforms.{t}" for t in ("Compose", "Normalize", "Resize", "CenterCrop", "ToTensor")),
    # names of earlier versions, which Ultralytics replaces while it loads
    "ultralytics.nn.modules.block.Silence",
    "ultralytics.nn.tasks.YOLOv10DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss",
}
MODULES = ("torch.nn.modules", "ultralytics.nn.modules", "ultralytics.nn.tasks", "ultralytics.nn.distill_model")
LOSSES = ("ultralytics.utils.loss", "ultralytics.utils.tal")  # plain classes, which some checkpoints keep
RENAMED = {"__builtin__": "builtins", "ultralytics.yolo.utils": "ultralytics.utils"}


class UnknownContentError(Exception):
    """The file holds something that no checkpoint of Ultralytics holds; the message names it."""


class _Value:
    """Whatever the pickle would have built, and what it was built from."""

    parts: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> _Value:
        made = object.__new__(cls)
        made.parts = [*args, *kwargs.values()]
        return made

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts += [key, value]

    def append(self, item: Any) -> None:
        self.parts.append(item)


class _Named(type):
    """A class or function that the pickle names."""

    full_name: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.full_name not in CALLED and not _is_numpy_scalar(cls.full_name):
            raise UnknownContentError(f"a call of {cls.full_name}")
        if cls.full_name == "torch._tensor._rebuild_from_type_v2":  # which calls the function that it is given
            function = getattr(args[0], "full_name", "")
            if not function.startswith("torch._utils._rebuild_"):
                raise UnknownContentError(f"a call of {function}")
        return _Value(*args, **kwargs)


class _Function:
    """A function of ours in place of one that the pickle names."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)


class Scan(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(RENAMED.get(module, module), name)

    def persistent_load(self, pid: Any) -> Any:
        """What lies outside of the pickle: storages; before PyTorch 1.6 classes too, with their source beside them."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]
        return _Value()


def scan(file: str | Path) -> Any:
    """The outermost value that a checkpoint would load as, with empty objects in place of all that is not plain data.

    Raises:
        UnknownContentError: it names something that is no known data or model class.
        Exception: of a dozen types, where it is not a file of torch.save.
    """
    with Path(file).open("rb") as opened:
        start = opened.read(4)
        opened.seek(0)
        value = _scan_zip(Path(file)) if start == b"PK\x03\x04" else _scan_stream(opened, file)
    if isinstance(value, dict) and value.get("modelopt"):
        _check_quantization(value["modelopt"])
    _refuse_classes_as_values(value)
    return value


def _refuse_classes_as_values(value: Any) -> None:
    """A model's class where an object belongs would be called when the model runs."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
        elif isinstance(item, _Value):
            waiting += item.parts
        elif isinstance(item, _Function) or isinstance(item, _Named) and _is_model_class(*_split(item.full_name)):
            raise UnknownContentError(f"{getattr(item, 'full_name', 'a function')} in place of an object")


# Strings in a quantization state: what they may be, by their key. modelopt looks others up, imports or calls them.
WORDS: dict[str, frozenset[str] | None] = {
    "quantizer_name": None,  # a pattern for names of layers
    "parent_class": None,  # a name in modelopt's table of layers
    "algorithm": frozenset({"max"}),
    "method": frozenset({"max"}),
    "calibrator": frozenset({"max"}),
    "type": frozenset({"static", "dynamic"}),
    "trt_high_precision_dtype": frozenset({"Float", "Half", "BFloat16"}),
    "_trt_high_precision_dtype": frozenset({"Float", "Half", "BFloat16"}),
}
QUANTIZING = ("quantize", "max_calibrate")  # the only changes of a model that Ultralytics makes by modelopt


def _check_quantization(state: Any) -> None:
    """Accept a quantization state of the form that Ultralytics writes; modelopt can be told to do much else."""
    unknown = UnknownContentError("a quantization state of modelopt that Ultralytics does not write")
    if not isinstance(state, dict) or state.keys() != {"modelopt", "ranges"}:
        raise unknown
    inner, ranges = state["modelopt"], state["ranges"]
    if not isinstance(inner, dict) or inner.keys() - {"modelopt_version"} != {"modelopt_state_dict"}:
        raise unknown
    if not isinstance(ranges, dict) or not all(type(v) is _Value for v in ranges.values()):
        raise unknown
    steps = inner["modelopt_state_dict"]
    if not isinstance(steps, list) or not all(
        isinstance(s, tuple) and len(s) == 2 and s[0] in QUANTIZING for s in steps
    ):
        raise unknown
    if not all(_is_plain(parts) for _, parts in steps):
        raise unknown


def _is_plain(value: Any, key: str = "") -> bool:
    """Whether a part of a quantization state is numbers, dtypes, shapes and known words only."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v, k) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_plain(v, key) for v in value)
    if isinstance(value, str):
        return key in WORDS and (WORDS[key] is None or value in (WORDS[key] or ()))
    if isinstance(value, _Named):
        return isinstance(getattr(torch, value.full_name.removeprefix("torch."), None), torch.dtype)
    if type(value) is _Value:
        return key == "shape"
    return value is None or isinstance(value, (bool, int, float))


def _split(full_name: str) -> tuple[str, str]:
    module, _, name = full_name.rpartition(".")
    return module, name


def _scan_zip(file: Path) -> Any:
    """Of a file as PyTorch writes it today, by PyTorch's own reader: what Python's would find may be another pickle."""
    reader = torch._C.PyTorchFileReader(str(file))
    if "constants.pkl" in reader.get_all_records():
        raise ValueError("it is a TorchScript archive")
    return Scan(io.BytesIO(reader.get_record("data.pkl")), encoding="utf-8").load()


def _scan_stream(opened: BinaryIO, file: str | Path) -> Any:
    """Of a file as PyTorch wrote it before 1.6: magic number, version, system, value, keys, one pickle each."""
    if tarfile.is_tarfile(file):  # the form before that one, in which PyTorch looks first
        raise ValueError("it is a tar archive")
    opened.seek(0)
    if Scan(opened, encoding="utf-8").load() != torch.serialization.MAGIC_NUMBER:
        raise ValueError("it was not written by torch.save")
    values = [Scan(opened, encoding="utf-8").load() for _ in ("version", "system", "value", "keys")]
    return values[2]


def _stand_in(module: str, name: str) -> Any:
    """What stands for a name while the pickle is read."""
    full_name = f"{module}.{name}"
    if full_name in CONTAINERS:
        return CONTAINERS[full_name]
    if full_name == "_codecs.encode":
        return _Function(_encode)
    if full_name == "builtins.getattr":
        return _Function(_attribute)
    if full_name in CALLED | FILLED or _is_numpy_scalar(full_name) or _is_torch_data(module, name):
        return _Named(name, (_Value,), {"full_name": full_name})
    if _is_model_class(module, name):
        return _Named(name, (_Value,), {"full_name": full_name})
    raise UnknownContentError(full_name)


def _encode(text: str, encoding: str = "") -> bytes:
    """How older pickles hold bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise UnknownContentError(f"text encoded as {encoding}")
    return text.encode("latin1")


def _attribute(owner: Any, name: str) -> Any:
    """How pickles hold a module's `forward` and an enumeration's member: nothing else is looked up."""
    members = getattr(owner, "full_name", "").endswith(".InterpolationMode") and not name.startswith("_")
    if not (isinstance(owner, (_Named, _Value)) and (name.startswith("forward") or members)):
        raise UnknownContentError(f"the attribute {name} of {getattr(owner, 'full_name', type(owner).__name__)}")
    return _Value()


def _is_numpy_scalar(full_name: str) -> bool:
    """Whether it is one of NumPy's own types of numbers, or of its types of arrays' elements."""
    module, name = _split(full_name)
    found = getattr({"numpy": np, "numpy.dtypes": np.dtypes}.get(module), name, None)
    return isinstance(found, type) and issubclass(found, (np.number, np.bool_, np.str_, np.dtype))


def _is_torch_data(module: str, name: str) -> bool:
    found = getattr(torch, name, None) if module == "torch" else None
    storage = isinstance(found, type) and name.endswith("Storage")
    return storage or isinstance(found, (torch.dtype, torch.layout, torch.memory_format))


def _is_model_class(module: str, name: str) -> bool:
    """Whether it is a class of torch's or Ultralytics' modules, defined there and not just imported."""
    inside = any(module == part or module.startswith(f"{part}.") for part in MODULES)
    if not (inside or module in LOSSES) or not name.isidentifier():
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    if not isinstance(found, type):
        return False
    if module in LOSSES:
        return found.__module__ in LOSSES
    return issubclass(found, nn.Module) and any(
        found.__module__ == part or found.__module__.startswith(f"{part}.") for part in MODULES
    )
