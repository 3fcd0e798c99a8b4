"""The measurement: percentiles with known answers, a scripted clock, the record's fields, the host verb, its plots."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from edge_for_tests import colour_frames, entry, export, metadata, set_metadata, toy, trial
from yolokd.deploy import yolokd_edge as edge

from yolokd import report
from yolokd.verbs.bench import bench

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
    assert edge.percentile(samples, p) == rank
    assert edge.percentile(samples.tolist(), p) == rank


@pytest.mark.parametrize(("samples", "p"), [([], 0.5), ([1], 0.0), ([1], 1.1)])
def test_percentile_of_nothing_is_refused(samples: list[int], p: float) -> None:
    with pytest.raises(ValueError, match="percentile needs samples"):
        edge.percentile(samples, p)


def test_samples_needed_for_a_bound_at_95_percent() -> None:
    assert [edge.samples_needed(p) for p in (0.9, 0.95, 0.99, 0.999)] == [29, 59, 299, 2995]


@pytest.mark.parametrize(("key", "p", "least"), [("p90", 0.9, 29), ("p99", 0.99, 299), ("p999", 0.999, 2995)])
def test_a_percentile_without_enough_samples_is_null(key: str, p: float, least: int) -> None:
    samples = np.arange(1, least + 1) * MS
    assert edge.summary(samples[:-1])[key] is None
    assert edge.summary(samples)[key] == math.ceil(p * least)


def test_summary_deletes_no_outlier() -> None:
    samples = [1 * MS] * 99 + [1000 * MS]
    summary = edge.summary(samples)
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


def measure(
    detectors: list[Scripted], limits: edge.Limits, frames=("a",), seed: int = 0
) -> tuple[list[edge.Run], float]:
    clock = detectors[0].clock
    return edge.measure(detectors, frames, limits, seed, lambda: clock.wall, lambda: clock.cpu)


def test_known_latencies_give_known_percentiles() -> None:
    # Slow preprocessing and slow inference never meet: percentiles of the total are not sums over the stages.
    script = [(1, 10, 1)] * 8 + [(6, 10, 1)] + [(1, 30, 1)]
    clock = Clock()
    runs, seconds = measure([Scripted(clock, script)], edge.Limits(100, 0, 60))
    results = edge.results([trial(runs[0], seconds)], missing := {})
    p50, p90, p95 = ({s: results["stages"][s][p] for s in edge.STAGES} for p in ("p50", "p90", "p95"))
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
    runs, seconds = measure([detector], edge.Limits(30, 0, 60))
    assert edge.results([trial(runs[0], seconds)], {})["cpu_ratio"] == 0.25


@pytest.mark.parametrize(
    ("limits", "frames"),
    [((100, 0.5, 60), 100), ((100, 3.0, 60), 300), ((1000, 3.0, 2.0), 200), ((1, 0, 0.001), 1)],
)
def test_counts_and_time_must_both_be_reached_unless_time_is_up(limits: tuple, frames: int) -> None:
    runs, seconds = measure([Scripted(Clock(), [(1, 8, 1)])], edge.Limits(*limits))
    assert (len(runs[0].times), seconds) == (frames, pytest.approx(frames / 100))


def test_a_run_cut_short_says_so() -> None:
    limits = edge.Limits(100, 0, 0.2)
    runs, seconds = measure([Scripted(Clock(), [(1, 8, 1)])], limits)
    results = edge.results([trial(runs[0], seconds)], missing := {})
    reasons = [doubt.text for doubt in edge.doubts([trial(runs[0], seconds)], limits, [], None)]
    assert reasons[0] == "time limit of 0.2 s reached after 20 of 100 frames"
    assert reasons[1] == "contended: the process had the CPU for 50% of the measured time"
    assert results["stages"]["total"]["p50"] == 10 and results["stages"]["total"]["p90"] is None
    assert missing["results.stages.*.p90"] == "fewer samples than the 29 needed"


def rounds(seed: int) -> list[list[tuple[str, str]]]:
    clock, log = Clock(), []
    detectors = [Scripted(clock, [(1, 1, 1)], name, log) for name in "xyz"]
    measure(detectors, edge.Limits(60, 0, 60), ("a", "b", "c", "d", "e"), seed)
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
        measure([Broken(Clock(), [(1, 1, 1)])], edge.Limits(10, 0, 1))
    assert gc.isenabled()


# --- the record -----------------------------------------------------------------------------------------------------

FIELDS = """
schema id created_utc tool{name,version,git} command seed
model{file,sha256,bytes,format,opset,ir,task,nc,imgsz,output_contract,precision,int8,teacher,student,train_run,ultralytics_version,license}
accuracy{dataset,split,n_images,map50,map50_95,ci95,conf,iou,source} parity
runtime{python,onnxruntime,numpy,opencv,provider_requested,providers_active,ep_nodes,ep_coverage,fallback,intra_threads,inter_threads,spin,graph_opt,io_binding,trt,cuda}
device{kind,board_model,soc,l4t,jetpack,kernel,cpu_model,cores_online,gpu,mem_total_mb,serial_hash} clocks
protocol{profile,n_min,t_min_s,t_max_s,warmup,repeats,streams,interleaved,images,percentile_rule,gc_disabled}
cold{import_s,session_s,first_run_ms,engine_cache}
results{unit,n,duration_s,stages,fps_from_p50,throughput_fps,candidates_mean,dets_mean,cpu_ratio,nivcsw_per_frame,steal,load_average,runs,across_runs,tail_attribution,versus_first}
memory{rss_mb,peak_rss_mb,sys_ram_delta_mb,gpu_mb,lfb} power thermal
stability{block_medians,drift_ratio,slope_pct_per_min,verdict,reasons} series{file,sha256} cross_check notes unavailable
"""  # noqa: E501
STAGE_FIELDS = {"mean", "min", "p50", "p90", "p95", "p99", "p999", "max", "ci95", "upper95", "n_eff", "n_eff_p99", "tau"}


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
    monkeypatch.setitem(edge.PROFILES, "smoke", edge.Limits(40, 0.0, 60.0, 0.1))
    monkeypatch.setattr(edge, "WARM_UP_CPU_S", 0.0)


def test_record_has_the_fields_of_the_schema_and_explains_every_null(brief, models, images, tmp_path: Path) -> None:
    frames = edge.read_frames(images)
    records = edge.bench(models, frames, tmp_path / "report.json", threads=1, seed=5)
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
    assert plain["protocol"]["interleaved"] and plain["protocol"]["warmup"]["frames"] >= edge.WARM_UP_FRAMES
    assert plain["protocol"]["images"]["n"] == 4
    assert sorted(plain["protocol"]["images"]["source_hw"]) == sorted([list(f.shape[:2]) for f in frames])
    assert plain["results"]["n"] == 40  # the warm-up's frames are not among them
    assert plain["results"]["stages"]["total"]["p90"] > 0 and plain["results"]["stages"]["total"]["p99"] is None
    assert "only 4 different images, at least 32 are recommended" in plain["stability"]["reasons"]


def test_series_are_kept_beside_the_report_and_never_overwritten(brief, models, images, tmp_path: Path) -> None:
    frames = edge.read_frames(images)
    records, series = edge.collect(models[:1], frames, threads=1)
    npz = edge.write_report(records, series, tmp_path / "new" / "report.json")
    assert records[0]["series"] == {"file": "report.npz", "sha256": hashlib.sha256(npz.read_bytes()).hexdigest()}
    with np.load(npz) as kept:
        names = {"infer", "post", "pre", "run", "start", "switches", "total"}
        assert {k for k in kept if "telemetry" not in k} == {"0/" + name for name in names}
        total = kept["0/total"]
        assert total.dtype == np.int64 and np.array_equal(total, kept["0/pre"] + kept["0/infer"] + kept["0/post"])
        assert edge.summary(total) == records[0]["results"]["stages"]["total"]
    once = npz.read_bytes()
    with pytest.raises(edge.EdgeError, match="report.json exists already"):
        edge.write_report(records, series, tmp_path / "new" / "report.json")
    assert npz.read_bytes() == once


def test_frames_come_in_a_fixed_shuffled_order(tmp_path: Path) -> None:
    for k in range(40):
        cv2.imwrite(str(tmp_path / f"{k:02d}.png"), np.full((4, 4, 3), k, np.uint8))
    once = [int(f[0, 0, 0]) for f in edge.read_frames(tmp_path, seed=1)]
    assert sorted(once) == list(range(40)) != once
    assert once == [int(f[0, 0, 0]) for f in edge.read_frames(tmp_path, seed=1)]
    assert once != [int(f[0, 0, 0]) for f in edge.read_frames(tmp_path, seed=2)]
    assert len(edge.read_frames(tmp_path, most=8)) == 8


def test_opencv_threads_are_put_back(brief, models, images) -> None:
    before = cv2.getNumThreads()
    edge.collect(models[:1], edge.read_frames(images), threads=1)
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "long"}, "Unknown profile 'long'"),
        ({"time_limit_s": 0}, "above 0 s"),
        ({"provider": "tpu"}, "'tpu'"),
    ],
)
def test_bad_options_are_refused(options: dict, sentence: str, tmp_path: Path) -> None:
    file = toy(tmp_path / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    with pytest.raises(edge.EdgeError, match=sentence):
        edge.collect([file], [np.zeros((8, 8, 3), np.uint8)], **options)


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
    with pytest.raises(edge.EdgeError, match=sentence):
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
    head, row, why = edge.table([record]).splitlines()
    cells = ["2.5", "fp32", "0.10", "1.50", "0.40", "2.00", "1.90..2.10", "3.00", "-", "500.00", "0.99"]
    assert row.split()[-12:] == [*cells, "valid_with_warnings"] and len(head) == len(row)
    assert "cpu 32x64, threads 1, streams 2" in row
    assert why == "a.onnx: only 4 images"


POINTS = [
    {"name": "teacher", "map50": 0.656, "map50_95": 0.509, "p50_ms": 4.6, "p90_ms": 4.9, "params": 2_584_102},
    {"name": "student", "map50": 0.267, "map50_95": 0.19, "p50_ms": 1.9, "p90_ms": 2.2},
    {"name": "distilled", "map50": 0.284, "map50_95": None, "p50_ms": 1.9, "p90_ms": None},
    {"name": "distilled longer", "map50": 0.28, "map50_95": 0.2, "p50_ms": 1.91, "p90_ms": 2.0, "params": 861_000},
]


def test_accuracy_latency_draws_labels_that_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []
    place = report._place
    monkeypatch.setattr(report, "_place", lambda *a: placed.append(place(*a)) or placed[-1])
    path = report.accuracy_latency(POINTS, tmp_path / "new" / "plot.png")
    picture(path)
    texts = [boxes[0] for boxes in placed]
    assert len(texts) == len(POINTS)
    assert not any(a.overlaps(b) for k, a in enumerate(texts) for b in texts[:k])
    height, width = picture(path).shape[:2]
    assert all(0 <= b.x0 and b.x1 <= width and 0 <= b.y0 and b.y1 <= height for b in texts)


def test_accuracy_latency_takes_a_single_useless_model_and_refuses_none(tmp_path: Path) -> None:
    nought = {"name": "one", "map50": 0.0, "map50_95": 0.0, "p50_ms": 1.0, "p90_ms": 1.5}
    picture(report.accuracy_latency([nought], tmp_path / "one.png"))
    with pytest.raises(ValueError, match="at least one point"):
        report.accuracy_latency([], tmp_path / "none.png")
