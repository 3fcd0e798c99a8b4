"""Whole trainings of tiny students: equal to the stock trainer's without a term, resumable, and plain afterwards."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import pickletools
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
import torch
import yaml
from helpers.training import TINY, pico, read, rows
from torch import nn
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils import LOGGER
from ultralytics.utils.callbacks.base import default_callbacks
from ultralytics.utils.torch_utils import unwrap_model

import yolokd
from yolokd.cli import main
from yolokd.config.options import DistillOptions
from yolokd.distill.distiller import Distiller
from yolokd.distill.teacher import memory_layout
from yolokd.distill.trainer import KDMixin, KDTrainer
from yolokd.distill.training import train
from yolokd.errors import UsageError

slow = pytest.mark.slow


def fit(model: str | Path, trainer: Any = KDTrainer, hooks: dict[str, Callable] | None = None, **arguments: Any) -> Any:
    """Train, with callbacks by event; returns the trainer."""
    student = YOLO(model)
    for event, hook in (hooks or {}).items():
        student.add_callback(event, hook)
    student.train(trainer=trainer, **{**TINY, **arguments})
    return student.trainer


@contextlib.contextmanager
def called_at(**hooks: Callable) -> Iterator[None]:
    """Callbacks for trainings whose YOLO object a verb makes."""
    for event, hook in hooks.items():
        default_callbacks[event].append(hook)
    try:
        yield
    finally:
        for event, hook in hooks.items():
            default_callbacks[event].remove(hook)


def adapters(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in trainer.distiller.methods.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return len(a) > 0 and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Without a term: the stock trainer


@slow
@pytest.mark.parametrize("family", ["yolov8", "yolo11", "yolo26"])
def test_without_an_active_term_it_is_the_stock_trainer_bit_for_bit(family, scenes, teacher, tmp_path, monkeypatch):
    """Random numbers drawn, statistics moved or gradients touched by the set-up would taint every comparison."""
    streams = []
    common = {
        "data": scenes,
        "project": tmp_path,
        "hooks": {"on_train_start": lambda trainer: streams.append(torch.get_rng_state())},
    }
    model = pico(family)
    stock = fit(model, None, name="stock", **common)
    off = fit(model, name="off", teacher=teacher, method="pkd", kd=0, **common)
    calls = []

    def no_values(self, seen, shown, batch):
        calls.append((seen["neck"], shown[0]((8, 16, 32))["one2many"].neck))
        return {}

    monkeypatch.setattr(Distiller, "values", no_values)
    ours = {
        "teacher": teacher,
        "method": "pkd",
        "init": "own",
        "channels_last": False,
    }  # another layout rounds otherwise
    silent = fit(model, name="silent", **ours, **common)
    assert len(calls) == 2 * 3, "teacher and taps must have run in both epochs"
    assert len(adapters(silent)) == 3
    assert len(adapters(off)) == 0
    for run in (off, silent):
        assert same(unwrap_model(run.model).state_dict(), stock.model.state_dict())  # float32, the files have 16 bits
        assert same(run.ema.ema.state_dict(), stock.ema.ema.state_dict())
        for file in ("best.pt", "last.pt"):
            theirs, ours = (read(r.wdir / file)["model"].state_dict() for r in (stock, run))
            assert same(ours, theirs), (run.save_dir.name, file)
        assert rows(run.save_dir)[-1]["train/box_loss"] == rows(stock.save_dir)[-1]["train/box_loss"]
    assert all(torch.equal(stream, streams[0]) for stream in streams[1:])


# One distilled run, looked at from many sides


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes, teacher) -> SimpleNamespace:
    """A finished run through the Python API from a trained student, with what was seen on the way."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(teacher, folder / "big.pt")
    seen = SimpleNamespace(folder=folder, scenes=scenes, log=[], mid=folder / "mid.pt")

    def at_start(trainer):
        seen.teacher = copy.deepcopy(trainer.distiller.pairings[0].teacher.model.state_dict())
        seen.first = adapters(trainer)

    def after_batch(trainer):
        if not hasattr(seen, "second"):
            seen.second = adapters(trainer)
            seen.groups = [(g.get("param_group"), list(g["params"]), g["lr"]) for g in trainer.optimizer.param_groups]

    def at_save(trainer):
        if trainer.epoch == 0:
            shutil.copy(trainer.last, seen.mid)

    handler = logging.Handler()
    handler.emit = lambda record: seen.log.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        seen.trainer = fit(
            teacher.with_name("student.pt"),
            yolokd.KDTrainer,
            {"on_train_start": at_start, "on_train_batch_end": after_batch, "on_model_save": at_save},
            teacher="big.pt",
            method="pkd,cwd,logit",
            data=scenes,
            project=folder,
            name="student",
            plots=True,
            **{"cwd.tau": 2},
        )
    LOGGER.removeHandler(handler)
    return seen


