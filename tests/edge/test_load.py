"""Throughput and scenarios: the rules against a slow reference, a scripted device, real sessions, the command."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
from helpers.edge import colour_frames, export, metadata, toy

from yolokd.latency.throughput import throughput
from yolokd_edge import cli
from yolokd_edge.common import EdgeError
from yolokd_edge.detector import Detector
from yolokd_edge.load import report, rules, scenarios
from yolokd_edge.load.curve import Point, make_row, measure_curve, saturate
from yolokd_edge.load.inputs import make_inputs
from yolokd_edge.load.options import LoadOptions
from yolokd_edge.load.rules import RULES, early_stopping_estimate, late_allowed, proves, queries_needed
from yolokd_edge.load.scenarios import Limits, arrivals, offline, one_after_another, server
from yolokd_edge.load.verdicts import judge
from yolokd_edge.runtimes import onnxruntime as sessions
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.onnxruntime_binding import BoundRun
from yolokd_edge.runtimes.requests import ThreadedRequests, open_requests
from yolokd_edge.runtimes.tensorrt import engine_key, engine_options

MS = 1_000_000  # ns

# --- the rules ------------------------------------------------------------------------------------------------------


def chance(late: int, queries: int, percentile: float) -> float:
    """Probability of at most `late` late queries of a device whose percentile is just late: a sum of binomial terms."""
    q = 1 - percentile
    return sum(math.comb(queries, k) * q**k * (1 - q) ** (queries - k) for k in range(late + 1))


@pytest.mark.parametrize("percentile", [0.9, 0.99])
@pytest.mark.parametrize("late", [0, 1, 5])
def test_early_stopping_is_the_binomial_tail(percentile: float, late: int) -> None:
    needed = next(n for n in itertools.count(late + 1) if chance(late, n, percentile) <= 0.01)
    assert queries_needed(late, percentile) == needed
    assert proves(needed, late, percentile) and not proves(needed - 1, late, percentile)
    assert late_allowed(needed, percentile) == late
    assert late_allowed(needed - 1, percentile) == (late - 1 if late else None)


def test_early_stopping_agrees_with_the_logs_of_mlperf_s_load_generator() -> None:
    """Results of others that it wrote into mlperf_log_summary.txt: "Processed at least 64 queries (201)", "Would
    discard 9 highest latency queries"; of 100 queries 2; and 662 queries for p99."""
    assert (queries_needed(1, 0.9), queries_needed(1, 0.99)) == (64, 662)
    for n, discarded in ((100, 2), (201, 9)):
        estimate = early_stopping_estimate([float(v) for v in np.random.default_rng(n).permutation(n) + 1], 0.9)
        assert estimate == (n - discarded, discarded, 64)
    assert early_stopping_estimate([1.0] * 63, 0.9) == (None, 0, 64)


# --- a scripted device ----------------------------------------------------------------------------------------------


class Device:
    """Requests on a clock of their own: each stream takes the given ms for an input, whatever is in it."""

    how = "scripted"

    def __init__(self, streams: int = 1, ms: float = 10, threads: int = 1) -> None:
        self.streams, self.threads, self.ns, self.now = streams, threads, round(ms * MS), 0
        self.free, self.inputs, self.closed = [0] * streams, [], False

    def clock(self) -> int:
        return self.now

    def wait(self, at: int) -> None:
        self.now = max(self.now, at)

    def start(self, blob, done) -> None:
        stream = min(range(self.streams), key=self.free.__getitem__)
        self.wait(self.free[stream])
        self.free[stream] = self.now + self.ns
        self.inputs.append(blob)
        done(self.now, self.free[stream])

    def finish(self) -> None:
        self.wait(max(self.free))

    def close(self) -> None:
        self.closed = True


def blobs(batch: int = 1, count: int = 3) -> list[np.ndarray]:
    return [np.full((batch, 1), k) for k in range(count)]


