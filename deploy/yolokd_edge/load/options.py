"""The options of a measurement of throughput, each written once: both command lines and the record follow them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from yolokd_edge.arguments import number, size
from yolokd_edge.common import EdgeError, usable_cores
from yolokd_edge.contract import PRECISIONS
from yolokd_edge.load.rules import RULES
from yolokd_edge.runtimes.table import PROVIDERS, check_fp16, check_provider

CURVE = "curve"
SCENARIOS = (CURVE, *RULES)
AUTO = "auto"


def _option(default: Any, text: str, **argument: Any) -> Any:
    """A field with its meaning; the rest is for argparse."""
    return field(default=default, metadata={"help": text, **argument})


@dataclass(frozen=True)
class LoadOptions:
    """What to load, with what and for how long."""

    model: str | Path | None = _option(None, "an ONNX file or bundle (default: the bundle this program lies in)")
    source: str | None = _option(None, "an image or a folder (default: the bundle's own)")
    random: bool = _option(False, "measure on noise of the model's input size, without images")
    scenario: str = _option(CURVE, "what to measure (default curve)", choices=SCENARIOS)
    batch: Any = _option(
        None, "images in an input, or a list: 1,2,4 (default 1; 1,2,4,8 for a curve of a dynamic file)"
    )
    streams: Any = _option(None, "inputs computed at the same time, or a list: 1,2,auto (default 1 and auto)")
    threads: int | None = _option(
        None, "CPU threads of each stream (default: the cores shared out)", type=number(int, 1)
    )
    provider: str = _option("cpu", f"auto or one of {', '.join(PROVIDERS)}", choices=("auto", *PROVIDERS))
    precision: str | None = _option(None, "which file of a bundle (default fp32)", choices=PRECISIONS)
    imgsz: Any = _option(None, "input size for a file without a fixed one, such as 320 or 320x480", type=size)
    seconds: float | None = _option(
        None, "how long each point or the scenario lasts (default 5; 600 for a scenario)", type=number(float, 0.01)
    )
    repeats: int = _option(3, "times that each point of a curve is measured (default 3)", type=number(int, 1))
    rate: float | None = _option(None, "queries per second of the scenario server", type=number(float, 1e-3))
    bound: float | None = _option(
        None, "ms within which 99 of 100 queries of the scenario server must be answered", type=number(float, 1e-3)
    )
    time_limit: float | None = _option(
        None, "seconds after which a scenario ends anyway (default twice its duration)", type=number(float, 0.01)
    )
    cuda_graph: bool = _option(False, "record the GPU's work once and replay it (providers cuda and trt)")
    seed: int = _option(0, "of the order of images and the times of queries (default 0)", type=number(int, 0))
    fp16: bool = _option(False, "half precision in TensorRT (provider trt)")
    cache: str | None = _option(None, "TensorRT's engines (default YOLOKD_CACHE or ~/.cache/yolokd)", metavar="DIR")
    allow_fallback: bool = _option(False, "take the next provider if one is not active")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(option.default, bool) and not isinstance(value, bool):
                raise EdgeError(f"{option.name}={value} is neither True nor False: write one of the two.")
            if value is not None and "choices" in option.metadata and value not in option.metadata["choices"]:
                raise EdgeError(f"Unknown {option.name} '{value}': choose {', '.join(option.metadata['choices'])}.")
        for key, kind, least in (
            ("threads", int, 1),
            ("seconds", float, 0.01),
            ("repeats", int, 1),
            ("rate", float, 1e-3),
            ("bound", float, 1e-3),
            ("time_limit", float, 0.01),
            ("seed", int, 0),
        ):
            _check_number(key, getattr(self, key), kind, least)
        check_provider(self.provider)
        check_fp16(self.fp16, [self.provider])
        self._check_source()
        self._check_server()
        if self.cuda_graph and self.provider not in ("cuda", "trt"):
            raise EdgeError(
                f"cuda_graph is an option of the providers cuda and trt, not of {self.provider}: give provider=cuda."
            )
        _ = self.streams_list, self.batches(dynamic=True), self.hw
        if self.scenario != CURVE and len(self.streams_list) > 1:
            raise EdgeError(f"The scenario {self.scenario} is measured with one number of streams: give one, or auto.")

    def _check_source(self) -> None:
        if self.random and self.source is not None:
            raise EdgeError("random measures without images: give either random or a source.")

    def _check_server(self) -> None:
        if self.scenario == "server":
            if self.rate is None or self.bound is None:
                raise EdgeError(
                    "The scenario server needs a rate and a bound, such as 20 queries a second answered within 50 ms: "
                    "rate=20 bound=50."
                )
        elif self.rate is not None or self.bound is not None:
            raise EdgeError(f"A rate and a bound are for the scenario server, not for {self.scenario}.")

    @property
    def hw(self) -> tuple[int, int] | None:
        """Height and width of the input, for a file without a fixed size."""
        try:
            return self.imgsz if self.imgsz is None or isinstance(self.imgsz, tuple) else size(str(self.imgsz))
        except argparse.ArgumentTypeError as error:
            raise EdgeError(f"imgsz: {error}.") from None

    @property
    def duration(self) -> float:
        """Seconds of a point, or of the scenario."""
        return self.seconds or (5.0 if self.scenario == CURVE else RULES[self.scenario].seconds)

    @property
    def streams_list(self) -> list[int | None]:
        """Numbers of streams; None is the runtime's choice."""
        if self.streams is None:
            return [1, None] if self.scenario == CURVE else [1 if self.scenario == "single" else None]
        return [None if word == AUTO else count for word, count in _list(self.streams, "streams", usable_cores)]

    def batches(self, dynamic: bool) -> list[int]:
        """Numbers of images in an input; `dynamic` tells whether the file takes more than one."""
        if self.batch is None:
            multi = self.scenario == "multi" and dynamic
            return [1, 2, 4, 8] if self.scenario == CURVE and dynamic else [RULES["multi"].samples if multi else 1]
        counts = [count for _, count in _list(self.batch, "batch", None)]
        if self.scenario != CURVE and len(counts) > 1:
            raise EdgeError(
                f"The scenario {self.scenario} is measured with one number of images in an input: give one."
            )
        if self.scenario in ("single", "server") and counts != [1]:
            raise EdgeError(f"A query of the scenario {self.scenario} is one image: batch=1.")
        if self.scenario == "multi" and counts[0] not in (1, RULES["multi"].samples):
            raise EdgeError("A query of the scenario multi is eight images, in one input or in eight: batch=8 or 1.")
        return counts


def _check_number(key: str, value: Any, kind: type, least: float) -> None:
    if value is None:
        return
    kinds = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise EdgeError(f"{key}={value} is not {what} of at least {least:g}.")


def _list(value: Any, what: str, every: Callable[[], int] | None) -> list[tuple[str, int]]:
    """(word, number) for each of a list or a text with commas; "all" is every core and "auto" the runtime's choice."""
    words = [w for w in value.split(",") if w] if isinstance(value, str) else value
    words = [str(w) for w in words] if isinstance(words, (list, tuple)) else [str(words)]
    out = []
    for word in dict.fromkeys(words):
        if every is not None and word in ("all", AUTO):
            out.append((word, every()))
        elif word.isdecimal() and 1 <= int(word) <= 4096:
            out.append((word, int(word)))
        else:
            also = ", all or auto" if every is not None else ""
            raise EdgeError(f"{what}={word} is not a whole number of at least 1{also}.")
    if not out:
        raise EdgeError(f"{what} is empty: give at least one number.")
    return out