@slow
def test_every_adapter_learns_from_the_first_step(run):
    """Adapters that are in no optimizer stay random: the mistake of two published forks."""
    assert len(run.first) == 6
    assert all(not torch.equal(run.first[name], run.second[name]) for name in run.first)


@slow
def test_the_teacher_is_neither_trained_nor_in_the_optimizer(run):
    """The optimizer holds student and adapters, each parameter once, and nothing else."""
    distiller = run.trainer.distiller
    assert same(distiller.pairings[0].teacher.model.state_dict(), run.teacher)
    held = [id(p) for _, params, _ in run.groups for p in params]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in distiller.parameters()}
    assert not set(held) & {id(p) for p in distiller.pairings[0].teacher.model.parameters()}
    kd = [{id(p) for p in params} for name, params, _ in run.groups if name == "kd"]
    assert kd == [{id(p) for p in distiller.methods.parameters()}]


@slow
@pytest.mark.parametrize("which", ["mid", "last", "best"])
def test_checkpoints_hold_the_plain_student(run, which):
    """A pickled class of ours, or a teacher in the file, would follow the student to every device."""
    file = run.mid if which == "mid" else run.trainer.wdir / f"{which}.pt"
    with zipfile.ZipFile(file) as archive:
        (stream,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        operations = list(pickletools.genops(archive.read(stream)))
    classes = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations), "would hide class names"
    assert "ultralytics.nn.tasks DetectionModel" in classes
    assert not [c for c in classes if "yolokd" in c]
    checkpoint = read(file)
    model = checkpoint["ema"] if which == "mid" else checkpoint["model"]
    assert not [n for n, _ in model.named_modules() if "teacher" in n or "methods" in n]
    assert model.state_dict().keys() == run.trainer.distiller.module.state_dict().keys()
    stored = list(tensors(checkpoint)) + list(model.state_dict().values())
    for name, theirs in run.teacher.items():
        if theirs.numel() > 64:
            assert not [t for t in stored if t.shape == theirs.shape and torch.equal(t.half(), theirs.half())], name
    if which == "mid":
        assert len(checkpoint["optimizer"]["kd"]) == 6
    else:
        assert checkpoint["optimizer"] is None


def tensors(thing: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, (dict, list, tuple)):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors(part)


@slow
def test_convolutions_run_in_the_fast_layout_and_files_have_the_usual_one(run):
    """Older releases of Ultralytics cannot fuse a channels-last file."""

    def formats(model: Any) -> set[bool]:
        kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape[1:]) > 1]
        return {w.is_contiguous() for w in kernels}

    fast = memory_layout(torch.device("cpu")) == torch.channels_last
    assert formats(run.trainer.distiller.module) == {not fast}
    for file in ("best.pt", "last.pt"):
        assert formats(read(run.trainer.wdir / file)["model"]) == {True}


@slow
def test_each_term_has_its_column_and_no_validation_column(run):
    """A term that cannot be read cannot be judged; a val column would be a constant 0."""
    table = rows(run.trainer.save_dir)
    assert len(table) == 2
    terms = ["pkd_loss", "cwd_loss", "logit_loss"]
    for row in table:
        assert all(0 < float(row[f"train/{term}"]) < float("inf") for term in terms)
        assert not [c for c in row if c.startswith("val/") and c.removeprefix("val/") in terms]
        assert "val/box_loss" in row
        assert None not in row and None not in row.values(), "header and rows differ in length"
    header = next(line for line in run.log if "GPU_mem" in line).split()
    assert header == ["Epoch", "GPU_mem", "box_loss", "cls_loss", "dfl_loss", *terms, "Instances", "Size"]
    assert (run.trainer.save_dir / "results.png").stat().st_size > 10_000
    assert any("pkd_loss x 1, cwd_loss x 1, logit_loss x 1" in line for line in run.log)