def test_a_device_that_is_kept_busy() -> None:
    device = Device(streams=2, ms=10)
    flow = saturate(device, blobs(batch=4), seconds=1.0, clock=device.clock)
    assert flow.rate == pytest.approx(800, rel=0.01) and set(flow.latencies) == {10 * MS}
    assert [int(blob[0, 0]) for blob in device.inputs[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert flow.images == 4 * len(device.inputs) and flow.seconds == pytest.approx(1.0, abs=0.02)
    for images, limit, expected in ((500, 60, 500), (500, 2.0, 200)):
        device = Device(ms=10)
        flow = saturate(device, blobs(), 1.0, images, limit, device.clock)
        assert flow.images == pytest.approx(expected, abs=1)


def test_a_curve_takes_turns_and_marks_what_nothing_beats() -> None:
    """Twice the streams at the same latency are better; a batch costs latency and brings images; another only costs."""
    log, devices = [], []
    ms = {(1, 1): 10, (1, 2): 10, (4, 1): 16, (8, 1): 50}

    def opened(point: Point):
        log.append(point)
        devices.append(device := Device(point.streams, ms[point.batch, point.streams]))
        return device, blobs(point.batch)

    points, steps = [Point(*key) for key in ms], []
    clock = lambda: devices[-1].now  # noqa: E731
    rows = measure_curve(points, opened, 1.0, 3, seed=4, step=lambda: steps.append(1), clock=clock)
    assert len(log) == len(steps) == 12 and all(device.closed for device in devices)
    turns = [log[k : k + 4] for k in (0, 4, 8)]
    assert all(sorted(turn) == sorted(points) for turn in turns) and len({tuple(turn) for turn in turns}) > 1
    assert [row["images_per_s"] for row in rows] == pytest.approx([100, 200, 250, 160], rel=0.02)
    assert [row["latency_ms"]["p50"] for row in rows] == [10, 10, 16, 50]
    assert [row["front"] for row in rows] == [False, True, True, False]
    assert [(row["batch"], row["streams"], row["how"], len(row["runs"])) for row in rows][1] == (1, 2, "scripted", 3)
    low, high = rows[0]["images_per_s_ci95"]
    assert 99 < low <= high < 101


def test_a_session_is_given_back_after_an_error() -> None:
    class Broken(Device):
        def start(self, blob, done) -> None:
            raise EdgeError("broken")

    device = Broken()
    with pytest.raises(EdgeError, match="broken"):
        measure_curve([Point(1, 1)], lambda point: (device, blobs()), 1.0, 1)
    assert device.closed


def test_single_and_multi_stream() -> None:
    device = Device(ms=10)
    outcome = one_after_another(device, blobs(), RULES["single"], Limits(3.0, 60), clock=device.clock)
    assert (len(outcome.latencies), outcome.images, outcome.seconds) == (300, 300, pytest.approx(3))
    device = Device(ms=100)  # 64 queries must be there, too
    outcome = one_after_another(device, blobs(), RULES["single"], Limits(3.0, 60), clock=device.clock)
    assert len(outcome.latencies) == 64
    device = Device(ms=100)
    assert len(one_after_another(device, blobs(), RULES["single"], Limits(3, 4), clock=device.clock).latencies) == 40
    for device, inputs, expected in (
        (Device(2, 10), blobs(), 40),  # eight images in two streams
        (Device(1, 25), blobs(batch=8), 25),
    ):
        outcome = one_after_another(device, inputs, RULES["multi"], Limits(1, 1), clock=device.clock)
        assert set(outcome.latencies) == {expected * MS} and outcome.images == 8 * len(outcome.latencies)


def test_samples_are_drawn_with_replacement_from_a_seed() -> None:
    def drawn(seed: int) -> list[int]:
        device = Device(ms=10)
        one_after_another(device, blobs(count=5), RULES["single"], Limits(1, 1), seed, device.clock)
        return [int(blob[0, 0]) for blob in device.inputs]

    assert drawn(0) == drawn(0) != drawn(1) and set(drawn(0)) == set(range(5))
    assert any(a == b for a, b in itertools.pairwise(drawn(0)))


def test_arrivals_are_a_poisson_process_from_a_seed() -> None:
    times = np.array(list(itertools.islice(arrivals(50, 0), 20000))) / 1e9
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02) and gaps.std() == pytest.approx(1 / 50, rel=0.03)
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() == pytest.approx(50, rel=0.15)
    again = [list(itertools.islice(arrivals(50, seed), 5)) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def served(device: Device, rate: float, bound: float, limits: Limits, seed: int = 0) -> scenarios.Outcome:
    return server(device, blobs(), rate, bound, limits, seed, device.clock, device.wait)


def test_a_server_s_latency_counts_from_the_arrival() -> None:
    """As in Lindley's recursion: a query begins when it has arrived and the one before is done."""
    outcome = served(Device(ms=10), 60, 1000, Limits(20, 20))
    free, expected = 0, []
    for at in itertools.takewhile(lambda at: at < 20e9, arrivals(60, 0)):
        free = max(at, free) + 10 * MS
        expected.append(free - at)
    assert outcome.latencies.tolist() == expected and len(set(expected)) > 100
    assert outcome.offered == outcome.images == len(expected) and outcome.behind_s == 0


def test_a_rate_that_cannot_be_served_is_a_verdict_and_no_hang() -> None:
    device = Device(ms=10)
    outcome = served(device, 200, 50, Limits(600, 1200))
    assert 1.0 < outcome.behind_s < 1.1 and device.now < 3e9
    assert outcome.offered > 1.9 * outcome.images  # those that had arrived and were not begun
    found = judge("server", outcome, 200, 50)
    assert found["verdict"] == "not served" and not found["validity"]["valid"]
    assert "given up 1.0 s behind, at 99.5 a second" in found["validity"]["reasons"][-1]
    record = {"results": found}
    with pytest.raises(EdgeError, match="200 queries a second within 50 ms are not served") as error:
        report.check_served(record)
    assert error.value.code == 1


def test_a_rate_that_is_served_and_one_of_which_too_little_is_known() -> None:
    outcome = served(Device(ms=2), 50, 50, Limits(600, 1200))
    found = judge("server", outcome, 50, 50)
    assert found["verdict"] == "served" and found["late"] == 0 and found["metric"]["value"] == 50
    assert outcome.seconds == pytest.approx(600, abs=0.2)
    report.check_served({"results": found})
    found = judge("server", served(Device(ms=2), 50, 50, Limits(4, 4)), 50, 50)
    assert found["verdict"] == "undecided"
    assert found["validity"]["reasons"] == [
        "4 s are less than the 600 s that the rules ask for",
        f"{found['offered']} queries with 0 late ones show too little: early stopping needs 459",
    ]
    with pytest.raises(EdgeError, match="not shown to be served") as error:
        report.check_served({"results": found})
    assert error.value.code == 3
    more = judge("server", served(Device(ms=2), 50, 50, Limits(4, 60)), 50, 50)
    assert more["verdict"] == "served" and 459 <= more["queries"] < 470  # it goes on until there are enough


def test_late_queries_above_one_percent_are_not_served_and_end_the_run() -> None:
    outcome = served(Device(ms=10), 60, 30, Limits(20, 10000))
    found = judge("server", outcome, 60, 30)
    late = int((outcome.latencies > 30 * MS).sum())
    assert found["late"] == late > 0.01 * found["offered"] and found["verdict"] == "not served"
    assert outcome.behind_s == 0 and outcome.seconds < 21


def test_offline_counts_its_images() -> None:
    device = Device(2, 10)
    outcome = offline(device, blobs(batch=8), Limits(3, 60), device.clock)
    found = judge("offline", outcome, None, None)
    assert found["metric"]["value"] == pytest.approx(1600, rel=0.01) and outcome.images == 24576
    assert found["validity"]["reasons"] == ["15 s are less than the 600 s that the rules ask for"]
    device = Device(1, 50)
    outcome = offline(device, blobs(), Limits(600, 700), device.clock)
    assert judge("offline", outcome, None, None)["validity"]["reasons"] == [
        f"{outcome.images} images are fewer than the 24576 that the rules ask for"
    ]


def test_a_latency_is_an_early_stopping_estimate() -> None:
    ms = np.random.default_rng(3).permutation(201) + 1
    found = judge("single", scenarios.Outcome(ms * MS, 201, 700.0), None, None)
    assert found["metric"] == {
        "name": "p90 of a query's latency, early-stopping estimate", "value": 192, "unit": "ms",
    }  # fmt: skip
    assert found["validity"] == {"valid": True, "reasons": [], "rules": rules.SOURCE}
    found = judge("multi", scenarios.Outcome(ms * MS, 8 * 201, 700.0), None, None)
    assert found["metric"]["value"] is None
    assert found["validity"]["reasons"] == ["201 queries are fewer than the 662 needed for early stopping"]


# --- real sessions --------------------------------------------------------------------------------------------------


def test_streams_run_beside_each_other_and_errors_come_back() -> None:
    together = threading.Barrier(2, timeout=20)  # breaks where one stream waits for the other
    requests = ThreadedRequests([lambda blob: together.wait()] * 2, 1, "", lambda: 7)
    times = []
    for blob in blobs(count=6):
        requests.start(blob, lambda *pair: times.append(pair))
    requests.finish()
    requests.close()
    assert times == [(7, 7)] * 6

    def fail(blob: np.ndarray) -> None:
        raise EdgeError("no memory", 4)

    requests = ThreadedRequests([fail], 1, "")
    requests.start(blobs()[0], lambda *pair: None)
    with pytest.raises(EdgeError, match="no memory"):
        requests.finish()
    with pytest.raises(EdgeError, match="no memory"):
        for blob in blobs(count=4):  # nor does one wait for ever
            requests.start(blob, lambda *pair: None)
    requests.close()


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory, teacher):
    return export(teacher, tmp_path_factory.mktemp("dynamic") / "dynamic.onnx", imgsz=64, dynamic=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k, frame in enumerate(colour_frames(folder, 4)):
        cv2.imwrite(str(folder / f"{k}.png"), frame)
    return folder


def test_bound_inputs_give_what_a_plain_run_gives(dynamic, images) -> None:
    detector = Detector(dynamic, threads=1, hw=(64, 64))
    frames = [cv2.imread(str(path)) for path in sorted(images.glob("*.png"))]
    inputs = make_inputs(detector, frames, 3, seed=0)
    assert all(blob.shape == (3, 3, 64, 64) for blob in inputs)
    single = [detector.preprocess(frame)[0] for frame in frames]
    assert all(any(np.array_equal(image, own[0]) for own in single) for blob in inputs for image in blob)
    run = BoundRun(detector.session, dynamic, inputs[0])
    for blob in inputs:
        run(blob)
        (bound,) = run._binding.copy_outputs_to_cpu()
        (plain,) = detector.session.run(None, {"images": blob})
        assert np.array_equal(bound, plain) and len(bound) == 3
    with pytest.raises(EdgeError, match="cannot be run"):
        run(np.zeros((1, 3, 63, 64), np.float32))


def test_streams_share_the_cores_out(dynamic, monkeypatch) -> None:
    monkeypatch.setattr("yolokd_edge.runtimes.requests.usable_cores", lambda: 4)
    opened = []
    real = sessions.open_session
    monkeypatch.setattr(sessions, "open_session", lambda *given: opened.append(given[2]) or real(*given))
    blob = np.zeros((2, 3, 64, 64), np.float32)
    for streams, threads, expected in ((2, None, (2, 2)), (None, None, (4, 1)), (None, 2, (2, 2)), (1, 3, (1, 3))):
        opened.clear()
        requests = open_requests(dynamic, "cpu", streams, threads, TensorRT(), blob)
        assert (requests.streams, requests.threads, requests.how) == (*expected, "IO binding")
        assert opened == [expected[1]] * expected[0]  # a session of its own for each
        requests.close()


def test_openvino_s_own_requests(dynamic) -> None:
    pytest.importorskip("openvino")
    blob = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    requests = open_requests(dynamic, "openvino", 1, 1, TensorRT(), blob)
    times = []
    for _ in range(4):
        requests.start(blob, lambda *pair: times.append(pair))
    requests.finish()
    assert len(times) == 4 and all(begun < ended for begun, ended in times)
    assert (requests.streams, requests.threads) == (1, 1) and "AsyncInferQueue" in requests.how
    requests.close()


class FakeCuda:
    """What is asked of ONNX Runtime where there is a GPU."""

    def __init__(self, path, options, providers, **more) -> None:
        self.asked, self.bound, self.runs = providers, {}, 0

    def get_providers(self):
        return [p if isinstance(p, str) else p[0] for p in self.asked]

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name=self.get_providers()[0], get_nodes=lambda: [0])]

    def get_inputs(self):
        return [SimpleNamespace(name="images")]

    def get_outputs(self):
        return [SimpleNamespace(name="output0")]

    def run(self, outputs, feed):
        return [np.zeros((2, 7, 84), np.float32)]

    def io_binding(self):
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.bound.__setitem__(name, value),
            bind_ortvalue_output=lambda name, value: self.bound.__setitem__(name, value),
            bind_output=lambda name, device: self.bound.__setitem__(name, device),
            copy_outputs_to_cpu=lambda: self.bound.__setitem__("copied", True),
        )

    def run_with_iobinding(self, binding):
        self.runs += 1


