"""What a record says besides the figures: the device, the model, the runtime, memory and images."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

from yolokd_edge.accuracy_record import matching
from yolokd_edge.board.sensors import Gpu
from yolokd_edge.board.system import (
    available_mb,
    board_model,
    first_value,
    gpu_architecture,
    is_jetson,
    jetpack_version,
    l4t_version,
    nvidia_smi,
    read_text,
    soc,
    system_path,
)
from yolokd_edge.common import sha256
from yolokd_edge.contract import Contract
from yolokd_edge.detector import Detector
from yolokd_edge.runtimes.table import OTHER_RUNTIMES, PROVIDERS, format_of, model_files, name_of

ACCURACY = ("dataset", "split", "n_images", "map50", "map50_95", "ci95", "conf", "iou", "source")
IN_METADATA = ("int8", "teacher", "student", "train_run")


def _serial_hash() -> str | None:
    """A hash that tells devices apart without telling the serial number."""
    serial = read_text(system_path("/proc/device-tree/serial-number")) or read_text(system_path("/etc/machine-id"))
    return hashlib.sha256(serial.encode()).hexdigest()[:16] if serial else None


def device_facts(missing: dict[str, str]) -> dict[str, Any]:
    """The record's `device`."""
    cpuinfo = system_path("/proc/cpuinfo")
    memory, l4t, gpu = first_value(system_path("/proc/meminfo"), "MemTotal"), l4t_version(), Gpu().node
    name = f"{gpu.name} ({gpu_architecture()})" if gpu else nvidia_smi("name")
    out = {
        "kind": "jetson" if is_jetson() else platform.machine(),
        "board_model": board_model(),
        "soc": soc(),
        "l4t": l4t,
        "jetpack": jetpack_version(l4t),
        "kernel": platform.release(),
        "cpu_model": first_value(cpuinfo, "model name") or platform.processor() or None,
        "cores_online": os.cpu_count(),
        "gpu": name,
        "mem_total_mb": int(memory.split()[0]) // 1024 if memory else None,
        "serial_hash": _serial_hash(),
    }
    why = {
        "cpu_model": "the system does not name it",
        "mem_total_mb": "no /proc/meminfo",
        "gpu": "neither a Jetson's GPU nor nvidia-smi",
        "serial_hash": "neither a serial number nor a machine id can be read",
        "l4t": "no /etc/nv_tegra_release",
        "jetpack": "no /etc/nv_tegra_release, or a release this program does not know",
    }
    missing.update({"device." + key: why.get(key, "no device tree") for key, value in out.items() if value is None})
    return out


def model_facts(detector: Detector, missing: dict[str, str]) -> dict[str, Any]:
    """The record's `model`."""
    contract, path, files = detector.contract, detector.path, model_files(detector.path)
    for key in IN_METADATA:
        if contract.meta.get(key) is None:
            missing["model." + key] = "not in the model's metadata"
    return {
        "file": path.name,
        "sha256": sha256(*files),
        "bytes": sum(file.stat().st_size for file in files),
        "format": format_of(path),
        "opset": None,
        "ir": None,
        "task": contract.exporter["task"],
        "nc": contract.nc,
        "imgsz": list(contract.hw),
        "output_contract": contract.output,
        "precision": contract.precision,
        "int8": contract.meta.get("int8"),
        "teacher": contract.meta.get("teacher"),
        "student": contract.meta.get("student"),
        "train_run": contract.meta.get("train_run"),
        "ultralytics_version": contract.exporter.get("version"),
        "license": contract.exporter.get("license"),
    }


def accuracy_facts(detector: Detector, records: list[str], missing: dict[str, str]) -> dict[str, Any] | None:
    """The record's `accuracy`: what `val` measured here, if its records are given, else what the model's metadata
    says, which was measured elsewhere."""
    given = matching(records, detector.path, detector.active) if records else detector.contract.meta.get("accuracy")
    where = "not in the records of val that were given" if records else "not in the model's metadata"
    if not given:
        missing["accuracy"] = where
        return None
    out = {key: given.get(key) for key in ACCURACY}
    out["source"] = given.get("source") or "model metadata"
    missing.update({"accuracy." + k: where for k, v in out.items() if v is None})
    return out


