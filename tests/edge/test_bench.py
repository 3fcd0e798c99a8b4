"""The measurement: percentiles with known answers, a scripted clock, the record's fields, the host verb, its plots."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.edge import EDGE, collected, colour_frames, entry, export, measured, metadata, set_metadata, toy, trial

from yolokd.latency import drawing
from yolokd.latency.bench import bench
from yolokd_edge import cli
from yolokd_edge.bench import statistics, timing
from yolokd_edge.bench import trial as trials_module
from yolokd_edge.bench.options import PROFILES, BenchOptions, Limits
from yolokd_edge.bench.plan import Plan
from yolokd_edge.bench.record import stability_fields
from yolokd_edge.bench.report import text_table, write_report
from yolokd_edge.bench.results import make_results, versus_first
from yolokd_edge.bench.schema import STAGES
from yolokd_edge.bench.statistics import percentile, samples_needed
from yolokd_edge.bench.timing import Run, warm_up
from yolokd_edge.bench.trial import Trial
from yolokd_edge.bench.verdict import doubts, measure_drift, tail_attribution, two_levels
from yolokd_edge.common import EdgeError
from yolokd_edge.images import read_frames

MS = 1_000_000  # ns


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "p", "rank"),
    [
        (10, 0.5, 5),
        (10, 0.9, 9),
        (10, 0.91, 10),
        (10, 1.0, 10),
        (11, 0.5, 6),
        (1, 0.01, 1),
        (100, 0.07, 7),  # 0.07 * 100 is 7.000000000000001 in floating point
        (100, 0.99, 99),
        (299, 0.99, 297),
        (1000, 0.999, 999),
    ],
)
def test_percentile_is_the_nearest_rank(n: int, p: float, rank: int) -> None:
    samples = np.random.default_rng(n).permutation(n) + 1
    assert percentile(samples, p) == rank
    assert percentile(samples.tolist(), p) == rank


@pytest.mark.parametrize(("samples", "p"), [([], 0.5), ([1], 0.0), ([1], 1.1)])
def test_percentile_of_nothing_is_refused(samples: list[int], p: float) -> None:
    with pytest.raises(ValueError, match="percentile needs samples"):
        percentile(samples, p)


def test_samples_needed_for_a_bound_at_95_percent() -> None:
    assert [samples_needed(p) for p in (0.9, 0.95, 0.99, 0.999)] == [29, 59, 299, 2995]


@pytest.mark.parametrize(("key", "p", "least"), [("p90", 0.9, 29), ("p99", 0.99, 299), ("p999", 0.999, 2995)])
def test_a_percentile_without_enough_samples_is_null(key: str, p: float, least: int) -> None:
    samples = np.arange(1, least + 1) * MS
    assert statistics.summary(samples[:-1])[key] is None
    assert statistics.summary(samples)[key] == math.ceil(p * least)


def test_summary_deletes_no_outlier() -> None:
    samples = [1 * MS] * 99 + [1000 * MS]
    summary = statistics.summary(samples)
    assert (summary["min"], summary["p50"], summary["p95"], summary["max"]) == (1, 1, 1, 1000)
    assert summary["mean"] == pytest.approx(10.99)
    assert summary["p99"] is None and summary["p999"] is None


# --- the loop, on a scripted clock ----------------------------------------------------------------------------------


class Clock:
    """Time that passes only when a scripted detector works."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0


class Scripted:
    """A detector whose k-th frame takes script[k] = (pre, infer, post) ms, half of it on the CPU."""

    def __init__(
        self, clock: Clock, script: list[tuple[int, int, int]], name: str = "", log: list | None = None
    ) -> None:
        self.clock, self.script, self.name, self.log = clock, script, name, [] if log is None else log
        self.threads, self.candidates, self.k = 1, 7, 0

    def spend(self, stage: int) -> None:
        ns = self.script[self.k % len(self.script)][stage] * MS
        self.clock.wall += ns
        self.clock.cpu += ns // 2

    def preprocess(self, frame):
        assert not gc.isenabled()
        self.log.append((self.name, frame))
        self.spend(0)
        return None, None

    def infer(self, blob):
        self.spend(1)

    def postprocess(self, raw, box):
        self.spend(2)
        self.k += 1
        return [None, None]


def measure(detectors: list[Scripted], limits: Limits, frames=("a",), seed: int = 0) -> tuple[list[Run], float]:
    clock = detectors[0].clock
    return timing.measure(detectors, frames, limits, seed, lambda: clock.wall, lambda: clock.cpu)


