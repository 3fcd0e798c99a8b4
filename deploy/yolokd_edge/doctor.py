"""`doctor`: what is wrong with this installation and this board, and what to do about it."""

from __future__ import annotations

import re
import shutil
from importlib import metadata as packages
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from yolokd_edge.board.readings import junction
from yolokd_edge.board.sensors import Sensors
from yolokd_edge.board.system import (
    first_value,
    is_jetson,
    jetpack_version,
    l4t_version,
    load_average,
    nvidia_smi,
    read_text,
    system_path,
    tool_output,
)
from yolokd_edge.board.tools import parse_jetson_clocks, parse_nvpmodel
from yolokd_edge.boxes import PAD
from yolokd_edge.bundle import find_own_bundle
from yolokd_edge.common import PARITY, PROVIDER, EdgeError, printable, usable_cores
from yolokd_edge.detector import load
from yolokd_edge.provenance import provenance_text
from yolokd_edge.runtimes.base import import_package
from yolokd_edge.runtimes.table import AUTO, OTHER_RUNTIMES, PROVIDERS
from yolokd_edge.runtimes.tensorrt import tensorrt_version

ERROR, WARNING, NOTE = "error", "warning", "note"
NOTHING_TO_DO = "nothing to do"
JETPACK_WHEELS = {
    "4": "JetPack 4 has Python 3.6, too old for this program: upgrade the board, or run it in a container",
    "5": "install the wheel for JetPack 5 from NVIDIA's Jetson Zoo",
    "6": "pip install onnxruntime-gpu --index-url https://pypi.jetson-ai-lab.io/jp6/cu126",
    "7": "pip install onnxruntime-gpu",
}


class Finding(NamedTuple):
    """Something that is wrong, and what to do about it."""

    level: str  # error: does not work, or its figures mean nothing; warning: costs speed or comparability; note
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.level}: {printable(self.what)}\n  -> {printable(self.remedy)}"


