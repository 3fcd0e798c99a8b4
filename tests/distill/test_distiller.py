"""The wrapper that trains: the student's own loss stays, terms are added, and the teacher takes no part in learning."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed
from helpers.distillers import SIZE, backward, half, make, train_one_rank
from helpers.models import NAMES, batch, build
from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

from yolokd.config.options import DistillOptions
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read
from yolokd.distill.applicability import plan, term_name
from yolokd.distill.distiller import Distiller
from yolokd.distill.pairing import Pairing
from yolokd.methods import METHODS

OWN = ["box_loss", "cls_loss", "dfl_loss"]


def spied(distiller: Distiller) -> dict:
    """The views of the next pass, and how often each method was asked."""
    pairing = distiller.pairings[0]
    seen: dict = {"calls": dict.fromkeys(pairing.methods, 0)}

    def spy(module, args):
        student, teacher, *_ = args
        strides = next(iter(pairing.places.values()))
        seen.update(student=student(strides[0]), teacher=teacher(strides[1]))

    def count(name):
        return lambda module, args: seen["calls"].update({name: seen["calls"][name] + 1})

    pairing.register_forward_pre_hook(spy)
    for name, method in pairing.methods.items():
        method.register_forward_pre_hook(count(name))
    return seen


@pytest.mark.parametrize("student", ["yolov8n", "yolo26n"])
def test_the_loss_is_the_students_own_followed_by_the_terms(student):
    """A changed own loss, a lost term or a term without the batch size trains something else than asked for."""
    distiller, data = make(student), batch(SIZE)
    own, own_items = copy.deepcopy(distiller.module)(dict(data))
    loss, items = distiller(dict(data))
    assert list(items) == [*own_items, "pkd_loss", "logit_loss"]
    assert list(own_items)[:2] == OWN[:2]
    assert torch.equal(loss[: own.numel()], own.reshape(-1))
    assert all(torch.equal(items[k], v) for k, v in own_items.items())
    added = torch.stack([items["pkd_loss"], items["logit_loss"]])
    torch.testing.assert_close(loss[own.numel() :], added * SIZE)
    assert loss.shape == (own.numel() + 2,)
    assert not any(v.requires_grad for v in items.values())
    assert (added > 0).all()
    assert added.isfinite().all()


def test_ultralytics_finds_the_bare_student():
    """EMA, checkpoints, validation and export take what unwrap_model() gives them."""
    distiller = make()
    assert unwrap_model(distiller) is distiller.module
    assert unwrap_model(nn.DataParallel(distiller)) is distiller.module
    assert type(distiller.module).__name__ == "DetectionModel"
    assert distiller.stride is distiller.module.stride
    assert distiller.names == NAMES
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = distiller.no_such_thing


def test_gradient_reaches_the_student_and_every_adapter_and_not_the_teacher():
    """Adapters outside the graph stay random projections for the whole training."""
    distiller = make(method="pkd,cwd@backbone,fitnet@towers,logit")
    own = 3
    distiller(batch(SIZE))[0][own:].sum().backward()  # the terms alone
    adapters = dict(distiller.methods.named_parameters())
    assert len(adapters) >= 3 + 3 + 6
    for name, p in [*adapters.items(), *list(distiller.module.model[:16].named_parameters())]:
        assert p.grad is not None and p.grad.abs().max() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in distiller.pairings[0].teacher.model.parameters())


def test_kd_scales_the_terms_and_nothing_else():
    """kd= is the one number that users sweep."""
    one, more = make(kd=1.0)(batch(SIZE)), make(kd=2.5)(batch(SIZE))
    scale = torch.tensor([1, 1, 1, 2.5, 2.5])
    torch.testing.assert_close(more[0], one[0] * scale)
    assert make(kd=2.0, pkd__gain=0.25).gains == {"pkd_loss": 0.5, "logit_loss": 2.0}


def test_a_gain_of_0_leaves_the_term_out():
    """Zero gradients round differently: with them a run without terms would not equal the student alone."""
    assert list(make(pkd__gain=0)(batch(SIZE))[1]) == [*OWN, "logit_loss"]
    distiller = make(kd=0)
    distiller.pairings[0].teacher.__class__ = type(
        "Silent", (type(distiller.pairings[0].teacher),), {"__call__": None}
    )  # calling it fails
    expected = copy.deepcopy(distiller.module)(batch(SIZE))
    loss, items = distiller(batch(SIZE))
    assert torch.equal(loss, expected[0])
    assert list(items) == OWN


@pytest.mark.parametrize("teacher", ["yolo26n", "yolo11n"])
def test_a_dual_head_learns_by_its_own_schedule_and_without_nms_from_a_teacher_without_only(teacher):
    """YOLO26 moves its weight from one2many to one2one; terms that ignore it pull the finished branch back. Taught by a
    teacher's one2many branch, the one2one branch learned to answer several times for an object."""
    distiller = make("yolo26n", teacher, method="logit,pkd", kd=2.0)
    distiller.module.args.epochs = 3
    seen, logit = spied(distiller), distiller.pairings[0].methods["logit_loss"]
    pair = {"one2many": "one2many"} | ({"one2one": "one2one"} if teacher == "yolo26n" else {})
    for o2m, o2o in ((0.8, 0.2), (0.45, 0.55)):  # E2ELoss in the first two of three epochs
        _, items = distiller(batch(SIZE))
        parts = {b: logit(seen["student"][b], seen["teacher"][t], {}).item() for b, t in pair.items()}
        expected = 2.0 * logit.unit * (o2m * parts["one2many"] + o2o * parts.get("one2one", 0.0))
        assert items["logit_loss"].item() == pytest.approx(expected, rel=1e-5)
        assert parts["one2many"] != pytest.approx(parts.get("one2one", 0.0), rel=1e-3)
        distiller.module.criterion.update()


