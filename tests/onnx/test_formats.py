"""Other formats than ONNX: written by Ultralytics, proven by their own runtime, or said to be unproven."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.cli import contents, refusal
from helpers.edge import colour_frames, measured
from helpers.models import lively

import yolokd
from yolokd import cli, compat
from yolokd.errors import ParityError, UsageError
from yolokd.latency import gate
from yolokd.onnx import formats
from yolokd_edge import cli as edge
from yolokd_edge.bench import trial
from yolokd_edge.bench.options import PROFILES, Limits
from yolokd_edge.common import EdgeError
from yolokd_edge.detector import Detector, load
from yolokd_edge.runtimes.table import FORMATS, PROVIDERS, format_of

# of these the packages are not in every environment; each is a run of the exporter
OTHERS = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.skipif(not all(map(find_spec, one.packages)), reason=name)])
    for name, one in formats.PROVEN.items()
    if name not in ("onnx", "torchscript")
]


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[np.ndarray]:
    return colour_frames(tmp_path_factory.mktemp("frames"), 4)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory, teacher) -> Path:
    return yolokd.export(teacher, tmp_path_factory.mktemp("onnx") / "teacher.onnx", imgsz=[96, 160])


@pytest.fixture(scope="module")
def script(tmp_path_factory, teacher) -> Path:
    """The teacher as TorchScript, which needs no package that is not there."""
    file = tmp_path_factory.mktemp("script") / "teacher.torchscript"
    return yolokd.export(teacher, file, format="torchscript", imgsz=[96, 160])


@pytest.fixture
def brief(monkeypatch) -> None:
    """A measurement of a few frames."""
    monkeypatch.setitem(PROFILES, "smoke", Limits(30, 0.0, 60.0, 0.01))
    monkeypatch.setattr(trial, "WARM_UP_CPU_S", 0.0)


def proven(model: Path, name: str, onnx: Path, frames: list[np.ndarray]) -> None:
    """The model's runtime finds what ONNX Runtime finds in the ONNX file, and the metadata says that it is proven."""
    provider = formats.PROVEN[name].provider
    own, other = load(model, provider, threads=1), Detector(onnx, threads=1)
    assert own.contract[:4] == other.contract[:4] and own.active == PROVIDERS[provider].names[0]
    assert own.contract.meta["output_contract"] == own.contract.output and own.contract.meta["parity"]["pass"]
    assert own.contract.meta["parity"]["dets"]["n"] >= 5
    for frame in frames:
        assert np.abs(own.detect(frame) - other.detect(frame)).max(initial=0) < 0.05
    assert sum(len(own.detect(frame)) for frame in frames) > 5


