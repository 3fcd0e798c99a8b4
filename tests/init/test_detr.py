"""RT-DETR students started from RT-DETR teachers."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.detrs import HGNET, RESNET, small
from helpers.models import NAMES, batch, build, images
from helpers.training import TINY
from torch import Tensor, nn
from ultralytics.nn.modules.transformer import AIFI

from yolokd.detectors import read
from yolokd.detectors.class_map import match_classes
from yolokd.distill import starting
from yolokd.distill.trainer import KDRTDETRTrainer
from yolokd.errors import UsageError
from yolokd.init import least_squares, teacher_statistics, transfer
from yolokd.init.channel_map import index
from yolokd.init.detr_pairs import teacher_layers
from yolokd.init.layer_fitter import LayerFitter
from yolokd.init.layer_pairs import LayerPair, bare, norm_of
from yolokd.init.race import detection_loss
from yolokd.init.teacher_statistics import TeacherStatistics
from yolokd.init.transformer import fit_attention, fit_norm, key_space, split, value_space

SHORT = tuple((*row[:5], min(row[5], 2)) for row in RESNET)  # two blocks in every stage


@pytest.fixture
def exact(monkeypatch):
    """No ridge: then only rounding is left."""
    monkeypatch.setattr(least_squares, "RIDGE", 1e-10)
    monkeypatch.setattr(teacher_statistics, "POINTS", 2**12)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Boxes and logits of the decoder, and those of the cells that became queries."""
    with torch.no_grad():
        return list(model.eval()(x)[1][:4])


def start(student: nn.Module, teacher: nn.Module, x: Tensor, how: str = "teacher", **more) -> dict[str, dict]:
    with torch.random.fork_rng():
        return transfer.start(how, read(student), read(teacher), x, **more)


def error(found: Tensor, target: Tensor) -> float:
    return float((found - target).square().mean() / target.var())


def deaden(student: nn.Module, teacher: nn.Module) -> None:
    """Make the teacher's last channels constantly 0, as many as the student's lack, so that it computes what a narrower
    network can."""
    for p in transfer.all_pairs(read(student), read(teacher)):
        if isinstance(p, LayerPair):
            norm = norm_of(p.teacher)
            norm.weight.data[bare(p.student).out_channels :] = norm.bias.data[bare(p.student).out_channels :] = 0


@pytest.mark.parametrize("backbone", [HGNET, RESNET])
@pytest.mark.parametrize("narrow", [1, 2])
def test_a_teacher_that_the_student_can_be_is_reproduced(backbone, narrow, exact):
    """Its own architecture, and one whose backbone is half as wide."""
    student, teacher, x = small(5, backbone=backbone, narrow=narrow), small(1, backbone=backbone), images(8, 64, 64)
    deaden(student, teacher)
    before, far = copy.deepcopy(teacher.state_dict()), outputs(student, x)
    start(student, teacher, x)
    for found, target, own in zip(outputs(student, x), outputs(teacher, x), far, strict=True):
        assert error(found, target) < 1e-8 < 1e-2 < error(own, target)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_every_weight_is_the_teachers_own_in_a_decoder_of_its_architecture(exact):
    """Attention and the rest are solved as differences to the teacher's weights, which equal inputs leave at 0."""
    student, teacher, x = small(5), small(1), images(8, 64, 64)
    start(student, teacher, x)
    expected = teacher.state_dict()
    keys = [k for k in expected if k.startswith("model.27.") and "input_proj" not in k]
    keys += [k for k in expected if k.startswith("model.10.")]
    assert len(keys) > 80
    for key in keys:
        torch.testing.assert_close(student.state_dict()[key], expected[key], atol=1e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize(
    ("mine", "theirs"), [({"width": 0.5, "depth": 0.5}, {}), ({"backbone": SHORT, "narrow": 2}, {"backbone": RESNET})]
)
def test_every_convolution_and_transformer_has_its_partner(mine, theirs):
    """With half of HGNet's width, its strided depthwise convolutions read two channels for each that they output. With
    fewer blocks, a ResNet's first ones still go together, which halve the map."""
    student, teacher = small(0, **mine), small(1, **theirs)
    pairs = transfer.all_pairs(read(student), read(teacher))
    solved = {id(bare(p.student)) for p in pairs if isinstance(p, LayerPair)}
    assert all(id(m) in solved for m in student.modules() if isinstance(m, nn.Conv2d))
    last = student.model[-1]
    assert [p.student for p in pairs if not isinstance(p, LayerPair)] == [
        *(m for m in student.modules() if isinstance(m, AIFI)), last,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "more", "alike"),
    [
        (HGNET, {"narrow": 2}, [["5.ec", "6.ec"]]),
        (
            RESNET,
            {"narrow": 2},
            [[f"{i}.layer.0.cv3", f"{i}.layer.0.shortcut.0", f"{i}.layer.1.cv3"] for i in (2, 3, 4)],
        ),
        (HGNET, {"width": 0.5}, [[f"{i}.m.1.conv1", f"{i}.m.1.conv2", f"{i}.cv2"] for i in (15, 20, 23, 26)]),
        (HGNET, {"hidden": 16, "feed": 24}, [[f"27.input_proj.{i}" for i in range(3)]]),
    ],
)
def test_what_is_added_or_read_alike_has_the_same_channels(backbone, more, alike):
    student, teacher, x = small(5, torch.float32, backbone, **more), small(1, torch.float32, backbone), blots(8)
    pairs = transfer.all_pairs(read(student), read(teacher))
    fitter = LayerFitter(student, pairs, TeacherStatistics(read(teacher), pairs, x), None)
    fitter.fit(x)
    for names in alike:
        first, *others = (index(fitter.chosen[student.get_submodule(f"model.{name}")]).tolist() for name in names)
        assert first != list(range(len(first))), "a choice that is not made by chance"
        assert all(first == other for other in others), names