def test_known_latencies_give_known_percentiles() -> None:
    # Slow preprocessing and slow inference never meet: percentiles of the total are not sums over the stages.
    script = [(1, 10, 1)] * 8 + [(6, 10, 1)] + [(1, 30, 1)]
    clock = Clock()
    runs, seconds = measure([Scripted(clock, script)], Limits(100, 0, 60))
    results = make_results([trial(runs[0], seconds)], missing := {})
    p50, p90, p95 = ({s: results["stages"][s][p] for s in STAGES} for p in ("p50", "p90", "p95"))
    assert p50 == {"pre": 1, "infer": 10, "post": 1, "total": 12}
    assert p90 == {"pre": 1, "infer": 10, "post": 1, "total": 17}
    assert p95 == {"pre": 6, "infer": 30, "post": 1, "total": 32}
    assert results["stages"]["total"]["p99"] is None
    assert missing["results.stages.*.p99"] == "fewer samples than the 299 needed"
    assert (results["n"], results["duration_s"]) == (100, pytest.approx(1.45))
    assert results["fps_from_p50"] == pytest.approx(1000 / 12)
    assert (results["cpu_ratio"], results["candidates_mean"], results["dets_mean"]) == (0.5, 7, 2)
    assert runs[0].series()["total"].dtype == np.int64
    assert runs[0].series()["total"][:10].tolist() == [12 * MS] * 8 + [17 * MS, 32 * MS]


def test_cpu_ratio_counts_the_threads() -> None:
    detector = Scripted(Clock(), [(1, 8, 1)])
    detector.threads = 2
    runs, seconds = measure([detector], Limits(30, 0, 60))
    assert make_results([trial(runs[0], seconds)], {})["cpu_ratio"] == 0.25


@pytest.mark.parametrize(
    ("limits", "frames"),
    [((100, 0.5, 60), 100), ((100, 3.0, 60), 300), ((1000, 3.0, 2.0), 200), ((1, 0, 0.001), 1)],
)
def test_counts_and_time_must_both_be_reached_unless_time_is_up(limits: tuple, frames: int) -> None:
    runs, seconds = measure([Scripted(Clock(), [(1, 8, 1)])], Limits(*limits))
    assert (len(runs[0].times), seconds) == (frames, pytest.approx(frames / 100))


def test_a_run_cut_short_says_so() -> None:
    limits = Limits(100, 0, 0.2)
    runs, seconds = measure([Scripted(Clock(), [(1, 8, 1)])], limits)
    results = make_results([trial(runs[0], seconds)], missing := {})
    reasons = [doubt.text for doubt in doubts([trial(runs[0], seconds)], limits, [], None)]
    assert reasons[0] == "time limit of 0.2 s reached after 20 frames (at least 100 wanted) and 0.2 s (0 s)"
    assert reasons[1] == "contended: the process had the CPU for 50% of the measured time"
    assert results["stages"]["total"]["p50"] == 10 and results["stages"]["total"]["p90"] is None
    assert missing["results.stages.*.p90"] == "fewer samples than the 29 needed"


def rounds(seed: int) -> list[list[tuple[str, str]]]:
    clock, log = Clock(), []
    detectors = [Scripted(clock, [(1, 1, 1)], name, log) for name in "xyz"]
    measure(detectors, Limits(60, 0, 60), ("a", "b", "c", "d", "e"), seed)
    return [log[k : k + 3] for k in range(0, len(log), 3)]


def test_models_are_interleaved_in_a_seeded_random_order() -> None:
    once = rounds(seed=0)
    assert len(once) == 60
    for k, turn in enumerate(once):
        assert sorted(name for name, _ in turn) == ["x", "y", "z"]  # everybody once a round
        assert {frame for _, frame in turn} == {"abcde"[k % 5]}  # on the same frame
    assert len({tuple(name for name, _ in turn) for turn in once}) == 6  # every order occurs
    assert rounds(seed=0) == once != rounds(seed=1)


def test_garbage_collection_is_off_while_measuring_and_on_again_after_an_error() -> None:
    class Broken(Scripted):
        def infer(self, blob):
            raise RuntimeError("broken")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        measure([Broken(Clock(), [(1, 1, 1)])], Limits(10, 0, 1))
    assert gc.isenabled()


# --- the record -----------------------------------------------------------------------------------------------------

FIELDS = """
schema id created_utc tool{name,version,git} command seed
model{file,sha256,bytes,format,opset,ir,task,nc,imgsz,output_contract,precision,int8,teacher,student,train_run,ultralytics_version,license}
accuracy{dataset,split,n_images,map50,map50_95,ci95,conf,iou,source} parity
runtime{python,onnxruntime,numpy,opencv,openvino,ncnn,mnn,litert,torchscript,triton,provider_requested,providers_active,ep_nodes,ep_coverage,fallback,intra_threads,inter_threads,spin,graph_opt,io_binding,trt,cuda}
device{kind,board_model,soc,l4t,jetpack,kernel,cpu_model,cores_online,gpu,mem_total_mb,serial_hash} clocks
protocol{profile,n_min,t_min_s,t_max_s,warmup,repeats,streams,interleaved,images,percentile_rule,gc_disabled}
cold{import_s,session_s,first_run_ms,engine_cache}
results{unit,n,duration_s,stages,ci95_over,fps_from_p50,throughput_fps,candidates_mean,dets_mean,cpu_ratio,nivcsw_per_frame,steal,load_average,runs,across_runs,tail_attribution,versus_first}
memory{rss_mb,peak_rss_mb,sys_ram_delta_mb,gpu_mb,lfb} power thermal
stability{block_medians,drift_ratio,slope_pct_per_min,verdict,reasons} series{file,sha256} cross_check notes unavailable
"""  # noqa: E501
STAGE_FIELDS = {
    "mean",
    "min",
    "p50",
    "p90",
    "p95",
    "p99",
    "p999",
    "max",
    "ci95",
    "upper95",
    "n_eff",
    "n_eff_p99",
    "tau",
}


