"""The pruned teacher: a plain network of Ultralytics' layers, as large as a latency allows, that trains as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import build
from helpers.training import TINY
from torch import nn
from ultralytics import YOLO

from yolokd.detectors.opening import open_model, open_teacher
from yolokd.distill.pruned import MARK, is_pruned, plain_trainer, refuse_other_classes
from yolokd.distill.training import train
from yolokd.errors import UsageError
from yolokd.fitting import pruning
from yolokd.fitting.pruning import bisected, prune
from yolokd.init.teacher_statistics import raw_outputs
from yolokd.studies import worker

NAMES = ["yolo11n-seg", "yolo26n", "yolov8n-pose", "yolov10n"]


def outputs(model: nn.Module, side: int) -> list[torch.Tensor]:
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with raw_outputs(model), torch.no_grad():
        found = model(x)
    return [found[key] for key in ("boxes", "scores")] if "boxes" in found else [found["one2one"]["scores"]]


@pytest.fixture(scope="module")
def pruned(teacher, tmp_path_factory):
    """Half of the teacher's channels, as a checkpoint."""
    pytest.importorskip("torch_pruning")
    model = prune(open_teacher(str(teacher)), 0.5, "teacher")
    file = tmp_path_factory.mktemp("pruned") / "pruned.pt"
    torch.save({"model": copy.deepcopy(model).half(), "train_args": {"imgsz": 64}, "epoch": -1}, file)
    return file


def test_nothing_changes_where_nothing_is_pruned(teacher):
    """Blocks come back whole after they were taken apart."""
    pytest.importorskip("torch_pruning")
    model = open_teacher(str(teacher)).float()
    for found, expected in zip(outputs(prune(model, 0.0, "teacher"), 96), outputs(model, 96), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_half_of_the_channels(pruned, teacher):
    whole, opened = open_teacher(str(teacher)), open_model(pruned)
    model = opened.model
    assert is_pruned(model) and not is_pruned(whole)
    count, before = (sum(p.numel() for p in m.parameters()) for m in (model, whole))
    assert before / 5 < count < before / 2
    assert {type(m) for m in model.modules()} == {type(m) for m in whole.modules()}, "Ultralytics' layers only"
    assert model.model[1].conv.out_channels == whole.model[1].conv.out_channels // 2
    assert [x.shape for x in outputs(model.float(), 64)] == [x.shape for x in outputs(whole.float(), 64)]


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_other_heads_are_pruned_too(family):
    pytest.importorskip("torch_pruning")
    model = build(family, dtype=torch.float32)
    small = prune(model, 0.9, family)
    count, before = (sum(p.numel() for p in m.parameters()) for m in (small, model))
    assert count < before / 3
    assert [x.shape for x in outputs(small, 96)] == [x.shape for x in outputs(model, 96)]


def test_the_largest_network_within_a_latency():
    asked = []

    def cost(ratio: float) -> float:
        asked.append(ratio)
        return 10 * (1 - ratio) ** 2

    ratio, ms = bisected(cost, 2.5)
    assert ratio == pytest.approx(0.5, abs=0.02) and 2.5 * 0.96 < ms <= 2.5 * 1.02 and len(asked) <= 7
    with pytest.raises(UsageError, match="without 95% of its channels takes 0.03 ms, more than the student's 0.01 ms"):
        bisected(cost, 0.01)


def test_what_cannot_be_pruned_is_said(teacher, monkeypatch):
    with pytest.raises(UsageError, match="big.pt is an RT-DETR"):
        pruning.refuse_unprunable(build("rtdetr-2-20-32", dtype=torch.float32), "big.pt")
    monkeypatch.setattr(pruning, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'yolokd\[prune\]', or give prune=False"):
        prune(None, 0.5, "teacher")


def test_the_trainer_of_a_pruned_student_alone():
    model = build("yolo11n-seg", dtype=torch.float32)
    assert plain_trainer(model) is None, "Ultralytics' own"
    setattr(model, MARK, True)
    assert plain_trainer(model).__name__ == "PrunedSegmentationTrainer"
    with pytest.raises(UsageError, match="has 5 classes and the data 7"):
        refuse_other_classes(model, 7)


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
def test_it_is_trained_as_it_is(taught, pruned, teacher, scenes, tmp_path):
    shapes = {k: v.shape for k, v in open_model(pruned).model.state_dict().items()}
    given = {**TINY, "epochs": 1, "data": str(scenes), "model": str(pruned)}
    if taught:
        student = train(**given, teacher=str(teacher), init="own", save_dir=str(tmp_path / "train"), check=False)
        checkpoint = student.trainer.best
    else:
        (tmp_path / "run").mkdir()
        checkpoint = worker.train(tmp_path / "run", given, 1)["checkpoint"]
    found = YOLO(checkpoint).model
    assert {k: v.shape for k, v in found.state_dict().items()} == shapes and is_pruned(found)
    first = "model.0.conv.weight"
    assert not torch.equal(found.state_dict()[first], open_model(pruned).model.state_dict()[first]), "and it has learnt"
