"""`yolokd train`: every mistake is one sentence before any epoch and any file; a run never touches an earlier one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.cli import contents, refusal
from helpers.training import ASSETS, TINY
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

import yolokd
from yolokd import cli
from yolokd.data import splits
from yolokd.data.splits import read_data
from yolokd.detectors import opening
from yolokd.detectors.opening import scaled_yaml
from yolokd.distill import preflight
from yolokd.distill.trainer import KDTrainer
from yolokd.errors import UsageError

STUDENT = "model=yolo11n.yaml"
ONE_LEVEL = """\
nc: 10
backbone: [[-1, 1, Conv, [8, 3, 2]], [-1, 1, Conv, [16, 3, 2]]]
head: [[[1], 1, Detect, [nc]]]
"""


@pytest.fixture
def place(tmp_path, tmp_path_factory, monkeypatch):
    """An empty working folder; the YAMLs that `scaled` writes go elsewhere, not to the developer's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "USER_CONFIG_DIR", tmp_path_factory.mktemp("config"))
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """Arguments with which a training would have started; none does."""
    calls = []
    monkeypatch.setattr(YOLO, "train", lambda self, trainer=None, **kwargs: calls.append((self, trainer, kwargs)))
    return calls


@pytest.fixture(scope="session")
def damaged(tmp_path_factory, teacher):
    """Folder of files that are no teachers, each wrong in its own way."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "text.pt").write_text("not a checkpoint\n")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "truncated.pt").write_bytes(teacher.read_bytes()[:300_000])
    torch.save({"weights": torch.zeros(3)}, folder / "other.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    YOLO("yolo11n-cls.yaml").save(folder / "classify.pt")
    return folder


def renamed(teacher, file, names):
    """The teacher with other class names, and with as many classes as there are names."""
    model = YOLO(teacher)
    if len(names) != len(model.names):
        model.model = DetectionModel(model.model.yaml, nc=len(names), verbose=False)
        model.model.args, model.model.task = {}, "detect"
    model.model.names = names
    model.save(file)
    return file


@pytest.fixture
def refused(capsys, place, started, scenes, teacher):
    """Function: arguments -> sentence; a good model, teacher and data set are given unless overridden."""

    def run(*argv, leave_out=()):
        given = {"model": "yolo11n.yaml", "teacher": teacher, "data": scenes, "project": place / "runs"}
        given = {k: v for k, v in given.items() if k not in {a.partition("=")[0] for a in argv} | set(leave_out)}
        said = refusal(capsys, place, "train", *(f"{k}={v}" for k, v in given.items()), *argv)
        assert not started
        return said

    return run


@pytest.mark.parametrize(("missing", "named"), [("model", "student"), ("teacher", "teacher="), ("data", "data=")])
def test_what_must_be_given(refused, missing, named):
    said = refused(leave_out=[missing])
    assert f"no {missing if missing != 'model' else 'student'}" in said and named in said


@pytest.mark.parametrize("file", ["text.pt", "empty.pt", "truncated.pt", "other.pt", "tensor.pt"])
def test_a_teacher_that_is_no_checkpoint(refused, damaged, file):
    assert f"teacher={damaged / file} is not a checkpoint" in refused(f"teacher={damaged / file}")


@pytest.mark.parametrize("value", ["gone.pt", "yolo11n.yaml", "5", "True", "."])
def test_a_teacher_that_is_no_file(refused, value):
    assert f"teacher={value} " in refused(f"teacher={value}")


def test_a_teacher_or_student_of_another_task(refused, damaged):
    assert "task classify" in refused(f"teacher={damaged / 'classify.pt'}")
    assert "task classify" in refused(f"model={damaged / 'classify.pt'}")
    assert "task semantic" in refused("model=yolo26n-sem.yaml")
    assert "task=segment: model=yolo11n.yaml is for the task detect" in refused("task=segment")
    assert "WorldDetect, which yolokd cannot read" in refused("model=yolov8n-worldv2.yaml")
    assert "has no kpt_shape" in refused("model=yolo11n-pose.yaml")


def test_no_class_in_common(refused, teacher, place):
    other = renamed(teacher, place / "other.pt", {i: f"thing {i}" for i in range(7)})
    said = refused(f"teacher={other}", "method=logit")
    assert "method logit" in said and "share no class name" in said and "classes=map.yaml" in said


def test_a_class_map_that_is_wrong(refused, place):
    file = place / "map.yaml"
    for text, named in [
        ("boot: ankle-boot", "'boot', which the teacher does not have"),
        ("bag: sack", "'sack', which the data does not have"),
        ("- bag", "not a class map"),
        ("bag: [bag]", "not a class map"),
    ]:
        file.write_text(text)
        assert named in refused(f"classes={file}")
    assert "classes=gone.yaml does not exist" in refused("classes=gone.yaml")


@pytest.mark.parametrize("value", ["bag", "map.txt", "['bag']", "True", "[]", "0.5", "[0,True]"])
def test_classes_that_are_neither_a_map_nor_indices(refused, place, value):
    (place / "map.txt").write_text("bag: bag")
    said = refused(f"classes={value}")
    assert said.startswith(f"yolokd: classes={value.replace(',', ', ')} is neither a class map") and "[0,3]" in said


@pytest.mark.parametrize("key", ["model", "teacher", "pretrained"])
def test_a_checkpoint_with_values_that_are_no_numbers(refused, place, key):
    model = YOLO(ASSETS / "student.pt")
    model.model.model[0].bn.running_var[0] = float("nan")
    model.save(place / "nan.pt")
    said = refused(f"{key}={place / 'nan.pt'}")
    assert f"{key}={place / 'nan.pt'} has values that are not finite, first in model.0.bn.running_var" in said


def test_classes_that_the_data_does_not_have(refused):
    assert "classes=[0, 10] names class 10, and the data's are numbered from 0 to 9" in refused("classes=[0,10]")
    assert "classes=-1 names class -1" in refused("classes=-1")
    assert "classes=[0] and single_cls=True cannot be combined" in refused("classes=[0]", "single_cls=True")


def test_a_class_name_that_could_be_two(refused, teacher, place):
    names = dict(YOLO(teacher).names)
    other = renamed(teacher, place / "other.pt", {**names, 0: f" {names[1].upper()}", 1: f"{names[1].title()}"})
    assert f"the data's {names[1]!r} differ in case" in refused(f"teacher={other}")


def test_some_classes_in_common(teacher, scenes, place, started):
    names = YOLO(teacher).names
    other = renamed(teacher, place / "other.pt", {0: "frock", 1: names[5], 2: names[2].upper()})
    yolokd.train(model="yolo11n.yaml", teacher=other, data=scenes, method="logit,rm,pkd")
    assert len(started) == 1


def test_other_class_names_do_not_matter_to_features(teacher, scenes, place, started):
    other = renamed(teacher, place / "other.pt", {i: f"thing {i}" for i in range(7)})
    yolokd.train(model="yolo11n.yaml", teacher=other, data=scenes, method="pkd,fitnet")
    assert len(started) == 1


def test_no_common_stride(refused, place):
    (place / "fine.yaml").write_text(ONE_LEVEL)
    said = refused("model=fine.yaml")
    assert "(4,)" in said and "(8, 16, 32)" in said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "does not exist"),
        ("{[::", "YAML syntax error"),
        ("scenes", "not a valid YAML mapping"),
        ("path: nowhere\ntrain: a\nval: b\nnames: {0: a}\n", "not found"),
        ("path: .\ntrain: a\nnames: {0: a}\n", "'val:' key missing"),
        ("path: .\ntrain: .\nval: .\n", "'names' or 'nc'"),
    ],
)
def test_a_data_set_that_is_not_there(refused, place, text, named):
    if text is not None:
        (place / "mine.yaml").write_text(text)
    said = refused("data=mine.yaml")
    assert "data=mine.yaml cannot be used" in said and named in said


def test_a_training_folder_without_images(refused, place, scenes):
    """Ultralytics looks for the validation's folder only, before it makes the run's."""
    (place / "none").mkdir()
    val = scenes.parent / "images" / "val"
    for train in ("none", "gone"):
        (place / "mine.yaml").write_text(f"path: {place}\ntrain: {train}\nval: {val}\nnames: {{0: a}}\n")
        said = refused("data=mine.yaml")
        assert f"(train: {place / train} has no images)" in said


@pytest.mark.parametrize("listed", [False, True])
def test_training_images_without_labels(refused, place, scenes, listed):
    """Ultralytics looks for them only after it has made the run's folder."""
    images, val = place / "images", scenes.parent / "images" / "val"
    images.mkdir()
    shutil.copy(next(val.iterdir()), images / "a b.jpg")
    (place / "list.txt").write_text("./images/a b.jpg\n")
    train = "list.txt" if listed else "images"
    (place / "mine.yaml").write_text(f"path: {place}\ntrain: {train}\nval: {val}\nnames: {{0: a}}\n")
    assert "(train: no image with a label)" in refused("data=mine.yaml")
    (place / "labels").mkdir()
    (place / "labels" / "a b.txt").touch()  # nothing in the image: a label, too
    read_data({"data": "mine.yaml"})
    (images / "a b.jpg").write_text("no image")
    assert "(train: no image with a label)" in refused("data=mine.yaml")


