"""Training for INT8: of the student alone, with what the training knows, into a checkpoint that is Ultralytics'."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers.training import ASSETS, TINY
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

import yolokd
from yolokd.detectors import checkpoint_scan, quantized
from yolokd.detectors.opening import open_model, open_teacher
from yolokd.detectors.quantized import holds_quantization, is_quantized, quantized_layers
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError

pytest.importorskip("modelopt", reason="needs the extra qat")
slow = pytest.mark.slow
STUDENT = ASSETS / "student.pt"


def ranges(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.endswith("_amax")}


@pytest.fixture(scope="module")
def run(scenes, teacher, tmp_path_factory) -> SimpleNamespace:
    """Two epochs under a teacher and the student itself, stopped after the first and gone on with."""
    folder = tmp_path_factory.mktemp("qat")
    seen = SimpleNamespace(folder=folder, first={}, second={})

    def look(trainer, into) -> None:
        into["distiller"], into["ranges"] = trainer.distiller, copy.deepcopy(ranges(trainer.distiller.module))
        into["ema"], into["fading"] = ranges(trainer.ema.ema), trainer.fading

    def stop(trainer) -> None:
        if trainer.epoch == 1:
            look(trainer, seen.first)
            raise KeyboardInterrupt

    student = YOLO(STUDENT)
    student.add_callback("on_train_epoch_start", stop)
    given = {**TINY, "data": str(scenes), "save_dir": str(folder / "run")}
    with pytest.raises(KeyboardInterrupt):
        student.train(trainer=KDTrainer, teacher=f"{teacher},self", quantize=8, **given)
    seen.last = folder / "run" / "weights" / "last.pt"
    seen.interrupted = torch.load(seen.last, weights_only=False)
    done = yolokd.train(resume=str(seen.last), report=False)
    look(done.trainer, seen.second)
    seen.best, seen.metrics = done.trainer.best, done.trainer.metrics
    return seen


@slow
def test_the_student_is_rounded_and_nothing_else(run):
    distiller = run.first["distiller"]
    done, layers = quantized_layers(distiller.module)
    assert done == 81 and layers == 88, "all but the six last convolutions and the fixed one of the head"
    assert not any(is_quantized(pairing.teacher.model) for pairing in distiller.pairings)
    assert not is_quantized(distiller.methods)


@slow
def test_the_student_before_is_the_last_teacher_and_does_not_fade(run):
    big, before = run.first["fading"].teachers
    assert big > 0 and before != before, "nan: not scored, so that its terms count in full"
    assert run.first["distiller"].weights[1] == 1.0


@slow
def test_ranges_stay_what_they_were_through_training_and_resuming(run):
    first, second = run.first["ranges"], run.second["ranges"]
    assert len(first) > 150 and first.keys() == second.keys() == run.second["ema"].keys()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        torch.testing.assert_close(value, run.second["ema"][name], rtol=1e-4, atol=0)


@slow
def test_the_checkpoint_is_one_of_ultralytics(run):
    """Known classes only, and its state beside them; whoever loads it computes what was validated."""
    assert run.interrupted["epoch"] == 0 and run.interrupted["modelopt"]
    content = checkpoint_scan.scan(run.best)
    assert content["modelopt"] and holds_quantization(run.best) and not holds_quantization(STUDENT)
    model, content = load_checkpoint(run.best)
    assert is_quantized(model) and "pkd" in content["yolokd"]["methods"]
    assert len(content["yolokd"]["teachers"]) == 2
    rounded = next(m for m in model.modules() if type(m).__name__ == "QuantConv2d")
    with torch.no_grad():
        values = rounded.weight_quantizer(rounded.weight)[0].unique()
    assert len(values) <= 256


@slow
def test_a_quantized_model_is_no_teacher_and_can_be_trained_on(run, scenes, teacher, tmp_path, caplog):
    with pytest.raises(UsageError, match="is quantized, and a teacher teaches in full precision"):
        open_teacher(str(run.best))
    given = {**TINY, "epochs": 1, "data": str(scenes), "save_dir": str(tmp_path / "run"), "report": False}
    done = yolokd.train(model=str(run.best), teacher=str(teacher), kd=0, **given)
    assert "is quantized and is trained on in full precision" in caplog.text
    assert not holds_quantization(done.trainer.best)


@pytest.mark.parametrize("missing", quantized.NEEDED)
def test_without_modelopt_one_sentence_says_what_to_install(missing, teacher, tmp_path, monkeypatch):
    found = quantized.find_spec
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name == missing else found(name))
    refusal = r"needs nvidia-modelopt, which is not installed: pip install 'yolokd\[qat\]'"
    with pytest.raises(UsageError, match=f"quantize=8 {refusal}"):
        yolokd.train(model=str(STUDENT), teacher=str(teacher), data="gone.yaml", quantize=8)
    file = tmp_path / "qat.pt"
    torch.save({"modelopt": {"modelopt": {"modelopt_state_dict": []}, "ranges": {}}}, file)
    for trust in (False, True):
        with pytest.raises(UsageError, match=f"qat.pt holds a quantized model, which {refusal}"):
            open_model(file, trust=trust)


def test_an_rtdetr_is_no_student_for_int8(scenes, teacher, tmp_path):
    given = {"teacher": str(teacher), "data": str(scenes), "quantize": 8, "method": "pkd", "save_dir": tmp_path / "run"}
    with pytest.raises(UsageError, match="quantize=8 is for students with a YOLO's head"):
        yolokd.train(model="rtdetr-l.yaml", check=False, **given)
    assert not (tmp_path / "run").exists()


def test_an_ultralytics_that_cannot_is_named(teacher, monkeypatch):
    monkeypatch.delattr(quantized.torch_utils, "restore_qat")
    with pytest.raises(UsageError, match="quantize=8 needs Ultralytics 8.4.143 or newer"):
        yolokd.train(model=str(STUDENT), teacher=str(teacher), data="gone.yaml", quantize=8)
