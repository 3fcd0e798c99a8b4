"""What was trained is not lost: whole files at every moment, and a way on from whatever is whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.training import TINY, pico, read, rows

from yolokd.cli import main
from yolokd.config import options
from yolokd.distill import checkpoints
from yolokd.distill.checkpoints import cut_table, is_over, replacing
from yolokd.errors import Interrupted, UsageError

slow = pytest.mark.slow


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "best.pt"
    file.write_text("whole")
    with pytest.raises(OSError), replacing(file) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert file.read_text() == "whole" and [p.name for p in tmp_path.iterdir()] == ["best.pt"]
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "whole"
    assert file.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_the_table_loses_what_is_trained_again(tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("epoch,time,a\n1,2,3\n2,4,5\n2,4,6\n3,9,9\n4,1")
    cut_table(table, 2)
    assert table.read_text() == "epoch,time,a\n1,2,3\n2,4,6\n", "an older version's doubled row goes too"
    table.write_text("")  # killed between opening and writing: a header comes with a new file only
    cut_table(table, 2)
    cut_table(table, 2)
    assert not table.exists()


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "timed", "over"),
    [(1, 1, 100, False, False), (2, 1, 100, False, True), (2, 1, 100, True, False), (1, 1, 1, False, True),
     (1, 2, 1, False, False), (1, 1, 0, False, False), (-1, 0, 100, False, True)],
)  # fmt: skip
def test_a_run_is_over_after_its_last_epoch_or_when_it_stops_early(epoch, best, patience, timed, over):
    assert is_over({"epoch": epoch, "stopper": {"best_epoch": best}}, 3, patience, timed) == over


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Function: name -> what the run's file of that name holds; None for a torn one. Returns the run's folder."""
    content: dict[str, dict | None] = {}

    def opened(path, key, trust=False):
        if content[Path(path).name] is None:
            raise RuntimeError("PytorchStreamReader failed reading zip archive")
        return None, content[Path(path).name]

    def make(**files) -> Path:
        (tmp_path / "weights").mkdir()
        for name, held in files.items():
            content[f"{name}.pt"] = held
            (tmp_path / "weights" / f"{name}.pt").touch()
        return tmp_path

    monkeypatch.setattr(checkpoints, "read_checkpoint", opened)
    return make


def state(epoch: int) -> dict:
    return {"epoch": epoch, "optimizer": {}, "train_args": {"kd": {"teacher": ["a.pt"]}}}


def test_a_torn_last_checkpoint_gives_way_to_the_newest_whole_one(kept, caplog):
    run = kept(last=None, best=state(3), epoch2=state(2), epoch5=state(5), epoch7=None)
    for given in (run, run / "weights", run / "weights" / "last.pt"):
        found = checkpoints.find(given)
        assert found.file.name == "epoch5.pt" and found.place == run
    assert "last.pt cannot be read" in caplog.text and "epoch5.pt, which is of epoch 6" in caplog.text


def test_the_last_checkpoint_is_taken_when_it_is_whole(kept, caplog):
    run = kept(last=state(4), best=state(9))
    assert checkpoints.find(run).file.name == "last.pt" and not caplog.text


def test_where_nothing_is_whole_one_sentence_says_so(kept):
    run = kept(last=None, best=None)
    with pytest.raises(UsageError, match="no other checkpoint .* begin the training anew"):
        checkpoints.find(run)


def test_a_finished_run_is_said_to_be_finished(kept):
    run = kept(last={"yolokd": {"version": "1"}, "epoch": -1}, best={})
    with pytest.raises(UsageError, match=r"this run is finished, nothing is left to do; its model is .*best\.pt"):
        checkpoints.find(run / "weights" / "last.pt")


def test_a_resumed_run_has_its_teachers(teacher, tmp_path):
    stored = {"teacher": [str(teacher)], "methods": {}, "sha256": ["0" * 64]}
    with pytest.raises(UsageError, match=r"is another file than the teacher\.pt that the run began with"):
        options.resumed(stored, {"teacher": [str(teacher)]})
    moved = shutil.copy(teacher, tmp_path / "moved.pt")
    with pytest.raises(UsageError, match="began with 1 of them"):
        options.resumed(stored, {"teacher": [str(teacher), str(moved)]})
    stored["sha256"] = [options.digest(str(teacher))]
    assert options.resumed(stored, {"teacher": [str(moved)]})["teacher"] == [str(moved)]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_so_in_one_sentence(stop, code, monkeypatch, capsys):
    def run(words):
        if isinstance(stop, BaseException):
            raise Interrupted("the training was stopped: go on so.", stop)
        os.kill(os.getpid(), stop)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("yolokd.verbs.version.run", run)
    assert main(["version"]) == code
    said = capsys.readouterr().err
    assert said.startswith("yolokd: ") and "stopped" in said and said.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == before


# --- real runs ------------------------------------------------------------------------------------------------------

