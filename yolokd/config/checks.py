"""What can be seen in a training's arguments alone, and would stop it only after it made its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOCAL_RANK, RANK
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import parse_device, select_device

from yolokd.detectors.opening import open_student
from yolokd.detectors.quantized import require
from yolokd.errors import UsageError, one_line
from yolokd_edge import common as edge

OPTIMIZERS = ("auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop")


def check_values(arguments: dict[str, Any]) -> None:
    """Ultralytics' own checks of its arguments' values, made here before it creates a folder or loads anything."""
    device = "" if (given := arguments.get("device")) is None else str(given)  # 0 is a device
    try:
        get_cfg(DEFAULT_CFG_DICT, {k: v for k, v in arguments.items() if k in DEFAULT_CFG_DICT})
        check_imgsz(arguments.get("imgsz", 640), max_dim=2)
        check_range(arguments)
        if "," in device and arguments.get("batch", 16) < 1:
            raise ValueError(f"batch={arguments['batch']} is for one device, not device={device}: give a whole number")
        if device and "-1" not in device:  # -1 picks an idle GPU, which is left to the run itself
            select_device(device, verbose=False)
        check_devices(arguments)
    except (TypeError, ValueError, SyntaxError, OverflowError) as error:
        raise UsageError(f"{one_line(error)}.") from error


def own_devices(arguments: dict[str, Any]) -> dict[str, str]:
    """The devices of a process that torchrun started, where none are named: as many as its node has processes."""
    if LOCAL_RANK == -1 or arguments.get("device") not in (None, ""):
        return {}
    return {"device": ",".join(map(str, range(_local_processes())))}


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_devices(arguments: dict[str, Any]) -> None:
    """Refuse devices and a batch that several processes cannot share."""
    if (given := arguments.get("device")) in (None, "") or "-1" in str(given):
        return
    device, batch = parse_device(given), arguments.get("batch", 16)
    named = device.split(",")
    if LOCAL_RANK != -1 and not device.rpartition(":")[2].replace(",", "").isdigit():
        raise UsageError(f"device={device}: several processes train together on GPUs only, leave device= out.")
    if LOCAL_RANK != -1 and len(named) != _local_processes():
        raise UsageError(
            f"device={device} names {len(named)} of a node's devices for {_local_processes()} processes: leave device= "
            "out, or name one for each."
        )
    processes = int(os.environ.get("WORLD_SIZE", 1)) if LOCAL_RANK != -1 else len(named)
    if processes > 1 and batch < processes:
        raise UsageError(
            f"batch={batch} cannot be shared by {processes} devices: give a whole number of {processes} or more."
        )


def check_range(arguments: dict[str, Any]) -> None:
    """Refuse numbers that Ultralytics takes and then trains with others, or not at all."""
    imgsz, batch, workers = arguments.get("imgsz", 640), arguments.get("batch", 16), arguments.get("workers", 8)
    if min(imgsz if isinstance(imgsz, (list, tuple)) else [imgsz]) < 32:
        raise ValueError(f"imgsz={imgsz} is too small: give a number of pixels of 32 or more")
    if batch != -1 and (batch <= 0 or (batch > 1 and batch != int(batch))):
        raise ValueError(f"batch={batch} is not a number of images: give a whole one, or -1 to fill the GPU")
    if workers < 0:
        raise ValueError(f"workers={workers} is not a number of processes: give 0 or more")


def check_writable(place: Path, said: str) -> None:
    """Refuse a file or folder that cannot be made there, as the runtime does."""
    try:
        edge.check_writable(place, said)
    except edge.EdgeError as error:
        raise UsageError(str(error)) from error


def check_arguments(arguments: dict[str, Any], trust: bool = False) -> None:
    """What can be seen in the arguments alone and would stop a run only after it made its folder."""
    check_values(arguments)
    if arguments.get("quantize") not in (None, 32):  # ours is in kd by now: this is of a training without teacher
        require(f"quantize={arguments['quantize']}")
    if isinstance(pretrained := arguments.get("pretrained"), (str, Path)):
        open_student(pretrained, "pretrained", trust)
    if str(arguments.get("optimizer") or "auto").lower() not in {name.lower() for name in OPTIMIZERS}:
        raise UsageError(
            f"optimizer={arguments['optimizer']} is not one of Ultralytics', {', '.join(OPTIMIZERS)}: leave it out for "
            "its choice."
        )
    for key in ("project", "save_dir"):
        if (place := arguments.get(key)) and Path(str(place)).is_absolute():  # where else depends on settings
            check_writable(Path(str(place)) / "train", f"{key}={place}")  # it must be a folder
    folder = arguments.get("save_dir") if RANK in {-1, 0} else None  # by now the first process may be at work there
    if folder and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        # over what is there Ultralytics writes, and with several GPUs it empties the folder first
        raise UsageError(f"save_dir={folder} is not empty, perhaps by an earlier run: choose another folder.")