def test_torchscript_is_proven_like_an_onnx_file(script, onnx, frames, brief, tmp_path, capsys):
    proven(script, "torchscript", onnx, frames)
    record = measured([script], frames, threads=1, provider="torchscript")[0]
    assert record["model"]["format"] == "torchscript" and record["parity"]["pass"] and not record["runtime"]["fallback"]
    assert record["runtime"]["torchscript"] == torch.__version__ and record["runtime"]["providers_active"] == [
        "torch:CPU"
    ]
    assert gate.provider_problems("new", record) == []
    record["runtime"]["providers_active"] = ["CPUExecutionProvider"]
    assert gate.provider_problems("new", record)[0][0] == gate.PROVIDER
    finder = Detector(onnx, threads=1)
    cv2.imwrite(str(tmp_path / "a.png"), max(frames, key=lambda frame: len(finder.detect(frame))))
    capsys.readouterr()
    words = [
        "detect",
        "--model",
        str(script),
        "--provider",
        "torchscript",
        "--source",
        str(tmp_path / "a.png"),
        "--json",
    ]
    assert edge.main(words) == 0
    assert json.loads(capsys.readouterr().out)["detections"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_proven_like_an_onnx_file(name, teacher, onnx, frames, tmp_path):
    if name == "mnn":
        sys.modules.pop(formats.REPORTING, None)
    model = yolokd.export(teacher, tmp_path / f"t{formats.ending(name)}", format=name, imgsz=[96, 160])
    assert format_of(model) == name and formats.REPORTING not in sys.modules
    proven(model, name, onnx, frames)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("family", ["yolo11n-seg", "yolo11n-pose"])
def test_other_formats_of_tasks_with_more_than_boxes(family, name, tmp_path):
    """Prototypes are a second output, and keypoints are places: LiteRT's are shares of the input."""
    checkpoint = lively(family, tmp_path / "a.pt")
    model = yolokd.export(checkpoint, tmp_path / f"a{formats.ending(name)}", format=name, imgsz=[64, 96])
    figures = load(model, formats.PROVEN[name].provider, threads=1).contract.meta["parity"]
    assert figures["pass"] and figures["dets"]["n"] >= 5


def test_masks_come_with_their_prototypes(tmp_path):
    checkpoint = lively("yolo11n-seg", tmp_path / "a.pt")
    model = yolokd.export(checkpoint, tmp_path / "a.torchscript", format="torchscript", imgsz=[64, 96])
    figures = load(model, "torchscript", threads=1).contract.meta["parity"]
    assert figures["pass"] and figures["dets"]["max_mask_diff"] <= figures["tolerance"]["masks"]


def test_a_file_that_computes_something_else_is_not_kept(teacher, script, tmp_path, monkeypatch):
    network = torch.jit.load(str(script), _extra_files=(kept := {"config.txt": ""}))

    class Off(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images) * 1.01

    off = torch.jit.trace(Off(), torch.zeros(1, 3, 96, 160), check_trace=False)
    off.save(str(tmp_path / "off.torchscript"), _extra_files=kept)
    monkeypatch.setattr(formats, "write", lambda *_: tmp_path / "off.torchscript")
    with pytest.raises(ParityError, match="does not compute what the checkpoint computes"):
        yolokd.export(teacher, tmp_path / "x.torchscript", format="torchscript", imgsz=[96, 160])
    assert not (tmp_path / "x.torchscript").exists()


def test_a_format_that_nothing_here_runs_is_exported_and_said_to_be_unproven(teacher, tmp_path, monkeypatch, capsys):
    def paddle(student: Any, name: str, arguments: dict[str, Any]) -> Path:
        made = Path(student.ckpt_path).with_name("x_paddle_model")
        made.mkdir()
        (made / "model.json").write_text("{}")
        return made

    said: list[str] = []
    monkeypatch.setattr(formats, "write", paddle)
    monkeypatch.setattr("yolokd.onnx.export.LOGGER.warning", lambda text, *more: said.append(str(text)))
    out = tmp_path / "new_paddle_model"
    assert cli.main(["export", f"model={teacher}", "format=paddle", f"out={out}"]) == 0
    assert (out / "model.json").read_text() == "{}"
    assert len(said) == 1 and "new_paddle_model is not proven: no runtime here runs format=paddle" in said[0]


BAD = [
    (("format=onxx",), "format=onxx is unknown, did you mean 'onnx'"),
    (("format=5",), "format=5 is unknown"),
    (("format=torchscript", "contract=nms"), "contract=nms is for ONNX files: leave it out with format=torchscript"),
    (("format=torchscript", "opset=17"), "opset=17 has no place in a file with format=torchscript"),
    (("format=torchscript", "conf=0.5"), "conf=0.5 has no place in a file with format=torchscript"),
    (("format=torchscript", "out=x.onnx"), "does not end in .torchscript: name what to write, such as"),
    (("format=torchscript", "out=mine.torchscript"), "exists already"),
    (("format=paddle", "out=mine_paddle_model", "exist_ok=True"), "is a folder that is no model for paddle"),
    (("format=engine",), "Ultralytics refuses to export: "),  # it needs a GPU
]


@pytest.mark.parametrize(("words", "sentence"), BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(words, sentence, teacher, tmp_path, monkeypatch, capsys):
    if "engine" in words[0] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(teacher.read_bytes())
    (tmp_path / "mine.torchscript").write_text("mine")
    (tmp_path / "mine_paddle_model").mkdir()
    assert sentence in refusal(capsys, tmp_path, "export", "model=a.pt", "imgsz=64", *words)


@pytest.mark.parametrize("name", [name for name in formats.PROVEN if name not in ("onnx", "torchscript")])
def test_an_absent_package_is_said_before_any_work(name, tmp_path, monkeypatch, capsys):
    package = formats.PROVEN[name].packages[0]
    monkeypatch.setattr(formats, "find_spec", lambda asked: None if asked == package else object())
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, tmp_path, "export", "model=gone.pt", f"format={name}")
    assert f"needs the Python package {package}, which is not installed: pip install 'yolokd[{name}]'." in said


def test_every_format_has_an_extra_with_its_packages_and_a_provider_that_reads_it():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name, one in formats.PROVEN.items():
        assert name in PROVIDERS[one.provider].formats
        assert FORMATS[name].suffix == ("" if FORMATS[name].parts else one.ending)
        assert not one.packages or f"\n{name} = [" in project


def test_nothing_is_installed_on_the_way(monkeypatch):
    from ultralytics.utils import checks

    with compat.nothing_installed():
        assert checks.AUTOINSTALL is False
        monkeypatch.setattr(checks.subprocess, "check_output", lambda *_, **__: pytest.fail("pip was called"))
        assert not checks.check_requirements("no-such-package-of-anybody")

    class Student:
        def export(self, **_: Any) -> str:
            raise ModuleNotFoundError("No module named 'x2paddle'")

    with pytest.raises(UsageError, match="format=paddle needs what is not installed .*x2paddle"):
        formats.write(Student(), "paddle", {})


def test_a_damaged_model_is_refused(script, tmp_path):
    (tmp_path / "a.torchscript").write_bytes(script.read_bytes()[:2000])
    with pytest.raises(EdgeError, match="a.torchscript is not a model that PyTorch can load"):
        load(tmp_path / "a.torchscript", "torchscript")
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "b.torchscript"))
    with pytest.raises(EdgeError, match="the exporter's metadata in it is missing or unreadable"):
        load(tmp_path / "b.torchscript", "torchscript")
    before = contents(tmp_path)
    with pytest.raises(EdgeError, match="is a model for torchscript: give the provider torchscript"):
        load(script, "cpu")
    assert contents(tmp_path) == before