def blots(count: int) -> Tensor:
    """Images with structure: blots of light."""
    return F.interpolate(images(count, 8, 8, dtype=torch.float32), 64, mode="bilinear")


def cells(model: nn.Module, x: Tensor) -> Tensor:
    """The scores of all cells, which unlike queries are in the same order for every model."""
    found: list[Tensor] = []
    hook = model.model[-1].enc_score_head.register_forward_hook(lambda module, args, out: found.append(out))
    outputs(model, x)
    hook.remove()
    return found[0]


@pytest.mark.parametrize(
    ("more", "share"),
    [
        ({"hidden": 16, "feed": 24}, 0.5),  # a narrower decoder
        ({"narrow": 2, "layers": 1}, 0.75),  # a narrower backbone, half of the decoder's layers
        ({"width": 0.5, "depth": 0.5}, 0.9),  # a narrower encoder, whose every sum is of half the channels
    ],
)
def test_a_smaller_student_comes_closer_to_its_teacher_on_unseen_images(more, share):
    """Measured as the mean squared error of the cells' logits and of the decoder's mean logits of an image, as a share
    of what it is before."""
    student, teacher, x = small(5, torch.float32, **more), small(1, torch.float32), blots(64)
    x, unseen = x[:48], x[48:]
    target, before = (cells(m, unseen) for m in (teacher, student))
    wanted, far = (outputs(m, unseen)[1][0].mean(1) for m in (teacher, student))
    start(student, teacher, x)
    assert float((cells(student, unseen) - target).square().mean()) < share * float((before - target).square().mean())
    found = outputs(student, unseen)[1][0].mean(1)
    assert float((found - wanted).square().mean()) < share * float((far - wanted).square().mean())
    assert all(v.isfinite().all() for v in student.state_dict().values())


def test_fewer_decoder_layers_are_evenly_spaced_and_end_where_the_teacher_predicts():
    teacher = small(1, layers=6).model[-1]
    assert teacher_layers(small(0, layers=3).model[-1], teacher) == [1, 3, 5]
    teacher.decoder.eval_idx = 3
    assert teacher_layers(small(0, layers=2).model[-1], teacher) == [1, 3]


def test_classes_are_inherited_by_name_and_new_ones_left_alone(exact):
    student, teacher, x = small(5), small(1), images(8, 64, 64)
    names = {0: "class 3", 1: "unheard of", 2: "class 0", 3: "class 1", 4: "class 2"}
    before = copy.deepcopy(student.model[-1].state_dict())
    start(student, teacher, x, classes=match_classes(names, NAMES, None))
    after, theirs = student.model[-1].state_dict(), teacher.model[-1].state_dict()
    scores = [
        "enc_score_head.weight",
        "dec_score_head.0.bias",
        "dec_score_head.1.weight",
        "denoising_class_embed.weight",
    ]
    for key in scores:
        assert torch.equal(after[key][1], before[key][1]), key
        torch.testing.assert_close(after[key][[0, 2, 3, 4]], theirs[key][[3, 0, 1, 2]], atol=1e-4, rtol=1e-3)


def test_of_several_classes_that_mean_one_the_highest_score_counts(exact):
    student, teacher, x = small(5), small(1), images(8, 64, 64)
    given = {"class 0": "thing", "class 1": "thing"}
    classes = match_classes({0: "thing", 1: "a", 2: "b", 3: "c", 4: "d"}, NAMES, given)
    target, far = cells(teacher, x)[..., :2].amax(-1), cells(student, x)[..., 0]
    start(student, teacher, x, classes=classes)
    near = cells(student, x)[..., 0]
    assert float((near - target).square().mean()) < 0.1 * float((far - target).square().mean())