@pytest.mark.parametrize("graph", [True, False])
def test_what_is_asked_of_cuda(tmp_path, monkeypatch, graph) -> None:
    """No GPU here: the options, and that input and outputs stay where they are, which a graph needs."""
    made, values = [], []

    class Value:
        def __init__(self, what) -> None:
            self.what, self.updates = what, []
            values.append(self)

        def update_inplace(self, blob) -> None:
            self.updates.append(blob)

    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: made.append(FakeCuda(*a, **k)) or made[-1]
    )  # fmt: skip
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime, "OrtValue",
        SimpleNamespace(
            ortvalue_from_numpy=lambda blob, *where: Value((blob.shape, where)),
            ortvalue_from_shape_and_type=lambda *what: Value(what),
        ),
    )  # fmt: skip
    monkeypatch.setattr(sessions, "load_cuda", lambda: None)
    model = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 84)), metadata())
    blob = np.zeros((2, 3, 32, 64), np.float32)
    requests = open_requests(model, "cuda", 2, 1, TensorRT(cuda_graph=graph), blob)
    own = [session for session in made if session.get_providers()[0] == "CUDAExecutionProvider"]
    assert len(own) == 2  # a graph has one caller
    first = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"}) if graph else "CUDAExecutionProvider"
    assert all(session.asked == [first, "CPUExecutionProvider"] for session in own)
    for _ in range(6):
        requests.start(blob, lambda *pair: None)
    requests.finish()
    requests.close()
    assert sum(session.runs for session in own) == 6
    inputs = [value for value in values if value.what == ((2, 3, 32, 64), ("cuda", 0))]
    assert len(inputs) == 2 and sum(len(value.updates) for value in inputs) == 6
    outputs = [session.bound["output0"] for session in own]
    if graph:
        assert all(value.what == ([2, 7, 84], np.float32, "cuda", 0) for value in outputs)
        assert requests.how == "IO binding and a CUDA graph" and all(s.bound.get("copied") for s in own if s.runs)
    else:
        assert outputs == ["cpu", "cpu"]


