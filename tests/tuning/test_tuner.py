"""Tuning of a distilled training: our arguments reach the trainings, and Ultralytics' files are what they are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli import contents
from helpers.training import ASSETS, TINY, rows

import yolokd
from yolokd.errors import UsageError
from yolokd.studies import processes

# A training that takes no time, whose score is its gain: more is better.
SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
spec = json.loads((folder / "run.json").read_text())
(folder / "train" / "weights").mkdir(parents=True)
(folder / "train" / "weights" / "best.pt").write_text(folder.name)
if (folder.parent / "fail").exists():
    sys.exit("CUDA out of memory")
gain = spec["arguments"]["kd"]
(folder / "result.json").write_text(json.dumps({"map50": gain, "map50_95": gain / 2, "fitness": gain / 2}))
"""


@pytest.fixture
def given(scenes, teacher, tmp_path, monkeypatch):
    """Arguments of a training that could run, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return {"teacher": str(teacher), "data": str(scenes), **TINY, "project": str(tmp_path / "runs"), "name": "search"}


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(SCRIPT)
    monkeypatch.setattr(processes, "WORKER", [str(tmp_path / "worker.py")])


def test_a_search_over_a_gain_of_ours(given, scripted, tmp_path):
    """Ultralytics' record of each iteration, the best one's values and weights; a second call goes on."""
    space = {"kd": (0.5, 4.0), "lr0": (1e-4, 1e-2), "pkd.gain": (1.0, 3.0)}
    tuned = yolokd.tune(iterations=3, space=space, model=ASSETS / "student.pt", method="pkd", **given)
    folder = tmp_path / "runs" / "search"
    assert tuned["folder"] == str(folder)
    records = [json.loads(line) for line in (folder / "tune_results.ndjson").read_text().splitlines()]
    assert [r["iteration"] for r in records] == [1, 2, 3] and all(
        r["hyperparameters"].keys() == space.keys() for r in records
    )
    assert records[0]["hyperparameters"] == {"kd": 1.0, "lr0": TINY["lr0"], "pkd.gain": 2.0}
    specs = [json.loads((folder / "iterations" / str(i) / "run.json").read_text())["arguments"] for i in (1, 2, 3)]
    for record, arguments in zip(records, specs, strict=True):
        assert arguments.items() >= {**record["hyperparameters"], "method": "pkd", "teacher": given["teacher"]}.items()
        assert record["fitness"] == pytest.approx(arguments["kd"] / 2, abs=1e-5)
    best = max(records, key=lambda r: r["fitness"])
    assert (tuned["hyperparameters"], tuned["fitness"]) == (best["hyperparameters"], best["fitness"])
    assert yaml.safe_load((folder / "best_hyperparameters.yaml").read_text()) == best["hyperparameters"]
    assert (folder / "weights" / "best.pt").read_text() == str(best["iteration"])
    assert [f.parts[-4] for f in folder.glob("iterations/*/train/weights/best.pt")] == [str(best["iteration"])]

    before = (folder / "tune_results.ndjson").read_text()
    yolokd.tune(iterations=4, space=space, resume=True, model=ASSETS / "student.pt", method="pkd", **given)
    assert (folder / "tune_results.ndjson").read_text().startswith(before)
    assert len((folder / "tune_results.ndjson").read_text().splitlines()) == 4


def test_an_iteration_that_was_cut_short_goes_on_with_its_values(given, scripted, tmp_path):
    first = tmp_path / "runs" / "search" / "iterations" / "1"
    first.mkdir(parents=True)
    (first / "run.json").write_text(json.dumps({"hyperparameters": {"kd": 3.25}}))
    tuned = yolokd.tune(iterations=1, space={"kd": (1, 4)}, resume=True, model=ASSETS / "student.pt", **given)
    assert tuned["hyperparameters"] == {"kd": 3.25} and tuned["fitness"] == 1.625


def test_iterations_that_all_fail_are_one_sentence(given, scripted, tmp_path):
    (tmp_path / "runs" / "search" / "iterations").mkdir(parents=True)
    (tmp_path / "runs" / "search" / "iterations" / "fail").touch()
    with pytest.raises(UsageError, match=r"no iteration could train: .*1.log.txt says why"):
        yolokd.tune(iterations=2, space={"kd": (1, 4)}, resume=True, model=ASSETS / "student.pt", **given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"space": {"kd": 3}}, "space has kd: 3"),
        ({"space": {"kd": (3, 1)}}, r"space has kd: \(3, 1\)"),
        ({"space": {"kdd": (1, 3)}}, "unknown option 'kdd'"),
        ({"teacher": None}, "no teacher"),
        ({"teacher": "gone.pt"}, "^teacher=gone.pt"),
        ({"save": False}, "save=False is not for tuning"),
        ({"save_dir": "x"}, "save_dir=x is not for tuning"),
        ({"method": "pkdd"}, "did you mean 'pkd'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(given, tmp_path, change, said):
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=said):
        yolokd.tune(**{"iterations": 1, "model": ASSETS / "student.pt", **given, **change})
    assert contents(tmp_path) == before


def test_trainers_that_cannot_be_tuned(given, tmp_path):
    model = yolokd.YOLO(ASSETS / "student.pt")
    before = contents(tmp_path)
    for arguments, said in (
        ({"trainer": yolokd.KDPoseTrainer}, "give trainer=yolokd.KDTrainer"),
        ({"trainer": dict}, "is not one of yolokd's"),
    ):
        with pytest.raises(UsageError, match=said):
            model.tune(iterations=1, **arguments, **given)
    assert contents(tmp_path) == before


def test_ray_is_asked_for_a_number_of_trainings(given):
    with pytest.raises(UsageError, match="iterations=0 is not a whole number of 1 or more"):
        yolokd.YOLO(ASSETS / "student.pt").tune(trainer=yolokd.KDTrainer, use_ray=True, iterations=0, **given)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_named_with_its_command(given):
    with pytest.raises(UsageError, match=r"needs Ray: pip install 'yolokd\[ray\]'"):
        yolokd.YOLO(ASSETS / "student.pt").tune(trainer=yolokd.KDTrainer, use_ray=True, iterations=1, **given)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_two_trainings_by_ray(given, tmp_path, monkeypatch):
    """Ultralytics' Ray tuner trains under the teacher, and over ranges of options that only yolokd has."""
    from ray import tune

    model = yolokd.YOLO(ASSETS / "student.pt")
    search = {"trainer": yolokd.KDTrainer, "use_ray": True, "iterations": 2, "search_alg": "random"}
    with pytest.raises(UsageError, match="teacher=gone.pt"):
        model.tune(**search, **{**given, "teacher": "gone.pt"})
    with pytest.raises(UsageError, match="did you mean 'kd'"):
        model.tune(**search, **given, space={"kdd": tune.uniform(0.5, 2.0)})
    space = {"lr0": tune.uniform(1e-4, 1e-2), "kd": tune.uniform(0.5, 2.0)}
    found = model.tune(**search, space=space, **{**given, "epochs": 1})
    assert not found.errors and len(found) == 2
    assert all(0.5 <= one.config["kd"] <= 2 for one in found)
    made = [torch.load(file, weights_only=False)["yolokd"]["gain"] for file in tmp_path.rglob("best.pt")]
    assert sorted(made) == pytest.approx(sorted(one.config["kd"] for one in found))


@pytest.mark.slow
def test_two_real_iterations(given, tmp_path):
    """The call of the documentation: both trainings are distilled, under their own values."""
    tuned = yolokd.YOLO(ASSETS / "student.pt").tune(
        trainer=yolokd.KDTrainer, iterations=2, space={"lr0": (1e-4, 1e-2), "kd": (0.5, 2)}, **{**given, "epochs": 1}
    )
    folder = Path(tuned["folder"])
    assert tuned["fitness"] > 0 and (folder / "weights" / "best.pt").is_file()
    (left,) = folder.glob("iterations/*/train")
    (row,) = rows(left)
    assert any(
        column.startswith("train/") and column not in ("train/box_loss", "train/cls_loss", "train/dfl_loss")
        for column in row
    )
    arguments = yaml.safe_load((left / "args.yaml").read_text())
    assert (
        arguments["lr0"] == tuned["hyperparameters"]["lr0"]
        and arguments["kd"]["gain"] == tuned["hyperparameters"]["kd"]
    )
