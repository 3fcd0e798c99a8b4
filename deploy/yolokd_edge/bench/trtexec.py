"""trtexec, NVIDIA's own benchmark, as a cross-check of the figures."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from yolokd_edge.bench.schema import PERCENTILES
from yolokd_edge.bench.statistics import percentile, samples_needed
from yolokd_edge.board.system import tool_output
from yolokd_edge.contract import says_fp16
from yolokd_edge.runtimes.tensorrt import tensorrt_version, version_text

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
_TRT_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_TRT_LINE = re.compile(
    r"(End-to-End Host Latency|Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency): (min = .*)$",
    re.MULTILINE,
)
_TRT_VALUE = re.compile(r"(min|max|mean|median|percentile\((\d+(?:\.\d+)?)%\)) = (\d+(?:\.\d+)?(?:e[+-]?\d+)?) ms")
_TRT_QPS = re.compile(r"Throughput: (\d+(?:\.\d+)?) qps")


def parse_trtexec(text: str) -> dict[str, Any]:
    """Read trtexec's report, of TensorRT 8.2 to 11.

    Returns:
        version (or None), throughput_qps (or None), passed (or None), and times: label such as "GPU Compute Time" ->
        {min, max, mean, median, p99, ...} in ms, as far as printed.
    """
    banner, qps = _TRT_BANNER.search(text), _TRT_QPS.search(text)
    times: dict[str, dict[str, float]] = {}
    for label, values in _TRT_LINE.findall(text):
        row = times.setdefault(label, {})
        for name, level, value in _TRT_VALUE.findall(values):
            row["p" + level if level else name] = float(value)
    passed = True if "&&&& PASSED" in text else False if "&&&& FAILED" in text else None
    return {
        "version": version_text(int(banner.group(1))) if banner else None,
        "throughput_qps": float(qps.group(1)) if qps else None,
        "passed": passed,
        "times": times,
    }


def trtexec_flags(version: str, model: Path, fp16: bool, int8: bool, trace: Path, graph: bool = False) -> list[str]:
    """trtexec's arguments, with the same meaning for every version.

    Up to TensorRT 10 the latency includes the copies, and neither a CUDA graph nor spin-waiting is used; TensorRT 11
    turned all three defaults round, and takes the precision from the file alone. `graph` asks for the CUDA graph.
    """
    flags = [f"--onnx={model}", "--warmUp=2000", "--duration=30", f"--exportTimes={trace}"]
    major, minor = (int(v) for v in version.split(".")[:2])
    # 8.2 knows a single percentile
    flags.append("--percentile=99" if (major, minor) < (8, 5) else "--percentile=50,90,95,99")
    if major < 11:
        return flags + ["--fp16"] * fp16 + ["--int8"] * int8 + ["--useCudaGraph"] * graph
    return flags + ["--includeDataTransfers", "--noSpinWait"] + ["--noCudaGraph"] * (not graph)


def _trace_percentiles(trace: Path) -> dict[str, float] | None:
    """Our own percentiles of trtexec's raw times (ms), by our rule."""
    try:
        rows = json.loads(trace.read_text(encoding="utf-8"))
        latencies = [float(row["latencyMs"]) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not latencies:
        return None
    return {k: percentile(latencies, p) for k, p in PERCENTILES.items() if len(latencies) >= samples_needed(p)}


def cross_check(model: Path, fp16: bool, infer_p50: float) -> tuple[dict[str, Any] | None, str]:
    """Measure a model with trtexec, once as onnxruntime runs it and once with a CUDA graph; (result, why not)."""
    program = TRTEXEC if os.access(TRTEXEC, os.X_OK) else shutil.which("trtexec")
    if program is None:
        return None, "trtexec is not installed"
    version = parse_trtexec(tool_output(program, "--help") or "")["version"] or tensorrt_version()
    if version is None:
        return None, "trtexec does not tell its version"
    content = model.read_bytes()
    fp16, int8 = fp16 or says_fp16(content), b"QuantizeLinear" in content
    out: dict[str, Any] = {"tool": "trtexec", "version": version}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "gpu_graph"):
            trace = Path(folder) / f"{name}.json"
            flags = trtexec_flags(version, model, fp16, int8, trace, name == "gpu_graph")
            report = parse_trtexec(tool_output(program, *flags, timeout_s=3600) or "")
            if not report["times"] or report["passed"] is False:
                return None, f"trtexec {version} failed on {model.name}"
            out[name] = {
                "flags": [flag for flag in flags if "=/" not in flag],
                "latency_ms": _trace_percentiles(trace) or report["times"].get("Latency"),
                "gpu_compute_ms": report["times"].get("GPU Compute Time"),
                "throughput_qps": report["throughput_qps"],
            }
    latency = out["plain"]["latency_ms"] or {}
    middle = latency.get("p50", latency.get("median"))
    out["infer_p50_ratio"] = infer_p50 / middle if middle else None
    return out, ""
