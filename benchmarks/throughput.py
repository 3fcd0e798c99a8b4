"""Images per second and peak memory of one arm's training, in a process of its own, loading of images included.

    python benchmarks/throughput.py alone|distill_model|yolokd STUDENT TEACHER DATA [imgsz=640] [device=0] ...

Two epochs are trained and the second is timed. Memory is the most that PyTorch held on the GPU, on a CPU the most that
the process held.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from ultralytics import YOLO

import yolokd
from yolokd.config.parse import parse_pairs


def main(arm: str, student: str, teacher: str, data: str, *words: str) -> None:
    arguments: dict[str, Any] = {"val": False, "save": False, "name": f"throughput-{arm}", **parse_pairs(list(words))}
    model, epochs = YOLO(student), []
    model.add_callback("on_train_epoch_start", lambda trainer: epochs.append([time.perf_counter()]))
    model.add_callback("on_train_epoch_end", lambda trainer: epochs[-1].append(time.perf_counter()))
    if arm == "yolokd":  # a start costs nothing per step
        arguments |= {"trainer": yolokd.KDTrainer, "teacher": teacher, "init": "own"}
    elif arm == "distill_model":
        arguments["distill_model"] = teacher
    model.train(data=data, epochs=2, **arguments)
    begin, end = epochs[-1]
    images = len(model.trainer.train_loader.dataset)
    if torch.cuda.is_available() and model.trainer.device.type == "cuda":
        memory = torch.cuda.max_memory_reserved() / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{arm:15} {images / (end - begin):9.1f} images/s {memory:9.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
