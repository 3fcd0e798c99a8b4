"""How long the parts of the demo take: estimated from a few measured steps, then from what has passed."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ultralytics.cfg import get_cfg

from yolokd.demo.setting import Setting
from yolokd_edge.common import usable_cores
from yolokd_edge.progress import spoken

MOST_THREADS = 8  # as Ultralytics
MEASURED = 3  # steps, after one that is not counted
OBJECTS = 6  # of an image, as the scenes have on average
# Of work that no measured step resembles: how many training steps of the student alone last as long.
STARTS, EXPORTS, LATENCY, REPORT = 150, 60, 12, 25


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine, for one batch."""

    step: float  # of training, the student alone
    teacher: float  # the teacher's forward pass


def fastest(setting: Setting, student: Any, teacher: Any) -> tuple[int, Pace]:
    """How many threads are the fastest, and the pace with them.

    Ultralytics leaves one core to the processes that load images, of which the demo has none. With all cores a step is
    faster on a quiet machine, and many times slower where something else is at work: threads wait for each other.
    """
    most = min(usable_cores(), MOST_THREADS)
    fewer = max(most - 1, 1)
    pace = measure(setting, student, teacher, fewer)
    if most > fewer:
        other = measure(setting, student, teacher, most, limit=pace.step)
        if other.step + other.teacher < pace.step + pace.teacher:
            return most, other
    return fewer, pace


def measure(setting: Setting, student: Any, teacher: Any, threads: int, limit: float = math.inf) -> Pace:
    """Time some steps on random images; the models are left as they were.

    Args:
        setting: the demo.
        student: a model of Ultralytics'.
        teacher: another.
        threads: of PyTorch.
        limit: seconds of a step from twice of which on it is not worth to look any longer.
    """
    torch.set_num_threads(threads)
    size, batch = setting.budget["imgsz"], setting.budget["batch"]
    draw, objects = torch.Generator().manual_seed(0), batch * OBJECTS  # of its own: the trainings' stays as it is
    images = torch.rand(batch, 3, size, size, generator=draw)
    labels = {
        "img": images,
        "batch_idx": torch.arange(batch).repeat_interleave(OBJECTS).float(),
        "cls": torch.zeros(objects, 1),
        "bboxes": torch.rand(objects, 4, generator=draw) * 0.3 + 0.2,
    }
    model = copy.deepcopy(student.model).float().train().requires_grad_(True)
    model.args = get_cfg()

    def step() -> None:
        model.zero_grad()
        model.loss(labels)[0].sum().backward()

    @torch.no_grad()
    def look() -> None:
        teacher.model.eval()(images)

    with torch.random.fork_rng(devices=[]):
        taken = seconds(step, limit)
        return Pace(taken, seconds(look) if taken < 2 * limit else math.inf)


def seconds(work: Callable[[], None], limit: float = math.inf) -> float:
    """The median time of a few calls after a first one, or of those up to one that took twice the limit."""
    times: list[float] = []
    while len(times) <= MEASURED and (len(times) < 2 or times[-1] < 2 * limit):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def expected(setting: Setting, pace: Pace) -> list[tuple[str, float]]:
    """The parts of the demo with the seconds that each should take."""
    batch, epochs = setting.budget["batch"], setting.budget["epochs"]
    steps, scored = math.ceil(setting.train / batch), math.ceil(setting.val / batch)
    alone = epochs * (steps * pace.step + scored * pace.step / 2)  # forward passes, and picking out the boxes
    taught = epochs * steps * (pace.teacher + 0.3 * pace.step)  # the teacher's answers, and the terms on them
    return [
        ("The student alone", alone),
        ("The same student under the teacher", STARTS * (pace.step + 2 * pace.teacher) + alone + taught),
        ("The teacher on the validation images", 2 * scored * pace.teacher),
        ("Export to ONNX, checked against PyTorch", EXPORTS * pace.step),
        ("Latency, one image at a time", LATENCY * pace.step + 5),  # a run of the profile smoke: 2 s and 3 s
        ("The report", REPORT * pace.step),
    ]


class Clock:
    """Tells what part is at work and how long the whole will still take."""

    def __init__(self, parts: list[tuple[str, float]]) -> None:
        self.parts, self.at = parts, -1
        self.begun = self.start = time.monotonic()

    def plan(self) -> str:
        """The parts with their times."""
        width = max(len(title) for title, _ in self.parts)
        lines = [f"  {i}. {title:{width}}  {spoken(took)}" for i, (title, took) in enumerate(self.parts, 1)]
        total = sum(took for _, took in self.parts)
        return "\n".join([f"About {spoken(total)} on this machine, by a few measured steps:", *lines])

    def next(self) -> None:
        """The next part begins."""
        self.at, self.begun = self.at + 1, time.monotonic()
        title, took = self.parts[self.at]
        left = f"about {spoken(took * self.speed())}, all together {spoken(self.left(took))} left"
        print(f"\n=== {self.at + 1}/{len(self.parts)}  {title}: {left} ===", flush=True)

    def speed(self) -> float:
        """How much longer the parts that are done took than was expected."""
        before = sum(took for _, took in self.parts[: self.at])
        return (self.begun - self.start) / before if before else 1.0

    def left(self, of_this: float) -> float:
        """Seconds for the whole, of which this part still takes some, in the measure of what was expected."""
        return self.speed() * (of_this + sum(took for _, took in self.parts[self.at + 1 :]))

    def epoch(self, trainer: Any) -> None:
        """Callback of a trainer: an epoch is done and validated."""
        done, epochs = trainer.epoch + 1, trainer.epochs
        if done >= epochs:  # called once more for the best checkpoint's validation
            return
        passed = time.monotonic() - self.begun
        of_this = passed / done * (epochs - done)
        pace = passed / done * epochs / self.parts[self.at][1]  # this part tells more of the machine than the estimate
        later = pace * sum(took for _, took in self.parts[self.at + 1 :])
        print(f"demo: epoch {done} of {epochs}, {spoken(of_this)} left of this part, {spoken(of_this + later)} of all")


def with_threads(model: Any, threads: int, epoch: Callable[[Any], None] | None = None) -> Any:
    """An Ultralytics model that uses this number of threads instead of its own; `epoch` is called after each epoch."""
    for event in ("on_pretrain_routine_start", "on_val_start"):  # each follows a choice of the device
        model.add_callback(event, lambda _: torch.set_num_threads(threads))
    if epoch is not None:
        model.add_callback("on_fit_epoch_end", epoch)
    return model
