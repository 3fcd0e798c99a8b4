"""`yolokd steptime`: the time of one training step, for several ways side by side.

The student alone, Ultralytics' own `distill_model` and yolokd take the same steps on the same batches in turn, in one
process, so that a change of the machine's speed affects all of them alike. With cache=teacher yolokd does so twice,
once without and once with all responses stored. Report the ratios.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.torch_utils import autocast

from yolokd.config import options
from yolokd.config.parse import check_keys, true_or_false
from yolokd.data.splits import read_data
from yolokd.detectors.opening import open_model
from yolokd.distill.trainer import KDTrainer
from yolokd_edge.progress import Progress

CACHED, FORWARD = "yolokd, cached", "teacher alone"
WARMUP = 3  # steps before the measured ones


def steptime(
    model: str,
    teacher: str,
    data: str,
    steps: int = 20,
    threads: int | None = None,
    trust: bool = False,
    **arguments: Any,
) -> dict[str, float]:
    """Median milliseconds of a training step by arm, and of one forward pass of yolokd's teacher; prints the ratios.

    Args:
        model: student, a checkpoint or YAML.
        teacher: checkpoint.
        data: data set's YAML.
        steps: the number of measured steps of each arm.
        threads: of PyTorch; by default Ultralytics' number, one less than the cores.
        trust: whether the files may run code, for which you answer.
        **arguments: Ultralytics' training arguments and ours (method=, kd=, cache=teacher, dotted ones).
    """
    true_or_false("trust", trust)
    dotless = [key for key in arguments if "." not in key]
    check_keys(dotless, [*DEFAULT_CFG_DICT, *options.OURS, *options.HIDDEN])
    for key, file in (("model", model), ("teacher", teacher), ("pretrained", arguments.get("pretrained"))):
        if isinstance(file, (str, Path)):
            open_model(file, key, trust)
    read_data({**arguments, "data": data}, trust)
    ours = {k: arguments.pop(k) for k in list(arguments) if k in options.OURS or "." in k}
    stored: dict[str, Any] = {k: ours.pop(k) for k in ("cache_views", "cache_limit") if k in ours}
    if options.caches_teacher(arguments):
        stored["cache"] = arguments.pop("cache")
        arguments["cache"] = options.cache_without_teacher(stored["cache"])
    ours |= {"trust": True} if trust else {}
    ours.setdefault("init", "own")  # the student's start does not affect the time of a step
    common: dict[str, Any] = {
        "model": model,
        "data": data,
        "plots": False,
        "warmup_epochs": 0,
        "nbs": arguments.get("batch", 16),
        **arguments,
    }
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Any] = {
            "student alone": DetectionTrainer(overrides={**common, "project": folder, "name": "alone"}),
            "distill_model": DetectionTrainer(
                overrides={**common, "project": folder, "name": "builtin", "distill_model": teacher}
            ),
            "yolokd": KDTrainer(overrides={**common, "project": folder, "name": "yolokd", "teacher": teacher, **ours}),
        }
        if stored:
            of_cached = {**common, "project": folder, "name": "cached", "teacher": teacher, **ours, **stored}
            arms[CACHED] = KDTrainer(overrides=of_cached)
        for trainer in arms.values():
            trainer._setup_train()
            trainer.epoch = 0
            if isinstance(trainer, KDTrainer):
                trainer.leave_unscored()
            trainer._model_train()
        if threads:
            torch.set_num_threads(threads)  # after setup, in which Ultralytics sets its own number
        times = _measure(arms, steps)
    alone, forward = times["student alone"], times.pop(FORWARD)
    print(f"{'arm':15} {'ms':>9} {'ratio':>7} {'added':>9}")
    for arm, ms in times.items():
        print(f"{arm:15} {ms:9.1f} {ms / alone:7.2f} {ms - alone:9.1f}")
    added = {arm: ms - alone for arm, ms in times.items()}
    for arm in list(times)[2:]:
        print(f"time added by {arm} / by distill_model: {added[arm] / added['distill_model']:.2f}")
        print(f"time added by {arm} / one forward pass of its teacher, {forward:.1f} ms: {added[arm] / forward:.2f}")
    return {**times, FORWARD: forward}


def _measure(arms: dict[str, Any], steps: int) -> dict[str, float]:
    cached = arms.get(CACHED)
    batches = batches_of(cached or arms["student alone"])
    times: dict[str, list[float]] = {arm: [] for arm in (*arms, FORWARD)}
    order = list(arms)
    progress = Progress("timing steps", WARMUP + steps)
    for i in range(WARMUP + steps):
        batch = next(batches)
        if cached:  # so that the measured step sees this view for the second time
            on_device = cached.preprocess_batch(dict(batch))
            cached.distiller.teacher_views(on_device["img"], on_device["view"])
        for arm in order[i % len(order) :] + order[: i % len(order)]:  # so that no arm is always the first
            seconds = step_seconds(arms[arm], dict(batch))
            if i >= WARMUP:
                times[arm].append(1000 * seconds)
        if i >= WARMUP:
            times[FORWARD].append(1000 * _teacher_seconds(arms["yolokd"], dict(batch)))
        progress.step()  # outside of what is timed
    progress.end()
    return {arm: statistics.median(samples) for arm, samples in times.items()}


def batches_of(trainer: Any) -> Any:
    while True:
        yield from trainer.train_loader


def step_seconds(trainer: Any, batch: dict[str, Any]) -> float:
    """Seconds of one whole step as Ultralytics takes it: preprocess, forward, loss, backward, clip, optimizer, EMA."""
    wait(trainer.device)
    start = time.perf_counter()
    with autocast(precision(trainer), device=trainer.device.type):
        loss, _ = trainer.model(trainer.preprocess_batch(batch))
    trainer.scaler.scale(loss.sum()).backward()
    trainer.optimizer_step()
    wait(trainer.device)
    return time.perf_counter() - start


def _teacher_seconds(trainer: Any, batch: dict[str, Any]) -> float:
    """Seconds of one forward pass of the teachers, fused and without what no term needs."""
    images = trainer.preprocess_batch(batch)["img"]
    wait(trainer.device)
    start = time.perf_counter()
    with autocast(precision(trainer), device=trainer.device.type):
        trainer.distiller.teacher_views(images)
    wait(trainer.device)
    return time.perf_counter() - start


def precision(trainer: Any) -> Any:
    """The precision of a step, as Ultralytics' loop passes it to autocast."""
    return torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