def test_auto_has_all_starts_and_each_keeps_what_it_says(exact):
    student, teacher, x = small(5), small(1), images(8, 64, 64)
    own = copy.deepcopy(student.state_dict())
    found = start(student, teacher, x, "auto")
    assert list(found) == ["own", "head", "neck", "teacher"]
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())
    first = {"head": len(student.model) - 1, "neck": len(student.yaml["backbone"]), "teacher": 0}
    for how, layer in first.items():
        changed = {
            int(k.split(".")[1])
            for k, v in found[how].items()
            if not torch.equal(v, own[k]) and "running_" not in k and "num_batches" not in k
        }
        assert min(changed) == layer and max(changed) == len(student.model) - 1
    assert error(outputs(student, x)[1], outputs(teacher, x)[1]) > 0.1


def test_frozen_layers_leave_the_starts_that_do_not_touch_them():
    student, teacher = read(small(5)), read(small(1))
    assert list(transfer.candidates("auto", student, teacher, frozenset({0, 1}))) == ["head", "neck"]
    assert not transfer.candidates("auto", student, teacher, frozenset({27}))
    with pytest.raises(UsageError, match="init=teacher: .*one of them is frozen.* a smaller freeze="):
        transfer.candidates("teacher", student, teacher, frozenset({0}))


@pytest.mark.parametrize("more", [{"hidden": 64}, {"layers": 3}, {"feed": 64}])
def test_a_decoder_larger_than_the_teachers_keeps_its_weights(more):
    student, teacher = small(5, torch.float32, **more), small(1, torch.float32)
    own = copy.deepcopy(student.model[-1].state_dict())
    assert list(transfer.candidates("auto", read(student), read(teacher))) == ["neck", "teacher"]
    start(student, teacher, blots(8))
    for key, value in student.model[-1].state_dict().items():
        assert "running_" in key or "num_batches" in key or torch.equal(value, own[key]), key


@pytest.mark.parametrize("how", ["head", "neck", "teacher"])
def test_an_rtdetr_and_a_yolo_have_no_start_in_common(how):
    models = read(small(5, torch.float32)), read(build("yolo11n", dtype=torch.float32))
    for student, teacher in (models, models[::-1]):
        assert not transfer.candidates("auto", student, teacher)
        with pytest.raises(
            UsageError, match=f"init={how}: .*none has a partner in .*a teacher of the student's family"
        ):
            transfer.candidates(how, student, teacher)


# The parts


def attention(width: int, seed: int) -> nn.MultiheadAttention:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.MultiheadAttention(width, 4, batch_first=True).double().requires_grad_(False)


def test_fewer_query_and_key_channels_give_the_same_attention_if_that_many_are_used():
    q, k = (images(3, 8, 4, seed=s)[:, :1].repeat(1, 2, 1, 1) - 0.5 for s in (0, 1))
    spread = images(1, 4, 8, seed=2)[0, 0] - 0.5  # four channels' worth of values in eight
    q, k = 4 * q @ spread, k @ spread + 3.0
    expected = (q @ k.mT / 8**0.5).softmax(-1)
    less, keys = (split(x, 2) for x in key_space(q, k, 4))
    assert less.shape == keys.shape == (3, 2, 8, 4)
    torch.testing.assert_close((less @ keys.mT / 4**0.5).softmax(-1), expected)
    less, keys = (split(x, 2) for x in key_space(q, k, 1))
    assert not torch.allclose((less @ keys.mT).softmax(-1), expected, atol=1e-2)


def test_fewer_value_channels_keep_what_the_output_uses():
    """An output of rank 3 of each head's 6 channels loses nothing if 3 are kept, and something if 2 are."""
    random = torch.Generator().manual_seed(0)
    v = torch.randn(5, 2, 30, 6, generator=random, dtype=torch.float64)
    narrow, wide = (torch.randn(*s, generator=random, dtype=torch.float64) for s in ((10, 2, 3), (2, 3, 6)))
    weights = torch.einsum("chr,hre->che", narrow, wide)
    expected = torch.einsum("bhte,che->bthc", v, weights)
    for size, lost in ((3, False), (2, True)):
        kept = value_space(v, weights, size).unflatten(-1, (2, size))
        for head in range(2):
            x, y = kept[:, :, head].flatten(0, 1), expected[:, :, head].flatten(0, 1)
            rest = y - x @ torch.linalg.lstsq(x, y).solution
            assert (float(rest.square().mean() / y.square().mean()) > 1e-3) == lost