def parity_facts(contract: Contract, missing: dict[str, str]) -> dict[str, Any] | None:
    """What the export was checked with on the host; null for a file that nobody checked."""
    given: dict[str, Any] | None = contract.meta.get("parity")
    if not given:
        missing["parity"] = "not in the model's metadata"
    return given or None


def runtime_facts(detector: Detector, missing: dict[str, str]) -> dict[str, Any]:
    """The record's `runtime`: versions, and where the model really runs."""
    nodes, runs_on = detector.nodes, name_of(detector.active)
    other = runs_on if runs_on in OTHER_RUNTIMES else None
    own = PROVIDERS[other].module if other else None
    modules = dict.fromkeys(PROVIDERS[name].module for name in OTHER_RUNTIMES)  # two devices may have one runtime
    versions = {module: detector.session.version if module == own else None for module in modules}
    missing.update({"runtime." + module: "not the runtime" for module in modules if module != own})
    if other:
        missing.update(
            {"runtime." + key: f"{other} does not report it" for key in ("inter_threads", "spin", "graph_opt")}
        )
    if nodes is None:
        missing["runtime.ep_nodes"] = "this runtime cannot tell"
    if detector.coverage is None:
        missing["runtime.ep_coverage"] = "this ONNX Runtime cannot tell"
    if detector.trt is None:
        missing["runtime.trt"] = "TensorRT was not asked for"
    else:
        reasons = {"version": "the library does not tell", "build_s": "the engine came from the cache"}
        missing.update({"runtime.trt." + k: reasons[k] for k, v in detector.trt.items() if v is None})
    cuda = read_text(system_path("/usr/local/cuda/version.json"))
    version = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', cuda or "")
    if not version:
        missing["runtime.cuda"] = "no /usr/local/cuda/version.json"
    return {
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **versions,
        "provider_requested": detector.provider,
        "providers_active": detector.session.get_providers(),
        "ep_nodes": nodes,
        "ep_coverage": None if detector.coverage is None else round(detector.coverage, 4),
        "fallback": detector.fallback,
        "intra_threads": detector.threads,
        "inter_threads": None if other else 1,  # ONNX Runtime's default, sequential execution
        "spin": None if other else "within a run",
        "graph_opt": None if other else "all",
        "io_binding": False,
        "trt": detector.trt,
        "cuda": version.group(1) if version else None,
    }


def memory_facts(own_process: bool, models: int, before_mb: float | None, missing: dict[str, str]) -> dict[str, Any]:
    """Memory after measuring; before_mb is what the system had to give before the first session."""
    out: dict[str, Any] = dict.fromkeys(("rss_mb", "peak_rss_mb", "sys_ram_delta_mb", "gpu_mb", "lfb"))
    missing["memory.gpu_mb"] = "ONNX Runtime does not tell it; on a Jetson it is part of sys_ram_delta_mb"
    reason = "the process is not this program's own" if not own_process else "several models share the process"
    if own_process and models == 1:
        status = Path("/proc/self/status")
        rss, peak, left = first_value(status, "VmRSS"), first_value(status, "VmHWM"), available_mb()
        reason = "no /proc/self/status"
        if rss is not None and peak is not None and left is not None and before_mb is not None:
            out["rss_mb"], out["peak_rss_mb"] = (round(int(v.split()[0]) / 1024, 1) for v in (rss, peak))  # from kB
            out["sys_ram_delta_mb"] = round(before_mb - left, 1)
            return out
    missing.update({"memory." + key: reason for key in ("rss_mb", "peak_rss_mb", "sys_ram_delta_mb")})
    return out


def image_facts(frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """The record's `protocol.images`: how many, and a checksum over their pixels."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.shape).encode())
        digest.update(frame.tobytes())
    sizes = sorted({frame.shape[:2] for frame in frames})
    return {"n": len(frames), "sha": digest.hexdigest(), "source_hw": [list(hw) for hw in sizes]}