def nulls(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of every null below a record."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in nulls(v, (*path, k))]
    return [path] if value is None else []


def explained(path: tuple[str, ...], unavailable: dict[str, str]) -> bool:
    patterns = [tuple(key.split(".")) for key in unavailable]
    return any(len(p) == len(path) and all(a in ("*", b) for a, b in zip(p, path, strict=True)) for p in patterns)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for k, frame in enumerate(colour_frames(folder, 4)):
        cv2.imwrite(str(folder / f"{k}.png"), frame)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> list[Path]:
    """A plain export, and one that yolokd has described."""
    folder = tmp_path_factory.mktemp("onnx")
    plain = export(teacher, folder / "plain.onnx", imgsz=64)
    told = {
        "teacher": {"file": "t.pt", "sha256": "12"},
        "accuracy": {"dataset": "d.yaml", "map50": 0.4, "map50_95": 0.3},
    }
    return [plain, set_metadata(plain, folder / "told.onnx", **entry("raw_xywh_scores", **told))]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough frames for p90 and no more."""
    monkeypatch.setitem(PROFILES, "smoke", Limits(40, 0.0, 60.0, 0.1))
    monkeypatch.setattr(trials_module, "WARM_UP_CPU_S", 0.0)


def test_record_has_the_fields_of_the_schema_and_explains_every_null(brief, models, images, tmp_path: Path) -> None:
    frames = read_frames(images)
    records = measured(models, frames, tmp_path / "report.json", threads=1, seed=5)
    assert json.loads((tmp_path / "report.json").read_text()) == records
    wanted = {f.split("{")[0]: set(f.split("{")[1][:-1].split(",")) if "{" in f else None for f in FIELDS.split()}
    for record in records:
        assert set(record) == set(wanted)
        for key, fields in wanted.items():
            assert fields is None or record[key] is None or set(record[key]) == fields, key
        assert set(record["results"]["stages"]) == {"pre", "infer", "post", "total"}
        assert all(set(stage) == STAGE_FIELDS for stage in record["results"]["stages"].values())
        missing = [path for path in nulls(record) if path != ("notes",) and not explained(path, record["unavailable"])]
        assert not missing
    plain, told = records
    assert plain["schema"] == "yolokd.latency/1" and plain["id"] != told["id"] and plain["seed"] == 5
    assert plain["model"]["sha256"] == hashlib.sha256(models[0].read_bytes()).hexdigest()
    assert plain["model"]["bytes"] == models[0].stat().st_size
    assert (plain["model"]["nc"], plain["model"]["imgsz"]) == (10, [64, 64])
    assert plain["accuracy"] is None and plain["model"]["teacher"] is None
    assert told["model"]["teacher"] == {"file": "t.pt", "sha256": "12"}
    assert (told["accuracy"]["map50"], told["accuracy"]["source"]) == (0.4, "model metadata")
    assert plain["runtime"]["providers_active"] == ["CPUExecutionProvider"] and plain["runtime"]["intra_threads"] == 1
    assert plain["protocol"]["interleaved"] and plain["protocol"]["warmup"]["frames"] > 0
    assert plain["protocol"]["images"]["n"] == 4
    assert sorted(plain["protocol"]["images"]["source_hw"]) == sorted([list(f.shape[:2]) for f in frames])
    assert plain["results"]["n"] == 40  # the warm-up's frames are not among them
    assert plain["results"]["stages"]["total"]["p90"] > 0 and plain["results"]["stages"]["total"]["p99"] is None
    assert "only 4 different images, at least 32 are recommended" in plain["stability"]["reasons"]


def test_series_are_kept_beside_the_report_and_never_overwritten(brief, models, images, tmp_path: Path) -> None:
    frames = read_frames(images)
    records, series = collected(models[:1], frames, threads=1)
    npz = write_report(records, series, tmp_path / "new" / "report.json")
    assert records[0]["series"] == {"file": "report.npz", "sha256": hashlib.sha256(npz.read_bytes()).hexdigest()}
    with np.load(npz) as kept:
        names = {"infer", "post", "pre", "run", "start", "switches", "total"}
        assert {k for k in kept if "telemetry" not in k} == {"0/" + name for name in names}
        total = kept["0/total"]
        assert total.dtype == np.int64 and np.array_equal(total, kept["0/pre"] + kept["0/infer"] + kept["0/post"])
        assert statistics.summary(total) == records[0]["results"]["stages"]["total"]
    once = npz.read_bytes()
    with pytest.raises(EdgeError, match="report.json exists already"):
        write_report(records, series, tmp_path / "new" / "report.json")
    assert npz.read_bytes() == once


def test_frames_come_in_a_fixed_shuffled_order(tmp_path: Path) -> None:
    for k in range(40):
        cv2.imwrite(str(tmp_path / f"{k:02d}.png"), np.full((4, 4, 3), k, np.uint8))
    once = [int(f[0, 0, 0]) for f in read_frames(tmp_path, seed=1)]
    assert sorted(once) == list(range(40)) != once
    assert once == [int(f[0, 0, 0]) for f in read_frames(tmp_path, seed=1)]
    assert once != [int(f[0, 0, 0]) for f in read_frames(tmp_path, seed=2)]
    assert len(read_frames(tmp_path, max_frames=8)) == 8


def test_opencv_threads_are_put_back(brief, models, images) -> None:
    before = cv2.getNumThreads()
    collected(models[:1], read_frames(images), threads=1)
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "long"}, "Unknown profile 'long'"),
        ({"time_limit": 0}, "above 0 s"),
        ({"provider": "tpu"}, "'tpu'"),
    ],
)
def test_bad_options_are_refused(options: dict, sentence: str, tmp_path: Path) -> None:
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    with pytest.raises(EdgeError, match=sentence):
        collected([file], [np.zeros((8, 8, 3), np.uint8)], **options)


# --- verdicts on scripted sessions ----------------------------------------------------------------------------------


THOUSAND = Limits(1000, 0, 600)


class Busy(Scripted):
    """A detector that has the CPU for a share of its time and may differ from frame to frame."""

    share = 1.0

    def spend(self, stage: int) -> None:
        ns = round(self.script[self.k % len(self.script)][stage] * MS)
        self.clock.wall += ns
        self.clock.cpu += round(ns * self.share)


def session(infer: list[float], share: float = 1.0) -> Trial:
    """A thousand frames whose inference takes infer[k] ms."""
    detector = Busy(Clock(), [(1, ms, 1) for ms in infer])
    detector.share = share
    runs, seconds = measure([detector], THOUSAND)
    return trial(runs[0], seconds)


def judged(*trials: Trial) -> tuple[str, list[str]]:
    drifts = [d for d in map(measure_drift, (t.series for t in trials)) if d]
    stability = stability_fields(trials, doubts(trials, THOUSAND, drifts, None), drifts, {})
    return stability["verdict"], stability["reasons"]


NOISE = np.random.default_rng(2).normal(0, 0.2, 1000)
STABLE = [10 + v for v in NOISE]


def test_a_stable_session_is_valid() -> None:
    assert judged(session(STABLE)) == ("valid", [])
    figures = make_results([session(STABLE)], {})
    total = figures["stages"]["total"]
    assert total["p50"] == pytest.approx(12, abs=0.02) and total["ci95"]["p50"] == pytest.approx([12, 12], abs=0.04)
    assert total["ci95"]["p50"][0] <= total["p50"] <= total["ci95"]["p50"][1]
    assert total["p99"] == pytest.approx(np.sort(STABLE)[989] + 2)
    assert total["upper95"]["p99"] == pytest.approx(np.sort(STABLE)[995] + 2)  # rank 996 of 1,000
    assert total["tau"] < 1.2 and total["p999"] is None and figures["cpu_ratio"] == 1


def test_a_drifting_session_is_invalid_and_a_slightly_drifting_one_doubtful() -> None:
    rising = session([v + 3 * k / 1000 for k, v in enumerate(STABLE)])
    drift = measure_drift(rising.series)
    assert len(drift.block_medians) == 10 and sorted(drift.block_medians) == drift.block_medians
    assert drift.thirds == pytest.approx(14.5 / 12.5, abs=0.01) and drift.ratio == pytest.approx(
        14.85 / 12.15, abs=0.01
    )
    minutes = sum(rising.series["total"]) / 6e10
    assert drift.slope == pytest.approx(100 * 3 / 13.5 / minutes, rel=0.05)
    verdict, reasons = judged(rising)
    assert verdict == "invalid" and reasons[0].startswith("drift: the last third of a run took +1")
    verdict, reasons = judged(session([v - 0.8 * k / 1000 for k, v in enumerate(STABLE)]))  # one that gets faster
    assert verdict == "valid_with_warnings" and "took -4" in reasons[0]


def test_a_bimodal_session_is_named_with_both_levels() -> None:
    levels = np.where(np.random.default_rng(0).random(1000) < 0.3, 8.0, 0.0)
    mixed = [v + up for v, up in zip(STABLE, levels, strict=True)]
    low, high = (np.median([v for v, up in zip(mixed, levels, strict=True) if up == level]) + 2 for level in (0, 8))
    text = f"bimodal: latency keeps to {low:.2f} ms and {high:.2f} ms ({(levels > 0).mean():.0%})"
    assert judged(session(mixed)) == ("valid_with_warnings", [text])
    assert two_levels(np.array(STABLE)) is None
    assert two_levels(np.where(np.arange(1000) < 50, 30.0, STABLE)) is None  # a tail of 5 % is no level


@pytest.mark.parametrize(
    ("share", "verdict"), [(1.0, "valid"), (0.98, "valid"), (0.95, "valid_with_warnings"), (0.5, "invalid")]
)
def test_a_contended_session(share: float, verdict: str) -> None:
    found, reasons = judged(session(STABLE, share))
    assert found == verdict
    assert reasons == (
        [] if found == "valid" else [f"contended: the process had the CPU for {share:.0%} of the measured time"]
    )


def test_other_doubts() -> None:
    calm = session(STABLE)

    def doubt(**facts: object) -> tuple[str, list[str]]:
        return judged(Trial(calm.series, {**calm.facts, **facts}))

    unsettled = {"frames": 20, "s": 60.0, "stable": False}
    assert doubt(warmup=unsettled)[1][0].startswith("warmup_not_stable")
    assert doubt(load={"before": 40.0, "after": 1.0})[1][0].startswith("busy: load average 40.0")
    assert doubt(steal=0.02) == (
        "valid_with_warnings",
        ["contended: the hypervisor took the CPU away for 2.0% of the time"],
    )
    assert doubt(steal=0.2)[0] == "invalid"
    assert doubt(images={"n": 4})[1] == ["only 4 different images, at least 32 are recommended"]
    fallen = {"fallback": True, "providers_active": ["CPUExecutionProvider"]}
    assert doubt(runtime=fallen)[1] == ["fallback: CPUExecutionProvider ran, not what was asked for"]
    assert (
        doubt(uses_gpu=True, cpu_ratio=0.1, interrupted=0.05)[0] == "valid"
    )  # a thread that waits for a GPU has no CPU to miss


def test_frames_that_others_interrupted_are_seen_where_a_gpu_does_the_work() -> None:
    detector = Busy(Clock(), [(1, ms, 1) for ms in STABLE])
    runs, seconds = measure([detector], THOUSAND)
    runs[0].starts = [(start, k % 5 == 0) for k, (start, _) in enumerate(runs[0].starts)]
    reasons = judged(trial(runs[0], seconds, uses_gpu=True))[1]
    assert reasons == ["contended: other programs interrupted 20% of the frames"]
    assert judged(trial(runs[0], seconds)) == ("valid", [])  # on the CPU the time itself tells


def test_runs_are_pooled_and_kept_apart() -> None:
    fast, slow = session([10.0] * 10), session([12.0] * 10)
    figures = make_results([fast, slow, fast], {})
    assert figures["n"] == 3000 and figures["stages"]["total"]["p50"] == 12
    assert [run["stages"]["total"]["p50"] for run in figures["runs"]] == [12, 14, 12]
    assert figures["across_runs"]["total"]["p50"] == {"median": 12, "min": 12, "max": 14}
    assert figures["stages"]["total"]["tau"] == 1  # runs differ, frames within one do not


def test_ratio_to_the_first_model_is_taken_run_by_run() -> None:
    levels = (10.0, 20.0, 40.0, 15.0, 30.0)
    base = [session([level - 2] * 10) for level in levels]
    other = [session([1.1 * level - 2] * 10) for level in levels]
    versus = versus_first(other, base, {})
    assert versus["p50"]["ratio"] == pytest.approx(1.1) and versus["p50"]["ci95"] == pytest.approx([1.1, 1.1])
    few: dict[str, str] = {}
    assert versus_first(other[:4], base[:4], few)["p50"]["ci95"] is None  # their extremes hold 87.5 %, not 95
    assert few["results.versus_first.p50.ci95"] == "fewer than five runs"


def test_tail_is_attributed_to_what_happened_during_its_frames() -> None:
    calm = session([10.0] * 99 + [20.0])
    total, start = calm.series["total"], calm.series["start"]
    slow = np.flatnonzero(total > 15 * MS)
    switches = np.zeros_like(total)
    switches[slow[:4]] = 1
    switches[0] = 1
    ticks = np.sort(start[slow[[0, 9]]] + MS)
    found = tail_attribution([Trial({**calm.series, "switches": switches}, calm.facts)], 12.0, ticks)
    assert found == {
        "n": 10,
        "involuntary_switch": 0.4,
        "monitor_tick": 0.2,
        "gc": 0.0,
        "involuntary_switch_all_frames": 0.005,
    }
    assert tail_attribution([calm], None, ticks) is None


def test_warm_up_ends_when_three_windows_agree_or_at_the_cap() -> None:
    clock = Clock()
    falling = [(1.0, max(30.0 - k / 10, 10.0), 1.0) for k in range(400)] + [(1.0, 10.0, 1.0)] * 5000
    detector = Busy(clock, falling)
    found = warm_up([detector], ["a"], 0, 2.0, 60.0, lambda: clock.wall)
    assert found["stable"] and 290 <= found["frames"] <= 450 and found["s"] == pytest.approx(clock.wall / 1e9)
    wild = Busy(clock := Clock(), [(1.0, ms, 1.0) for ms in [5.0] * 70 + [50.0] * 40])
    found = warm_up([wild], ["a"], 0, 2.0, 10.0, lambda: clock.wall)
    assert not found["stable"] and 10 <= found["s"] < 12
    quick = Busy(clock := Clock(), [(1.0, 3.0, 1.0)])
    assert warm_up([quick], ["a"], 0, 2.0, 60.0, lambda: clock.wall)["s"] == pytest.approx(2, abs=0.3)


# --- processes of their own, sweeps ---------------------------------------------------------------------------------


def test_runs_streams_and_threads_are_swept_in_new_processes(models, images, tmp_path: Path) -> None:
    options = {"time_limit": 0.3, "repeats": 2, "threads": "1,2", "streams": 2}
    records = measured(models[:1], images, tmp_path / "report.json", **options)
    assert [r["runtime"]["intra_threads"] for r in records] == [1, 2]
    for k, record in enumerate(records):
        assert (record["protocol"]["repeats"], record["protocol"]["streams"]) == (2, 2)
        assert len(record["results"]["runs"]) == 4
        assert record["results"]["n"] == sum(run["n"] for run in record["results"]["runs"])
        assert record["cold"]["import_s"] > 0 and 20 < record["memory"]["rss_mb"] < 400  # a process without torch
        assert record["results"]["throughput_fps"] > 0
        with np.load(tmp_path / "report.npz") as kept:
            assert sorted(set(kept[f"{k}/run"])) == [0, 1, 2, 3] and len(kept[f"{k}/total"]) == record["results"]["n"]
        missing = [p for p in nulls(record) if p != ("notes",) and not explained(p, record["unavailable"])]
        assert not missing


def test_models_apart_are_alone_in_their_processes_which_take_turns(images, tmp_path: Path) -> None:
    files = [toy(tmp_path / f"{name}.onnx", np.zeros((1, 7, 42)), metadata()) for name in ("one", "two")]
    records = measured(files, images, tmp_path / "report.json", time_limit=0.2, repeats=2, apart=True, threads=1)
    assert [r["model"]["file"] for r in records] == ["one.onnx", "two.onnx"]
    for record in records:
        assert not record["protocol"]["interleaved"] and len(record["results"]["runs"]) == 2
        assert record["memory"]["rss_mb"] > 0, "nothing else is in the process"
    with np.load(tmp_path / "report.npz") as kept:
        begun = [[int(kept[f"{k}/start"][kept[f"{k}/run"] == run][0]) for run in (0, 1)] for k in (0, 1)]
    assert max(own[0] for own in begun) < min(own[1] for own in begun), "each has had a run before the next round"


def test_an_error_of_a_measuring_process_is_one_of_ours(models, images, tmp_path: Path, monkeypatch, capfd) -> None:
    arguments = ["bench", "--model", str(models[0]), "--source", str(images), "--repeats", "2"]
    assert cli.main([*arguments, "--provider", "cuda"]) == 4
    assert "CUDAExecutionProvider is not in this ONNX Runtime" in capfd.readouterr().err
    assert cli.main([*arguments, "--imgsz", "32"]) == 2
    assert "has a fixed input of 64x64" in capfd.readouterr().err
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert cli.main(arguments) == 2
    assert "A measuring process ended with code 1" in capfd.readouterr().err


def worker_that(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every new Python process run some code first."""
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))


