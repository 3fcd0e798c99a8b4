"""Teachers that are no models of Ultralytics: an ONNX detector by its output contract, a transformer by its tokens."""

from __future__ import annotations

import json
import math

import onnx
import onnxruntime
import pytest
import torch
import yaml
from helpers.cli import refusal
from helpers.models import NAMES, batch, build
from helpers.training import TINY, pico, read, rows
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from ultralytics.utils import LOGGER

import yolokd
from yolokd.cli import main
from yolokd.config import options
from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import OnnxDetector, ViT, vit
from yolokd.detectors import read as read_model
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.foreign import rgb
from yolokd.detectors.teachers import digest, load_teacher, locate, title
from yolokd.distill.applicability import plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.distill.teacher import Teacher
from yolokd.errors import UsageError
from yolokd_edge.contract import RAW

CPU = torch.device("cpu")
A, B, NEAR_B = (0.0, 0.0, 16.0, 8.0), (16.0, 16.0, 32.0, 32.0), (16.0, 16.0, 32.0, 31.0)
DETECTIONS = [(A, 0, 0.9), (B, 1, 0.6), (NEAR_B, 1, 0.5)]  # of a white image: box, class, score
PROMISE = {"task": "detect", "names": str({0: "cat", 1: "dog"}), "imgsz": "[32, 32]"}


def rows_of(contract: str) -> dict[str, torch.Tensor]:
    """The detections as outputs by name."""
    boxes = torch.tensor([d[0] for d in DETECTIONS])
    scores = torch.zeros(3, 2)
    for n, (_, k, score) in enumerate(DETECTIONS):
        scores[n, k] = score
    if contract == "boxes_scores":
        return {"boxes": boxes[None], "scores": scores[None]}
    if contract == "raw":
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return {"out": torch.cat((centre, size, scores), 1).mT[None]}
    cls = torch.tensor([[d[1]] for d in DETECTIONS])
    return {"out": torch.cat((boxes, scores.amax(1, keepdim=True), cls), 1)[None]}