def test_map_terms_are_computed_once_and_head_terms_once_a_branch():
    """Both branches share the neck: a second, equal pass would only cost time and double the gain."""
    distiller = make("yolo26n", "yolo26n", method="pkd,cwd@backbone,cwd@towers,logit")
    seen = spied(distiller)
    distiller(batch(SIZE))
    assert seen["calls"] == {"pkd_loss": 1, "cwd_b_loss": 1, "cwd_t_loss": 2, "logit_loss": 2}
    assert list(seen["teacher"]) == ["one2many", "one2one"]


def test_map_terms_alone_need_no_second_branch_and_no_head():
    """What no term reads is not computed by the teacher."""
    distiller = make("yolo26n", "yolo26n", method="pkd")
    seen = spied(distiller)
    distiller(batch(SIZE))
    assert list(seen["teacher"]) == ["one2many"]
    assert isinstance(distiller.pairings[0].teacher.model.model[-1], nn.Identity)


def test_the_teacher_is_no_part_of_the_module():
    """As a child it would be in the optimizer, in DDP's buckets and in every checkpoint."""
    distiller = make()
    teacher = distiller.pairings[0].teacher.model
    theirs = {id(x) for x in [*teacher.parameters(), *teacher.buffers(), *teacher.modules()]}
    ours = [*distiller.parameters(), *distiller.buffers(), *distiller.modules(), *distiller.state_dict().values()]
    assert not theirs & {id(x) for x in ours}
    assert {n.partition(".")[0] for n in distiller.state_dict()} == {"module", "pairings"}
    assert copy.deepcopy(distiller).pairings[0].teacher is distiller.pairings[0].teacher


def test_a_tensor_goes_through_the_student_and_in_training_through_the_teacher_too():
    """AutoBatch measures memory with a bare tensor: without the teacher's share the run would go out of memory."""
    distiller, x = make("yolo26n"), batch(SIZE)["img"]
    calls = []
    distiller.pairings[0].teacher.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    assert set(distiller(x)) == {"one2many", "one2one"}
    assert len(calls) == 1
    distiller.eval()
    with torch.no_grad():
        assert torch.equal(distiller(x)[0], distiller.module(x)[0])
    assert len(calls) == 1


def test_without_a_term_autobatch_sees_the_student_alone():
    distiller = make("yolo26n", kd=0.0)
    distiller.pairings[0].teacher.model.register_forward_pre_hook(lambda module, args: pytest.fail("it ran"))
    assert set(distiller(batch(SIZE)["img"])) == {"one2many", "one2one"}