@slow
def test_options_arrive_and_are_written_down(run):
    """From YOLO(...).train(...) to the method, args.yaml and the finished checkpoint."""
    assert run.trainer.distiller.pairings[0].methods["cwd_loss"].tau == 2
    written = yaml.safe_load((run.trainer.save_dir / "args.yaml").read_text())["kd"]
    assert written["teacher"] == [str((run.folder / "big.pt").resolve())]
    assert written["methods"]["cwd"] == {"tau": 2, "gain": 1.0}
    for name in ("best", "last"):
        signed = read(run.trainer.wdir / f"{name}.pt")["yolokd"]
        assert signed["version"] == yolokd.__version__
        assert signed["teacher"]["file"] == "big.pt"
        assert len(signed["teacher"]["sha256"]) == 64
        assert (signed["methods"], signed["gain"]) == (written["methods"], 1.0)
        assert signed["dataset"] == run.scenes.name
        assert str(run.folder) not in json.dumps(signed["teacher"])
    assert read(run.trainer.best)["yolokd"]["accuracy"]["n_images"] == 8
    accuracy = read(run.trainer.best)["yolokd"]["accuracy"]
    assert accuracy["map50_95"] == pytest.approx(run.trainer.metrics["metrics/mAP50-95(B)"])


WITHOUT_YOLOKD = """
import importlib.abc, json, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "yolokd":
            raise ImportError("yolokd is not installed here")
sys.meta_path.insert(0, Blocked())
try:
    import yolokd
except ImportError:
    pass
else:
    raise SystemExit("the block does not work")
import torch
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import torch_safe_load
torch.set_num_threads(1)
best, last, mid, data, project, tiny = json.loads(sys.argv[1])
found = {}
for name, file in (("best", best), ("last", last), ("mid", mid)):
    torch_safe_load(file, safe_only=True)
    model = YOLO(file)
    metrics = model.val(data=data, imgsz=64, batch=16, workers=0, device="cpu", plots=False, project=project)
    found[name] = [metrics.box.map50, metrics.box.map]
    assert len(model.predict(torch.rand(1, 3, 64, 64), imgsz=64, device="cpu", verbose=False)) == 1
found["onnx"] = YOLO(best).export(format="onnx", imgsz=64, device="cpu")
tuned = YOLO(best)
tuned.train(data=data, project=project, name="tuned", **{**tiny, "epochs": 1})
found["tuned"] = str(tuned.trainer.best)
assert not [m for m in sys.modules if m.partition(".")[0] == "yolokd"]
print("FOUND " + json.dumps(found))
"""


