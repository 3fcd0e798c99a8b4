"""`yolokd label`: the data set, what is refused, what goes on, what is left alone."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import yaml
from helpers.cli import contents, refusal
from helpers.faulty import picture
from helpers.training import ASSETS, TINY
from PIL import Image
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset

from yolokd import cli
from yolokd.data.audit import Frame, look_through
from yolokd.data.labels import Form
from yolokd.errors import Interrupted, UsageError
from yolokd.labelling import label as labelling
from yolokd.labelling.folder import Journal, new_name
from yolokd.labelling.label import label
from yolokd_edge.progress import Progress, spoken

TEACHER = str(ASSETS / "teacher.pt")


@pytest.fixture
def photos(scenes, tmp_path, monkeypatch) -> Path:
    """Six scenes without labels, two of them in a subfolder, and a broken file; an empty working folder around."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    for i, file in enumerate(sorted((scenes.parent / "images" / "train").iterdir())[:6]):
        shutil.copy(file, folder / ("images" if i > 3 else "") / file.name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def seen(file: Path, task: str = "detect", split: str = "train"):
    """The data set as a training reads it."""
    data = check_det_dataset(str(file))
    (found,) = look_through(data, [split], Form.of(data, task), Frame(64), None)
    return found


def test_labels_of_a_teacher(photos, scenes, tmp_path, capsys):
    argv = [f"{k}={v}" for k, v in {"teacher": TEACHER, "images": photos, "out": "out", "data": scenes}.items()]
    before = contents(photos), contents(scenes.parent)
    assert cli.main(["label", *argv, "device=cpu", "imgsz=64"]) == 0
    assert (contents(photos), contents(scenes.parent)) == before, "nothing is written beside the user's files"
    said = capsys.readouterr().out
    assert "6 images" in said and "broken.jpg" in said and "validation object" in said

    out = tmp_path / "out"
    split = seen(out / "data.yaml")
    assert split.total == len(split.used) == 6 and not any(s.faults for s in split.seen)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["unreadable"] == ["broken.jpg"] and summary["images"] == 6
    assert sum(about["objects"] for about in summary["classes"].values()) == sum(len(s.rows) for s in split.used) > 0
    assert summary["with_objects"] == split.with_objects
    assert Image.open(out / "sheet.jpg").size == (4 * 320, 2 * 258)
    assert check_det_dataset(str(out / "data.yaml"))["val"] == check_det_dataset(str(scenes))["val"]

    thresholds = {k: t["conf"] for k, t in json.loads((out / "thresholds.json").read_text()).items()}
    assert len(set(thresholds.values())) > 1, "each class has its own"
    for s in split.seen:  # what Ultralytics itself finds from there on
        (result,) = YOLO(TEACHER).predict(str(s.image), conf=0.01, imgsz=64, device="cpu", verbose=False)
        boxes = result.boxes
        wanted = [b for b in range(len(boxes)) if boxes.conf[b] >= thresholds[str(int(boxes.cls[b]))]]
        assert s.rows[:, 1:] == pytest.approx(boxes.xywhn[wanted].numpy(), abs=1e-4)
        assert s.rows[:, 0].tolist() == boxes.cls[wanted].tolist()


def test_a_stopped_run_goes_on_and_does_nothing_twice(photos, scenes, tmp_path, monkeypatch):
    given = {"teacher": TEACHER, "images": photos, "data": scenes, "imgsz": 64, "device": "cpu"}
    label(out="whole", **given)
    looked: list[float] = []
    look = labelling.Work.look

    def stop_after(count):
        def counted(self, image, conf):
            if len(looked) == count:
                raise KeyboardInterrupt
            looked.append(conf)
            return look(self, image, conf)

        monkeypatch.setattr(labelling.Work, "look", counted)

    for at in (3, 10):  # among the 8 validation images, and among the 6 to label
        stop_after(at)
        with pytest.raises(Interrupted, match="the same command goes on"):
            label(out="parts", **given)
        assert not (tmp_path / "parts" / "data.yaml").exists(), "no data set that is half done"
    with (tmp_path / "parts" / "labels.jsonl").open("a") as file:
        file.write('{"image": "cut sho')
    stop_after(-1)
    label(out="parts", **given)
    assert len(looked) == 8 + 6
    for kind in ("labels", "images"):
        assert contents(tmp_path / "parts" / kind) == contents(tmp_path / "whole" / kind)
    label(out="parts", **given)
    assert len(looked) == 8 + 6, "all is done"

    mended = next(f for f in (tmp_path / "parts" / "labels").iterdir())
    mended.write_text("3 0.5 0.5 0.1 0.1\n")
    (tmp_path / "parts" / "data.yaml").write_text("# mine\n" + (tmp_path / "parts" / "data.yaml").read_text())
    picture(photos / "new.png")
    assert label(out="parts", **given)["images"] == 7
    assert len(looked) == 8 + 7, "a new image is labelled"
    assert mended.read_text() == "3 0.5 0.5 0.1 0.1\n"
    assert (tmp_path / "parts" / "data.yaml").read_text().startswith("# mine")


def test_without_data(photos, tmp_path):
    out = tmp_path / "out"
    summary = label(TEACHER, photos, out, conf=0.6, imgsz=64, device="cpu", copy=True, sheet=0)
    assert not (out / "sheet.jpg").exists() and not (out / "thresholds.json").exists()
    assert not any(f.is_symlink() for f in (out / "images").iterdir())
    things = [o for line in (out / "labels.jsonl").read_text().splitlines() for o in json.loads(line)["objects"]]
    assert things and all(o["conf"] >= 0.6 for o in things)
    assert {about["conf"] for about in summary["classes"].values()} == {0.6}
    assert list(yaml.safe_load((out / "data.yaml").read_text())["names"].values()) == list(YOLO(TEACHER).names.values())


def test_classes_of_the_data(photos, scenes, tmp_path):
    """Their order is the data's; two classes of the teacher may be one of the data; what it lacks is said."""
    names = list(yaml.safe_load(scenes.read_text())["names"].values())
    about = yaml.safe_load(scenes.read_text())
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**about, "names": ["zebra", *reversed(names)]}))
    labels = tmp_path / "classes.yaml"
    labels.write_text(yaml.safe_dump({name: names[0] for name in names[:3]} | {n: n for n in names[3:]}))
    given = {"teacher": TEACHER, "images": photos, "conf": 0.3, "imgsz": 64, "device": "cpu"}
    plain = label(out="plain", **given)
    mapped = label(out="mapped", data=own, classes=labels, **given)
    assert mapped["not_taught"] == ["zebra", names[2], names[1]] and mapped["classes"]["zebra"]["objects"] == 0
    assert list(mapped["classes"]) == ["zebra", *reversed(names)]
    assert plain["not_taught"] == []
    for line in (tmp_path / "mapped" / "labels.jsonl").read_text().splitlines():
        assert {o["class"] for o in json.loads(line)["objects"]} <= {k for k in range(1, 11) if k not in (8, 9)}


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_other_tasks(task, photos, tmp_path, untrained):
    """Plumbing: an untrained model's labels are read back without a fault."""
    short = {"segment": "seg"}.get(task, task)
    file = tmp_path / "teacher.pt"
    model = YOLO(f"yolo11n-{short}.yaml")
    if task == "pose":
        model.model.kpt_shape = [17, 3]  # as a training notes it
    model.save(file)
    label(file, photos, "out", conf=0.001, imgsz=64, device="cpu", sheet=4)
    split = seen(tmp_path / "out" / "data.yaml", task)
    assert split.total == len(split.used) == 6
    assert not any(s.faults for s in split.seen if not s.faults.keys() <= {"twice"})


