"""What `doctor` finds on a fake board, trtexec's reports of every version, and the proof that a provider ran."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.boards import board, system_root, tool, write
from helpers.edge import metadata, toy

from yolokd_edge import cli, doctor
from yolokd_edge.bench import trtexec
from yolokd_edge.bench.trtexec import cross_check, parse_trtexec, trtexec_flags
from yolokd_edge.common import EdgeError
from yolokd_edge.contract import says_fp16
from yolokd_edge.detector import Detector
from yolokd_edge.doctor import diagnose, installed
from yolokd_edge.runtimes import onnxruntime as ort
from yolokd_edge.runtimes import tensorrt
from yolokd_edge.runtimes.base import Meta, Port, TensorRT
from yolokd_edge.runtimes.coverage import coverage_in_new_process, profile_coverage, profiled_coverage
from yolokd_edge.runtimes.opening import open_model
from yolokd_edge.runtimes.table import PROVIDERS
from yolokd_edge.runtimes.tensorrt import engine_options, version_text

__all__ = ["board"]  # a fixture
EVERYWHERE = list(PROVIDERS["trt"].names)


@pytest.fixture
def healthy(board: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake board with everything in order."""
    tool(board / "bin", "tegrastats", "exec sleep 60")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: EVERYWHERE)
    monkeypatch.setattr(doctor, "installed", lambda: {"onnxruntime-gpu": "1.23.0", "opencv-python": "4.10"})
    monkeypatch.setattr(doctor, "tensorrt_version", lambda: "10.7.0")
    monkeypatch.setattr(doctor, "load_average", lambda: 0.1)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    return board


def test_nothing_is_wrong_on_a_healthy_board(healthy: Path, capsys) -> None:
    assert diagnose() == []
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == "Nothing is wrong.\n"


def change(path: str, content: object):
    return lambda board, patch: write(board / "root", {path: content})


def answer(name: str, value: object):
    return lambda board, patch: patch.setattr(doctor, name, lambda: value)


def providers(*names: str):
    return lambda board, patch: patch.setattr(onnxruntime, "get_available_providers", lambda: list(names))


def without(name: str):
    return lambda board, patch: (board / "bin" / name).unlink()


def free_clocks(board: Path, patch: pytest.MonkeyPatch) -> None:
    (board / "bin/jetson_clocks").unlink()
    system_root(board / "root", min_freq=306000000)


def slow_mode(board: Path, patch: pytest.MonkeyPatch) -> None:
    tool(board / "bin", "nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WRONG = [
    (answer("installed", {"onnxruntime": "1", "onnxruntime-gpu": "1"}), "error", "onnxruntime and onnxruntime-gpu are",
     "pip uninstall -y onnxruntime onnxruntime-gpu, then install onnxruntime-gpu alone"),
    (answer("installed", {"opencv-python": "4", "opencv-python-headless": "4"}), "warning", "side by side",
     "one of them"),
    (providers(CPU), "error", "runs everything on the CPU", "jetson-ai-lab.io/jp6"),
    (providers(CUDA, CPU), "error", "no TensorRT provider", "jetson-ai-lab.io/jp6"),
    (answer("tensorrt_version", None), "warning", "libnvinfer) is missing", "apt install nvidia-jetpack"),
    (answer("tensorrt_version", "8.2.1"), "warning", "TensorRT 8.2.1 cannot build NMS-free", "raw head"),
    (answer("tensorrt_version", "10.3.0"), "note", "INT8", "raw head"),
    (free_clocks, "warning", "clocks are not locked", "sudo jetson_clocks"),
    (slow_mode, "warning", "the power mode is 15W", "sudo nvpmodel -m 2 (MAXN_SUPER)"),
    (without("nvpmodel"), "warning", "power mode cannot be read", "nvpmodel -q"),
    (change("proc/meminfo", "MemTotal: 7802880 kB\nMemAvailable: 5000000 kB\nSwapTotal: 0 kB"), "warning",
     "there is no swap", "swapon"),
    (change("proc/meminfo", "MemTotal: 7802880 kB\nMemAvailable: 512000 kB\nSwapTotal: 9 kB"), "warning",
     "only 500 MB of memory are free", "end other programs"),
    (answer("load_average", 50.0), "warning", "load average 50.0", "nothing else runs"),
    (change("sys/class/thermal/thermal_zone2/temp", 96000), "error", "at 96 deg C and slows itself down at 99", "fan"),
    (without("tegrastats"), "warning", "power cannot be measured", "host"),
    (lambda board, patch: patch.setattr(np, "__version__", "2.1.0"), "warning", "numpy 2.1.0", '"numpy<2"'),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "level", "what", "remedy"), WRONG)
