"""`yolokd fit`: every mistake is one sentence before anything is measured, trained or written."""

from __future__ import annotations

import json

import pytest
from helpers.cli import refusal

from yolokd.detectors import opening
from yolokd.errors import UsageError
from yolokd.fitting import fit, request
from yolokd.fitting.request import read_request

BUDGET = "budget=total.p95=5ms"
SMALL = {"widths": [0.125, 0.0625], "depths": [0.5], "sizes": [64]}


@pytest.fixture
def place(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "USER_CONFIG_DIR", tmp_path_factory.mktemp("config"))
    monkeypatch.setattr(fit, "carry_out", lambda *_: pytest.fail("something was begun"))
    return tmp_path


def asked(teacher, scenes, **other):
    given = dict.fromkeys(("accuracy", "family", "devices", "threads"))
    given |= {"teacher": teacher, "data": scenes, "budget": "total.p95=5ms", "device": "here", "search": 1.0}
    given |= {"out": "fit", "arguments": {"epochs": 1}, **SMALL}
    return read_request(**{**given, **other})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget=12ms"], "budget=12ms is no budget"),
        (["budget=total.p999=12ms"], "p999 needs 2995: give bench.profile=standard"),
        ([BUDGET, "bench.quick=True", "budgt=1"], "'budgt', did you mean"),
        ([BUDGET, "bench.threads=1,2"], "bench.threads=(1, 2) is a list"),
        ([BUDGET, "bench.thread=1"], "bench.thread is no option of `yolokd bench`"),
        ([BUDGET, "bench.profile=long"], "Unknown profile 'long'"),
        ([BUDGET, "bench.imgsz=64"], "chosen by the fit"),
        ([BUDGET, "device=0"], "devices=0,1 says where trainings run"),
        ([BUDGET, "device=none.json"], "none.json does not exist"),
        ([BUDGET, "accuracy=0"], "accuracy=0 is not a mAP50-95"),
        ([BUDGET, "search=-1"], "search=-1 is not a number"),
        ([BUDGET, "threads=0"], "threads=0 is not"),
        ([BUDGET, "model=yolo11n.yaml"], "model=yolo11n.yaml is not for a fit"),
        ([BUDGET, "init=own"], "every candidate starts from its teacher"),
        ([BUDGET, "family=rtdetr-l.yaml"], "is for detect, an RT-DETR, and the teacher for detect"),
        ([BUDGET, "widths=wide"], "widths=wide is not a list"),
        ([BUDGET, "optimizer=best"], "optimizer=best"),
        ([BUDGET, "method=nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_refused(words, said, teacher, scenes, place, capsys):
    assert said in refusal(capsys, place, "fit", f"teacher={teacher}", f"data={scenes}", *words)


def test_what_is_missing_is_asked_for(teacher, scenes, place, capsys):
    words = [f"teacher={teacher}", f"data={scenes}", BUDGET]
    for k, key in enumerate(("teacher", "data", "budget")):
        assert f"no {key}" in refusal(capsys, place, "fit", *words[:k], *words[k + 1 :])


def test_a_teacher_without_a_start_is_refused(teacher, scenes, untrained, place, capsys, tmp_path_factory):
    def said(*words):
        return refusal(capsys, place, "fit", *words, f"data={scenes}", BUDGET)

    folder = tmp_path_factory.mktemp("teachers")
    file = folder / "teacher.onnx"
    file.write_bytes(b"")
    assert "is an ONNX file, which no student can start from" in said(f"teacher={file}")
    assert "is a transformer of timm" in said("teacher=timm:vit_tiny_patch16_224")
    assert "names 2 teachers" in said(f"teacher={teacher},{file}")
    opening.open_model("yolo11n-cls.yaml").save(folder / "cls.pt")
    assert "is for the task classify, which no student can start from" in said(f"teacher={folder / 'cls.pt'}")


def test_the_folder_of_other_settings_is_refused_and_of_the_same_taken_up(teacher, scenes, place):
    first = asked(teacher, scenes)
    assert json.loads((place / "fit" / "fit.json").read_text())["settings"]["budget"] == "total.p95=5ms"
    assert asked(teacher, scenes).candidates == first.candidates
    assert asked(teacher, scenes, device="board", accuracy=40).accuracy == 40, "these may change"
    with pytest.raises(UsageError, match="epochs=1 then, 2 now"):
        asked(teacher, scenes, arguments={"epochs": 2})
    with pytest.raises(UsageError, match="total.p95=5ms then, total.p95=6ms now"):
        asked(teacher, scenes, budget="total.p95=6ms")
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("notes")
    with pytest.raises(UsageError, match="is not the folder of a fit"):
        asked(teacher, scenes, out="mine")


def test_the_largest_image_is_that_of_the_teachers_training(teacher, scenes, place):
    found = asked(teacher, scenes, sizes=None, widths=[0.125])
    trained = request.trained_at(opening.open_model(teacher))
    assert found.largest.imgsz == trained
    assert {c.imgsz for c in found.candidates} == {32 * max(round(trained * s / 32), 1) for s in (1, 0.8, 0.6)}


def test_every_training_starts_from_the_teacher_at_its_own_size(teacher, scenes, place):
    found = asked(teacher, scenes)
    small = found.candidates[-1]
    training = found.training(small)
    assert (training["init"], training["imgsz"], training["epochs"]) == ("teacher", 64, 1)
    assert training["teacher"] == str(teacher.resolve()) and f"-w{small.width:g}-" in training["model"]
