"""`yolokd methods --cost`: what each method adds to a training step of the student, in time and in memory.

Every round takes one whole step of the student alone (forward, loss, backward, clip, optimizer) and one forward pass of
the teacher. Then, from the outputs of these two passes, it does the work of each method in turn: its forward pass with
the decoding that it needs, its backward pass to the student's outputs, where the gradient is added to the one already
there, and its own parameters' optimizer step. So a change of the machine's speed affects all rows alike; medians are
reported. Below the student's outputs one backward pass serves all losses together, so a method adds no time there.
Images and objects are random: they cost as much as real ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from yolokd.config.checks import check_values
from yolokd.config.options import DistillOptions
from yolokd.config.parse import true_or_false
from yolokd.config.recipes import asked_methods
from yolokd.detectors import read
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.opening import open_model
from yolokd.detectors.reader import Reader
from yolokd.detectors.teachers import load_teacher, locate
from yolokd.distill.applicability import Plan, needs, pair_of_heads, plan
from yolokd.distill.gradient_balance import tensors
from yolokd.distill.pairing import Pairing
from yolokd.distill.teacher import memory_layout, round_up_to_stride
from yolokd.errors import UsageError, printable
from yolokd.methods import METHODS
from yolokd.studies.step_time import wait

WARMUP = 2  # rounds before the measured ones
OBJECTS = 7  # per image; COCO's mean
NOTES = """\
time: medians over alternating steps; the ratio is to the student's own step. A teacher without head is enough for
methods that read only maps; its time is spent once, whatever the number of methods.
memory: {}, plus the weights, gradients and AdamW moments of a method's own parameters."""
MEMORY = {
    "cpu": "what a method keeps from its forward for its backward pass, beyond the outputs of both detectors",
    "cuda": "the peak of a method's forward and backward pass above the outputs of both detectors",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one row in a step."""

    ms: float  # median
    ratio: float  # to the student's own step
    mb: float | None = None  # 10^6 bytes; None for the detectors' own rows


def cost(
    model: str = "yolo11n.yaml",
    teacher: str = "yolo11s.yaml",
    imgsz: int = 640,
    batch: int = 2,
    rounds: int = 10,
    method: Any = None,
    threads: int | None = None,
    device: str | None = None,
    trust: bool = False,
    **dotted: Any,
) -> dict[str, Cost]:
    """Print and return the cost of "student", "teacher", "teacher without head", and what every method adds.

    Args:
        model: student, a checkpoint or YAML.
        teacher: checkpoint or YAML. Weights hardly change the cost, except for methods that choose boxes: an untrained
            teacher is made to see objects everywhere, which is the most that they can have to process.
        imgsz: side of the images in pixels.
        batch: images of a step.
        rounds: the number of measured rounds.
        method: as in a training, for other taps; by default every method on its first.
        threads: of PyTorch; by default its own number.
        device: "cpu" or "cuda"; by default a GPU if there is one.
        trust: whether the files may run code, for which you answer.
        **dotted: options of a method, such as ``mgd.width``.

    Raises:
        UsageError: a model, method or option cannot be used.
    """
    for key, value in (("imgsz", imgsz), ("batch", batch), ("rounds", rounds), ("threads", threads or 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{key}={value} is not a whole number above 0.")
    true_or_false("trust", trust)
    if device is not None:
        check_values({"device": device})
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = _open("model", model, trust).train().to(place, memory_format=memory_layout(place))  # as in training
    teacher_model = _open_teacher(teacher, trust)
    student, classes = read(network), match_classes(network.names, teacher_model.names, None)
    whole = Plan(read(teacher_model), {}, {}, [], classes, 1.0)
    if imgsz % (grid := max(*student.strides, *whole.teacher.strides)):
        raise UsageError(
            f"imgsz={imgsz} is not a multiple of the largest stride, {grid}: give {round_up_to_stride(imgsz, grid)}."
        )
    distillation = DistillOptions((), **asked_methods(method or list(METHODS), dotted))
    keys, _ = distillation.methods_for(pair_of_heads(student.spec, whole.teacher.spec))
    refused, columns = [], {}
    for key, options in keys.items():
        try:
            single = plan(student, whole.teacher, DistillOptions((), methods={key: options}), network.names, classes)
        except UsageError as error:
            refused.append(str(error))
            continue
        whole.terms.update(single.terms)
        columns.update(dict.fromkeys([key], *single.terms))
    pairing = Pairing(student, whole, place)
    headless = Pairing(student, Plan(read(_open_teacher(teacher, trust)), {}, {}, [], None, 1.0), place)
    if threads:
        torch.set_num_threads(threads)
    times, memory = _measure(student, pairing, headless, columns, imgsz, batch, rounds)
    alone = statistics.median(times["student"])
    rows = {row: Cost(ms := statistics.median(t), ms / alone, memory.get(row)) for row, t in times.items()}
    _print(rows, refused, place, f"{student.spec.name} under {whole.teacher.spec.name}, {batch} x {imgsz} px")
    return rows


def _open(key: str, model: Any, trust: bool) -> Any:
    network: Any = open_model(model, key, trust).model.float().requires_grad_()
    network.args = get_cfg(DEFAULT_CFG)  # the gains of its loss
    return network


def _open_teacher(teacher: Any, trust: bool) -> Any:
    if Path(str(teacher)).suffix == ".pt":
        return load_teacher(locate(teacher), trust=trust)
    network = _open("teacher", teacher, trust)
    for towers in ("cv3", "one2one_cv3"):
        for tower in getattr(network.model[-1], towers, None) or ():
            nn.init.zeros_(tower[-1].bias)  # so that all scores are near 0.5
    return network


def _measure(
    reader: Reader, pairing: Pairing, headless: Pairing, columns: dict[str, str], imgsz: int, batch: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of the measured rounds by row, megabytes by method; columns: method -> name in the pairing."""
    student: Any = reader.model
    device = next(student.parameters()).device
    optimizers = {student: _optimizer(student), **{m: _optimizer(m) for m in pairing.methods.values()}}
    times: dict[str, list[float]] = {row: [] for row in ("student", "teacher", "teacher without head", *columns)}
    memory: dict[str, float] = {}
    recorded: dict[str, Any] = {}  # what both detectors' passes of this round recorded
    for i in range(WARMUP + rounds):
        data = _random_batch(imgsz, batch, i, device, len(student.names))

        def step_student(data: dict[str, Tensor] = data) -> None:
            with reader.record(pairing.fields) as recorded["student"], _amp(device):
                loss, _ = student(data)
            loss.sum().backward()
            nn.utils.clip_grad_norm_(student.parameters(), 10.0)
            optimizers[student].step()
            student.zero_grad()

        def run_teacher(data: dict[str, Tensor] = data) -> None:
            teacher: Any = pairing.teacher
            with torch.no_grad(), teacher.reader.record(pairing.fields) as recorded["teacher"], _amp(device):
                teacher.model(data["img"].contiguous(memory_format=teacher.layout))

        def run_headless(data: dict[str, Tensor] = data) -> None:
            with _amp(device):
                headless.teacher(data["img"])

        ms = {
            row: _timed(run, device) for row, run in zip(times, (step_student, run_teacher, run_headless), strict=False)
        }
        for key, column in columns.items():
            method = pairing.methods[column]
            leaves, held = as_leaves(recorded["student"]), tensors((recorded, list(pairing.teacher.model.parameters())))

            def add(data: dict[str, Tensor] = data, column: str = column, leaves: Any = leaves) -> Tensor:
                return _term(reader, pairing, column, leaves, recorded["teacher"], data)

            def step_method(add: Any = add, optimizer: Any = optimizers[method]) -> None:
                if (value := add()).requires_grad:
                    value.backward()
                optimizer.step()

            if i == 0:
                own = sum(p.numel() * p.element_size() for p in method.parameters())
                memory[key] = (
                    saved_bytes(add, step_method, [*held, *tensors(leaves), *method.parameters()], device) + 4 * own
                ) / 1e6
            ms[key] = _timed(step_method, device)
            method.zero_grad()
        if i >= WARMUP:
            for row, value in ms.items():
                times[row].append(value)
    return times, memory


def _term(reader: Reader, pairing: Pairing, column: str, student: Any, teacher: Any, batch: dict[str, Any]) -> Tensor:
    """One term as a training computes it, from what both passes recorded."""
    method: Any = pairing.methods[column]
    fields = needs(method)

    def others(strides: tuple[int, ...]) -> Any:
        with torch.no_grad():
            return pairing.teacher.reader.views(teacher, fields, strides)

    terms: dict[str, Tensor] = pairing(lambda at: reader.views(student, fields, at), others, batch, [column], {})
    return terms[column]


def saved_bytes(add: Callable[[], Tensor], step: Callable[[], None], held: list[Tensor], device: torch.device) -> int:
    """On a GPU a method's peak above the allocated memory; on a CPU what it saves for backward, counted once."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    known = {x.untyped_storage().data_ptr() for x in held}
    saved: dict[int, Tensor] = {}  # keeps tensors alive, so that no storage is reused and counted twice

    def keep(x: Tensor) -> Tensor:
        if (pointer := x.untyped_storage().data_ptr()) not in known:
            saved[pointer] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = add()
    del value
    return sum(x.untyped_storage().nbytes() for x in saved.values())


def as_leaves(recorded: Any) -> Any:
    """The same nested dicts, lists and tuples, with each float tensor as a leaf that already has a gradient."""
    if isinstance(recorded, dict):
        return {k: as_leaves(v) for k, v in recorded.items()}
    if isinstance(recorded, (list, tuple)):
        return type(recorded)(as_leaves(v) for v in recorded)
    if not isinstance(recorded, Tensor) or not recorded.is_floating_point():
        return recorded
    leaf = recorded.detach().requires_grad_()
    leaf.grad = torch.zeros_like(leaf)
    return leaf


def _optimizer(module: nn.Module) -> Any:
    return torch.optim.AdamW([*module.parameters(), nn.Parameter(torch.zeros(1))], lr=1e-6)  # never an empty list


def _random_batch(imgsz: int, batch: int, seed: int, device: torch.device, classes: int) -> dict[str, Tensor]:
    random, objects = torch.Generator().manual_seed(seed), batch * OBJECTS
    sides = 0.03 + 0.37 * torch.rand(objects, 2, generator=random)
    data = {
        "img": torch.rand(batch, 3, imgsz, imgsz, generator=random),
        "cls": torch.randint(classes, (objects, 1), generator=random).float(),
        "bboxes": torch.cat((sides / 2 + (1 - sides) * torch.rand(objects, 2, generator=random), sides), 1),
        "batch_idx": torch.arange(batch).repeat_interleave(OBJECTS).float(),
    }
    return {k: v.to(device) for k, v in data.items()}


def _amp(device: torch.device) -> Any:
    return torch.autocast(device.type, enabled=device.type == "cuda")  # as a training does by default


def _timed(run: Callable[[], None], device: torch.device) -> float:
    """Milliseconds of one call."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return 1000 * (time.perf_counter() - start)


def _print(rows: dict[str, Cost], refused: list[str], device: torch.device, what: str) -> None:
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{printable(what)}, {hardware}\n{'':22} {'ms':>9} {'ratio':>7} {'MB':>8}")
    for name, row in rows.items():
        print(f"{name:22} {row.ms:9.1f} {row.ratio:7.3f} {'' if row.mb is None else format(row.mb, '8.1f')}".rstrip())
    for reason in refused:
        print(printable(reason))
    print(NOTES.format(MEMORY[device.type]))
