"""The arms beside a fit's student: all within its latency by a clock that is a law of the file's name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from helpers.training import TINY

from yolokd import cli
from yolokd.detectors import opening
from yolokd.errors import UsageError
from yolokd.fitting import comparison, measuring, pruning
from yolokd.fitting.comparison import arguments_of
from yolokd.studies import runner
from yolokd.studies.plan import plan_study

STUDENT = "w0.125-d0.5-96"


def ms_of(name: str) -> float:
    """The clock: 2 ms for the fit's student, for a pruned teacher 8 x the channels left, for others by their pixels."""
    if name.startswith("pruned-"):
        return 8 * (1 - float(name.removeprefix("pruned-")))
    if name == STUDENT:
        return 2.0
    family, imgsz = name.rsplit("-", 1)
    return {"yolo11n": 2.2, "yolo26n": 3.6, "yolo12n": 9.0}[family] * (int(imgsz) / 96) ** 2


@pytest.fixture
def fitted(tmp_path, monkeypatch, teacher, scenes, tmp_path_factory):
    """The folder of a fit that has ended: infer.p50=2.5ms, a student of 96 pixels that takes 2.2 ms with detections."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "USER_CONFIG_DIR", tmp_path_factory.mktemp("config"))
    monkeypatch.setattr(comparison, "UPSTREAM", {"weights_dir": str(tmp_path / "weights")})
    monkeypatch.setattr(pruning, "find_spec", lambda name: True)
    monkeypatch.setattr(pruning, "prune", lambda model, ratio, given: model)
    model = opening.scaled_yaml("yolo11n.yaml", 0.125, 0.5)
    training = {**TINY, "model": model, "imgsz": 96, "teacher": str(teacher), "data": str(scenes), "init": "teacher"}
    out, factor = tmp_path / "runs" / "fit", 1.0
    (out / "student").mkdir(parents=True)
    (out / "models").mkdir()
    (out / "images").mkdir()
    (out / "models" / f"{STUDENT}.onnx").write_text("")
    (out / "student" / "run.json").write_text(json.dumps({"kind": "train", "arguments": training}))
    student = {"name": STUDENT, "imgsz": 96, "measured_ms": 2.2, "predicted_ms": 2.3}
    budget = {"metric": "total.p50", "ms": 2.5}
    (out / "result.json").write_text(json.dumps({"student": student, "budget": budget, "beyond_ms": 0.2}))
    (out / "fit.json").write_text(json.dumps({"settings": {"bench": {"threads": 1}}}))

    def record(name, cpu="a processor"):
        stages = {"total": {"p50": factor * ms_of(name)}}
        return {"model": {"file": f"{name}.onnx"}, "device": {"cpu_model": cpu}, "results": {"stages": stages}}

    times = {f"{name}.onnx": record(STUDENT) for name in (STUDENT, "w0.125-d0.5-64", "detections", "student")}
    (out / "times.json").write_text(json.dumps(times))

    def measure(files, images, folder, options):
        assert options == {"threads": 1} and images == out / "images"
        measured.append([file.stem for file in files])
        return [record(file.stem, cpu=CPU[0]) for file in files]

    measured: list[list[str]] = []
    monkeypatch.setitem(globals(), "CPU", ["a processor"])
    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(comparison, "export_random", lambda family, candidate, names, file: file)
    monkeypatch.setattr(comparison, "export_silent", lambda model, imgsz, names, file: file)
    return out, measured


CPU = ["a processor"]


def test_everything_that_keeps_the_latency_is_an_arm(fitted, capsys):
    out, measured = fitted
    given = arguments_of("runs/fit", standard="yolo11n,yolo26n,yolo12n", seeds=2)
    arms = yaml.safe_load((out / "arms.yaml").read_text())
    assert list(arms) == [
        "fit", "fit-copied", "fit-random", "pruned", "pruned-distilled", "yolo11n", "yolo11n-distilled", "yolo26n",
        "yolo26n-distilled",
    ]  # fmt: skip
    assert arms["fit-copied"] == {"method": "default", "init": "teacher", "init.channels": "copied"}
    assert arms["pruned-distilled"]["init"] == "own" and arms["pruned"]["method"] == "alone"
    assert arms["yolo26n"] == {"method": "alone", "model": "yolo26n.yaml", "imgsz": 64}, "1.6 ms at 64, 3.6 at 96"
    assert arms["yolo11n"]["imgsz"] == 96 and "init" not in arms["yolo11n-distilled"]
    said = capsys.readouterr().out
    assert "yolo26n.pt is neither here nor in" in said
    assert "Over the budget at every image size: yolo12n" in said
    assert measured[-1][0] == STUDENT, "always beside the student"
    assert (given["imgsz"], given["seeds"], given["out"]) == (96, 2, str(out / "study")) and "init" not in given


def test_the_pruned_teacher_takes_what_the_student_takes(fitted, capsys):
    out, measured = fitted
    arguments_of("runs/fit", standard=False)
    names = [name for names in measured for name in names if name != STUDENT]
    assert all(name.startswith("pruned-") for name in names) and len(names) <= pruning.STEPS
    assert abs(ms_of(names[-1]) - 2.0) < 0.1, "2.2 ms with detections"
    stored = opening.read_content(out / "compare" / "pruned.pt", "model")
    assert stored["train_args"]["imgsz"] and isinstance(stored["model"], torch.nn.Module)


def test_the_arms_are_a_study(fitted):
    given = arguments_of("runs/fit", standard="yolo11n", seeds=1)
    plan = plan_study(None, given.pop("arms"), given.pop("seeds"), given.pop("out"), given)
    names = [arm.name for arm in plan.arms]
    assert names[:4] == ["alone", "fit", "fit-copied", "fit-random"]
    by_name = {arm.name: arm.arguments for arm in plan.arms}
    assert by_name["fit-random"]["init.channels"] == "random" and "init.channels" not in by_name["fit"]
    assert by_name["pruned"]["model"].endswith("pruned.pt") and "teacher" not in by_name["pruned"]
    assert {arm["epochs"] for arm in by_name.values()} == {2}


def test_weights_at_hand_are_taken_and_edited_arms_stay(fitted, teacher, tmp_path, capsys):
    out, measured = fitted
    shutil.copy(teacher, tmp_path / "yolo26n.pt")
    arguments_of("runs/fit", standard="yolo26n", prune=False)
    assert yaml.safe_load((out / "arms.yaml").read_text())["yolo26n"]["model"] == str(tmp_path / "yolo26n.pt")
    assert "yolo26n, yolo26n-distilled: pretrained" in capsys.readouterr().out
    (out / "arms.yaml").write_text("fit: {method: default, init: teacher}\n")
    measured.clear()
    arguments_of("runs/fit", standard="yolo26n")
    assert (out / "arms.yaml").read_text().startswith("fit:") and measured == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fit": "nowhere"}, "fit=nowhere is not the folder of a finished fit"),
        ({"standard": "yolo99n"}, "standard=yolo99n is no model of Ultralytics for the task detect"),
        ({"standard": "yolo11n-seg"}, "standard=yolo11n-seg is no model"),
        ({"standard": "yolo11n,yolo11n"}, "names a model twice"),
        ({"prune": "no"}, "prune=no is neither True nor False"),
        ({"model": "yolo11n.pt"}, "model=yolo11n.pt is not for fit="),
    ],
)
def test_mistakes(more, said, fitted):
    with pytest.raises(UsageError, match=said):
        arguments_of(**{"fit": "runs/fit", "standard": False, **more})
    assert not (fitted[0] / "arms.yaml").exists() and fitted[1] == []


def test_another_machine_than_the_fits_is_refused(fitted):
    CPU[0] = "another"
    with pytest.raises(UsageError, match="cpu_model was a processor and is another"):
        arguments_of("runs/fit", standard="yolo11n", prune=False)
    assert arguments_of("runs/fit", standard=False, prune=False)["imgsz"] == 96, "nothing to measure"


def test_a_board_without_the_students_time_cannot_be_compared_here(fitted):
    times = json.loads((fitted[0] / "times.json").read_text())
    del times["student.onnx"]
    (fitted[0] / "times.json").write_text(json.dumps(times))
    with pytest.raises(UsageError, match="has no student.onnx that others could be measured beside"):
        arguments_of("runs/fit")


def test_without_torch_pruning_one_sentence(fitted, monkeypatch):
    monkeypatch.setattr(pruning, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'yolokd\[prune\]', or give prune=False"):
        arguments_of("runs/fit", standard=False)
    assert not (fitted[0] / "arms.yaml").exists() and fitted[1] == []


def test_from_the_command_line(fitted, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "study", lambda **arguments: asked.append(arguments) or {})
    assert cli.main(["study", "fit=runs/fit", "standard=False", "prune=False", "seeds=2", "report=False"]) == 0
    assert asked[0]["arms"].endswith("arms.yaml") and asked[0]["seeds"] == 2