def bench_command(model: Path, images: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EDGE, "bench", "--model", model, "--source", images, "--out", out, "--threads", "1"]
    return subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)


NOISE_ON_STDOUT = """
import gc
print("Loaded a plugin")
disable = gc.disable
gc.disable = lambda: (print("x" * 100_000), disable())  # while frames are timed, more than a pipe holds
"""


def test_what_a_library_prints_stops_no_measurement(images, tmp_path: Path, monkeypatch) -> None:
    model = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    worker_that(tmp_path, monkeypatch, NOISE_ON_STDOUT)
    run = bench_command(model, images, tmp_path / "report.json", "--repeats", "2", "--time-limit", "0.2")
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads((tmp_path / "report.json").read_text())[0]["protocol"]["repeats"] == 2


FAKE_TENSORRT = """
import time, onnxruntime
from pathlib import Path
from types import SimpleNamespace

EVERY = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

class Session(onnxruntime.InferenceSession):
    def __init__(self, path, options, providers, **more):
        engine = Path(providers[0][1]["trt_engine_cache_path"]) / "x.engine"
        if not engine.exists():
            time.sleep(0.3)
            engine.open("x").close()  # fails where another process builds as well
        super().__init__(path, options, providers=EVERY[2:])

    def get_providers(self):
        return EVERY

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name=EVERY[0], get_nodes=lambda: [0])]

onnxruntime.InferenceSession, onnxruntime.get_available_providers = Session, lambda: EVERY
"""