def test_terms_are_computed_outside_autocast():
    """Sums of squares overflow in half precision, and an adapter's convolution would be one."""
    distiller = make(method="pkd,logit,bckd_box")
    seen = spied(distiller)
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = distiller(batch(2))
    assert seen["student"]["one2many"].neck[0].dtype == torch.bfloat16, "autocast must have been on"
    for name, method in distiller.pairings[0].methods.items():
        assert items[name].dtype == torch.float32
        expected = method.unit * method(seen["student"]["one2many"], seen["teacher"]["one2many"], batch(2))
        assert items[name].item() == pytest.approx(expected.item(), rel=1e-6)
    loss.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in distiller.methods.parameters())


@pytest.mark.parametrize("student, teacher", [("yolo26n", "yolo26n-p2"), ("yolo26n-p2", "yolo26n")])
def test_levels_are_paired_by_stride(student, teacher):
    """YOLO26-p2 has a level at stride 4 that YOLO26 has not; zipping levels would pair maps of other sizes."""
    distiller = make(student, teacher, method="pkd,bckd_box")
    seen = spied(distiller)
    _, items = distiller(batch(SIZE))
    assert set(distiller.pairings[0].places.values()) == {((8, 16, 32), (8, 16, 32))}
    assert all(items[name].isfinite() and items[name] > 0 for name in distiller.gains)
    for views in (seen["student"], seen["teacher"]):
        assert {v.boxes.shape[1] for v in views.values()} == {8 * 8 + 4 * 4 + 2 * 2}
        assert [m.shape[-1] for m in views["one2many"].neck] == [8, 4, 2]


def test_a_level_without_a_partner_takes_the_nearest_by_choice():
    """levels=resize: the level at stride 4 learns from the teacher's at 8; predictions stay with common strides."""
    readers = read(build("yolo26n-p2", 0, torch.float32)), read(build("yolo26n", 1, torch.float32))
    kd = DistillOptions((), levels="resize", **asked_methods("pkd,logit,sl2", {}))
    made = plan(*readers, kd, NAMES)
    common = (8, 16, 32)
    assert {name: term.place for name, term in made.terms.items()} == {
        "pkd_loss": ((4, *common), (8, *common)),
        "logit_loss": (common, common),
        "sl2_loss": (common, common),  # weights cells by scores, so that it needs anchor points too
    }
    distiller = Distiller(readers[0], [Pairing(readers[0], made, torch.device("cpu"))]).train()
    loss, _ = distiller(batch(2))
    loss.sum().backward()
    adapters = distiller.pairings[0].methods["pkd_loss"].adapters
    assert len(adapters) == 4 and all(a.weight.grad.abs().max() > 0 for a in adapters)


@pytest.mark.slow  # two processes import everything anew
def test_two_ranks_share_the_gradients_of_student_and_adapters(tmp_path: Path):
    """Adapters outside DDP's buckets drift apart, rank by rank, without any error."""
    torch.multiprocessing.spawn(train_one_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = []
    for rank in range(2):
        distiller = make("yolo26n", "yolo11n")
        alone.append(backward(distiller, distiller, half(batch(SIZE), rank)))
    names = alone[0]["grads"].keys()
    assert ranks[0]["grads"].keys() == ranks[1]["grads"].keys() == names
    assert any(n.startswith("pairings.0.methods.pkd_loss.adapters") for n in names)
    # a bias that a later batch norm takes away has a gradient of rounding errors alone, which follow the threads
    rounding = 1e-6 * max(g.abs().max().item() for g in alone[0]["grads"].values())
    for name in names:
        a, b = (r["grads"][name] for r in ranks)
        assert torch.equal(a, b), name
        mean = (alone[0]["grads"][name] + alone[1]["grads"][name]) / 2
        torch.testing.assert_close(a, mean, rtol=1e-3, atol=1e-4 * mean.abs().max().item() + rounding, msg=name)
        assert a.abs().max() > 0 or not name.startswith("methods"), name
    for rank, single in zip(ranks, alone, strict=True):
        for name in ("pkd_loss", "logit_loss"):
            assert rank["items"][name] > 0
            torch.testing.assert_close(rank["items"][name], single["items"][name], rtol=1e-4, atol=1e-6)
    assert ranks[0]["items"]["pkd_loss"] != ranks[1]["items"]["pkd_loss"]


def test_columns_fit_the_progress_line_and_are_distinct():
    """A name wider than the column runs into its neighbour; two equal ones would lose a term."""
    names = [term_name(cls, tap) for cls in METHODS.values() for tap in cls.taps or ("",)]
    assert len(set(names)) == len(names) and max(map(len, names)) <= 10 and all("loss" in name for name in names)
