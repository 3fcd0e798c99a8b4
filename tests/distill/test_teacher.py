"""The teacher: says what the original says, learns nothing, and no file that is not one gets past the loader."""

from __future__ import annotations

import copy
import math
import os
import pickle
import platform
from pathlib import Path

import pytest
import torch
import ultralytics
from helpers.models import build, images
from torch import nn
from ultralytics import YOLO

from yolokd.detectors import RTDETRReader, YoloReader
from yolokd.detectors.teachers import fit_channels, load_teacher, locate
from yolokd.distill.teacher import Teacher, memory_layout, scaled
from yolokd.errors import UsageError
from yolokd.views import DENSE, MAPS

ALL = frozenset(DENSE)
CPU = torch.device("cpu")
# family, branches asked for: all that the head has, or one of them
ASKED = [
    ("yolov8n", ("one2many",)),
    ("yolo11n", ("one2many",)),
    ("yolo12n", ("one2many",)),
    ("yolov10n", ("one2many", "one2one")),
    ("yolo26n", ("one2many", "one2one")),
    ("yolo26n", ("one2many",)),
    ("yolo26n", ("one2one",)),
]


def make(model: nn.Module, branches: tuple[str, ...], fields: frozenset[str] = ALL) -> Teacher:
    reader = YoloReader(model)
    return Teacher(reader, fields, branches, CPU)


def views(teacher: Teacher, x: torch.Tensor) -> dict:
    return teacher(x)(teacher.reader.strides)


def original(model: nn.Module, x: torch.Tensor) -> dict:
    """Views of an untouched copy in eval mode."""
    reader = YoloReader(copy.deepcopy(model).eval())
    reader.head.training = True
    with reader.record(ALL) as seen, torch.no_grad():
        reader.model(x)
    return reader.views(seen, ALL, reader.strides)


def tensors(view) -> list[torch.Tensor]:
    fields = [getattr(view, f) for f in DENSE if getattr(view, f) is not None]
    return [t for f in fields for t in (f if isinstance(f, tuple) else (f,))]


@pytest.mark.parametrize("family, branches", ASKED)
def test_it_says_what_the_unfused_original_says(family, branches):
    """Folding batch norms, dropping a branch or another memory layout must not change what the student learns."""
    model, x = build(family), images()
    expected, found = original(model, x), views(make(model, branches), x)
    assert tuple(found) == branches
    for branch in branches:
        pairs = zip(tensors(found[branch]), tensors(expected[branch]), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    if len(branches) == 1:
        kept = {"one2many": "cv2", "one2one": "one2one_cv2"}[branches[0]]
        head = model.model[-1]
        left = [n for n in ("cv2", "one2one_cv2") if getattr(head, n, None) is not None]
        # the oldest supported version drops no one2one branch, which costs memory only
        assert left == [kept] or (ultralytics.__version__ == "8.4.120" and left == ["cv2", "one2one_cv2"])


def test_it_says_the_same_in_float32():
    """The type it runs in: a float64 test alone would not see a sum that single precision cannot hold."""
    model, x = build("yolo11n", dtype=torch.float32), images(dtype=torch.float32)
    expected, found = original(model, x)["one2many"], views(make(model, ("one2many",)), x)["one2many"]
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_it_is_frozen():
    """A teacher in train mode moves its statistics; one that requires grad costs memory and may be trained."""
    teacher, x = make(build("yolo26n").train(), ("one2many", "one2one")), images()
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    found = views(teacher, x)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    head = teacher.model.model[-1]
    assert head.training, "this flag gives raw outputs"
    assert not any(m.training for m in teacher.model.modules() if m is not head)
    for tensor in (t for view in found.values() for t in tensors(view)):
        assert not tensor.requires_grad
        assert not tensor.is_inference(), "an inference tensor cannot be saved for an adapter's backward pass"
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())


@pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
def test_a_teacher_of_maps_only_skips_its_head(family):
    """The head is a third of a forward pass whose result nobody reads."""
    model, x = build(family), images()
    expected = original(model, x)["one2many"]
    teacher = make(model, ("one2many",), frozenset({"neck", "backbone"}))
    found = views(teacher, x)["one2many"]
    assert isinstance(teacher.model.model[-1], nn.Identity)
    for field in ("neck", "backbone"):
        for a, b in zip(getattr(found, field), getattr(expected, field), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert found.logits is None
    assert found.towers is None


def test_a_teacher_of_towers_keeps_its_head():
    """Towers are maps too, but inside the head."""
    teacher = make(build("yolo11n"), ("one2many",), frozenset({"towers"}))
    assert len(views(teacher, images())["one2many"].towers) == 6


@pytest.mark.parametrize(
    ("device", "machine", "windows", "fast"),
    [
        ("cpu", "x86_64", False, True),
        ("cpu", "AMD64", True, True),
        ("cpu", "aarch64", False, False),
        ("cuda", "x86_64", False, True),
        ("cuda", "aarch64", False, True),
        ("cuda", "AMD64", True, False),
        ("mps", "arm64", False, False),
    ],
)
def test_layout(device, machine, windows, fast, monkeypatch):
    """On MPS channels last computes something else; under Windows CUDA trained three times slower with it."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr("yolokd.distill.teacher.WINDOWS", windows)
    assert (memory_layout(torch.device(device)) == torch.channels_last) is fast


def test_a_copy_is_the_teacher_itself():
    """AutoBatch deep-copies the model that trains: a second teacher would spoil its memory estimate."""
    teacher = make(build("yolo11n"), ("one2many",), frozenset(MAPS))
    assert copy.deepcopy({"a": [teacher]})["a"][0] is teacher


class Bomb:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def text(file: Path, teacher: Path) -> None:
    file.write_text("https://example.org/big.pt\n")


def empty(file: Path, teacher: Path) -> None:
    file.touch()


def truncated(file: Path, teacher: Path) -> None:
    file.write_bytes(teacher.read_bytes()[:1_000_000])


def flipped(file: Path, teacher: Path) -> None:
    content = bytearray(teacher.read_bytes())
    content[:4000] = bytes(4000)
    file.write_bytes(content)


def classify(file: Path, teacher: Path) -> None:
    YOLO("yolo11n-cls.yaml").save(file)


def torchscript(file: Path, teacher: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)


def other_dictionary(file: Path, teacher: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, file)


def other_network(file: Path, teacher: Path) -> None:
    torch.save({"model": nn.Sequential(nn.Linear(2, 2))}, file)


def bomb(file: Path, teacher: Path) -> None:
    torch.save({"model": Bomb(file.with_name("marker"))}, file)


def bare_bomb(file: Path, teacher: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(file.with_name("marker"))))


def bomb_in_a_real_checkpoint(file: Path, teacher: Path) -> None:
    torch.save({**torch.load(teacher, weights_only=False), "note": Bomb(file.with_name("marker"))}, file)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*(TorchScript|pickle protocol)")
@pytest.mark.parametrize(
    "write",
    [
        text, empty, truncated, flipped, classify, torchscript, other_dictionary, other_network,
        bomb, bare_bomb, bomb_in_a_real_checkpoint,
    ],
)  # fmt: skip
def test_a_file_that_is_no_teacher_is_refused_and_runs_no_code(write, tmp_path, teacher):
    """One sentence that names the file, and nothing that the file wants to be run is run."""
    file = tmp_path / "big.pt"
    write(file, teacher)
    with pytest.raises(UsageError) as refusal:
        YoloReader(load_teacher(locate(file)))
    assert refusal.value.code == 2
    assert "big.pt" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "marker").exists()
    if write is classify:
        assert "task classify" in str(refusal.value)


def test_the_bomb_would_go_off_elsewhere(tmp_path):
    """Else the test above proves nothing."""
    bare_bomb(tmp_path / "big.pt", tmp_path)
    pickle.loads((tmp_path / "big.pt").read_bytes())
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("given", ["gone.pt", "folder.pt", "big.yaml", "big.onnx", "big", "", None, 3, True])
def test_what_is_no_checkpoint_is_refused_before_it_is_opened(given, tmp_path, monkeypatch):
    """Without this a run ends in a traceback after its folder was made, or downloads something."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UsageError) as refusal:
        locate(given)
    assert refusal.value.code == 2
    assert f"teacher={given}" in str(refusal.value).replace("'", "")


def test_a_path_becomes_absolute_and_an_official_name_stays(tmp_path, monkeypatch):
    """A resumed run or a DDP worker may start in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big.pt").touch()
    assert locate("big.pt") == str(tmp_path.resolve() / "big.pt")
    assert locate(Path("big.pt")) == str(tmp_path.resolve() / "big.pt")
    assert locate("yolo11s.pt") == "yolo11s.pt"


def test_a_real_checkpoint_loads(teacher):
    """In eval mode, in float32, with its classes."""
    model = load_teacher(locate(teacher))
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert model.names[9] == "ankle-boot"


# Teachers that see other images than the student


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_a_teacher_of_another_image_size_speaks_of_the_students_places(scale):
    """Boxes in the student's pixels, and at each of its anchor points what the teacher says at a nearest one."""
    x, strides = images(2, 64, 128), (8, 16, 32)
    teacher = Teacher(YoloReader(build("yolo11n")), frozenset(("logits", "boxes", "neck")), ("one2many",), CPU, scale)
    seen = scaled(x, scale, 32)
    assert seen.shape[-2:] == (64 * scale, 128 * scale)
    whole = views(make(build("yolo11n"), ("one2many",)), seen)["one2many"]
    found = teacher(x)(strides)["one2many"]
    assert found.logits.shape == (2, 8 * 16 + 4 * 8 + 2 * 4, 5)
    mine, theirs = (
        torch.tensor([
            ((c + 0.5) * s / k, (r + 0.5) * s / k, s)
            for s in strides for r in range(int(64 * k) // s) for c in range(int(128 * k) // s)
        ])
        for k in (1, scale)
    )  # fmt: skip
    for n, (column, row, stride) in enumerate(mine.tolist()):
        gap = ((theirs[:, :2] - torch.tensor([column, row])) ** 2).sum(1)
        gap[theirs[:, 2] != stride] = torch.inf
        nearest = (gap <= gap.min() + 1e-4).nonzero().flatten()
        same = [m for m in nearest.tolist() if torch.allclose(found.logits[:, n], whole.logits[:, m], rtol=1e-5)]
        assert same
        torch.testing.assert_close(found.boxes[:, n], whole.boxes[:, same[0]] / scale, rtol=1e-5, atol=1e-4)
    assert [m.shape[-1] for m in found.neck] == [16 * scale, 8 * scale, 4 * scale]


@pytest.mark.parametrize("size", [(96, 160), (128, 192)])
def test_a_teacher_with_a_level_more_takes_sides_that_are_no_multiple_of_its_stride(size):
    """P6: it sees the next size that its pyramid can have, and speaks of the student's places as ever."""
    strides, fields = (8, 16, 32), frozenset(("logits", "boxes"))
    teacher = Teacher(YoloReader(build("yolov8n-p6", dtype=torch.float32)), fields, ("one2many",), CPU)
    x = images(2, *size, dtype=torch.float32)
    found = teacher(x)(strides)["one2many"]
    assert found.logits.shape[1] == sum(math.ceil(size[0] / s) * math.ceil(size[1] / s) for s in strides)
    double = teacher(scaled(x, 1.0, 64))(strides)["one2many"]
    if size == (128, 192):
        assert torch.equal(found.boxes, double.boxes)
    else:  # 128 x 192 seen for 96 x 160: the first anchor point is the first there
        torch.testing.assert_close(found.boxes[:, 0, 3], double.boxes[:, 0, 3] * 96 / 128)
    with pytest.raises(RuntimeError):
        teacher.model(x[..., :96, :96])  # what would happen without


def test_a_set_of_another_image_size_is_in_the_students_pixels():
    fields = frozenset({"logits", "boxes", "layer_boxes", "content", "references", "decode"})
    x = images(dtype=torch.float32)
    double = Teacher(RTDETRReader(build("rtdetr-2-20-32", dtype=torch.float32)), fields, ("decoder",), CPU, 2.0)
    plain = Teacher(RTDETRReader(build("rtdetr-2-20-32", dtype=torch.float32)), fields, ("decoder",), CPU)
    found = double(x)((8, 16, 32))["decoder"]
    expected = plain(scaled(x, 2.0, 32))((8, 16, 32))["decoder"]
    for field in ("boxes", "references"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field) / 2, rtol=1e-4, atol=1e-3)
    decoded = found.decode(found.content, found.references)["layer_boxes"]
    for a, b in zip(decoded, found.layer_boxes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_a_gray_student_under_a_colour_teacher():
    """Summed filters: the teacher must say of a gray image what it says of the same image in three equal channels."""
    gray = images()[:, :1]
    model = build("yolo11n")
    expected = views(make(copy.deepcopy(model), ("one2many",)), gray.expand(-1, 3, -1, -1))["one2many"]
    assert fit_channels(model, 1) and not fit_channels(model, 1)
    found = views(make(model, ("one2many",)), gray)["one2many"]
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.boxes, expected.boxes)


def test_a_multispectral_student_under_a_colour_teacher():
    """The first three channels are the teacher's; of what the others hold it knows nothing."""
    model, x = build("rtdetr-2-20-32", dtype=torch.float32), torch.rand(1, 5, 64, 64)
    expected = Teacher(RTDETRReader(copy.deepcopy(model)), frozenset({"neck"}), ("decoder",), CPU)(x[:, :3])((8,))
    assert fit_channels(model, 5)
    found = Teacher(RTDETRReader(model), frozenset({"neck"}), ("decoder",), CPU)(x)((8,))
    torch.testing.assert_close(found["decoder"].neck[0], expected["decoder"].neck[0])