COMMAND = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from yolokd.distill import saving
from yolokd.distill.trainer import KDMixin
from yolokd.cli import main
moment, *words = sys.argv[1:]
if moment:  # how many checkpoints are moved over before the write that is cut off; "end": all but the very last one
    move, sign, left = saving.move, KDMixin.sign_checkpoints, [int(moment) if moment.isdigit() else 99]
    def dying(part, file):
        left[0] -= 1
        if left[0] < 0:
            part.write_bytes(part.read_bytes()[:999])
            os.kill(os.getpid(), signal.SIGKILL)
        move(part, file)
    def signed(trainer):
        sign(trainer)
        left[0] = 1 if moment == "end" else left[0]
    saving.move, KDMixin.sign_checkpoints = dying, signed
sys.exit(main(words))
"""
EPOCHS = 3


def command(folder: Path, *words: str, moment: str = "", limit: str = "") -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-c", limit + COMMAND, moment, "train", *words]
    return subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, scenes, teacher):
    """A run that nobody interrupted, with adapters, balance and unlabelled images; and its words."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(scenes.parent, folder / "scenes")
    shutil.copy(teacher, folder / "teacher.pt")
    given = {**TINY, "epochs": EPOCHS, "data": f"scenes/{scenes.name}", "model": pico("yolo11"), "balance": "auto"}
    given |= {"teacher": "teacher.pt", "method": "pkd,logit", "unlabeled": "scenes/images/val", "init": "own"}
    data = folder / "scenes" / scenes.name
    text = data.read_text().replace(str(scenes.parent), str(folder / "scenes"))
    data.write_text(text)
    words = [f"{k}={v}" for k, v in given.items()]
    done = command(folder, *words, f"save_dir={folder / 'run'}")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, words


def weights(file: Path) -> dict[str, torch.Tensor]:
    return read(file)["model"].state_dict()


def check_finished(run: Path, like: Path) -> None:
    assert [row["epoch"] for row in rows(run)] == [str(n + 1) for n in range(EPOCHS)]
    here, there = ({str(p.relative_to(r)) for p in r.rglob("*")} for r in (run, like))
    assert here == there
    for name in ("best.pt", "last.pt"):
        mine, other = (read(r / "weights" / name) for r in (run, like))
        assert mine["yolokd"]["teachers"] == other["yolokd"]["teachers"] and mine["optimizer"] is None


@slow
def test_a_run_killed_within_its_writes_ends_as_the_whole_one_does(whole):
    """SIGKILL when a checkpoint is half written: in an epoch, and in the last writes, after which nothing is lost."""
    folder, words = whole
    for moment, left in (("2", 0), ("end", EPOCHS - 1)):  # in the second epoch; when only last.pt is not finished
        run = folder / f"killed{moment}"
        done = command(folder, *words, f"save_dir={run}", moment=moment)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        assert read(run / "weights" / "last.pt")["epoch"] == left, "torn, or killed elsewhere"
        done = command(Path("/"), f"resume={run}")
        assert done.returncode == 0, done.stderr[-3000:]
        check_finished(run, folder / "run")
        for name in ("best.pt", "last.pt") if moment == "end" else ():
            mine, other = (weights(r / "weights" / name) for r in (run, folder / "run"))
            assert all(torch.equal(mine[k], other[k]) for k in other), name
        if moment == "end":  # a second command finds nothing to do
            done = command(folder, f"resume={run / 'weights' / 'last.pt'}")
            assert done.returncode == 2 and "this run is finished" in done.stderr


@slow
def test_a_stopped_run_goes_on_wherever_it_is_moved(whole):
    """SIGTERM after the first epoch; then the run's folder is moved and last.pt torn."""
    folder, words = whole
    run = folder / "stopped"
    script = [sys.executable, "-c", COMMAND, "", "train", *words, f"save_dir={run}"]
    process = subprocess.Popen(script, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run / "weights" / "last.pt").is_file():
        time.sleep(0.02)
    time.sleep(random.random() / 5)
    process.terminate()
    said = process.communicate()[1].strip().splitlines()
    assert process.returncode == 143, said
    assert said[-1].startswith("yolokd: the training was stopped: `yolokd train resume=") and "Traceback" not in said
    moved = run.rename(folder / "moved")
    refused = command(folder, f"resume={moved}", "batch=abc")
    assert refused.returncode == 2 and "batch" in refused.stderr.splitlines()[-1]
    (moved / "weights" / "last.pt").write_bytes(b"")
    done = command(Path("/"), f"resume={moved}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot be read" in done.stdout + done.stderr
    assert not run.exists()
    check_finished(moved, folder / "run")


@slow
def test_a_disk_that_is_full_ends_in_one_sentence_and_keeps_the_last_state(whole):
    folder, words = whole
    run = folder / "full"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
    done = command(folder, *words, f"save_dir={run}", limit=limit)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, said[-5:]
    assert said[-1].startswith("yolokd: the training cannot write its files (") and "Traceback" not in done.stderr
    assert not list((run / "weights").iterdir())
