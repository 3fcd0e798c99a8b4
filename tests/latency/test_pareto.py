"""`yolokd pareto` and `yolokd plot`: who is on the front, what is left out and why, the pictures."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pytest
from helpers.cli import contents, refusal
from helpers.reports import record, write

from yolokd import cli
from yolokd.errors import UsageError
from yolokd.latency import plots
from yolokd.latency.intervals import BETTER
from yolokd.latency.pareto import pareto
from yolokd.latency.plot_report import plot


def model(name: str, p50: float, map50_95: float, **changes):
    return record(p50, model__file=f"{name}.onnx", accuracy__map50_95=map50_95, **changes)


def front(result) -> list[str]:
    return [p["name"] for p in result["points"] if p["front"]]


def is_picture(path) -> bool:
    image = cv2.imread(str(path))
    return image is not None and min(image.shape[:2]) > 200 and image.std() > 5


def test_the_front(tmp_path):
    """b costs more than a for less; d equals c in accuracy and costs more; equal points beat neither."""
    names = {"a": (5, 0.30), "b": (6, 0.29), "c": (8, 0.40), "d": (9, 0.40), "e": (20, 0.5), "f": (20, 0.5)}
    files = [write(tmp_path / f"{n}.json", model(n, *point)) for n, point in names.items()]
    result = pareto(files)
    assert front(result) == ["a", "c", "e", "f"]
    assert [p["x"] for p in result["points"]] == [5, 6, 8, 9, 20, 20] and result["left_out"] == []
    assert front(pareto([tmp_path], metric="total.p99")) == ["a", "c", "e", "f"], "a folder; p99 is twice p50 in all"


def test_an_engine_in_half_precision_is_named_so(tmp_path):
    full, half = (model("m", p50, 0.3, runtime__trt__fp16=fp16) for p50, fp16 in ((8, False), (5, True)))
    result = pareto([write(tmp_path / "r.json", full, half)])
    assert [p["name"] for p in result["points"]] == ["m fp16", "m"]
    assert [p["label"] for p in result["points"]] == [
        "m.onnx (cpu fp16, 160x160, threads 1)",
        "m.onnx (cpu, 160x160, threads 1)",
    ]


def test_each_device_has_its_own_front(tmp_path):
    slow = model("slow", 50, 0.3, device__board_model="Pi")
    result = pareto([write(tmp_path / "r.json", model("fast", 5, 0.4), slow)])
    assert front(result) == ["fast", "slow"]
    assert {p["device"] for p in result["points"]} == {"CPU X", "Pi"}


def test_energy_and_size(tmp_path):
    known = model("known", 5, 0.4, power__j_per_frame=0.05)
    report = write(tmp_path / "r.json", known, model("unknown", 5, 0.4, model__bytes=1_000_000))
    energy = pareto([report], x="energy")
    assert [p["x"] for p in energy["points"]] == [0.05]
    assert energy["left_out"][0]["why"] == "no power.j_per_frame: no rail"
    assert sorted(p["x"] for p in pareto([report], x="size", y="map50")["points"]) == [1.0, 3.3], "MB"


def test_an_invalid_latency_is_left_out_and_its_size_is_not(tmp_path):
    report = write(tmp_path / "r.json", model("a", 5, 0.4), model("b", 4, 0.4, stability__verdict="invalid"))
    assert [p["name"] for p in pareto([report])["points"]] == ["a"]
    assert len(pareto([report], x="size")["points"]) == 2


def test_outputs_and_nothing_written_over(tmp_path, capsys):
    report = write(tmp_path / "r.json", model("a", 5, 0.3), model("b", 50, 0.4))
    out = {key: tmp_path / name for key, name in {"out": "p.png", "json": "p.json", "md": "p.md"}.items()}
    assert cli.main(["pareto", str(report), *(f"--{k}={v}" for k, v in out.items())]) == 0
    assert is_picture(out["out"])
    assert json.loads(out["json"].read_text())["points"][1]["name"] == "b"
    assert "| CPU X | b.onnx (cpu, 160x160, threads 1) | 50 | 40.0 | yes |" in out["md"].read_text()
    assert "p.png exists already" in refusal(capsys, tmp_path, "pareto", report, f"out={out['out']}")
    assert len(pareto([tmp_path])["points"]) == 2, "p.json in the folder is no report"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["x=speed"], "x=speed"),
        (["y=map75"], "y=map75"),
        (["metric=total.p42"], "total.p42"),
        (["metric=total.p50,total.p99"], "one figure"),
        (["out=picture.jpg"], "not a PNG"),
        (["out=gone/p.png"], "folder does not exist"),
        (["x=energy"], "no power.j_per_frame: no rail"),
        (["other.json"], "of schema None"),
        (["gone.json"], "gone.json does not exist"),
        (["z=1"], "unknown option 'z'"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.json", model("a", 5, 0.3))
    (tmp_path / "other.json").write_text("{}")
    assert named in refusal(capsys, tmp_path, "pareto", "r.json", *options)


def test_no_report_at_all(tmp_path, capsys):
    assert "no reports" in refusal(capsys, tmp_path, "pareto")
    assert "no reports" in refusal(capsys, tmp_path, "pareto", tmp_path)


# --- Pictures ---


@pytest.fixture
def measured(tmp_path):
    """A report of two models, the first with telemetry, with its raw samples."""
    random, arrays, n = np.random.default_rng(0), {}, 400
    for k in range(2):
        total = (random.normal(10, 0.3, n) * 1e6).astype(np.int64)
        arrays |= {
            f"{k}/{stage}": total * share // 10
            for stage, share in {"pre": 1, "infer": 8, "post": 1, "total": 10}.items()
        }
        arrays[f"{k}/start"] = np.cumsum(total) + 10**12
        arrays[f"{k}/run"] = np.arange(n) // 200
    clock = np.linspace(10**12, 10**12 + 4e9, 40)
    arrays["0/telemetry/tj_c"] = np.stack([clock, np.linspace(45, 70, 40)], 1)
    arrays["0/telemetry/gpu_mhz"] = np.stack([clock, np.full(40, 1300.0)], 1)
    np.savez(tmp_path / "r.npz", **arrays)
    series = {"file": "r.npz", "sha256": hashlib.sha256((tmp_path / "r.npz").read_bytes()).hexdigest()}
    return write(tmp_path / "r.json", *(model(name, 10, 0.3, series=series) for name in ("a", "b")))


def test_plot_draws_a_report(measured, tmp_path, capsys):
    pictures = plot(measured)
    assert [p.name for p in pictures] == ["r-latency.png", "r-time-0.png", "r-time-1.png"]
    assert all(map(is_picture, pictures))
    tall, low = (cv2.imread(str(p)).shape[0] for p in pictures[1:])
    assert tall > low, "temperature and clocks have panels of their own"
    assert "r-latency.png exists already" in refusal(capsys, tmp_path, "plot", measured)
    (tmp_path / "elsewhere").mkdir()
    assert cli.main(["plot", str(measured), f"out={tmp_path / 'elsewhere'}"]) == 0
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


def test_plot_refuses_a_file_as_its_folder(measured, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("mine")
    said = refusal(capsys, tmp_path, "plot", measured, f"out={tmp_path / 'a.yaml'}")
    assert "a.yaml is not a folder" in said


def test_plot_refuses_other_samples(measured, tmp_path, capsys):
    samples = tmp_path / "r.npz"
    samples.write_bytes(samples.read_bytes() + b" ")
    assert "checksum differs" in refusal(capsys, tmp_path, "plot", measured)
    samples.unlink()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="no raw samples"):
        plot(measured)
    assert contents(tmp_path) == before


def test_figures_at_the_side_keep_apart():
    assert plots.spread_apart([1.0, 1.1, 5.0], 0.5) == [1.0, 1.5, 5.0]
    assert plots.spread_apart([1.0, 1.0, 1.0], 1) == [1, 2, 3]


def test_names_in_the_front_hide_nothing(tmp_path, monkeypatch):
    """Six models close together: no name lies on another name."""
    boxes, place = [], plots.place_label
    monkeypatch.setattr(plots, "place_label", lambda *a: boxes.append(found := place(*a)) or found)
    points = [
        {"name": f"student-{k}", "device": "CPU", "x": 5 + 0.1 * k, "y": 0.3 + 0.002 * k, "front": True}
        for k in range(6)
    ]
    assert is_picture(plots.pareto_front(points, tmp_path / "p.png", "latency (ms)", "mAP (%)"))
    names = [found[0] for found in boxes]
    assert len(names) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(names) for b in names[:i])


def test_gains_of_one_seed_have_no_interval(tmp_path):
    one = {"arm": "pkd", "reference": "alone", "n": 1, "mean": 0.1, "ci95": [None, None], "differences": [0.1]}
    rows = [{**one, "metric": metric, "verdict": BETTER} for metric in ("map50", "map50_95")]
    assert is_picture(plots.gains(rows, tmp_path / "g.png"))