def save(file, contract="raw", shape=("b", 3, "h", "w"), promise=PROMISE, declared=None):
    """An ONNX file that sees its detections on white images, with scores times the mean brightness of each."""
    nodes, weights, outputs = [helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3])], [], []
    # (B, 1, 1, 1) -> (B, 1, 1)
    weights.append(numpy_helper.from_array(torch.tensor([-1, 1, 1]).numpy(), "three"))
    nodes.append(helper.make_node("Reshape", ["mean", "three"], ["bright"]))
    for name, value in rows_of(contract).items():
        scored = {"raw": (1, slice(4, None)), "boxes_scores": (2, slice(None))}.get(contract, (2, slice(4, 5)))
        part = torch.zeros_like(value)
        if name != "boxes":
            index = [slice(None)] * 3
            index[scored[0]] = scored[1]
            part[tuple(index)] = 1
        for tag, tensor in (("fixed", value * (1 - part)), ("scored", value * part)):
            weights.append(numpy_helper.from_array(tensor.numpy(), f"{name}_{tag}"))
        zero, sum_ = f"{name}_times", name
        nodes.append(helper.make_node("Mul", ["bright", f"{name}_scored"], [zero]))
        nodes.append(helper.make_node("Add", [zero, f"{name}_fixed"], [sum_]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    entry = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "detector", [entry], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    entries = dict(promise) | ({"yolokd": json.dumps({"output_contract": declared})} if declared else {})
    helper.set_model_props(model, entries)
    onnx.save(model, str(file))
    return str(file)


def white(count=2, height=32, width=32):
    """White images, each half as bright as the one before."""
    return torch.stack([torch.full((3, height, width), 0.5**i) for i in range(count)])


def detections(out, image=0):
    """Boxes, classes and scores above 0.01 of an image, best first."""
    p, boxes = out["logits"][image].sigmoid(), out["boxes"][image]
    order = [n for n in p.amax(-1).argsort(descending=True).tolist() if p[n].max() > 0.01]
    return [(tuple(boxes[n].tolist()), p[n].argmax().item(), round(p[n].max().item(), 4)) for n in order]


@pytest.mark.parametrize("contract", ["raw", "boxes_scores", "e2e", "nms"])
def test_every_contract_is_read(tmp_path, contract):
    """Two near boxes are one object, where the file has not seen to that; a second image is half as sure."""
    model = OnnxDetector(save(tmp_path / "d.onnx", contract), contract)
    assert model.names == {0: "cat", 1: "dog"}
    out = model(white())
    expected = DETECTIONS if contract in ("e2e", "nms") else DETECTIONS[:2]
    assert detections(out) == expected
    assert [d[2] for d in detections(out, 1)] == pytest.approx([d[2] / 2 for d in expected], abs=1e-4)
    assert out["logits"].isfinite().all() and out["logits"].sigmoid().amin() < 1e-5


def test_a_file_of_one_size_and_one_image_at_a_time(tmp_path):
    """Images of 64 x 32 px in a file of 32 x 32: half as large, padded at the right, boxes mapped back."""
    model = OnnxDetector(save(tmp_path / "d.onnx", "raw", (1, 3, 32, 32)))
    padded = (1 + 114 / 255) / 2  # half of what the file sees is grey
    (first, *_), (second, *_) = (detections(model(white(3, 64, 32)), i) for i in (0, 2))
    assert first[0] == pytest.approx([2 * x for x in A]) and first[2] == pytest.approx(0.9 * padded, abs=1e-3)
    assert second[2] == pytest.approx(0.9 * (0.25 + 114 / 255) / 2, abs=1e-3)
    assert len(model(white(3))["boxes"]) == 3
    pairs = OnnxDetector(save(tmp_path / "two.onnx", "raw", (2, 3, "h", "w")))
    assert [detections(pairs(white(3)), i)[0][2] for i in range(3)] == pytest.approx([0.9, 0.45, 0.225], abs=1e-3)


def test_a_gpu_runs_the_file_where_the_images_are(tmp_path, monkeypatch):
    detector, asked = OnnxDetector(save(tmp_path / "a.onnx")), []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, providers: asked.append(providers))
    for device in ("cuda:0", "cuda:1", "cuda:1"):
        detector._session(torch.device(device))
    assert asked == [[("CUDAExecutionProvider", {"device_id": i})] for i in (0, 1)]


def test_gray_and_more_channels():
    x = torch.rand(2, 5, 4, 4)
    assert torch.equal(rgb(x), x[:, :3]) and torch.equal(rgb(x[:, :3]), x[:, :3])
    assert torch.equal(rgb(x[:, :1]), x[:, [0, 0, 0]])
    assert torch.equal(rgb(x[:, :2])[:, :2], x[:, :2]) and not rgb(x[:, :2])[:, 2].any()


def test_what_the_metadata_says_and_what_it_does_not(tmp_path):
    assert OnnxDetector(save(tmp_path / "ours.onnx", declared=RAW)).contract == "raw"
    bare, names = save(tmp_path / "bare.onnx", promise={}), {0: "a", 1: "b"}
    assert OnnxDetector(bare, "raw", names).names == names
    for given, named in [
        ((bare,), "give teacher.contract=raw|e2e|nms|boxes_scores"),
        ((bare, "raw"), "give teacher.names=names.yaml"),
        ((bare, "raw", {0: "a"}), "for 1 classes"),
        ((bare, "raw", {0: "a", 2: "b"}), "count from 0"),
        ((bare, "e2e", names), r"\(B, N, 6\)"),
        ((bare, "boxes_scores", names), "called boxes and scores"),
        ((save(tmp_path / "pair.onnx", "boxes_scores"), "raw"), "is about one"),
        ((save(tmp_path / "few.onnx", "e2e", promise={}), "e2e", {0: "a"}), "about 1 classes"),
        ((save(tmp_path / "gray.onnx", shape=("b", 1, 8, 8)), "raw"), "one input of images"),
    ]:
        with pytest.raises(UsageError, match=named):
            OnnxDetector(*given)
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(UsageError, match="is not an ONNX model"):
        OnnxDetector(str(tmp_path / "text.onnx"))


def distiller(model, method, student=None, scale=1.0) -> Distiller:
    family = student or pico("yolov8").removesuffix(".yaml")
    reader = read_model(build(family, 0, torch.float32))
    classes = match_classes(NAMES, model.names, {"cat": "class 1", "dog": "class 3"} if model.names else None)
    made = plan(reader, read_model(model), DistillOptions((), 1.0, **asked_methods(method, {})), NAMES, classes, scale)
    return Distiller(reader, [Pairing(reader, made, CPU)]).train()


@pytest.mark.parametrize("student", [None, "rtdetr-2-20-32"])
def test_an_onnx_detector_teaches_by_its_detections(tmp_path, student):
    """Also with other classes, and on images of twice the size."""
    for scale in (1.0, 2.0):
        model = distiller(OnnxDetector(save(tmp_path / "d.onnx")), "match", student, scale)
        loss, items = model(batch(2))
        assert list(items)[-1] == "match_loss" and items["match_loss"] > 0
        loss[-1].backward()
        grads = [p.grad for p in model.module.model[-1].parameters() if p.grad is not None]
        assert any(g.abs().max() > 0 for g in grads)


def test_boxes_are_in_the_students_pixels(tmp_path):
    seen = Teacher(read_model(OnnxDetector(save(tmp_path / "d.onnx"))), frozenset({"logits", "boxes"}), (), CPU, 2.0)
    (view,) = seen(white())((8,)).values()
    best = view.logits[0].amax(-1).argmax()
    assert view.boxes[0, best].tolist() == pytest.approx([x / 2 for x in A])
    assert view.neck is None and not view.boxes.requires_grad


def test_features_of_an_onnx_teacher_are_refused(tmp_path):
    model = OnnxDetector(save(tmp_path / "d.onnx"))
    for method, named in [("pkd", "maps of the neck"), ("cwd@backbone", "maps of the backbone")]:
        with pytest.raises(UsageError, match=f"needs {named}, which the teacher d does not show.*use method=match"):
            distiller(model, method)


# A transformer


class Tokens(nn.Module):
    """A stand-in for a transformer of timm: patches without attention, after some prefix tokens."""

    num_features, num_prefix_tokens = 6, 3

    def __init__(self, patch: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = nn.Conv2d(3, 6, patch, patch)
        self.patch_embed.patch_size = (patch, patch)

    def forward_features(self, x):
        patches = self.patch_embed(x).flatten(2).mT
        return torch.cat((torch.full((len(x), 3, 6), 99.0), patches), 1)


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def transformer(patch: int = 16) -> ViT:
    return ViT(Tokens(patch), MEAN, STD, "timm:tokens")


def test_tokens_are_a_map_of_patches():
    """Row by row, without prefix tokens, of normalised images."""
    model, x = transformer(), torch.rand(2, 3, 48, 80)
    (found,) = model(x)["backbone"]
    assert found.shape == (2, 6, 3, 5)
    patch = x[1, :, 32:48, 16:32]
    normal = (patch - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(found[1, :, 2, 1], model.model.patch_embed(normal[None])[0, :, 0, 0])


@pytest.mark.parametrize(("patch", "stride"), [(14, 16), (8, 8), (32, 32), (4, 4)])
def test_a_patch_lies_over_a_cell_of_the_nearest_stride(patch, stride):
    """A patch of 14 px sees images of 56 x 84 px in place of 64 x 96: as many patches as there are cells."""
    model = transformer(patch)
    assert read_model(model).strides == (stride,)
    x = torch.rand(1, 3, 64, 96)
    (found,) = model(x)["backbone"]
    assert found.shape[-2:] == (64 // stride, 96 // stride)
    bright = torch.zeros(1, 3, 64, 96)
    bright[..., stride : 2 * stride, 0:stride] = 1
    change = (model(bright)["backbone"][0] - model(torch.zeros_like(bright))["backbone"][0]).abs().sum(1)
    assert divmod(change.argmax().item(), 96 // stride) == (1, 0)


def test_a_transformer_teaches_the_backbone():
    for student, scale in ((None, 1.0), ("rtdetr-2-20-32", 2.0)):
        model = distiller(transformer(14), "pkd@backbone", student, scale)
        loss, items = model(batch(2))
        assert 0 < items["pkd_b_loss"] < 2 * model.pairings[0].methods["pkd_b_loss"].unit
        loss[-1].backward()
        assert next(model.module.parameters()).grad.abs().max() > 0
        assert not any(p.requires_grad for p in model.pairings[0].teacher.model.parameters())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dsi_compares_the_deepest_map_with_a_transformers(scale):
    """Cells of 32 px with patches of 16 px, whatever levels=; at half the side a patch is a cell, as in the paper."""
    model = distiller(transformer(16), "dsi", None, scale)
    assert model.pairings[0].places["dsi_loss"] == ((32,), (16,))
    data = batch(2)
    view = next(iter(model.pairings[0].teacher(data["img"])((16,)).values()))
    assert view.backbone[0].shape[-1] == data["img"].shape[-1] * scale / 16
    with model.reader.record(frozenset({"backbone"})) as recorded:
        model.module(data["img"])
    student = next(iter(model.reader.views(recorded, frozenset({"backbone"}), (32,)).values()))
    expected = model.pairings[0].methods["dsi_loss"](student, view, data)
    _, items = model(data)
    unit = model.pairings[0].methods["dsi_loss"].unit
    assert items["dsi_loss"].item() == pytest.approx(unit * expected.item(), rel=1e-5)


def test_what_a_transformer_cannot_teach_is_refused_with_what_it_can():
    for method, named in [
        ("pkd", "neck, which the teacher timm:tokens does not show .*use method=pkd@backbone"),
        ("logit", "needs logits, which the teacher timm:tokens does not show: it shows backbone"),
        ("match", "needs boxes, logits"),
    ]:
        with pytest.raises(UsageError, match=named):
            distiller(transformer(), method)
    with pytest.raises(UsageError, match="has no patch_embed"):
        ViT(nn.Identity(), MEAN, STD, "timm:x")


def test_a_model_of_timm_from_a_file(tmp_path):
    """Its weights, its own normalisation, patches of any grid."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    own = timm.create_model("test_vit", pretrained=False, dynamic_img_size=True, num_classes=0).eval()
    file = tmp_path / "weights.pth"
    torch.save(own.state_dict(), file)
    name = locate(f"timm:test_vit@{file}")
    model = load_teacher(name).eval()
    assert title(name) == "timm:test_vit@weights.pth"
    assert len(digest(name)) == 64 and digest("timm:test_vit") is None
    x = torch.rand(1, 3, 64, 96)
    options = timm.data.resolve_model_data_config(own)
    mean, std = (torch.tensor(options[k])[:, None, None] for k in ("mean", "std"))
    (found,) = model(x)["backbone"]
    tokens = own.forward_features((x - mean) / std)[:, own.num_prefix_tokens :]
    torch.testing.assert_close(found.flatten(2).mT, tokens)
    assert found.shape[-2:] == (4, 6)
    for wrong in ("timm:no_such_model", f"timm:resnet10t@{file}"):
        with pytest.raises(UsageError, match="cannot be built"):
            load_teacher(wrong)
    own.state_dict()["blocks.1.mlp.fc1.weight"][3, 4] = math.inf
    torch.save(own.state_dict(), file)
    named = r"model\.blocks\.1\.mlp\.fc1\.weight"
    with pytest.raises(UsageError, match=f"has values that are not finite, first in {named}"):
        load_teacher(name)


# Files that cannot teach


def changed(file, change):
    """A file with its graph changed in place."""
    model = onnx.load(file)
    change(model.graph)
    onnx.save(model, file)
    return str(file)


def constant(graph, name, values, number):
    """Put a number into an initializer of a graph, a new one if it has none of that name."""
    values = torch.as_tensor(values, dtype=torch.float32).clone(memory_format=torch.contiguous_format)
    values.flatten()[-1] = number
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend([*kept, numpy_helper.from_array(values.numpy(), name)])


def test_a_file_whose_weights_are_no_numbers_is_refused(tmp_path):
    """NaN wherever it stands, infinity where a layer multiplies by it; a mask of infinities is nothing wrong."""
    some = torch.ones(1, 1, 1)

    def multiplied(graph, number):
        constant(graph, "weight", some, number)
        graph.node.append(helper.make_node("MatMul", ["bright", "weight"], ["unused"]))

    def masked(graph):
        constant(graph, "mask", some, -math.inf)
        graph.node.append(helper.make_node("Add", ["bright", "mask"], ["unused"]))

    for name, change in {
        "out_fixed": lambda graph: constant(graph, "out_fixed", rows_of("raw")["out"] * 0, math.nan),
        "mask": lambda graph: constant(graph, "mask", some, math.nan),
        "weight": lambda graph: multiplied(graph, -math.inf),
    }.items():
        file = changed(save(tmp_path / "bad.onnx"), change)
        with pytest.raises(UsageError, match=rf"bad\.onnx has values that are not finite, first in {name}: give"):
            load_teacher(file)
    assert load_teacher(changed(save(tmp_path / "masked.onnx"), masked)).names == {0: "cat", 1: "dog"}


def test_constants_of_nodes_and_of_branches_are_looked_at_too(tmp_path):
    def hidden(graph):
        value = numpy_helper.from_array(torch.tensor([math.nan]).numpy())
        inner = [helper.make_node("Constant", [], ["odd"], value=value)]
        branch = helper.make_graph(inner, "branch", [], [helper.make_tensor_value_info("odd", TensorProto.FLOAT, [1])])
        yes = numpy_helper.from_array(torch.tensor(True).numpy())
        graph.node.append(helper.make_node("Constant", [], ["yes"], value=yes))
        graph.node.append(helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))

    with pytest.raises(UsageError, match="not finite, first in odd"):
        load_teacher(changed(save(tmp_path / "d.onnx"), hidden))


def test_a_file_that_computes_no_numbers_is_refused(tmp_path):
    """Though its constants are finite ones: it divides by zero."""

    def divide(graph):
        constant(graph, "zero", torch.ones(1), 0)
        last = next(node for node in graph.node if node.output[0] == "out")
        last.output[0] = "whole"
        graph.node.append(helper.make_node("Div", ["whole", "zero"], ["out"]))

    with pytest.raises(UsageError, match=r"d\.onnx computes values that are not finite numbers"):
        load_teacher(changed(save(tmp_path / "d.onnx"), divide))


def test_a_file_that_cannot_be_fed_or_run_is_one_sentence(tmp_path):
    def of_bytes(graph):
        graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        graph.node.insert(0, helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT))
        graph.node[1].input[0] = "floats"

    def break_(graph):
        shape = numpy_helper.from_array(torch.tensor([-1, 1, 3]).numpy(), "three")
        kept = [tensor for tensor in graph.initializer if tensor.name != "three"]
        del graph.initializer[:]
        graph.initializer.extend([*kept, shape])

    with pytest.raises(UsageError, match=r"d\.onnx takes tensor\(uint8\): give a file that takes tensor\(float\) or"):
        load_teacher(changed(save(tmp_path / "d.onnx"), of_bytes))
    with pytest.raises(UsageError, match=r"d\.onnx cannot be run on images of \(1, 3, 64, 64\) \(The input tensor"):
        load_teacher(changed(save(tmp_path / "d.onnx"), break_))


# Through the command


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch, scenes):
    monkeypatch.chdir(tmp_path)
    return lambda *argv: refusal(capsys, tmp_path, "train", "model=yolo11n.yaml", f"data={scenes}", *argv)


def test_bad_input(refused, tmp_path, teacher):
    save(tmp_path / "d.onnx")
    save(tmp_path / "bare.onnx", promise={})
    (tmp_path / "empty.yaml").write_text("5")
    assert "needs maps of the neck" in refused("teacher=d.onnx", "method=pkd,match")
    assert "give teacher.contract=" in refused("teacher=bare.onnx")
    assert "teacher.contract=rwa is not one of raw, e2e" in refused("teacher=bare.onnx", "teacher.contract=rwa")
    assert "teacher.names=gone.yaml does not exist" in refused("teacher=bare.onnx", "teacher.names=gone.yaml")
    assert "has no class names" in refused("teacher=bare.onnx", "teacher.names=empty.yaml")
    assert "is about an ONNX teacher" in refused(f"teacher={teacher}", "teacher.contract=raw")
    assert "share no class name" in refused("teacher=d.onnx", "method=match")
    assert "the file gone.pth does not exist" in refused("teacher=timm:vit@gone.pth")


def test_names_from_a_list_a_mapping_and_a_data_set(tmp_path):
    for text in ("[cat, dog]", "{0: cat, 1: dog}", "{path: x, names: [cat, dog]}", "names: {0: cat, 1: dog}"):
        (tmp_path / "n.yaml").write_text(text)
        assert options.read_names(tmp_path / "n.yaml") == {0: "cat", 1: "dog"}


@pytest.mark.slow
def test_our_own_exported_file_and_a_transformer_teach_through_the_command(scenes, teacher, tmp_path, monkeypatch):
    """Together: the file by what it detects, the transformer by its backbone; each method where it applies."""
    monkeypatch.setattr(LOGGER, "info", lambda *args: None)
    file = yolokd.export(teacher, tmp_path / "teacher.onnx", contract="raw", imgsz=64)
    exported, original = (
        OnnxDetector(str(file)),
        Teacher(read_model(load_teacher(str(teacher))), frozenset({"logits", "boxes"}), ("one2many",), CPU),
    )
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    out, view = exported(x), next(iter(original(x)((8, 16, 32)).values()))
    best = view.logits.sigmoid().amax(-1).max(-1)
    torch.testing.assert_close(out["logits"].sigmoid().amax((1, 2)), best.values, atol=1e-3, rtol=1e-3)
    first = out["logits"].amax(-1).argmax(-1)
    pairs = zip(out["boxes"][range(2), first], view.boxes[range(2), best.indices], strict=True)
    assert all(math.isclose(a, b, abs_tol=0.1) for p, q in pairs for a, b in zip(p.tolist(), q.tolist(), strict=True))

    given = {**TINY, "data": scenes, "project": tmp_path, "model": pico("yolo11"), "epochs": 1}
    for name, who, method in [("by-onnx", file, "match"), ("by-vit", "timm:tokens", "pkd@backbone")]:
        monkeypatch.setattr(vit, "load", lambda path: transformer(14))
        words = {**given, "name": name, "teacher": who, "method": method}
        assert main(["train", *(f"{k}={v}" for k, v in words.items())]) == 0
        term = "train/match_loss" if method == "match" else "train/pkd_b_loss"
        assert 0 < float(rows(tmp_path / name)[0][term]) < float("inf")
        signed = read(tmp_path / name / "weights" / "best.pt")["yolokd"]["teacher"]
        assert signed["file"] == {"by-onnx": "teacher.onnx", "by-vit": "timm:tokens"}[name]
        assert yaml.safe_load((tmp_path / name / "args.yaml").read_text())["kd"]["teacher"]