def test_an_onnx_teacher(photos, tmp_path):
    from yolokd import export

    shutil.copy(ASSETS / "teacher.pt", tmp_path / "teacher.pt")
    file = export(tmp_path / "teacher.pt", imgsz=64)
    given = {"images": photos, "conf": 0.4, "imgsz": 64, "device": "cpu", "sheet": 0}
    ours, theirs = label(file, out="onnx", **given), label(tmp_path / "teacher.pt", out="pt", **given)
    assert ours["classes"] == theirs["classes"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("images=gone", "images=gone is not a folder"),
        ("images=empty", "images=empty holds no image file"),
        ("images=unreadable", "images=unreadable holds no readable image"),
        ("out=photos/labels", "lies in images="),
        ("out=.", "lies in out="),
        ("out=mine", "is not the folder of earlier labels"),
        ("teacher=gone.pt", "teacher=gone.pt does not exist"),
        ("teacher=timm:vit_tiny", "finds no objects"),
        ("data=gone.yaml", "data=gone.yaml cannot be used"),
        ("data=other.yaml", "knows no class of data=other.yaml"),
        ("conf=2", "conf=2"),
        ("conf=many", "conf=many"),
        ("beta=0", "beta=0"),
        ("beta=2", "beta=2 is about the classes of data="),
        ("classes=map.yaml", "is about the classes of data="),
        ("sheet=-1", "sheet=-1"),
        ("imgsz=3", "imgsz=3"),
        ("device=0,1", "device="),
        ("copy=maybe", "copy=maybe"),
        ("fiftyone=True", "pip install fiftyone"),
        ("cnf=0.5", "did you mean 'conf'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(photos, scenes, tmp_path, capsys, monkeypatch, argument, said):
    for name in ("empty", "mine", "unreadable"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "unreadable" / "a.jpg").write_text("no image")
    about = yaml.safe_load(scenes.read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**about, "names": [f"thing {i}" for i in range(10)]}))
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    given = {"teacher": TEACHER, "images": "photos", "out": "out"}
    key = argument.partition("=")[0]
    argv = [f"{k}={v}" for k, v in given.items() if k != key] + [argument]
    assert said in refusal(capsys, tmp_path, "label", *argv)


