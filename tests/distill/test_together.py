"""Several processes through the real launchers, on CPUs: see helpers/gloo for the one thing that is not as on GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.cli import processes_with
from helpers.models import layout
from helpers.training import ASSETS, TINY, read, rows
from ultralytics import RTDETR, YOLO

from yolokd.config import checks
from yolokd.errors import UsageError

GLOO = Path(__file__).parents[1] / "helpers" / "gloo"
TRAIN = [sys.executable, "-m", "yolokd", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALL = ["model=yolo11n.yaml", "width=0.125", "depth=0.33", "init=own"]


def words(arguments: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in arguments.items()]


class Place:
    """A folder in which processes train together."""

    def __init__(self, folder: Path, scenes: Path) -> None:
        self.folder, self.config = folder, folder / "config"
        (folder / "ranks").mkdir()
        self.config.mkdir()
        tiny = {k: v for k, v in TINY.items() if k not in ("device", "cache", "epochs")}
        given = {**tiny, "data": scenes, "project": folder / "runs", "name": "run"}
        self.words = words(given)
        self.environment = {
            **os.environ, "PYTHONPATH": str(GLOO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
            "YOLOKD_TEST_RANKS": str(folder / "ranks"), "YOLO_CONFIG_DIR": str(self.config),
        }  # fmt: skip

    @property
    def last(self) -> Path:
        return self.folder / "runs" / "run" / "weights" / "last.pt"

    def start(self, *command: str) -> subprocess.Popen[str]:
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def train(self, *words: str, launcher: tuple[str, ...] = (*TRAIN,)) -> tuple[int, str]:
        """Exit code of one epoch, and what was printed."""
        code = self.start(*launcher, *self.words, *words, "epochs=1").wait(240)
        return code, self.log()

    def log(self) -> str:
        file = self.folder / "log.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def ranks(self) -> list[dict[str, Any]]:
        return [read(self.folder / "ranks" / f"{rank}.pt") for rank in (0, 1)]

    def left(self) -> list[int]:
        """Processes that have this place in their environment."""
        return processes_with("YOLO_CONFIG_DIR", str(self.config))

    def await_epoch(self, process: subprocess.Popen[str]) -> None:
        while not self.last.is_file() and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, self.log()[-2000:]


@pytest.fixture
def place(tmp_path, scenes) -> Place:
    return Place(tmp_path, scenes)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two processes learnt the same, from different images, and every term taught."""
    for part in ("student", "adapters", "balance"):
        assert one[part].keys() == other[part].keys()
        different = [n for n, x in one[part].items() if not torch.equal(x, other[part][n])]
        assert not different, f"{part}: {different}"
    for rank in (one, other):
        assert rank["terms"] and all(value > 0 for value in rank["terms"].values())
        assert rank["images"]["labelled"] == 12, "half of the images"
    assert one["terms"] != other["terms"] and one["pid"] != other["pid"] and one["folder"] == other["folder"]


@pytest.mark.slow
def test_two_devices_learn_alike_with_adapters_balance_unlabelled_images_and_two_teachers(
    place, scenes, teacher, untrained
):
    unlabelled = scenes.parent / "images" / "val"
    code, said = place.train(
        *SMALL, f"teacher={teacher},{untrained('yolov8n')}", "method=pkd,logit", "balance=auto", "device=0,1",
        f"unlabeled={unlabelled}", launcher=(*TRAIN,),
    )  # fmt: skip
    assert code == 0, said[-3000:]
    first, second = place.ranks()
    assert_equal(first, second)
    assert len(first["adapters"]) == 6 and first["balance"]["seen"].tolist() == [1, 1]
    assert first["images"]["unlabelled"] == second["images"]["unlabelled"] == 12
    assert "24 labelled and 24 unlabelled images" in said
    assert float(rows(place.last.parents[1])[0]["train/pkd_loss"]) > 0
    assert read(place.last)["yolokd"]["teachers"], "the finished checkpoint says how it was made"
    assert not place.left() and not list(place.config.rglob("_temp_*"))


@pytest.mark.slow
def test_torchrun_with_stored_responses_and_the_best_of_two_teachers(place, teacher, untrained):
    """An earlier run of the same name is not touched, though every process but the first would take its folder."""
    earlier = place.folder / "runs" / "run" / "results.csv"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of an earlier run")
    code, said = place.train(
        *SMALL, f"teacher={teacher},{untrained('yolo11n')}", "teachers=best", "method=logit", "balance=auto",
        "cache=teacher", "cache_views=1", launcher=(*TORCHRUN, "--nproc_per_node", "2", "-m", "yolokd", "train"),
    )  # fmt: skip
    assert code == 0, said[-3000:]
    first, second = place.ranks()
    assert_equal(first, second)
    assert first["responses"] == second["responses"] == [(12, 12), (12, 12)], "each teacher, on half of the images"
    assert "Epoch 1: 24 labelled" not in said and "0 teacher responses read and 48 computed" in said
    assert earlier.read_text() == "of an earlier run"
    assert first["folder"] == str(place.folder / "runs" / "run-2")