def test_each_fault_is_named_with_its_remedy(healthy, monkeypatch, capsys, spoil, level, what, remedy) -> None:
    spoil(healthy, monkeypatch)
    (finding,) = diagnose()
    assert finding.level == level and what in finding.what and remedy in finding.remedy
    assert cli.main(["doctor", "--json"]) == (1 if level == "error" else 0)
    assert json.loads(capsys.readouterr().out) == [finding._asdict()]


def test_the_worst_comes_first_and_a_missing_provider_is_an_error(healthy, monkeypatch) -> None:
    slow_mode(healthy, monkeypatch)
    providers(CPU)(healthy, monkeypatch)
    assert [f.level for f in diagnose(provider="cuda")] == ["error", "warning"]
    assert "has no CUDAExecutionProvider" in diagnose(provider="cuda")[0].what


def test_a_model_is_tried(healthy, monkeypatch, tmp_path: Path) -> None:
    providers(CPU)(healthy, monkeypatch)
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    assert "toy.onnx runs on CPUExecutionProvider" in diagnose(file, "cpu")[-1].what
    assert diagnose(tmp_path / "none.onnx", "cpu")[0].what.startswith("There is no model file")
    assert cli.main(["doctor", "--model", str(tmp_path / "none.onnx")]) == 1
    quantised = {**metadata(), "args": "{'quantize': 8}"}
    write(healthy / "root", {"proc/cpuinfo": "flags : fpu avx2"})
    slow = diagnose(toy(tmp_path / "int8.onnx", np.zeros((1, 7, 42)), quantised), "cpu")
    assert any("may be slower than FP32" in f.what for f in slow)


def test_installed_packages_are_listed_by_their_plain_names() -> None:
    found = installed()
    assert found["onnxruntime"] == onnxruntime.__version__ and "opencv-python" in found


# --- trtexec --------------------------------------------------------------------------------------------------------

TIME = "[05/01/2026-10] [I] "
REPORTS = {
    "8.2.1": (
        "&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec --onnx=a.onnx\n"
        f"{TIME}Throughput: 102.5 qps\n"
        f"{TIME}Latency: min = 9.1 ms, max = 12.5 ms, mean = 9.6 ms, median = 9.5 ms, percentile(99%) = 11.9 ms\n"
        f"{TIME}End-to-End Host Latency: min = 9.2 ms, max = 20 ms, mean = 18 ms, median = 18.1 ms, "
        "percentile(99%) = 19 ms\n"
        f"{TIME}Enqueue Time: min = 0.5 ms, max = 1 ms, mean = 0.6 ms, median = 0.61 ms, percentile(99%) = 0.9 ms\n"
        f"{TIME}GPU Compute Time: min = 8.5 ms, max = 12 ms, mean = 9 ms, median = 8.9 ms, percentile(99%) = 11 ms\n"
        "&&&& PASSED TensorRT.trtexec [TensorRT v8201] # trtexec --onnx=a.onnx\n"
    ),
    **{
        version: (
            f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}]{build} # trtexec --onnx=a.onnx\n"
            f"{TIME}=== Performance summary ===\n{TIME}Throughput: 102.5 qps\n"
            f"{TIME}Latency: min = 9.1 ms, max = 12.5 ms, mean = 9.6 ms, median = 9.5 ms, percentile(50%) = 9.5 ms, "
            "percentile(90%) = 10.5 ms, percentile(99.9%) = 12.1 ms, percentile(99%) = 11.9 ms\n"
            f"{TIME}H2D Latency: min = 0.1 ms, max = 0.2 ms, mean = 1.5e-01 ms, median = 0.15 ms, "
            "percentile(99%) = 0.2 ms\n"
            f"{TIME}GPU Compute Time: min = 8.5 ms, max = 12 ms, mean = 9 ms, median = 8.9 ms, "
            "percentile(99%) = 11 ms\n"
            f"&&&& PASSED TensorRT.trtexec [TensorRT v{number}]{build} # trtexec --onnx=a.onnx\n"
        )
        for version, number, build in (("8.5.2", 8502, ""), ("10.3.0", 100300, ""), ("11.1.0", 110100, " [b42]"))
    },
}


