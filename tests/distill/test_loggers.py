"""Our columns and the report reach loggers through Ultralytics' own callbacks: TensorBoard, MLflow and W&B, with a
local store each.

In a process of its own, because Ultralytics logs nothing from within pytest. Where a package is not installed, a
stand-in that keeps what it is given takes its place, so that at least the way to it is tested.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import ASSETS, TINY

MLFLOW_NAME = re.compile(r"[\w.\-\s:/]+")  # of a metric; others are refused

TRAIN = """
import json, sys, types
from ultralytics.utils import SETTINGS
kept = {}
%s
for key in SETTINGS:
    if isinstance(SETTINGS[key], bool):
        dict.__setitem__(SETTINGS, key, key == sys.argv[1])
import yolokd
student = yolokd.train(**json.loads(sys.argv[2]))
with open(sys.argv[3], "w") as file:
    json.dump({"kept": kept, "run": str(student.trainer.save_dir)}, file)
"""
STAND_IN = {
    "tensorboard": """
class SummaryWriter:
    def __init__(self, folder): kept["folder"] = folder
    def add_scalar(self, key, value, step): kept.setdefault(key, []).append([step, float(value)])
    def add_graph(self, *_): pass
    def add_text(self, key, text): kept["report"] = text
    def close(self): pass
sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=SummaryWriter)
""",
    "mlflow": """
def log_metrics(metrics, step):
    for key, value in metrics.items():
        kept.setdefault(key, []).append([step, float(value)])
mlflow = types.SimpleNamespace(
    __version__="0", set_experiment=lambda name: None, autolog=lambda: None, active_run=lambda: None,
    start_run=lambda run_name: types.SimpleNamespace(info=types.SimpleNamespace(run_id="1")),
    get_tracking_uri=lambda: "here", log_params=lambda values: kept.update(params=sorted(values)),
    log_metrics=log_metrics, log_artifact=lambda file: kept.setdefault("artifacts", []).append(file),
    end_run=lambda status: None,
)
sys.modules["mlflow"] = mlflow
""",
    "wandb": """
class Run:
    id, config = "1", types.SimpleNamespace(setdefaults=lambda values: kept.update(params=sorted(values)))
    def define_metric(self, *_, **__): pass
    def log_artifact(self, *_, **__): pass
    def log(self, values, commit=True):
        for key, value in values.items():
            if isinstance(value, (int, float)):
                kept.setdefault(key, []).append([0, float(value)])
            elif isinstance(value, str):
                kept[key] = value
def init(**_): wandb.run = Run()
def finish(**_): wandb.run = None
class Artifact:
    def __init__(self, **_): pass
    def add_file(self, *_): pass
wandb = types.SimpleNamespace(__version__="0", run=None, init=init, finish=finish, Html=str, Artifact=Artifact)
sys.modules["wandb"] = wandb
""",
}


def run(logger: str, stand_in: str, scenes: Path, teacher: Path, tmp_path: Path) -> dict:
    """What was kept of a training of two epochs with one logger switched on."""
    given = {
        "model": str(ASSETS / "student.pt"), "teacher": str(teacher), "data": str(scenes), **TINY,
        "method": "pkd,logit", "project": str(tmp_path / "runs"), "check": False,
    }  # fmt: skip
    command = [sys.executable, "-c", TRAIN % stand_in, logger, json.dumps(given), str(tmp_path / "kept.json")]
    silencing = ("PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")
    environment = {key: value for key, value in os.environ.items() if key not in silencing}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict = json.loads((tmp_path / "kept.json").read_text())
    return found


def columns(run: str) -> set[str]:
    """Those of results.csv that are losses or metrics."""
    names = {name.strip() for name in (Path(run) / "results.csv").read_text().splitlines()[0].split(",")}
    return {name for name in names if name.startswith(("train/", "val/", "metrics/"))}


@pytest.mark.slow
@pytest.mark.parametrize("logger", STAND_IN)
def test_what_the_callbacks_are_given(logger, scenes, teacher, tmp_path):
    found = run(logger, STAND_IN[logger], scenes, teacher, tmp_path)
    wanted = columns(found["run"])
    assert any(
        name not in ("train/box_loss", "train/cls_loss", "train/dfl_loss") for name in wanted if "train/" in name
    )
    if logger == "mlflow":
        wanted = {name.replace("(", "").replace(")", "") for name in wanted}
        assert "kd" in found["kept"]["params"] and all(MLFLOW_NAME.fullmatch(name) for name in wanted)
    assert wanted <= found["kept"].keys()
    assert all(len(found["kept"][name]) >= 2 for name in wanted), "once an epoch"
    if logger == "mlflow":
        assert f"{found['run']}/report.html" in found["kept"]["artifacts"]
    else:
        assert ("<!doctype html>" if logger == "wandb" else "this is one run") in found["kept"]["report"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard(scenes, teacher, tmp_path):
    found = run("tensorboard", "", scenes, teacher, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(found["run"])
    events.Reload()
    assert columns(found["run"]) <= set(events.Tags()["scalars"])
    (text,) = events.Tensors("report/text_summary")
    assert b"report.html" in text.tensor_proto.string_val[0]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow(scenes, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    found = run("mlflow", "", scenes, teacher, tmp_path)
    import mlflow

    (logged,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {name.replace("(", "").replace(")", "") for name in columns(found["run"])} <= logged.data.metrics.keys()
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(logged.info.run_id)}
    assert "report.html" in files


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb(scenes, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = run("wandb", "", scenes, teacher, tmp_path)
    (page,) = Path(found["run"]).glob("wandb/offline-run-*/files/media/html/report*.html")
    assert "<svg" in page.read_text()
    (log,) = Path(found["run"]).glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert all(name.encode() in content for name in columns(found["run"]))