@pytest.mark.parametrize("how", [["--repeats", "2", "--streams", "2"], ["--quick", "--power", "--idle", "0"]])
def test_an_engine_is_built_once_before_measuring_and_said_so(images, tmp_path: Path, monkeypatch, how) -> None:
    model = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    worker_that(tmp_path, monkeypatch, FAKE_TENSORRT)
    how = [*how, "--provider", "trt", "--cache", str(tmp_path / "engines"), "--time-limit", "0.2"]
    run = bench_command(model, images, tmp_path / "report.json", *how)
    assert run.returncode == 0 and run.stderr.count("Building a TensorRT engine") == 1, run.stderr
    (record,) = json.loads((tmp_path / "report.json").read_text())
    trt = record["runtime"]["trt"]
    assert trt["engine_cache"] == "hit" and trt["build_s"] >= 0.3
    assert "runtime.trt.build_s" not in record["unavailable"]
    run = bench_command(model, images, tmp_path / "again.json", *how)
    assert run.returncode == 0 and "Building" not in run.stderr
    (record,) = json.loads((tmp_path / "again.json").read_text())
    assert record["runtime"]["trt"]["build_s"] is None
    assert record["unavailable"]["runtime.trt.build_s"] == "the engine came from the cache"


def test_a_file_without_a_fixed_size_is_swept_over_sizes(teacher: Path, images, tmp_path: Path) -> None:
    file = export(teacher, tmp_path / "dynamic.onnx", imgsz=64, dynamic=True)
    options = {"threads": 1, "time_limit": 0.2, "imgsz": "64,96x128", "quick": True}
    records = measured([file], images, **options)
    assert [r["model"]["imgsz"] for r in records] == [[64, 64], [96, 128]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threads": "1,x"}, "Threads must be whole numbers of at least 1, not 'x'"),
        ({"threads": 1.5}, "not 1.5"),
        ({"streams": 0}, "Streams must be"),
        ({"imgsz": "1x2x3"}, "An input size is one number or HEIGHTxWIDTH, not '1x2x3'"),
        ({"repeats": 0}, "number of runs must be at least 1, not 0"),
        ({"repeats": 2}, "give the path of the images"),
        ({"provider": "cpu,tpu"}, "Unknown provider 'tpu'"),
        ({"provider": ","}, "A sweep over nothing"),
    ],
)
def test_bad_sweeps_are_refused(options: dict, sentence: str, tmp_path: Path) -> None:
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    with pytest.raises(EdgeError, match=sentence):
        collected([file], [np.zeros((8, 8, 3), np.uint8)], **options)