def test_an_ultralytics_that_converts_without_knowing_splits(scenes, monkeypatch):
    """As the oldest supported release does."""
    monkeypatch.setattr(splits, "convert_ndjson_to_yolo_if_needed", lambda data: data)
    assert read_data({"data": str(scenes)})["nc"] == 10


@pytest.mark.parametrize(
    "file", ["text.pt", "empty.pt", "truncated.pt", "gone.pt", "gone.yaml", "data.txt", "data.yaml", "", "cut.onnx"]
)
def test_a_student_that_is_no_model(refused, damaged, file):
    (damaged / "data.txt").write_text("hello")
    (damaged / "data.yaml").write_text("names: {0: a}\n")
    (damaged / "cut.onnx").write_text("")
    assert f"model={damaged / file} " in refused(f"model={damaged / file}")


@pytest.mark.parametrize(
    "argument",
    [
        "method=pkdd", "method=pkd,pkd", "method=pkd@head", "method=logit@neck", "method=none.yaml",
        "cwd.tau=2", "kd=-1", "kd=nan", "kd={}", "pkd.gain=x", "epoch=3", "teachr=x", "epochs=abc", "imgsz='x'",
        "device=banana", "distill_model=x.pt", "compile=True", "quantize=16", "pretrained=none.pt", "cfg=none.yaml",
        "resume=none.pt", "resume=True", "epochs", "width=0", "width=-1", "width=abc", "width=nan", "depth=0",
        "depth=5", "optimizer=foo", "split=test", "device=0", "imgsz=0", "imgsz=-5", "batch=0", "batch=-3", "batch=2.5",
        "workers=-1",
    ],
)  # fmt: skip
def test_an_argument_that_is_refused_by_name(refused, argument):
    key, _, value = argument.partition("=")
    said = refused(argument)
    assert key in said and (value.strip("'{}") in said or "unknown option" in said or "last.pt" in said)