def installed() -> dict[str, str]:
    """Installed distributions -> version, names in lower case with dashes."""
    names: dict[str, str] = {}
    for distribution in packages.distributions():
        name = distribution.metadata["Name"]
        if name:
            names[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return names


def diagnose(model: str | Path | None = None, provider: str = "auto") -> list[Finding]:
    """Look for what is wrong with this installation and this board; the worst first.

    Args:
        model: An ONNX file or bundle that should run here; by default the bundle that this program lies in, if any.
        provider: Where it should run: cpu, cuda, trt or auto.
    """
    found = _check_packages(installed()) + _check_providers(provider) + _check_tensorrt(provider)
    sensors = Sensors()
    found += _check_clocks(sensors) + _check_power_mode() + _check_memory() + _check_load() + _check_heat(sensors)
    path = find_own_bundle() if model is None else Path(model)
    if path is not None:
        found += _check_model(path, provider)
    order = (ERROR, WARNING, NOTE)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _check_packages(names: dict[str, str]) -> list[Finding]:
    out = []
    runtimes = sorted(n for n in names if re.match(r"onnxruntime(-(gpu|openvino|directml|qnn|rocm|training))?$", n))
    if len(runtimes) > 1:
        keep = "onnxruntime-gpu" if "onnxruntime-gpu" in runtimes else runtimes[-1]
        out.append(
            Finding(
                ERROR,
                f"{' and '.join(runtimes)} are installed side by side; they overwrite each other's files, and the GPU "
                "is silently lost",
                f"pip uninstall -y {' '.join(runtimes)}, then install {keep} alone",
            )
        )
    views = sorted(n for n in names if re.match(r"opencv-(contrib-)?python(-headless)?$", n))
    if len(views) > 1:
        out.append(
            Finding(
                WARNING,
                f"{' and '.join(views)} are installed side by side; which one runs is a matter of chance",
                f"pip uninstall -y {' '.join(views)}, then install one of them",
            )
        )
    jetpack = jetpack_version(l4t_version()) or ""
    if jetpack[:1] in ("5", "6") and int(np.__version__.split(".")[0]) >= 2:
        out.append(
            Finding(
                WARNING,
                f"numpy {np.__version__} is newer than what the wheels for JetPack {jetpack} were built with",
                'pip install "numpy<2"',
            )
        )
    return out


def _check_providers(provider: str) -> list[Finding]:
    if provider == "cpu":
        return []
    if provider in OTHER_RUNTIMES:
        package = PROVIDERS[provider].package
        try:
            if package:
                import_package(package, provider)
        except EdgeError as error:
            return [Finding(ERROR, str(error), "install it, or use --provider cpu")]
        return []
    available = onnxruntime.get_available_providers()
    jetpack = (jetpack_version(l4t_version()) or "")[:1]
    wheel = JETPACK_WHEELS.get(jetpack, "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu")
    if provider != "auto" and PROVIDERS[provider].names[0] not in available:
        remedy = wheel if provider in AUTO else "install the ONNX Runtime that the maker of the accelerator names"
        return [Finding(ERROR, f"ONNX Runtime {onnxruntime.__version__} has no {PROVIDERS[provider].names[0]}", remedy)]
    if is_jetson() and PROVIDERS["trt"].names[0] not in available:
        what = "no TensorRT provider: this ONNX Runtime cannot use the Jetson's GPU as TensorRT does"
        if PROVIDERS["cuda"].names[0] not in available:
            what = "no TensorRT and no CUDA provider: this ONNX Runtime runs everything on the CPU"
        return [Finding(ERROR, what, wheel)]
    if not is_jetson() and nvidia_smi("name") and PROVIDERS["cuda"].names[0] not in available:
        what = f"the {nvidia_smi('name')} is not used: this ONNX Runtime has no CUDA provider"
        return [Finding(WARNING, what, wheel)]
    return []


def _check_tensorrt(provider: str) -> list[Finding]:
    listed = PROVIDERS["trt"].names[0] in onnxruntime.get_available_providers()
    if provider not in ("auto", "trt") or not (is_jetson() or listed and provider == "trt"):
        return []
    version = tensorrt_version()
    if version is None:
        remedy = "sudo apt install nvidia-jetpack" if is_jetson() else "install TensorRT, or use --provider cuda"
        return [
            Finding(ERROR if provider == "trt" else WARNING, "the TensorRT library (libnvinfer) is missing", remedy)
        ]
    numbers = [int(v) for v in version.split(".")[:2]]
    if numbers < [8, 5]:
        what = f"TensorRT {version} cannot build NMS-free models, and before 8.4 half precision gives wrong scores"
        return [Finding(WARNING, what, "export with the raw head and full precision, or upgrade JetPack")]
    if numbers == [10, 3]:
        what = f"TensorRT {version} fails to build NMS-free models in INT8"
        return [Finding(NOTE, what, "for INT8 use the model with the raw head")]
    return []


def _check_clocks(sensors: Sensors) -> list[Finding]:
    limits, shown = sensors.limits(), parse_jetson_clocks(tool_output("jetson_clocks", "--show") or "")["locked"]
    governors = set((limits["governor"] or "performance").split(","))
    ends = [pair for pair in (limits["cpu_khz"], limits["gpu_hz"]) if pair and None not in pair]
    if shown or not shown and all(low == high for low, high in ends) or not ends and shown is None:
        return []
    remedy = (
        "sudo jetson_clocks (until the next restart)" if is_jetson() else "sudo cpupower frequency-set -g performance"
    )
    if shown is None and governors == {"performance"} and not limits["gpu_hz"]:
        return []
    return [Finding(WARNING, "clocks are not locked: latency will depend on what the board did just before", remedy)]


def _power_modes() -> dict[str, int]:
    """Names and ids of the power modes that this board knows."""
    text = read_text(system_path("/etc/nvpmodel.conf")) or ""
    return {name: int(k) for k, name in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text)}