def test_what_is_asked_of_tensorrt(tmp_path, monkeypatch) -> None:
    """An engine is for the batch that it will run; that of a single image keeps its name."""
    from yolokd_edge.runtimes.onnxruntime_binding import with_cuda_graph

    chain = [("TensorrtExecutionProvider", {"trt_fp16_enable": "True"}), "CPUExecutionProvider"]
    assert with_cuda_graph(chain)[0][1] == {"trt_fp16_enable": "True", "trt_cuda_graph_enable": "True"}
    assert "trt_cuda_graph_enable" not in chain[0][1]
    with pytest.raises(EdgeError, match="by the providers cuda and trt only"):
        with_cuda_graph(["CPUExecutionProvider"])
    model = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 84)), metadata() | {"args": str({"dynamic": True})})
    _, options = engine_options(model, TensorRT(cache=str(tmp_path / "cache"), batch=4))
    assert options["trt_profile_opt_shapes"] == "images:4x3x32x64"
    assert engine_key(model, "fp32", (32, 64)) == engine_key(model, "fp32", (32, 64), 1)
    assert engine_key(model, "fp32", (32, 64), 4) != engine_key(model, "fp32", (32, 64), 1)


# --- the command ----------------------------------------------------------------------------------------------------


def nulls(value: object, path: tuple[str, ...] = ()) -> list[str]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in nulls(inner, (*path, key))]
    return [".".join(path)] if value is None else []