def test_an_option_of_a_chosen_method(refused):
    assert "cwd.tau=0 " in refused("method=cwd", "cwd.tau=0")
    assert "cwd.tau='abc' " in refused("method=cwd", "cwd.tau=abc")
    assert "'tua', did you mean 'tau'" in refused("method=cwd", "cwd.tua=2")


def test_a_key_given_twice(refused):
    assert "epochs= is given twice" in refused("epochs=1", "epochs=2")


def test_a_place_that_cannot_be_written(refused, place):
    (place / "file").touch()
    assert f"project={place / 'file' / 'runs'} cannot be written" in refused(f"project={place / 'file' / 'runs'}")


def test_autobatch_is_for_one_device(refused):
    """Ultralytics raises for it too, but after it has made the run's folder."""
    assert "batch=-1 is for one device" in refused("batch=-1", "device=0,1")


def test_scaling_needs_a_family(refused, teacher, place):
    assert f"model={teacher} is not a YAML" in refused(f"model={teacher}", "width=0.5")
    assert "has no scales" in refused("model=yolov3.yaml", "width=0.5")
    assert "model=gone.yaml cannot be read" in refused("model=gone.yaml", "width=0.5")


def test_a_folder_that_holds_a_run(refused, place):
    (place / "old" / "weights").mkdir(parents=True)
    (place / "old" / "weights" / "best.pt").write_bytes(b"mine")
    assert "is not empty" in refused(f"save_dir={place / 'old'}")
    (place / "project").mkdir()
    (place / "project" / "thesis.tex").write_text("mine")  # with several GPUs Ultralytics would empty the folder
    assert "is not empty" in refused(f"save_dir={place / 'project'}")


