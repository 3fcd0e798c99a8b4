"""What a gain of 1 of each method pulls at the student, beside its own loss: the figures behind `unit`.

    python benchmarks/units.py out=units.md
    python benchmarks/units.py out=rtdetr.md model=small.pt teacher=large.pt data=scenes.yaml method=detr_logit,match

Without model= and teacher= the pair is the demo's: a YOLO11 of width 0.125 that comes from another domain (scenes of
digits), under a YOLO11n that was trained on the demo's scenes; the data are these scenes, at 160 px and 16 images a
step. The student learns from its labels alone and each method's adapters from their term alone, for 20 steps, so
that all methods are measured in one run and none disturbs another. At each step the gradient of the term is taken where
`balance=` takes it: on the maps that feed the head, for a term that does not reach them on its own input. "as much
pull" is

    pull = mean over steps |gradient of the method's value| / mean over steps |gradient of the student's own loss|

A unit is chosen so that unit * pull is about 0.3, between 0.2 and 0.41, and written as a round number; the table's last
column says what it is with the unit in the code. A method that the pair cannot have is named with the reason.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.torch_utils import init_seeds

from yolokd.config.options import DistillOptions
from yolokd.config.parse import parse_pairs
from yolokd.config.recipes import asked_methods
from yolokd.demo.scenes import compose
from yolokd.demo.setting import ASSETS
from yolokd.detectors import read
from yolokd.detectors.class_map import match_classes
from yolokd.detectors.opening import open_model
from yolokd.detectors.reader import Reader
from yolokd.detectors.teachers import load_teacher, locate
from yolokd.distill.applicability import Plan, pair_of_heads, plan
from yolokd.distill.distiller import Distiller
from yolokd.distill.gradient_balance import Balance, gradient_norms
from yolokd.distill.pairing import Pairing
from yolokd.errors import UsageError
from yolokd.methods import METHODS

STEPS, BATCH, IMGSZ, RATE = 20, 16, 160, 0.002
TARGET = (0.2, 0.41)
HEAD = "| method | pull of the value | unit | pull of a gain of 1 |\n|---|--:|--:|--:|\n"


class Meter(Balance):
    """A balance that changes nothing and keeps what it measures at every step."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names, None)
        self.norms: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def forward(
        self,
        loss: Tensor,
        terms: dict[str, Tensor],
        gains: dict[str, float],
        shared: list[Tensor],
        inputs: dict[str, list[Tensor]],
    ) -> dict[str, Tensor]:
        """The terms as they are."""
        for name, term in terms.items():
            task, own = gradient_norms(loss, term, [shared, inputs[name]])
            self.norms[name].append((float(task), float(own)))
        return terms


def main(
    out: str, model: str = "", teacher: str = "", data: str = "", method: str = "", seed: int = 0, **dotted: Any
) -> None:
    """Measure and write the table."""
    file = Path(out)
    if file.exists():
        raise UsageError(f"out={out} is there already: choose another name.")
    init_seeds(seed)
    with tempfile.TemporaryDirectory() as folder:
        scenes = data or compose(Path(folder) / "scenes", train=STEPS * BATCH, val=1, seed=seed)
        student = open_student(model or ASSETS / "student.pt", str(scenes))
        asked = asked_methods(method or list(METHODS), dotted)
        whole, columns, refused = planned(read(student), teacher or ASSETS / "teacher.pt", asked)
        pulls = measure(read(student), whole, batches(str(scenes), student))
    lines = [row(key, name, whole, pulls[name]) for key, name in columns.items()]
    file.write_text(HEAD + "".join(lines) + "".join(f"\n{reason}" for reason in refused) + "\n", encoding="utf-8")
    print(file.read_text(encoding="utf-8"))


def open_student(file: Any, data: str) -> Any:
    """The student with a head for the data's classes, as a training makes it."""
    old: Any = open_model(str(file), "model", False).model.float()
    described = check_det_dataset(data)
    names = described["names"]
    if "kpt_shape" in described:
        old.yaml["kpt_shape"] = described["kpt_shape"]
    student = type(old)(old.yaml, nc=len(names), ch=old.yaml.get("channels", 3), verbose=False)
    student.load(old)
    student.names, student.args, student.nc = names, get_cfg(DEFAULT_CFG), len(names)
    return student.train().requires_grad_()


def planned(student: Reader, teacher: Any, asked: dict[str, Any]) -> tuple[Plan, dict[str, str], list[str]]:
    """All methods that the pair can have, as one plan; method -> its name there; and why the others are missing."""
    network = load_teacher(locate(str(teacher)))
    classes = match_classes(student.model.names, network.names, None)
    whole = Plan(read(network), {}, {}, [], classes, 1.0)
    keys, _ = DistillOptions((), **asked).methods_for(pair_of_heads(student.spec, whole.teacher.spec))
    columns, refused = {}, []
    for key, options in keys.items():
        try:
            one = plan(student, whole.teacher, DistillOptions((), methods={key: options}), student.model.names, classes)
        except UsageError as error:
            refused.append(f"{key}: {error}")
            continue
        whole.terms.update(one.terms)
        columns.update(dict.fromkeys([key], *one.terms))
    return whole, columns, refused


def batches(data: str, student: Any) -> Iterator[dict[str, Tensor]]:
    """Training batches with Ultralytics' own augmentation."""
    settings = get_cfg(DEFAULT_CFG, {"imgsz": IMGSZ, "task": guess_model_task(student), "workers": 0, "cache": False})
    described = check_det_dataset(data)
    dataset = build_yolo_dataset(settings, described["train"], BATCH, described, mode="train", stride=32)
    for batch in build_dataloader(dataset, BATCH, workers=0, shuffle=True):
        yield {**batch, "img": batch["img"].float() / 255}


def measure(student: Reader, whole: Plan, data: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """The pull of every term's value over the first steps."""
    pairing = Pairing(student, whole, torch.device("cpu"))
    meter = Meter(list(whole.terms))
    distiller = Distiller(student, [pairing], meter).train()
    distiller.start_epoch(0, 1)
    own = list(student.model.parameters())
    adapters = list(distiller.methods.parameters())
    optimizers = [torch.optim.AdamW(group, lr=RATE) for group in (own, adapters) if group]
    for batch in islice(data, STEPS):
        loss, _ = distiller(batch)
        task, terms = loss[: -len(whole.terms)], loss[-len(whole.terms) :]
        task.sum().backward(inputs=own, retain_graph=True)
        if adapters:
            terms.sum().backward(inputs=adapters)
        nn.utils.clip_grad_norm_(own, 10.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    scale = {name: term.gain.gain * type(term.method).unit for name, term in whole.terms.items()}
    return {
        name: sum(o for _, o in norms) / max(sum(t for t, _ in norms), 1e-12) / scale[name]
        for name, norms in meter.norms.items()
    }


def row(key: str, name: str, whole: Plan, pull: float) -> str:
    """One line of the table; a pull outside the target is marked."""
    unit = type(whole.terms[name].method).unit
    mark = "" if TARGET[0] <= unit * pull <= TARGET[1] else " (!)"
    return f"| {key} | {pull:.3g} | {unit:g} | {unit * pull:.2f}{mark} |\n"


if __name__ == "__main__":
    main(**parse_pairs(sys.argv[1:]))