def _check_power_mode() -> list[Finding]:
    if not is_jetson():
        return []
    mode, modes = parse_nvpmodel(tool_output("nvpmodel", "-q") or ""), _power_modes()
    if mode is None:
        remedy = "run sudo nvpmodel -q; in a container, run this program on the host"
        return [Finding(WARNING, "the power mode cannot be read, so reports will not tell it", remedy)]
    name = mode["name"] or f"number {mode['id']}"
    if name.upper().startswith("MAXN"):
        return []
    best = sorted(m for m in modes if m.upper().startswith("MAXN"))
    remedy = (
        f"sudo nvpmodel -m {modes[best[-1]]} ({best[-1]})" if best else "list the modes: sudo nvpmodel -p --verbose"
    )
    return [
        Finding(WARNING, f"the power mode is {name}, which limits the clocks", remedy + ", if its power may be drawn")
    ]


def _check_memory() -> list[Finding]:
    meminfo = system_path("/proc/meminfo")
    total, swap, left = (first_value(meminfo, key) for key in ("MemTotal", "SwapTotal", "MemAvailable"))
    out = []
    if swap is not None and int(swap.split()[0]) == 0 and (is_jetson() or total and int(total.split()[0]) < 4 << 20):
        what = "there is no swap: building an engine may be killed for want of memory"
        remedy = "sudo fallocate -l 8G /swap; sudo chmod 600 /swap; sudo mkswap /swap; sudo swapon /swap"
        out.append(Finding(WARNING, what, remedy))
    if left is not None and int(left.split()[0]) < 1 << 20:
        what = f"only {int(left.split()[0]) // 1024} MB of memory are free"
        out.append(
            Finding(WARNING, what, "end other programs; sudo systemctl isolate multi-user.target stops the desktop")
        )
    return out


def _check_load() -> list[Finding]:
    load = load_average()
    if load is None or load < 0.5 * usable_cores():
        return []
    what = f"the machine is busy: load average {load:.1f} on {usable_cores()} cores"
    return [Finding(WARNING, what, "measure when nothing else runs (look with top)")]


def _check_heat(sensors: Sensors) -> list[Finding]:
    tj, trip = junction(sensors.read()["temps"]), sensors.passive_trip()
    if tj is not None and trip is not None and tj > trip - 5:
        what = f"the chip is at {tj:.0f} deg C and slows itself down at {trip:.0f}"
        return [Finding(ERROR, what, "cool it: fan, heat sink, a lower power mode")]
    if is_jetson() and shutil.which("tegrastats") is None:
        return [
            Finding(
                WARNING, "tegrastats is not in PATH, so power cannot be measured", "run on the host, not in a container"
            )
        ]
    return []


def _check_model(path: Path, provider: str) -> list[Finding]:
    try:
        detector = load(path, provider)
        detector.detect(np.full((64, 64, 3), PAD, np.uint8))  # a node may fail only when it runs
    except EdgeError as error:
        remedy = {PROVIDER: "see above", PARITY: "use another precision or provider"}
        return [Finding(ERROR, str(error), remedy.get(error.code, "export the model again"))]
    out, name = [], detector.path.name
    flags = first_value(system_path("/proc/cpuinfo"), "flags") or first_value(system_path("/proc/cpuinfo"), "Features")
    quick = {"avx512_vnni", "avx_vnni", "asimddp"}
    if (
        detector.contract.precision == "int8"
        and detector.active == PROVIDERS["cpu"].names[0]
        and flags
        and not quick & set(flags.split())
    ):
        what = f"{name} is INT8, and this CPU has no instructions for it: it may be slower than FP32"
        out.append(Finding(WARNING, what, "measure both: bench --model int8.onnx fp32.onnx"))
    origin = provenance_text(detector.provenance)
    if origin:
        out.append(Finding(NOTE, f"{name}: {origin}", NOTHING_TO_DO))
    return out + [Finding(NOTE, f"{name} runs on {detector.active}", NOTHING_TO_DO)]
