"""Nothing in a file that enters runs: every file by which a model or data set enters, each way it can hold code."""

from __future__ import annotations

import collections
import copy
import datetime
import io
import os
import pathlib
import pickle
import tarfile
import zipfile
from pathlib import Path, PosixPath

import numpy as np
import onnx
import pytest
import torch
from helpers.models import build
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

import yolokd
from yolokd.data.splits import OWN_DATA, read_data
from yolokd.detectors import checkpoint_scan
from yolokd.detectors.opening import (
    is_layer,
    is_plain_activation,
    open_model,
    open_student,
    open_teacher,
    read_checkpoint,
    scaled_yaml,
)
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError
from yolokd.studies.plan import plan_study
from yolokd.studies.step_cost import cost
from yolokd.studies.step_time import steptime


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that hostile code makes."""
    return tmp_path / "canary"


@pytest.fixture
def shell(canary) -> Call:
    return Call(os.system, f"touch {canary}")


@pytest.fixture
def evil(tmp_path, teacher, shell) -> Path:
    """A real checkpoint with a bomb in it."""
    file = tmp_path / "evil.pt"
    torch.save({**torch.load(teacher, weights_only=False), "note": shell}, file)
    return file


def test_the_canary_dies_elsewhere(evil, canary):
    """Else the tests below prove nothing."""
    YOLO(evil)
    assert canary.exists()


# --- every path -----------------------------------------------------------------------------------------------------


def enter(path: str, evil: Path, teacher: Path, data: Path) -> None:
    """Open a checkpoint by one of the ways in."""
    common = {"data": data, "project": str(evil.parent / "runs"), "imgsz": 64, "epochs": 1, "device": "cpu"}
    data_only = {"data": data, "imgsz": 64, "epochs": 1, "device": "cpu"}
    study = {"arms": None, "seeds": 1, "out": evil.parent / "study"}
    model = "yolo11n.yaml"
    calls = {
        "model": lambda: yolokd.train(model=evil, teacher=teacher, **common),
        "teacher": lambda: yolokd.train(model=model, teacher=evil, **common),
        "second teacher": lambda: yolokd.train(model=model, teacher=[teacher, evil], **common),
        "pretrained": lambda: yolokd.train(model=model, teacher=teacher, pretrained=str(evil), **common),
        "resume": lambda: yolokd.train(resume=str(evil)),
        "model and resume": lambda: yolokd.train(model=evil, resume=True),
        "trainer": lambda: KDTrainer(overrides={"model": str(evil), "teacher": str(teacher), **common}),
        "trainer, resume": lambda: KDTrainer(overrides={"resume": str(evil), "model": str(evil)}),
        "export": lambda: yolokd.export(evil),
        "bundle": lambda: yolokd.bundle(evil),
        "study, model": lambda: plan_study("pkd", arguments={"model": evil, "teacher": teacher, **data_only}, **study),
        "study, teacher": lambda: plan_study("pkd", arguments={"model": model, "teacher": evil, **data_only}, **study),
        "study, builtin": lambda: plan_study(
            "builtin", arguments={"model": model, "teacher": evil, **data_only}, **study
        ),
        "steptime, model": lambda: steptime(str(evil), str(teacher), str(data)),
        "steptime, teacher": lambda: steptime(model, str(evil), str(data)),
        "cost, model": lambda: cost(str(evil), str(teacher)),
        "cost, teacher": lambda: cost(model, str(evil)),
    }
    calls[path]()


PATHS = (
    "model", "teacher", "second teacher", "pretrained", "resume", "model and resume", "trainer", "trainer, resume",
    "export", "bundle", "study, model", "study, teacher", "study, builtin", "steptime, model", "steptime, teacher",
    "cost, model", "cost, teacher",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_way_in_runs_a_checkpoints_code(path, evil, teacher, scenes, canary):
    arguments = {k: v for k, v in {"data": scenes}.items() if "resume" not in path}
    with pytest.raises(UsageError) as refusal:
        enter(path, evil, teacher, arguments.get("data", scenes))
    said = str(refusal.value)
    assert not canary.exists()
    assert f"={evil} holds posix.system" in said and "trust=True" in said and "\n" not in said


def test_trust_is_the_users_choice_and_a_yes_or_no(evil, teacher, scenes, canary):
    with pytest.raises(UsageError, match="trust=no is neither True nor False"):
        yolokd.train(model=evil, teacher=teacher, data=scenes, trust="no")
    assert not canary.exists()
    assert open_student(evil, trust=True).task == "detect" and canary.exists()


def test_a_trusted_teacher_is_loaded_by_the_preflight_and_a_files_own_word_is_none(evil, teacher, scenes, canary):
    """The option reaches the place where teachers are loaded, and is not read from a checkpoint."""
    from yolokd.config.options import fold
    from yolokd.distill.preflight import preflight

    folded = fold({"teacher": str(evil), "data": str(scenes), "imgsz": 64, "trust": True})
    preflight(open_student("yolo11n.yaml"), folded, trust=True)
    assert canary.exists() and "trust" not in folded
    assert fold({"resume": True, "trust": True})["kd"] == {"trust": True}
    assert "kd" not in fold({"resume": True})


# --- every way to hold code -----------------------------------------------------------------------------------------


def rewrite(teacher: Path, file: Path, value: object, **how) -> None:
    torch.save({**torch.load(teacher, weights_only=False), "note": value}, file, **how)


def nested(canary: Path) -> Call:
    buffer = io.BytesIO()
    torch.save(Call(os.system, f"touch {canary}"), buffer)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


def module_call(canary: Path) -> Call:
    """A model class is known, but its constructor evaluates."""
    layout = {"activation": f"__import__('os').system('touch {canary}')", "nc": 1, "backbone": [], "head": []}
    return Call(DetectionModel, layout)


def through_rebuild(canary: Path) -> Call:
    call = module_call(canary).parts
    return Call(torch._tensor._rebuild_from_type_v2, call[0], torch.Tensor, call[1], {})


class Dotted:
    """A name with dots is looked up attribute by attribute."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary


HELD = {
    "getattr": lambda canary: Call(getattr, DetectionModel, "load"),
    "getattr of a dunder": lambda canary: Call(getattr, nn.Module, "__init__"),
    "eval": lambda canary: Call(eval, f"__import__('os').system('touch {canary}')"),
    "exec": lambda canary: Call(exec, f"import os; os.system('touch {canary}')"),
    "import": lambda canary: Call(__import__, "antigravity"),
    "pickle in a pickle": lambda canary: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {canary}"))),
    "torch.save in a pickle": nested,
    "model class called": module_call,
    "model class called by torch": through_rebuild,
    "torch.hub": lambda canary: Call(torch.hub.load, "someone/evil", "x"),
    "download": lambda canary: Call(__import__("ultralytics").utils.downloads.safe_download, "file:///etc/passwd"),
    "model opener": lambda canary: Call(__import__("ultralytics").nn.tasks.yaml_model_load, "evil.yaml"),
    "codec": lambda canary: Call(__import__("_codecs").encode, "x", "rot13"),
    "a class for an object": lambda canary: {"act": DetectionModel},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("how", HELD)
def test_what_a_pickle_calls_is_not_called(how, legacy, teacher, tmp_path, canary):
    file = tmp_path / "evil.pt"
    rewrite(teacher, file, HELD[how](canary), _use_new_zipfile_serialization=not legacy)
    for opener in (open_model, open_teacher):
        with pytest.raises(UsageError, match="trust=True"):
            opener(str(file))
    assert not canary.exists()


def test_files_that_are_no_zip_of_torch(tmp_path, shell, canary, teacher):
    plain, tar, polyglot, inside = (tmp_path / f"{n}.pt" for n in ("plain", "tar", "polyglot", "inside"))
    plain.write_bytes(pickle.dumps(shell))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:  # as torch wrote before 0.2
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(shell)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    tar.write_bytes(buffer.getvalue())
    torch.save({}, polyglot, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(inside, "w") as archive:  # looks like one of torch's
        archive.writestr("archive/data.pkl", pickle.dumps({"model": shell}))
        archive.writestr("archive/version", "3")
    for file in (plain, tar, inside):
        for opener in (open_model, open_teacher):
            with pytest.raises(UsageError) as refusal:
                opener(str(file))
            assert str(file) in str(refusal.value)
    assert not canary.exists()


def test_a_layout_inside_a_checkpoint_is_not_evaluated(teacher, tmp_path, canary):
    """Known classes only, and yet a training would build the model anew and evaluate."""
    checkpoint = torch.load(teacher, weights_only=False)
    (checkpoint["ema"] or checkpoint["model"]).yaml["activation"] = f"__import__('os').system('touch {canary}')"
    torch.save(checkpoint, tmp_path / "evil.pt")
    for opener in (open_model, open_teacher):
        with pytest.raises(UsageError, match=r"holds activation: .*trust=True"):
            opener(str(tmp_path / "evil.pt"))
    assert not canary.exists()


def quantization() -> dict:
    """A quantization state as Ultralytics writes it, with one entry of each kind."""
    cfg = {"num_bits": 8, "axis": 0, "type": "static", "calibrator": "max", "trt_high_precision_dtype": "Float"}
    entry = {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Conv2d", "cfg": cfg, "enable": True}
    buffers = {"_amax": {"shape": torch.Size([8, 1]), "dtype": torch.float32}}
    found = {"_disabled": False, "backend": None, "_pytorch_state_metadata": {"params": {}, "buffers": buffers}}
    metadata = {"quantizer_state": {"model.0.conv.weight_quantizer": found}}
    quantize = {"config": {"quant_cfg": [entry], "algorithm": "max"}, "metadata": metadata}
    calibrate = {"config": {"method": "max", "shared_states": None}, "metadata": copy.deepcopy(metadata)}
    steps = [("quantize", quantize), ("max_calibrate", calibrate)]
    return {
        "modelopt": {"modelopt_state_dict": steps, "modelopt_version": "0.47.0"},
        "ranges": {"model.0.conv.weight_quantizer._amax": torch.ones(8, 1)},
    }


def quantizer(state: dict) -> dict:
    return state["modelopt"]["modelopt_state_dict"][1][1]["metadata"]["quantizer_state"][
        "model.0.conv.weight_quantizer"
    ]


def config(state: dict) -> dict:
    return state["modelopt"]["modelopt_state_dict"][0][1]["config"]


HOSTILE = {  # what modelopt would look up, import, call or read
    "no state": lambda state: state.clear(),
    "another entry": lambda state: state.update(more=1),
    "another change of the model": lambda state: state["modelopt"]["modelopt_state_dict"].append(("distill", {})),
    "a calibrator that is called": lambda state: config(state)["quant_cfg"][0]["cfg"].update(calibrator=("x", ("y",))),
    "a calibrator by name": lambda state: config(state)["quant_cfg"][0]["cfg"].update(calibrator="os.system"),
    "a file that is read": lambda state: config(state).update({"$import": "/etc/recipe.yaml"}),
    "a backend": lambda state: quantizer(state).update(backend="mine"),
    "a module": lambda state: quantizer(state).update(_fake_quant=nn.Identity()),
    "a tensor": lambda state: quantizer(state).update(_amax=torch.ones(1)),
    "a class": lambda state: quantizer(state).update(_num_bits=nn.Identity),
    "ranges that are none": lambda state: state["ranges"].update(x="y"),
}


@pytest.mark.parametrize("what", [None, *HOSTILE])
def test_only_a_quantization_state_of_ultralytics_is_restored(what, teacher, tmp_path):
    state, file = quantization(), tmp_path / "qat.pt"
    HOSTILE.get(what, lambda state: None)(state)
    torch.save({**torch.load(teacher, weights_only=False), "modelopt": state or {"x": 1}}, file)
    if what is None:
        checkpoint_scan.scan(file)
        return
    with pytest.raises(UsageError, match="holds (a quantization state of modelopt|torch.nn.modules.*).*trust=True"):
        open_model(file)


LAYOUT = """\
nc: 2
activation: {activation}
backbone:
  - [-1, 1, {layer}, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[0, 1], 1, Detect, [nc]]
"""


@pytest.mark.parametrize(
    ("activation", "layer"),
    [
        ("__import__('os').system('touch {canary}')", "Conv"),
        ("nn.SiLU(__import__('os').system('touch {canary}'))", "Conv"),
        ("torch.hub.load('a', 'b')", "Conv"),
        ("nn.Module.__subclasses__()", "Conv"),
        ("!!binary X19pbXBvcnRfXygnb3MnKS5zeXN0ZW0oJ3RydWUnKQ==", "Conv"),
        ("nn.SiLU()", "yaml_model_load"),
        ("nn.SiLU()", "DetectionModel"),
        ("nn.SiLU()", "nn.functional"),
        ("nn.SiLU()", "torchvision.ops.nms"),
    ],
)
def test_a_model_yaml_names_activations_and_layers_only(activation, layer, tmp_path, canary):
    file = tmp_path / "mine.yaml"
    file.write_text(LAYOUT.format(activation=activation.replace("{canary}", str(canary)), layer=layer))
    for call in (lambda: open_model(file), lambda: yolokd.train(model=file, teacher="x.pt", data="x.yaml")):
        with pytest.raises(UsageError) as refusal:
            call()
    assert not canary.exists()
    with pytest.raises(UsageError, match="trust=True") as refusal:
        open_model(file)
    assert f"model={file} holds" in str(refusal.value)


def test_a_scaled_model_yaml_is_looked_at_too(tmp_path, canary):
    file = tmp_path / "mine11n.yaml"
    text = (OWN_DATA.parent / "models/11/yolo11.yaml").read_text()
    file.write_text(text + f"\nactivation: __import__('os').system('touch {canary}')\n")
    with pytest.raises(UsageError, match="trust=True"):
        scaled_yaml(str(file), width=0.125)
    assert not canary.exists()


def test_python_tags_in_a_yaml_build_nothing(tmp_path, canary, teacher):
    file = tmp_path / "mine.yaml"
    file.write_text(f"nc: !!python/object/apply:os.system ['touch {canary}']\ntrain: a\nval: b\nnames: [c]\n")
    for call in (lambda: open_model(file), lambda: read_data({"data": file})):
        with pytest.raises(UsageError, match=str(file)):
            call()
    assert not canary.exists()


def test_plain_activations_and_layers_pass(tmp_path):
    for good in ("nn.SiLU()", "torch.nn.LeakyReLU(0.1)", "nn.Hardswish(inplace=True)"):
        assert is_plain_activation(good)
    for layer in ("Conv", "C3k2", "Detect", "nn.Upsample", "torchvision.ops.DeformConv2d", "Unheard"):
        assert is_layer(layer)
    file = tmp_path / "mine.yaml"
    file.write_text(LAYOUT.format(activation="nn.LeakyReLU(0.1)", layer="Conv"))
    assert isinstance(open_model(file).model.model[0].act, nn.LeakyReLU)


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("download", ["import os; os.system('touch {}')", "bash touch {}", "http: exec('open({!r})')"])
def test_a_data_sets_download_code_is_refused(download, tmp_path, canary, teacher):
    file = tmp_path / "mine.yaml"
    code = download.format(str(canary))
    file.write_text(f"path: {tmp_path}/none\ntrain: a\nval: b\nnames: [c]\ndownload: |\n  {code}\n")
    calls = (
        lambda: read_data({"data": str(file)}),
        lambda: yolokd.train(model="yolo11n.yaml", teacher=teacher, data=str(file)),
        lambda: steptime("yolo11n.yaml", str(teacher), str(file)),
    )
    for call in calls:
        with pytest.raises(UsageError, match=r"mine.yaml holds a program .*trust=True"):
            call()
    assert not canary.exists()
    if "import" in download:
        with pytest.raises(UsageError):  # it downloads nothing
            read_data({"data": str(file)}, trust=True)
        assert canary.exists()


def test_addresses_and_ultralytics_own_programs_are_kept(tmp_path, monkeypatch):
    """What is downloaded is not tried here: what Ultralytics is left to do is recorded."""
    from yolokd.data import splits

    left = []
    monkeypatch.setattr(splits, "check_det_dataset", lambda *a, **k: left.append(k.get("autodownload", True)))
    mine = tmp_path / "mine.yaml"
    mine.write_text("path: none\ntrain: a\nval: b\nnames: [c]\ndownload: https://example.com/data.zip\n")
    copy = tmp_path / "VisDrone.yaml"
    copy.write_bytes((OWN_DATA / "VisDrone.yaml").read_bytes())
    for file in (str(mine), "VisDrone.yaml", str(OWN_DATA / "VisDrone.yaml"), str(copy)):
        assert splits.checked_data(file, "val") == file
    assert not left, "nothing had to be looked at"
    copy.write_text(copy.read_text() + "\n# changed\n")
    splits.checked_data(str(copy), "val")
    assert left == [False], "a changed copy is anybody's"


def test_an_onnx_teacher_with_an_operator_of_its_own_runs_nothing(tmp_path):
    node = onnx.helper.make_node("Evil", ["images"], ["output0"], domain="evil")
    shape = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [shape("images", 1, [1, 3, 64, 64])], [shape("output0", 1, [1, 6, 84])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("evil", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "evil.onnx")
    from yolokd.detectors.teachers import load_teacher

    with pytest.raises(UsageError, match="evil.onnx"):
        load_teacher(str(tmp_path / "evil.onnx"))


# --- what is honest loads -------------------------------------------------------------------------------------------

FAMILIES = (
    "yolov3n", "yolov5n", "yolov6n", "yolov8n", "yolov8n-p2", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n",
    "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo26n-seg", "rtdetr-2-20-32",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_family_loads(family, legacy, tmp_path):
    """As Ultralytics writes them in the middle of a training: half precision, with optimizer and numbers of NumPy."""
    model = build(family, dtype=torch.float32)
    model.criterion = model.init_criterion() if "rtdetr" not in family else None
    checkpoint = {
        "epoch": 3,
        "best_fitness": np.float64(0.5),
        "model": None,
        "ema": model.half(),
        "updates": 7,
        "modelopt": None,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict(),
        "train_args": {"data": PosixPath("a/b.yaml"), "kd": {"gain": 1.0, "teacher": ["x.pt"]}},
        "train_metrics": {"fitness": np.float32(0.1), "n": np.int64(3), "ok": np.bool_(True)},
        "train_results": {"epoch": [1, 2]},
        "date": datetime.datetime.now(),
        "git": {"root": Path(".")},
    }
    torch.save(checkpoint, tmp_path / "last.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint_scan.scan(tmp_path / "last.pt")
    if "rtdetr" not in family:
        loaded, whole = read_checkpoint(tmp_path / "last.pt", "resume")
        assert type(loaded) is type(model) and whole["train_metrics"]["n"] == 3


def test_what_earlier_releases_stored_loads(tmp_path, teacher):
    """Names as of Ultralytics 8.0: its arguments under ultralytics.yolo, modules without a file of their own."""
    checkpoint = torch.load(teacher, weights_only=False)
    model = checkpoint["ema"] or checkpoint["model"]
    model.args = get_cfg(DEFAULT_CFG)
    checkpoint["train_args"] = {"names": collections.OrderedDict(a=1), "arr": np.arange(3), "kind": np.dtype("f4")}
    torch.save(checkpoint, tmp_path / "new.pt")
    renamed = {b"cultralytics.utils\nIterable": b"cultralytics.yolo.utils\nIterable"}
    renamed |= {b"cultralytics.nn.modules.conv\nConv": b"cultralytics.nn.modules\nConv"}
    renamed |= {b"cpathlib\nPosixPath": b"cpathlib\nWindowsPath"}
    with zipfile.ZipFile(tmp_path / "new.pt") as old, zipfile.ZipFile(tmp_path / "old.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert all(now in content for now in list(renamed)[:2])
                for now, then in renamed.items():
                    content = content.replace(now, then)
            new.writestr(name.replace("new/", "old/"), content)
    assert open_student(tmp_path / "old.pt").task == "detect"
    assert open_teacher(str(tmp_path / "old.pt")).task == "detect"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ultralytics.nn.tasks", "YOLOv10DetectionModel"),
        ("ultralytics.nn.modules.block", "Silence"),
        ("ultralytics.utils.loss", "v10DetectLoss"),
        ("ultralytics.yolo.utils", "IterableSimpleNamespace"),
        ("ultralytics.nn.modules", "Detect"),
        ("ultralytics.nn.modules.head", "Detect"),
        ("pathlib._local", "WindowsPath"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("torch", "HalfStorage"),
        ("__builtin__", "set"),
    ],
)
def test_names_of_any_release_are_known(module, name):
    assert checkpoint_scan.Scan(io.BytesIO(b"")).find_class(module, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ultralytics.nn.tasks", "torch.hub.load"),
        ("ultralytics.nn.tasks", "attempt_download_asset"),
        ("ultralytics.nn.autobackend", "AutoBackend"),
        ("ultralytics.nn.modules.block", "torch"),
        ("ultralytics.utils.loss", "torch"),
        ("torch.nn.modules.module", "Callable"),
        ("torch.nn", "Module.load_state_dict"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch.fx.graph_module", "reduce_graph_module"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("functools", "partial"),
        ("copyreg", "_reconstructor"),
        ("models.yolo", "Model"),
    ],
)
def test_names_that_could_run_are_not(module, name):
    with pytest.raises(checkpoint_scan.UnknownContentError):
        checkpoint_scan.Scan(io.BytesIO(b"")).find_class(module, name)


def test_paths_of_the_other_system_are_known():
    assert {"pathlib.PosixPath", "pathlib.WindowsPath"} <= checkpoint_scan.CALLED and pathlib