def test_what_must_be_given(tmp_path, capsys):
    assert "no images: give images=" in refusal(capsys, tmp_path, "label", "teacher=a.pt", "out=b")


@pytest.mark.parametrize("change", [{"conf": 0.7}, {"imgsz": 96}])
def test_other_settings_are_not_mixed_in(photos, tmp_path, change):
    given = {"teacher": TEACHER, "images": photos, "out": "out", "imgsz": 64, "device": "cpu", "sheet": 0}
    label(**given)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"with other settings .{next(iter(change))}: "):
        label(**{**given, **change})
    assert contents(tmp_path) == before


def test_no_two_images_share_a_label(tmp_path):
    taken: set[str] = set()
    names = [new_name(tmp_path / f, tmp_path, taken) for f in ("a.jpg", "a.png", "A.bmp", "images/a.jpg", "a_2.jpg")]
    assert names == ["a.jpg", "a_2.png", "A_3.bmp", "images-a.jpg", "a_2_2.jpg"]


def test_a_journal_forgets_a_line_that_was_cut_short(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.add(image="a", found=[])
    for torn in ('{"image": "b"', '{"image": "b"}'):
        with journal.file.open("a") as file:
            file.write(torn)
        again = Journal(journal.file)
        assert list(again.records) == ["a"]
        assert journal.file.read_text().count("\n") == 1 and journal.file.read_text().endswith("\n")


def test_time_left(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("yolokd_edge.progress.time.monotonic", lambda: next(clock))
    progress = Progress("labelling", 100, done=50)
    for _ in range(4):
        progress.step()
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "labelling: 52 of 100, about 5 min left",
        "labelling: 54 of 100, about 5 min left",
    ]
    assert [spoken(s) for s in (3, 89, 600, 9000)] == ["3 s", "89 s", "10 min", "2.5 h"]


def test_hand_over_to_fiftyone(photos, tmp_path, monkeypatch):
    """Against a stand-in with FiftyOne's own names: what is handed over, once, and a foreign data set is left alone."""
    sets: dict = {}

    class Dataset:
        def __init__(self, name, persistent=False):
            self.info, self.samples, self.persistent = {}, [], persistent
            sets[name] = self

        def save(self):
            pass

        def values(self, field):
            return [s[field] for s in self.samples]

        def add_samples(self, samples):
            self.samples += samples

    class Sample(dict):
        pass

    fake = types.SimpleNamespace(
        Dataset=Dataset, Sample=Sample, Detections=dict, Detection=dict, dataset_exists=sets.__contains__,
        load_dataset=sets.__getitem__,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    given = {"teacher": TEACHER, "images": photos, "out": "out", "imgsz": 64, "device": "cpu", "sheet": 0}
    assert label(**given, fiftyone=True)["fiftyone"] == "yolokd out"
    label(**given, fiftyone=True)
    (samples,) = [d.samples for d in sets.values()]
    assert len(samples) == 6 and sets["yolokd out"].persistent
    things = [d for s in samples for d in s["teacher"]["detections"]]
    assert things and all(d.keys() == {"label", "bounding_box", "confidence"} for d in things)
    sets["yolokd other"] = Dataset("yolokd other")
    with pytest.raises(UsageError, match="another data set named 'yolokd other'"):
        label(**{**given, "out": "other"}, fiftyone=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_student_trains_on_it(photos, scenes, tmp_path):
    label(TEACHER, photos, "out", data=scenes, imgsz=64, device="cpu", sheet=0)
    student = YOLO(ASSETS / "student.pt")
    student.train(data=str(tmp_path / "out" / "data.yaml"), **{**TINY, "epochs": 1}, project=str(tmp_path / "runs"))
    assert student.trainer.best.is_file()