def test_attention_of_equal_width_is_copied_and_a_narrower_one_comes_near(exact):
    random = torch.Generator().manual_seed(0)
    teacher, x = attention(16, 1), torch.randn(6, 30, 16, generator=random, dtype=torch.float64)
    target = teacher(x, x, x)[0]
    student = attention(16, 2)
    found = fit_attention(student, teacher, (x, x), (x, x), target, torch.arange(16))
    for a, b in zip(student.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found, target)
    kept = torch.arange(0, 16, 2)
    student, mine = attention(8, 3), x[..., kept]
    own = student(mine, mine, mine)[0]
    found = fit_attention(student, teacher, (mine, mine), (x, x), target[..., kept], kept)
    torch.testing.assert_close(found, student(mine, mine, mine)[0])
    assert error(found, target[..., kept]) < 0.5 < error(own, target[..., kept])


def test_a_layer_norm_is_solved_channel_by_channel():
    x, target = images(2, 5, 6)[0].double(), images(2, 5, 6, seed=1)[0].double()
    norm = nn.LayerNorm(6).double().requires_grad_(False)
    fit_norm(norm, x, target)
    z = F.layer_norm(x, (6,)).flatten(0, -2)
    for channel in range(6):
        design = torch.stack([z[:, channel], torch.ones(len(z)).double()], 1)
        scale, shift = torch.linalg.lstsq(design, target.flatten(0, -2)[:, channel]).solution
        torch.testing.assert_close(torch.stack([norm.weight[channel], norm.bias[channel]]), torch.stack([scale, shift]))


# The race and the trainer


def test_the_loss_that_decides_is_ultralytics_validation_loss_and_draws_nothing():
    model, given = small(0, torch.float32), batch()
    before, streams = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = detection_loss(model.train(), given)
    assert torch.equal(torch.get_rng_state(), streams) and model.training and model.model[-1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    boxes, logits, proposed, scores, _ = model(given["img"])[1]
    groups = [3] * len(given["img"])
    targets = {"cls": given["cls"].long().flatten(), "bboxes": given["bboxes"], "gt_groups": groups}
    parts = model.init_criterion()((torch.cat([proposed[None], boxes]), torch.cat([scores[None], logits])), targets)
    assert all(not float(value) for name, value in parts.items() if name.endswith("_dn"))
    assert found == pytest.approx(float(sum(parts.values()).detach()), rel=1e-5)


@pytest.fixture
def set_up(scenes, tmp_path):
    """A trainer as it is when an RT-DETR student has been started, by init=."""
    files, names = [], yaml.safe_load(scenes.read_text())["names"]
    for name, seed in (("student", 5), ("teacher", 1)):
        model = small(seed, torch.float32)
        model.names = dict(list(names.items())[: len(NAMES)])
        model.task, model.args, model.pt_path = "detect", {"task": "detect"}, None
        torch.save({"model": model, "train_args": {"task": "detect"}}, tmp_path / f"{name}.pt")
        files.append(str(tmp_path / f"{name}.pt"))

    def make(init: str, **more) -> KDRTDETRTrainer:
        given = {**TINY, "model": files[0], "teacher": files[1], "init": init, "method": "match", **more}
        trainer = KDRTDETRTrainer(overrides={**given, "data": str(scenes), "project": str(tmp_path)})
        trainer.setup_model()
        trainer.set_model_attributes()
        return trainer

    return make


def test_the_trainer_lets_the_starts_race_and_leaves_every_random_stream(set_up, monkeypatch):
    def streams() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    seen: list[tuple[str, int]] = []
    race = starting.race

    def watched(learner, starts, batches, *more):
        def drawing():  # what a start's denoising queries would draw
            for given in batches():
                seen.append((str(given["img"].sum()), int(torch.randint(1 << 30, ()))))
                yield given

        return race(learner, starts, drawing, *more)

    set_up("own")  # older versions draw while they read labels for the first time
    own = set_up("own")
    expected = streams()
    monkeypatch.setattr(starting, "race", watched)
    started = set_up("auto")
    assert streams() == expected
    assert started.args.kd["start"] in {"head", "neck", "teacher"}
    assert len(seen) == 3 and len(set(seen)) == 1, "all starts see the same images and the same noise"
    weights = [t.model.module.model[-1].enc_output[0].weight for t in (own, started)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("init", "more", "rate"),
    [
        ("teacher", {"optimizer": "AdamW"}, 0.0),
        ("teacher", {"optimizer": "adamw"}, 0.0),
        ("teacher", {"optimizer": "AdamW", "warmup_bias_lr": 0.05}, 0.05),
        ("teacher", {"optimizer": "SGD"}, 0.1),
        ("own", {"optimizer": "AdamW"}, 0.1),
    ],
)
def test_a_warm_up_of_biases_does_not_undo_a_solved_decoder(init, more, rate, set_up, caplog):
    assert set_up(init, **more).args.warmup_bias_lr == rate
    assert ("warmup_bias_lr=0: the usual 0.1" in caplog.text) == (rate == 0)