def test_a_checkpoint_that_cannot_be_resumed(refused, teacher):
    assert "is not an interrupted run of yolokd" in refused(f"resume={teacher}", leave_out=["model", "data"])
    assert "width=0.5 cannot change" in refused(f"resume={teacher}", "width=0.5", leave_out=["model", "data"])


def test_arguments_from_a_file(started, place, teacher, scenes, refused):
    """cfg= may hold ours as well; the command line wins; an unknown key is refused."""
    given = {"teacher": str(teacher), "data": str(scenes), "method": "cwd", "cwd.tau": 2, "epochs": 3, "imgsz": 64}
    (place / "run.yaml").write_text(yaml.safe_dump(given))
    assert cli.main(["train", STUDENT, "cfg=run.yaml", "epochs=5"]) == 0
    (_, trainer, kwargs), *_ = started
    assert trainer is KDTrainer and (kwargs["epochs"], kwargs["imgsz"]) == (5, 64)
    assert kwargs["kd"]["methods"] == {"cwd": {"tau": 2, "gain": 1.0}} and "cfg" not in kwargs
    started.clear()
    (place / "run.yaml").write_text(yaml.safe_dump({**given, "epoch": 3}))
    assert "'epoch', did you mean 'epochs'" in refused("cfg=run.yaml")


def test_their_arguments_arrive_untouched(started, teacher, scenes):
    theirs = {"epochs": 3, "imgsz": 96, "mosaic": 0.5, "classes": [0, 1], "freeze": 2, "name": "x", "line_thickness": 2}
    yolokd.train(model="yolo11n.yaml", teacher=teacher, data=scenes, **theirs)
    (student, trainer, kwargs), *_ = started
    assert trainer is KDTrainer and {**theirs, "data": scenes, "kd": kwargs["kd"]} == kwargs
    assert student.model.yaml["yaml_file"] == "yolo11n.yaml"


@pytest.mark.parametrize("family", ["yolov8s", "yolo11s", "yolo12s", "yolo26s"])
def test_scaled_models_have_the_asked_width_and_depth(family, place):
    own = YOLO(f"{family}.yaml").model
    depth, width, most = own.yaml["scales"]["s"]
    small = YOLO(scaled_yaml(f"{family}.yaml", width=width / 2, depth=depth / 2)).model
    assert small.yaml["scale"] == "s" and small.yaml["scales"] == {"s": [depth / 2, width / 2, most]}
    assert small.model[0].conv.out_channels == own.model[0].conv.out_channels / 2
    assert parameters(small) < parameters(own) / 2
    deep = YOLO(scaled_yaml(f"{family}.yaml", depth=1.0)).model
    assert deep.yaml["scales"] == {"s": [1.0, width, most]} and len(list(deep.modules())) > len(list(own.modules()))