@pytest.mark.parametrize("version", REPORTS)
def test_reports_of_every_trtexec_are_read(version: str) -> None:
    report = parse_trtexec(REPORTS[version])
    assert (report["version"], report["throughput_qps"], report["passed"]) == (version, 102.5, True)
    latency = {"min": 9.1, "max": 12.5, "mean": 9.6, "median": 9.5, "p99": 11.9}
    assert latency.items() <= report["times"]["Latency"].items()
    assert report["times"]["GPU Compute Time"]["median"] == 8.9
    if version == "8.2.1":
        assert report["times"]["End-to-End Host Latency"]["median"] == 18.1
    else:
        assert report["times"]["H2D Latency"]["mean"] == 0.15 and report["times"]["Latency"]["p99.9"] == 12.1


def test_a_report_that_broke_off_is_read_as_far_as_it_goes() -> None:
    for end in range(0, len(REPORTS["10.3.0"]), 7):
        parse_trtexec(REPORTS["10.3.0"][:end])
    nothing = {"version": None, "throughput_qps": None, "passed": None, "times": {}}
    assert parse_trtexec("") == nothing
    assert parse_trtexec("&&&& FAILED TensorRT.trtexec [TensorRT v8502] # x")["passed"] is False


@pytest.mark.parametrize(
    ("version", "present", "absent"),
    [
        ("8.2.1", {"--fp16", "--percentile=99"}, {"--noCudaGraph", "--includeDataTransfers"}),
        ("8.5.2", {"--fp16", "--percentile=50,90,95,99"}, {"--noCudaGraph", "--useCudaGraph"}),
        ("10.3.0", {"--fp16", "--int8"}, {"--noCudaGraph", "--includeDataTransfers"}),
        ("11.1.0", {"--includeDataTransfers", "--noCudaGraph", "--noSpinWait"}, {"--fp16", "--int8"}),
    ],
)
def test_flags_mean_the_same_for_every_version(version: str, present: set, absent: set) -> None:
    flags = set(trtexec_flags(version, Path("a.onnx"), True, True, Path("t.json")))
    assert present | {"--onnx=a.onnx", "--exportTimes=t.json"} <= flags and not absent & flags
    graph = set(trtexec_flags(version, Path("a.onnx"), True, True, Path("t.json"), graph=True))
    assert ("--useCudaGraph" in graph) == (version < "11" or version[0] in "8") and "--noCudaGraph" not in graph


@pytest.mark.parametrize("version", REPORTS)
def test_cross_check_takes_our_percentiles_of_the_trace(version: str, board: Path, monkeypatch) -> None:
    monkeypatch.setattr(trtexec, "TRTEXEC", "/nowhere")
    model = board / "a.onnx"
    model.write_bytes(b"a graph with QuantizeLinear in it")
    assert cross_check(model, True, 11.0) == (None, "trtexec is not installed")
    trace = json.dumps([{"latencyMs": k / 10, "computeMs": 1} for k in range(1, 401)])
    (board / "report").write_text(REPORTS[version])
    (board / "trace").write_text(trace)
    tool(
        board / "bin",
        "trtexec",
        f'for a in "$@"; do case "$a" in --exportTimes=*) cp {board}/trace "${{a#*=}}";; esac; done\n'
        f"cat {board}/report",
    )
    found, why = cross_check(model, True, 22.0)
    assert (why, found["version"], found["infer_p50_ratio"]) == ("", version, 1.1)
    assert found["plain"]["latency_ms"] == {"p50": 20.0, "p90": 36.0, "p95": 38.0, "p99": 39.6}
    assert found["plain"]["throughput_qps"] == 102.5 and found["gpu_graph"]["gpu_compute_ms"]["median"] == 8.9
    assert ("--int8" in found["plain"]["flags"]) == (version[:2] != "11")
    tool(board / "bin", "trtexec", f"head -n 1 {board}/report; echo '&&&& FAILED TensorRT.trtexec'; exit 1")
    assert cross_check(model, True, 22.0) == (None, f"trtexec {version} failed on a.onnx")


# --- the proof that a provider ran ----------------------------------------------------------------------------------


class Node:
    def __init__(self, provider: str, nodes: int) -> None:
        self.ep_name, self.nodes = provider, nodes

    def get_nodes(self) -> list[int]:
        return [0] * self.nodes


def session_with(active: list[str], shares: dict[str, int], seen: list | None = None):
    """A session class whose nodes are spread over providers like this; it notes the providers it was given."""

    class Session:
        def __init__(self, path: str, options: object, providers: list, **more: object) -> None:
            if seen is not None:
                seen.append((providers, more))

        def get_providers(self) -> list[str]:
            return active

        def get_provider_graph_assignment_info(self) -> list[Node]:
            return [Node(name, count) for name, count in shares.items()]

    return Session