def test_a_curve_from_the_command(dynamic, images, tmp_path, capsys) -> None:
    out = tmp_path / "report.json"
    words = ["throughput", "--model", str(dynamic), "--source", str(images), "--seconds", "0.1", "--repeats", "1"]
    words += ["--batch", "1,2", "--streams", "1,2", "--threads", "1", "--imgsz", "64", "--out", str(out)]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    record = json.loads(out.read_text())
    points = record["results"]["points"]
    assert [(p["batch"], p["streams"], p["threads"]) for p in points] == [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1)]
    assert all(p["images_per_s"] > 0 and p["latency_ms"]["min"] > 0 for p in points)
    assert record["schema"] == "yolokd.throughput/1" and record["runtime"]["io_binding"]
    assert record["protocol"]["images"]["n"] == 4 and not record["protocol"]["images"]["random"]
    unexplained = [p for p in nulls({k: v for k, v in record.items() if k not in ("results", "notes")})
                   if p not in record["unavailable"]]  # fmt: skip
    assert not unexplained
    assert "images/s" in text and text.count("IO binding") == 4 and "*" in text
    assert cli.main(words) == 2  # and nothing is overwritten
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("scenario", ["single", "multi", "offline"])
def test_scenarios_from_the_command(dynamic, scenario, tmp_path, capsys) -> None:
    out = tmp_path / "report.json"
    words = ["--model", str(dynamic), "--random", "--seconds", "0.1", "--time-limit", "0.2", "--out", str(out)]
    assert cli.main(["throughput", "--scenario", scenario, *words]) == 0
    text, record = capsys.readouterr().out, json.loads(out.read_text())
    assert record["results"]["batch"] == {"single": 1, "multi": 8, "offline": 1}[scenario]
    assert "rules on duration and queries: not kept" in text and "are less than the 600 s" in text
    assert record["protocol"]["images"]["random"] and "random: inputs were noise, not images" in text
    assert not record["results"]["validity"]["valid"]