@pytest.mark.parametrize("family", ["yolov8n", "yolo11n", "yolo26n"])
def test_smaller_than_the_smallest(family, place):
    assert (
        parameters(YOLO(scaled_yaml(f"{family}.yaml", width=0.125)).model)
        < parameters(YOLO(f"{family}.yaml").model) / 2
    )


def test_a_scaled_model_that_its_family_cannot_build(refused, place):
    """YOLO12's attention takes multiples of 64 channels, so the n scale is the narrowest there is."""
    said = refused("model=yolo12n.yaml", "width=0.125")
    assert "yolo12n-w0.125" in said and "multiple of 32" in said


def test_scaled_models_of_equal_names_are_apart(place):
    given = yaml_model_load("yolo11n.yaml")
    files = []
    for folder, classes in (("a", 3), ("b", 4)):
        (place / folder).mkdir()
        (place / folder / "my11n.yaml").write_text(yaml.safe_dump({**given, "nc": classes}))
        files.append(scaled_yaml(f"{folder}/my11n.yaml", width=0.125))
    assert files[0] != files[1] and [yaml.safe_load(Path(f).read_text())["nc"] for f in files] == [3, 4]


def parameters(model) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def test_a_scaled_student_is_what_trains(started, place, teacher, scenes):
    cli.main(["train", STUDENT, f"teacher={teacher}", f"data={scenes}", "width=0.125", "depth=0.25"])
    (student, _, kwargs), *_ = started
    assert student.model.yaml["scales"] == {"n": [0.25, 0.125, 1024]} and not {"width", "depth"} & kwargs.keys()


def test_the_trainer_refuses_too(teacher, scenes, place):
    """`YOLO(...).train(trainer=KDTrainer)` goes without the verb: its mistakes are found before a folder is made."""
    model = YOLO("yolo11n.yaml")
    for wrong in ({"epoch": 3}, {"method": "pkdd"}, {"width": 0.5}, {"teacher": "gone.pt"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            given = {"teacher": teacher, "data": scenes, "project": str(place / "runs"), **wrong}
            model.train(trainer=KDTrainer, **given)
    assert not contents(place)


@pytest.mark.slow
def test_a_second_run_leaves_the_first_as_it_was(teacher, scenes, place):
    given = [f"{k}={v}" for k, v in {**TINY, "epochs": 1, "project": place / "runs", "name": "kd"}.items()]
    for name in ("kd", "kd-2"):
        assert (
            cli.main(["train", f"model={ASSETS / 'student.pt'}", f"teacher={teacher}", f"data={scenes}", *given]) == 0
        )
        assert (place / "runs" / name / "weights" / "best.pt").is_file()
        if name == "kd":
            first = contents(place / "runs" / "kd")
    assert sorted(p.name for p in (place / "runs").iterdir()) == ["kd", "kd-2"]
    assert contents(place / "runs" / "kd") == first


# What would end in a traceback


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("optimizer=LBFGS", "optimizer=LBFGS is not one of Ultralytics', auto, SGD, MuSGD"),
        ("optimizer=Rprop", "optimizer=Rprop is not one"),
        ("optimizer=SparseAdam", "optimizer=SparseAdam is not one"),
        ("balance=[]", "balance=[] is not auto, log, off"),
        (f"kd={10**400}", "kd=a number beyond 1e308 is not a number of 0 or more"),
        (f"balance={10**400}", "balance=a number beyond 1e308 is not auto"),
        (f"teacher_imgsz={10**400}", "teacher_imgsz=a number beyond 1e308 is not a number of pixels"),
        ("freeze=24", "freeze=24 leaves nothing to train: the model has 24 layers"),
        (f"freeze={list(range(24))}", "leaves nothing to train"),
    ],
)
def test_a_value_that_cannot_work_is_refused(refused, argument, named):
    assert named in refused(argument)