@pytest.mark.parametrize(("on_gpu", "code"), [(100, None), (95, None), (94, 4), (0, 4)])
def test_a_provider_must_run_nearly_all_nodes(on_gpu: int, code: int | None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: EVERYWHERE)
    shares = {CUDA: on_gpu, CPU: 100 - on_gpu}
    seen: list = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_with([CUDA, CPU], shares, seen))
    if code is None:
        assert open_model(tmp_path / "a.onnx", "cuda", 1, TensorRT()).coverage == on_gpu / 100
    else:
        with pytest.raises(EdgeError, match=f"took only {on_gpu}% of the nodes") as error:
            open_model(tmp_path / "a.onnx", "cuda", 1, TensorRT())
        assert error.value.code == code
    assert seen == [([CUDA, CPU], {"enable_fallback": 0})]


def test_fallback_only_where_it_is_allowed(tmp_path: Path) -> None:
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    with pytest.raises(EdgeError) as error:
        Detector(file, "cuda")
    assert error.value.code == 4
    fallen = Detector(file, "cuda", allow_fallback=True)
    assert fallen.fallback and fallen.session.get_providers() == [CPU]
    assert not Detector(file, "cpu").fallback and not Detector(file, "auto").fallback


def test_coverage_from_a_profile_counts_the_time() -> None:
    events = [
        {"cat": "Node", "dur": 96, "args": {"provider": "TensorrtExecutionProvider"}},
        {"cat": "Node", "dur": 3, "args": {"provider": CPU}},
        {"cat": "Node", "dur": 1, "args": {"provider": CPU}},
        {"cat": "Node", "dur": 70, "args": {}},
        {"cat": "Session", "dur": 500, "args": {"provider": CPU}},
    ]
    assert profile_coverage(events, "TensorrtExecutionProvider") == 0.96
    assert profile_coverage([], CPU) is None


def test_an_older_onnxruntime_is_asked_through_its_profile(tmp_path: Path) -> None:
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    share = coverage_in_new_process(file, [[CPU, {}]], 1, CPU, None)
    assert share in (None, 1.0)  # a constant graph may have no node left that could be timed
    with pytest.raises(EdgeError, match=f"What {CPU} runs of .*none.onnx could not be found out") as error:
        coverage_in_new_process(tmp_path / "none.onnx", [CPU], 1, CPU, None)
    assert error.value.code == 4


def test_a_profile_is_no_part_of_the_cold_start_and_has_the_size_that_runs(tmp_path: Path, monkeypatch) -> None:
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    real, fed = session_with([CUDA, CPU], {}), []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: EVERYWHERE)
    monkeypatch.setattr(onnxruntime, "InferenceSession", real)
    monkeypatch.setattr(ort, "assigned_nodes", lambda session: None)
    monkeypatch.setattr(ort, "coverage_in_new_process", lambda *asked: fed.append(asked) or time.sleep(0.3) or 1.0)
    opened = open_model(file, "cuda", 1, TensorRT(hw=(96, 128)))
    assert opened.coverage == 1.0 and opened.session_s < 0.3 and fed == [(file, [CUDA, CPU], 1, CUDA, (96, 128))]

    class Dynamic(real):
        def get_inputs(self) -> list[Port]:
            return [Port("images", ["batch", 3, "height", "width"], "tensor(float)")]

        def get_modelmeta(self) -> Meta:
            return Meta(metadata())

        def run(self, outputs: None, feed: dict[str, np.ndarray]) -> None:
            fed.append(feed["images"].shape)

        def end_profiling(self) -> str:
            (tmp_path / "profile.json").write_text("[]")
            return str(tmp_path / "profile.json")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Dynamic)
    profiled_coverage(file, [CPU], 1, CPU, [96, 128])
    profiled_coverage(file, [CPU], 1, CPU)
    assert fed[1:] == [(1, 3, 96, 128)] * 3 + [(1, 3, 32, 64)] * 3