@slow
def test_the_student_lives_without_yolokd(run, tmp_path):
    """Load, validate, predict, export, fine-tune, on a machine that never heard of us."""
    best, last = (tmp_path / f"{n}.pt" for n in ("best", "last"))
    shutil.copy(run.trainer.best, best)  # the export is written beside it
    shutil.copy(run.trainer.last, last)
    given = json.dumps([str(f) for f in (best, last, run.mid, run.scenes, tmp_path)] + [TINY])
    done = subprocess.run([sys.executable, "-c", WITHOUT_YOLOKD, given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.rpartition("FOUND ")[2])
    expected = [run.trainer.metrics[f"metrics/{m}(B)"] for m in ("mAP50", "mAP50-95")]
    assert expected[0] > 0, "equal zeros would say nothing"
    assert found["best"] == pytest.approx(expected, abs=1e-6)
    assert Path(found["onnx"]).stat().st_size > 100_000
    assert Path(found["tuned"]).exists()


@slow
def test_the_unfinished_checkpoint_passes_the_restricted_loader(run):
    """It is what users of ULTRALYTICS_SAFE_LOAD resume from."""
    assert torch_safe_load(run.mid, safe_only=True)[0]["train_args"]["kd"]["gain"] == 1.0


# Interrupted

KILLED = """
import os, signal, sys
import torch
from ultralytics.utils.callbacks.base import default_callbacks
from yolokd.cli import main
torch.set_num_threads(1)
folder, *arguments = sys.argv[1:]
def keep(trainer):
    torch.save(trainer.distiller.methods.state_dict(), folder + "/adapters.pt")
def die(trainer):
    if trainer.epoch == 1 and trainer.distiller.batches == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    trainer.distiller.batches += 1
def count(trainer):
    trainer.distiller.batches = 0
default_callbacks["on_model_save"].append(keep)
default_callbacks["on_train_epoch_start"].append(count)
default_callbacks["on_train_batch_end"].append(die)
main(["train", *arguments])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, scenes, teacher) -> SimpleNamespace:
    return kill(tmp_path_factory.mktemp("killed"), scenes, teacher, "SGD")


def kill(folder: Path, scenes: Path, teacher: Path, optimizer: str) -> SimpleNamespace:
    """A run of the command line that was killed in the second of three epochs."""
    shutil.copy(teacher, folder / "old.pt")
    given = {**TINY, "epochs": 3, "data": scenes, "project": folder, "name": "run", "model": pico("yolo26")}
    given |= {"teacher": folder / "old.pt", "method": "pkd,logit", "kd": 0.5, "optimizer": optimizer}
    words = [f"{k}={v}" for k, v in given.items()]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stdout[-2000:] + done.stderr[-4000:]
    (folder / "old.pt").rename(folder / "new.pt")
    return SimpleNamespace(folder=folder, last=folder / "run" / "weights" / "last.pt", teacher=folder / "new.pt")


@slow
def test_a_killed_run_left_its_adapters_in_last_pt(killed):
    """They ride in the optimizer's state: without them a resumed student meets fresh random projections."""
    saved = read(killed.last)
    assert saved["epoch"] == 0
    assert len(rows(killed.folder / "run")) == 1
    assert same(saved["optimizer"]["kd"], torch.load(killed.folder / "adapters.pt"))


@slow
def test_a_killed_run_resumes_with_a_moved_teacher(killed, tmp_path, capsys):
    """Same adapters, same momentum, same schedule; all epochs in one table; only the teacher's place may change."""
    shutil.copytree(killed.folder / "run", tmp_path / "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    saved = read(last)
    assert main(["train", f"model={last}", "resume=True"]) == 2, "its teacher is gone"
    assert "old.pt does not exist" in capsys.readouterr().err
    seen = {}

    def at_start(trainer):
        seen.update(adapters=adapters(trainer), o2m=trainer.distiller.module.criterion.o2m, epoch=trainer.start_epoch)
        kd = trainer.optimizer.param_groups[-1]
        seen["momentum"] = [trainer.optimizer.state[p]["momentum_buffer"].clone() for p in kd["params"]]

    with called_at(on_train_start=at_start):
        student = train(resume=str(last), teacher=str(killed.teacher), save_dir=str(tmp_path / "run"))
    assert same(seen["adapters"], saved["optimizer"]["kd"])
    assert seen["epoch"] == 1
    assert seen["o2m"] == pytest.approx(0.45)  # halfway from 0.8 to 0.1
    state = saved["optimizer"]["state"]
    expected = [state[i]["momentum_buffer"].float() for i in saved["optimizer"]["param_groups"][-1]["params"]]
    assert all(torch.equal(a, b) for a, b in zip(seen["momentum"], expected, strict=True))
    assert student.trainer.args.kd["teacher"] == [str(killed.teacher)]
    assert student.trainer.distiller.gains == {"pkd_loss": 0.5, "logit_loss": 0.5}
    assert [row["epoch"] for row in rows(student.trainer.save_dir)] == ["1", "2", "3"]
    assert read(student.trainer.best)["optimizer"] is None


@slow
def test_a_killed_run_of_musgd_goes_on_as_it_was(scenes, teacher, tmp_path):
    """It has groups of its own, and two momenta for each of the student's convolutions."""
    killed = kill(tmp_path, scenes, teacher, "MuSGD")
    saved = read(killed.last)["optimizer"]
    seen: dict[str, Any] = {}

    def at_start(trainer):
        seen.update(adapters=adapters(trainer), groups=copy.copy(trainer.optimizer.param_groups))
        seen["states"] = [copy.deepcopy(trainer.optimizer.state[p]) for p in seen["groups"][-1]["params"]]

    with called_at(on_train_start=at_start):
        trainer = train(resume=str(killed.last), teacher=str(killed.teacher)).trainer
    assert type(trainer.optimizer).__name__ == "MuSGD"
    assert same(seen["adapters"], saved["kd"])
    for now, then in zip(seen["groups"], saved["param_groups"], strict=True):
        assert all(now.get(key) == then.get(key) for key in ("param_group", "use_muon", "weight_decay"))
    expected = [saved["state"][i] for i in saved["param_groups"][-1]["params"]]
    assert any("momentum_buffer_SGD" in state for state in saved["state"].values()), "of both kinds"
    for now, then in zip(seen["states"], expected, strict=True):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[k], v.float()) if torch.is_tensor(v) else now[k] == v for k, v in then.items())
    assert all(not torch.equal(v, seen["adapters"][k]) for k, v in adapters(trainer).items()), "they were to go on"
    assert [row["epoch"] for row in rows(trainer.save_dir)] == ["1", "2", "3"]
    assert all(v.isfinite().all() for v in read(trainer.best)["model"].float().state_dict().values())


