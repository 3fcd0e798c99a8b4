"""`yolokd methods --cost`: every method has its row, memory is counted once, and what does not apply is said."""

from __future__ import annotations

import pytest
import torch
from helpers.cli import refusal

from yolokd import cli
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.studies.step_cost import as_leaves, cost, saved_bytes

CPU = torch.device("cpu")
SMALL = {"imgsz": 64, "batch": 1, "rounds": 1, "device": "cpu"}

OF_TASKS = {"probiou", "ld_rotated", "oks", "masks"}  # not for detection heads


def test_every_method_has_a_row(capsys):
    rows = cost(**SMALL)
    applicable = [name for name, cls in METHODS.items() if "dense/dense" in cls.heads and name not in OF_TASKS]
    assert list(rows) == ["student", "teacher", "teacher without head", *applicable]
    assert rows["student"].ratio == 1 and rows["student"].mb is None
    alone = rows["student"].ms
    assert all(row.ms > 0 and row.ratio == pytest.approx(row.ms / alone) for row in rows.values())
    # 1.5 MB of adapters, four times, are the least that a method on the neck with one adapter a level keeps
    adapters = sum(s * t + t for s, t in ((64, 128), (128, 256), (256, 512)))
    assert rows["defeat"].mb > 16e-6 * adapters and rows["logit"].mb > 0
    printed = capsys.readouterr().out
    assert "yolo11n under yolo11s, 1 x 64 px, CPU" in printed
    assert all(any(line.split()[:1] == [name] for line in printed.splitlines()) for name in applicable)


def test_a_method_that_does_not_apply_is_named_with_its_reason(capsys):
    rows = cost("yolo26n.yaml", "yolo11n.yaml", method="ld,pkd@backbone", **SMALL)
    assert list(rows)[3:] == ["pkd@backbone"]
    assert "method ld cannot be used for yolo26n" in capsys.readouterr().out


def test_memory_is_what_is_saved_beyond_what_is_held():
    x, y = (torch.rand(100, requires_grad=True) for _ in range(2))
    for run, held, expected in (
        (lambda: (x * y).sum(), [x, y], 0),  # both factors are there already
        (lambda: (x * y).sum(), [x], 400),
        (lambda: (x[:50] * y[:10].sum()).sum(), [x], 4),  # one number; x is there
        (lambda: x.exp().sum(), [x], 400),  # its result
        (lambda: (x.exp() * x.exp().detach()).sum(), [x], 800),
    ):
        assert saved_bytes(run, lambda: None, held, CPU) == expected


def test_views_become_leaves_that_add_to_a_gradient():
    shown = {"neck": [torch.ones(2)], "out": {"scores": torch.ones(2), "n": 3, "index": torch.tensor([1])}}
    leaves = as_leaves(shown)
    assert leaves["out"]["n"] == 3 and not leaves["out"]["index"].requires_grad
    for leaf in (leaves["neck"][0], leaves["out"]["scores"]):
        assert leaf.is_leaf and leaf.requires_grad and leaf.grad.eq(0).all()
    assert not shown["neck"][0].requires_grad


def test_the_verb_reads_dotted_options(monkeypatch):
    seen = {}
    monkeypatch.setattr("yolokd.studies.step_cost.cost", lambda model="", **given: seen.update(given))
    assert cli.main(["methods", "--cost", "imgsz=320", "mgd.form=full"]) == 0
    assert seen == {"imgsz": 320, "mgd.form": "full"}


@pytest.mark.parametrize(
    "argument",
    [
        "imgs=320",
        "imgsz=0",
        "imgsz=100",
        "model=none.yaml",
        "method=pkdd",
        "mgd.form=half",
        "device=foo",
        "device=cuda",
    ],
)
def test_the_verb_refuses(argument, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert argument.partition("=")[0].partition(".")[0] in refusal(capsys, tmp_path, "methods", "--cost", argument)


def test_an_option_of_a_method_that_was_not_chosen_is_refused():
    with pytest.raises(UsageError, match="not among method=pkd"):
        cost(method="pkd", **SMALL, **{"mgd.form": "full"})