def test_a_project_that_is_a_file(refused, place, monkeypatch):
    (place / "taken").write_text("")
    assert f"project={place / 'taken'} cannot be written" in refused(f"project={place / 'taken'}")
    monkeypatch.setitem(preflight.SETTINGS, "runs_dir", str(place))
    (place / "detect").mkdir()
    (place / "detect" / "taken").write_text("")
    assert "project=taken cannot be written" in refused("project=taken")


def test_a_student_alone_may_be_given_unlabelled_images(scenes, teacher, place, started):
    images = scenes.parent / "images"
    yolokd.train(model="yolo11n.yaml", teacher=teacher, data=scenes, kd=0, unlabeled=images, method="fgd")
    assert "unlabeled" not in started[0][2]["kd"]


def test_a_name_cannot_write_to_the_terminal(refused, capsys):
    said = refused("model=\x1b[2Jgone\nyolokd: done.pt")
    assert "\\x1b[2Jgone\\nyolokd: done.pt" in said and "\x1b" not in said


def test_images_of_another_number_of_channels_and_a_list_that_is_no_text(refused, scenes, place):
    data = yaml.safe_load(scenes.read_text())
    root = scenes.parent if not Path(str(data.get("path", "."))).is_absolute() else Path(data["path"])
    (place / "five.yaml").write_text(yaml.safe_dump({**data, "path": str(root), "channels": 5}))
    assert "says channels: 5" in refused(f"data={place / 'five.yaml'}")
    (place / "list.txt").write_bytes(b"\xff\xfe\x00\x81")
    (place / "binary.yaml").write_text(yaml.safe_dump({**data, "path": str(root), "train": str(place / "list.txt")}))
    assert "list.txt is not a list of images" in refused(f"data={place / 'binary.yaml'}")


def copied(scenes: Path, folder: Path) -> tuple[Path, dict[str, Path]]:
    """A copy of the scenes to spoil, its YAML and the images' folders."""
    shutil.copytree(scenes.parent, folder)
    for cache in folder.rglob("*.cache"):
        cache.unlink()
    file = folder / scenes.name
    data = {**yaml.safe_load(scenes.read_text()), "path": str(folder)}
    file.write_text(yaml.safe_dump(data))
    return file, {split: folder / data[split] for split in ("train", "val")}


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["labels", "val images"])
def test_data_that_nothing_can_be_learnt_from_ends_in_a_sentence(scenes, teacher, tmp_path, capsys, spoilt):
    file, images = copied(scenes, tmp_path / "data")
    if spoilt == "labels":
        for label in (tmp_path / "data").rglob("*.txt"):
            label.write_text("77 0.5 0.5 0.2 0.2\n")
    else:
        for image in images["val"].rglob("*.*"):
            image.write_bytes(b"not an image")
    given = {**TINY, "model": ASSETS / "student.pt", "teacher": teacher, "data": file, "project": tmp_path / "runs"}
    code = cli.main(["train", *(f"{k}={v}" for k, v in given.items())])
    error = capsys.readouterr().err
    assert code == 2 and f"yolokd: data={file} cannot be used" in error and "Traceback" not in error, error


@pytest.mark.slow
def test_a_last_batch_of_one_small_image_ends_in_a_sentence(scenes, teacher, tmp_path, capsys):
    given = {**TINY, "imgsz": 32, "batch": 1, "init": "own", "model": ASSETS / "student.pt", "teacher": teacher}
    code = cli.main(
        ["train", *(f"{k}={v}" for k, v in given.items()), f"data={scenes}", f"project={tmp_path / 'runs'}"]
    )
    assert code == 2 and "yolokd: batch=1 cannot be used: final batch=1" in capsys.readouterr().err