# --- the host verb and plots ----------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None and image.shape[0] > 400 and image.std() > 5  # a figure, not a blank page
    return image


def test_bench_keeps_every_run_in_a_folder_of_its_own(brief, models, images, tmp_path: Path, capsys) -> None:
    records = bench(models, images, threads=1, project=tmp_path, quick=True)
    shown = capsys.readouterr().out
    again = bench(models[0], images, threads=1, project=tmp_path, quick=True)
    folders = sorted(p.name for p in tmp_path.iterdir())
    assert len(folders) == 2
    first = tmp_path / "bench"
    assert sorted(p.name for p in first.iterdir()) == ["latency.png", "report.json", "report.npz"]
    assert json.loads((first / "report.json").read_text()) == records
    assert [r["model"]["file"] for r in records] == ["plain.onnx", "told.onnx"] and len(again) == 1
    assert "plain.onnx" in shown and "cpu_ratio" in shown and str(first) in shown
    assert records[0]["memory"]["rss_mb"] is None  # this process holds far more than the model
    picture(first / "latency.png")
    bench(models[0], images, threads=1, project=tmp_path, exist_ok=True, quick=True)
    assert len(json.loads((first / "report.json").read_text())) == 1


@pytest.mark.parametrize(
    ("source", "sentence"), [("data.yaml", "is a data set file"), ("nowhere", "no image file or folder")]
)
def test_bench_leaves_nothing_behind_when_refused(source: str, sentence: str, models, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=sentence):
        bench(models, tmp_path / source, project=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_table_marks_what_is_unknown() -> None:
    total = {"p50": 2.0, "p90": 3.0, "p99": None, "ci95": {"p50": [1.9, 2.1], "p99": None}}
    stages = {"pre": {"p50": 0.1}, "infer": {"p50": 1.5}, "post": {"p50": 0.4}, "total": total}
    record = {
        "model": {"file": "a.onnx", "bytes": 2_500_000, "precision": "fp32", "imgsz": [32, 64]},
        "runtime": {"providers_active": ["CPUExecutionProvider"], "intra_threads": 1},
        "protocol": {"streams": 2},
        "results": {"stages": stages, "fps_from_p50": 500.0, "cpu_ratio": 0.99},
        "stability": {"verdict": "valid_with_warnings", "reasons": ["only 4 images"]},
    }
    head, row, why = text_table([record]).splitlines()
    cells = ["2.5", "fp32", "0.10", "1.50", "0.40", "2.00", "1.90..2.10", "3.00", "-", "500.00", "0.99"]
    assert row.split()[-12:] == [*cells, "valid_with_warnings"] and len(head) == len(row)
    assert "cpu 32x64, threads 1, streams 2" in row
    assert why == "a.onnx: only 4 images"
    record["results"]["ci95_over"] = "frames of one process"
    assert "95 %: holds within one process only" in text_table([record]).splitlines()[2]
    record["runtime"]["trt"] = {"fp16": True}
    assert "cpu fp16 32x64, threads 1" in text_table([record])


POINTS = [
    {"name": "teacher", "map50": 0.656, "map50_95": 0.509, "p50_ms": 4.6, "p90_ms": 4.9, "params": 2_584_102},
    {"name": "student", "map50": 0.267, "map50_95": 0.19, "p50_ms": 1.9, "p90_ms": 2.2},
    {"name": "distilled", "map50": 0.284, "map50_95": None, "p50_ms": 1.9, "p90_ms": None},
    {"name": "distilled longer", "map50": 0.28, "map50_95": 0.2, "p50_ms": 1.91, "p90_ms": 2.0, "params": 861_000},
]


def test_accuracy_latency_draws_labels_that_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []
    place = drawing.place_label
    monkeypatch.setattr(drawing, "place_label", lambda *a: placed.append(place(*a)) or placed[-1])
    path = drawing.accuracy_latency(POINTS, tmp_path / "new" / "plot.png")
    picture(path)
    texts = [boxes[0] for boxes in placed]
    assert len(texts) == len(POINTS)
    assert not any(a.overlaps(b) for k, a in enumerate(texts) for b in texts[:k])
    height, width = picture(path).shape[:2]
    assert all(0 <= b.x0 and b.x1 <= width and 0 <= b.y0 and b.y1 <= height for b in texts)


def test_accuracy_latency_takes_a_single_useless_model_and_refuses_none(tmp_path: Path) -> None:
    nought = {"name": "one", "map50": 0.0, "map50_95": 0.0, "p50_ms": 1.0, "p90_ms": 1.5}
    picture(drawing.accuracy_latency([nought], tmp_path / "one.png"))
    with pytest.raises(ValueError, match="at least one point"):
        drawing.accuracy_latency([], tmp_path / "none.png")


# --- the options, written once --------------------------------------------------------------------------------------


def test_every_option_is_on_both_command_lines_and_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    names = {option.name for option in dataclasses.fields(BenchOptions)}
    assert names | {"project", "name", "exist_ok"} == set(inspect.signature(bench).parameters)
    args = vars(cli.parser().parse_args(["bench", "--time-limit", "2", "--model", "a.onnx", "b.onnx"]))
    assert names <= set(args) and (args["time_limit"], args["models"]) == (2, ["a.onnx", "b.onnx"])
    defaults = {option.name: option.default for option in dataclasses.fields(BenchOptions)}
    assert all(args[name] == defaults[name] for name in names - {"models", "source", "time_limit"})
    options = BenchOptions(
        ["a.onnx"], "images", profile=Limits(9, 1.0, 2.0), imgsz="32x64,64", threads="1,2", fp16=False
    )
    for cell in options.combinations():
        plan = Plan(cell, options.limits, "now", ["bench"], repeat=3, stream=1, build=True)
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quick": "no"}, "quick=no is neither True nor False"),
        ({"power": 1}, "power=1 is neither"),
        ({"idle": "long"}, "idle=long is not a number of seconds"),
        ({"time_limit": -1}, "time_limit=-1 is not a number of seconds"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"seed": -1}, "seed=-1 is not a whole number"),
        ({"repeats": 1.5}, "at least 1, not 1.5"),
    ],
)
def test_bad_options_are_refused_wherever_they_come_from(options: dict, sentence: str) -> None:
    with pytest.raises(EdgeError, match=re.escape(sentence)):
        BenchOptions(["a.onnx"], "images", **options)