@pytest.mark.slow
def test_two_devices_round_alike(place, teacher):
    """The ranges are those of the start, which the first process alone solves for."""
    pytest.importorskip("modelopt", reason="needs the extra qat")
    code, said = place.train(
        f"model={ASSETS / 'student.pt'}", "init=teacher", f"teacher={teacher}", "method=pkd", "quantize=8",
        launcher=(*TORCHRUN, "--nproc_per_node", "2", "-m", "yolokd", "train"),
    )  # fmt: skip
    assert code == 0, said[-3000:]
    first, second = ({**rank["student"], **rank["ranges"]} for rank in place.ranks())
    assert sum(name.endswith("_amax") for name in first) > 150 and first.keys() == second.keys()
    assert not [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert read(place.last)["modelopt"] and "The student starts with" in said


@pytest.mark.slow
def test_two_nodes_train_an_rtdetr(place, teacher):
    """Two torchruns of one process each, as on two machines, each of which knows one device."""
    shape = {k: v for k, v in layout("rtdetr-2-20-32").items() if k not in {"scale", "yaml_file"}}
    file, big = place.folder / "yolov8n-small.yaml", place.folder / "big.pt"
    file.write_text(yaml.safe_dump(shape))
    model = RTDETR(file)
    model.model = type(model.model)(model.model.yaml, nc=10, verbose=False)
    model.model.names, model.model.task, model.model.args = YOLO(teacher).names, "detect", {}
    model.save(big)
    node = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint"]
    node += [f"localhost:{20000 + os.getpid() % 10000}", "--rdzv_id", "test", "-m", "yolokd", "train", *place.words]
    nodes = [place.start(*node, f"model={file}", f"teacher={big}", "balance=auto", "epochs=1") for _ in range(2)]
    assert [node.wait(240) for node in nodes] == [0, 0], place.log()[-3000:]
    first, second = place.ranks()
    assert_equal(first, second)
    assert first["adapters"] and len(first["terms"]) == 2


@pytest.mark.slow
def test_a_run_goes_on_after_one_of_its_processes_was_killed(place, teacher):
    process = place.start(
        *TRAIN, *place.words, *SMALL, f"teacher={teacher}", "method=pkd", "balance=auto", "device=0,1", "epochs=4",
    )  # fmt: skip
    place.await_epoch(process)
    workers = sorted(set(place.left()) - {process.pid})
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(60) == 2 and not place.left()
    sentence = place.log().splitlines()[-1]
    assert sentence.startswith("yolokd: ") and f"`yolokd train resume={place.last}` goes on" in sentence

    assert place.start(*TRAIN, f"resume={place.last.parents[1]}").wait(240) == 0, place.log()[-3000:]
    assert_equal(*place.ranks())
    assert [row["epoch"] for row in rows(place.last.parents[1])] == list("1234")
    assert not list(place.config.rglob("_temp_*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_launcher_leaves_no_process(place, teacher, number, code):
    words = [*SMALL, f"teacher={teacher}", "method=pkd", "device=0,1", "epochs=500"]
    process = place.start(*TRAIN, *place.words, *words)
    place.await_epoch(process)
    process.send_signal(number)
    assert process.wait(60) == code
    if number == signal.SIGKILL:  # the workers look for it every half second
        time.sleep(3)
    else:
        *_, sentence = place.log().splitlines()
        assert sentence.startswith("yolokd: the training was stopped: `yolokd train resume=")
        assert not list(place.config.rglob("_temp_*")) and "Traceback" not in place.log()
    assert not place.left()


@pytest.mark.slow
def test_what_only_a_worker_finds_is_one_sentence_with_its_exit_code(place, teacher):
    words = [*SMALL, f"teacher={teacher}", "method=logit", "cache=teacher", "cache_limit=0.000001", "device=0,1"]
    code, said = place.train(*words)
    assert code == 2 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("yolokd: cache=teacher needs ") and said.count("cache=teacher needs ") == 1
    assert not place.left()


@pytest.fixture
def one_of_two(monkeypatch):
    """As a process that torchrun started, one of two on this machine."""
    monkeypatch.setattr(checks, "LOCAL_RANK", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")


def test_a_process_of_torchrun_has_a_device_without_naming_it(one_of_two):
    assert checks.own_devices({}) == checks.own_devices({"device": ""}) == {"device": "0,1"}
    assert checks.own_devices({"device": "1,2"}) == {}


def test_nothing_is_chosen_for_a_process_alone():
    assert checks.own_devices({}) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cpu"}, "on GPUs only"),
        ({"device": "0"}, "names 1 of a node's devices for 2 processes"),
        ({"device": [0, 1, 2]}, "names 3 of"),
        ({"device": "0,1", "batch": 3}, "batch=3 cannot be shared by 4 devices"),
    ],
)
def test_devices_that_a_node_s_processes_cannot_share(one_of_two, given, said):
    with pytest.raises(UsageError, match=said):
        checks.check_devices(given)
    checks.check_devices({"device": "0,1", "batch": 4})


def test_a_batch_smaller_than_the_number_of_devices():
    with pytest.raises(
        UsageError, match=r"^batch=1 cannot be shared by 2 devices: give a whole number of 2 or more\.$"
    ):
        checks.check_devices({"device": "0,1", "batch": 1})
    checks.check_devices({"device": "0", "batch": 1})