def test_engines_are_kept_by_model_device_and_versions(board: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("YOLOKD_CACHE", str(board / "cache"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: EVERYWHERE)
    monkeypatch.setattr(onnxruntime, "__version__", "1.21.0")  # the first that leaves nodes out on request
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: "10.3.0")
    seen: list = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_with(EVERYWHERE, {EVERYWHERE[0]: 9}, seen))
    model = board / "a.onnx"
    model.write_bytes(b"graph NonMaxSuppression")

    def opened(**settings: object) -> dict:
        return open_model(model, "trt", 1, TensorRT(**settings)).trt

    first = opened(fp16=True)
    options = seen[0][0][0][1]
    folder = Path(first["cache_dir"])
    assert folder.parent == board / "cache" and folder.is_dir() and folder.name.startswith("a-")
    assert options["trt_engine_cache_path"] == str(folder) and options["trt_timing_cache_enable"] == "True"
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("True", "False")
    assert options["trt_op_types_to_exclude"] == "NonMaxSuppression,NonZero,RoiAlign"
    assert first["engine_cache"] == "miss" and first["build_s"] is not None
    assert "Building a TensorRT engine" in capsys.readouterr().err
    (folder / "x.engine").write_bytes(b"")
    again = opened(fp16=True)
    assert again["engine_cache"] == "hit" and again["build_s"] is None and again["cache_dir"] == str(folder)
    assert capsys.readouterr().err == ""
    others = {opened()["cache_dir"], opened(fp16=True, hw=(32, 32))["cache_dir"]}
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: "10.7.0")
    others.add(opened(fp16=True)["cache_dir"])
    write(board / "root", {"etc/nv_tegra_release": "# R36 (release), REVISION: 5.0"})
    others.add(opened(fp16=True)["cache_dir"])
    model.write_bytes(b"graph QuantizeLinear")
    others.add((changed := opened(fp16=True))["cache_dir"])
    assert changed["int8"] and len(others) == 5 and str(folder) not in others


@pytest.mark.parametrize(
    ("runtime", "known"),
    [
        ("1.14.1", set()),
        ("1.15.0", {"trt_timing_cache_enable"}),
        ("1.20.2", {"trt_timing_cache_enable"}),
        ("1.21.0", {"trt_timing_cache_enable", "trt_op_types_to_exclude"}),
    ],
)
def test_an_older_onnxruntime_gets_only_options_that_it_knows(runtime: str, known: set, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", runtime)
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: "10.3.0")
    (tmp_path / "a.onnx").write_bytes(b"graph NonMaxSuppression")
    _, options = engine_options(tmp_path / "a.onnx", TensorRT(cache=str(tmp_path)))
    always = {"trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_engine_cache_path"}
    assert set(options) == always | known


def test_a_file_without_a_fixed_size_is_built_for_the_size_that_runs(tmp_path: Path, monkeypatch) -> None:
    def shapes(hw: tuple[int, int] | None = None, **args: object) -> set[str]:
        file = toy(tmp_path / "a.onnx", np.zeros((1, 7, 42)), {**metadata(), "args": str(args)})
        options = engine_options(file, TensorRT(cache=str(tmp_path), hw=hw))[1]
        return {options.get(f"trt_profile_{end}_shapes") for end in ("min", "opt", "max")}

    assert shapes(dynamic=True) == {"images:1x3x32x64"} and shapes((96, 128), dynamic=True) == {"images:1x3x96x128"}
    assert shapes(dynamic=False) == shapes((32, 64)) == {None}
    monkeypatch.setattr(onnxruntime, "__version__", "1.14.1")
    assert shapes(dynamic=True) == {None}


def test_a_file_in_half_precision_is_built_in_half_precision(tmp_path: Path) -> None:
    for args, half in (("{'quantize': 16, 'nms': None}", True), ("{'half': True}", True), ("{'half': False}", False)):
        file = toy(tmp_path / "a.onnx", np.zeros((1, 7, 42)), {**metadata(), "args": args})
        facts, options = engine_options(file, TensorRT(cache=str(tmp_path)))
        assert (options["trt_fp16_enable"], facts["fp16"]) == (str(half), False)  # nobody asked TensorRT for it
    long = {**metadata(), "args": str({"half": True, "data": "x" * 300})}  # a length of two bytes
    assert says_fp16(toy(tmp_path / "b.onnx", np.zeros((1, 7, 42)), long).read_bytes())
    assert not says_fp16(b"a graph") and not says_fp16(b"args\x12\x02{(}")


@pytest.mark.parametrize(
    ("number", "text"), [(8201, "8.2.1"), (8502, "8.5.2"), (100300, "10.3.0"), (101601, "10.16.1"), (110100, "11.1.0")]
)
def test_version_numbers_of_tensorrt(number: int, text: str) -> None:
    assert version_text(number) == text