@slow
def test_a_run_that_an_earlier_version_began_is_resumed(killed, tmp_path):
    """It wrote only what was asked for, and among it how the student had started."""
    checkpoint = read(killed.last)
    stored = checkpoint["train_args"]["kd"]
    checkpoint["train_args"]["kd"] = {
        "teacher": [str(killed.teacher)], "gain": 0.5, "methods": stored["methods"], "start": "teacher"
    }  # fmt: skip
    shutil.copytree(killed.folder / "run", tmp_path / "run")
    torch.save(checkpoint, last := tmp_path / "run" / "weights" / "last.pt")
    trainer = train(resume=str(last), save_dir=str(tmp_path / "run")).trainer
    assert trainer.start == "teacher" and trainer.distillation.init == "own"
    assert trainer.distiller.gains == {"pkd_loss": 0.5, "logit_loss": 0.5}
    assert read(trainer.best)["yolokd"]["start"] == "teacher"
    assert [row["epoch"] for row in rows(trainer.save_dir)] == ["1", "2", "3"]


@slow
@pytest.mark.parametrize("argument", ["method=cwd", "kd=2", "pkd.gain=2"])
def test_a_resumed_run_keeps_its_method(killed, argument, capsys):
    """Another loss halfway makes a run that nobody can repeat."""
    assert main(["train", f"model={killed.last}", "resume=True", f"teacher={killed.teacher}", argument]) == 2
    assert "cannot change in a resumed run" in capsys.readouterr().err


@slow
def test_a_run_without_yolokd_is_not_resumed(killed, run, tmp_path, capsys):
    """Nor is a finished one: neither holds what a distilled run needs."""
    checkpoint = read(killed.last)
    del checkpoint["train_args"]["kd"]
    torch.save(checkpoint, tmp_path / "stock.pt")
    for file in (tmp_path / "stock.pt", run.trainer.last):
        assert main(["train", f"model={file}", "resume=True", f"teacher={killed.teacher}"]) == 2
        assert file.name in capsys.readouterr().err
    with pytest.raises(UsageError, match="was not distilled"):
        YOLO(tmp_path / "stock.pt").train(trainer=KDTrainer, resume=True, teacher=killed.teacher)


@slow
def test_after_nan_the_adapters_come_back_with_the_student(scenes, teacher, tmp_path):
    """Ultralytics restores the student from last.pt; broken adapters would poison it again at once."""
    seen: dict[str, Any] = {}

    def at_save(trainer):
        seen.setdefault("saved", adapters(trainer))

    def break_once(trainer):
        if trainer.epoch == 1 and "broken" not in seen:
            seen["broken"] = True
            trainer.loss = torch.tensor(float("nan"))
            for p in trainer.distiller.methods.parameters():
                p.data.fill_(float("nan"))

    def at_epoch(trainer):
        if "broken" in seen:
            seen.setdefault("restored", adapters(trainer))

    hooks = {"on_model_save": at_save, "on_train_epoch_end": break_once, "on_train_epoch_start": at_epoch}
    trainer = fit(pico("yolov8"), hooks=hooks, teacher=teacher, method="pkd", data=scenes, project=tmp_path)
    assert same(seen["restored"], seen["saved"])
    assert all(v.isfinite().all() for v in adapters(trainer).values())


def test_checkpoint_state_without_adapters_leaves_them_as_they_are():
    """A run of map-free terms saves none; then there is nothing to load."""

    class Base(BaseTrainer):
        def _load_checkpoint_state(self, ckpt):
            self.loaded = ckpt

    class Trainer(KDMixin, Base):
        def __init__(self):
            self.distiller = SimpleNamespace(methods=nn.ModuleDict({"pkd_loss": nn.Linear(2, 2)}), balance=None)
            self.args, self.distillation = SimpleNamespace(resume="last.pt"), DistillOptions(("big.pt",))

    trainer, other = Trainer(), nn.ModuleDict({"pkd_loss": nn.Linear(2, 2)})
    before = copy.deepcopy(trainer.distiller.methods.state_dict())
    for ckpt in ({"optimizer": None}, {}, {"optimizer": {"state": {}}}):
        trainer._load_checkpoint_state(ckpt)
        assert trainer.loaded is ckpt
        assert same(trainer.distiller.methods.state_dict(), before)
    trainer._load_checkpoint_state({"optimizer": {"kd": other.state_dict()}})
    assert same(trainer.distiller.methods.state_dict(), other.state_dict())
    with pytest.raises(UsageError, match="resume=last.pt: .* does not fit teacher=big.pt"):
        trainer._load_checkpoint_state({"optimizer": {"kd": {}}})