def test_a_server_from_the_command(dynamic, capsys) -> None:
    words = ["throughput", "--model", str(dynamic), "--random", "--scenario", "server", "--seconds", "0.5"]
    assert cli.main([*words, "--rate", "1000000", "--bound", "1"]) == 1
    shown = capsys.readouterr()
    assert "not served" in shown.out and shown.err.strip().splitlines()[-1].startswith(
        "yolokd_edge: 1e+06 queries a second within 1 ms are not served: "
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scenario": "server"}, "needs a rate and a bound"),
        ({"scenario": "server", "rate": 5, "bound": 5, "batch": 2}, "is one image: batch=1"),
        ({"rate": 5}, "are for the scenario server, not for curve"),
        ({"scenario": "all"}, "Unknown scenario 'all': choose curve, single"),
        ({"scenario": "single", "streams": "1,2"}, "with one number of streams"),
        ({"scenario": "offline", "batch": "1,2"}, "with one number of images"),
        ({"scenario": "multi", "batch": 4}, "batch=8 or 1"),
        ({"batch": "0"}, "batch=0 is not a whole number of at least 1"),
        ({"batch": "auto"}, "batch=auto is not a whole number"),
        ({"streams": "two"}, "streams=two is not a whole number of at least 1, all or auto"),
        ({"streams": ","}, "streams is empty"),
        ({"seconds": "long"}, "seconds=long is not a number of at least 0.01"),
        ({"repeats": 1.5}, "repeats=1.5 is not a whole number"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"random": "yes"}, "random=yes is neither True nor False"),
        ({"random": True, "source": "images"}, "give either random or a source"),
        ({"cuda_graph": True}, "cuda_graph is an option of the providers cuda and trt, not of cpu"),
        ({"provider": "tpu"}, "Unknown provider 'tpu'"),
        ({"imgsz": "big"}, "imgsz: 'big' is not a size"),
        ({"fp16": True}, "fp16 is an option of the provider trt"),
    ],
)
def test_bad_options_are_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(EdgeError) as error:
        LoadOptions("model.onnx", **options)
    assert sentence in str(error.value)


def test_a_file_of_one_image_takes_no_batch(tmp_path, capsys) -> None:
    model = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    assert cli.main(["throughput", "--model", str(model), "--random", "--batch", "2"]) == 2
    assert "takes one image at a time: export it with dynamic=True to measure batch=2" in capsys.readouterr().err


def test_every_option_is_on_both_command_lines() -> None:
    names = {option.name for option in dataclasses.fields(LoadOptions)}
    args = vars(cli.parser().parse_args(["throughput", "--imgsz", "32x64"]))
    assert names <= set(args) and args["imgsz"] == (32, 64)
    assert {option.name: args[option.name] for option in dataclasses.fields(LoadOptions) if option.name != "imgsz"} == {
        option.name: option.default for option in dataclasses.fields(LoadOptions) if option.name != "imgsz"
    }
    assert names | {"project", "name", "exist_ok"} == set(inspect.signature(throughput).parameters)


def test_the_verb_keeps_record_and_picture(dynamic, tmp_path, capsys) -> None:
    record = throughput(
        dynamic, random=True, seconds=0.05, repeats=1, batch="1,2", streams="1,2", imgsz=64, project=tmp_path
    )
    folder = tmp_path / "throughput"
    assert json.loads((folder / "throughput.json").read_text()) == json.loads(json.dumps(record))
    picture = cv2.imread(str(folder / "throughput.png"))
    assert picture is not None and picture.std() > 5
    with pytest.raises(EdgeError, match="No images"):
        throughput(dynamic)


def test_a_row_without_enough_samples_has_no_interval() -> None:
    device = Device(ms=400)
    row = make_row(Point(1, None), {}, [saturate(device, blobs(), 1.0, clock=device.clock)])
    assert row["images_per_s_ci95"] is None and row["latency_ms"]["p50"] is None and row["streams_asked"] == "auto"