def test_validation_has_no_entry_for_our_terms():
    """Neither its figures nor its names: with val=False the names alone become columns of constant 0."""
    trainer = KDTrainer.__new__(KDTrainer)
    trainer.loss_names, trainer.distiller = ("box_loss", "pkd_loss"), SimpleNamespace(columns=["pkd_loss"])
    figures = {"box_loss": torch.tensor(2.0), "pkd_loss": torch.tensor(1.0)}
    assert trainer.label_loss_items() == ["train/box_loss", "train/pkd_loss"]
    assert trainer.label_loss_items(figures) == {"train/box_loss": 2.0, "train/pkd_loss": 1.0}
    assert trainer.label_loss_items(prefix="val") == ["val/box_loss"]
    assert trainer.label_loss_items(figures, prefix="val") == {"val/box_loss": 2.0}


# Together with Ultralytics' own options


@slow
@pytest.mark.parametrize("optimizer", ["SGD", "MuSGD", "auto"])
def test_adapters_learn_with_every_optimizer_at_the_students_rate(optimizer, scenes, teacher, tmp_path):
    """Each builds its groups another way; MuSGD's first group is the one with three times the rate."""
    seen: dict[str, Any] = {}

    def at_start(trainer):
        seen.update(first=adapters(trainer), groups=copy.copy(trainer.optimizer.param_groups), lr0=trainer.args.lr0)

    trainer = fit(
        pico("yolo11"), hooks={"on_train_start": at_start}, teacher=teacher, method="pkd,cwd@backbone",
        data=scenes, project=tmp_path, optimizer=optimizer, epochs=1,
    )  # fmt: skip
    (kd,) = (g for g in seen["groups"] if g.get("param_group") == "kd")
    assert {id(p) for p in kd["params"]} == {id(p) for p in trainer.distiller.methods.parameters()}
    assert kd["initial_lr"] == seen["lr0"]
    assert kd["weight_decay"] > 0
    last = adapters(trainer)
    assert all(not torch.equal(last[k], v) for k, v in seen["first"].items())


@slow
def test_multi_scale_rect_freeze_and_cosine_rate_together(scenes, teacher, tmp_path):
    """Non-square batches of changing size, frozen layers and another schedule meet taps, adapters and names."""
    wide = tmp_path / "wide"
    shutil.copytree(scenes.parent, wide)
    for file in [*wide.rglob("*.png"), *wide.rglob("*.jpg")]:
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (96, 48)))  # labels are relative: they stay right
    for file in wide.rglob("*.cache"):
        file.unlink()
    layout = yaml.safe_load(scenes.read_text())
    (wide / scenes.name).write_text(yaml.safe_dump({**layout, "path": str(wide)}))
    shapes, frozen = set(), {}

    def at_start(trainer):
        frozen.update(copy.deepcopy(dict(trainer.distiller.module.model[:10].named_parameters())))
        frozen["first"] = adapters(trainer)
        trainer.distiller.pairings[0].teacher.model.register_forward_pre_hook(
            lambda m, args: shapes.add(args[0].shape[-2:])
        )

    trainer = fit(
        pico("yolo26"), hooks={"on_train_start": at_start}, teacher=teacher, method="pkd,cwd@towers,logit,bckd_box",
        data=wide / scenes.name, project=tmp_path, epochs=1, batch=2, imgsz=96,
        multi_scale=0.5, rect=True, freeze=10, cos_lr=True,
    )  # fmt: skip
    assert any(h != w for h, w in shapes), "batches were to be non-square"
    assert len(shapes) > 1, "and of more than one size"
    first = frozen.pop("first")
    assert same(dict(trainer.distiller.module.model[:10].named_parameters()), frozen)
    assert all(not torch.equal(v, first[k]) for k, v in adapters(trainer).items())
    (row,) = rows(trainer.save_dir)
    terms = [c for c in row if c.removeprefix("train/") in trainer.distiller.gains]
    assert len(terms) == 4
    assert all(0 < float(row[c]) < float("inf") for c in terms)
