"""The options of a benchmark, each written once: the command lines, the worker processes and the record follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from yolokd_edge.accuracy_record import read_record
from yolokd_edge.arguments import number
from yolokd_edge.common import EdgeError, usable_cores
from yolokd_edge.contract import MAX_SIDE, PRECISIONS
from yolokd_edge.runtimes.table import PROVIDERS, check_fp16, check_provider


class Limits(NamedTuple):
    """When to stop: after enough frames of each model and enough time, or out of time."""

    n_min: int  # frames per model
    t_min_s: float
    t_max_s: float
    warm_up_cap_s: float = 60.0


PROFILES = {
    "smoke": Limits(100, 3.0, 60.0, 10.0),
    "standard": Limits(1000, 30.0, 600.0),
    "soak": Limits(1000, 600.0, 900.0),
}
REPEATS = {"smoke": 5, "standard": 5, "soak": 1}


def _option(default: Any, text: str, **argument: Any) -> Any:
    """A field with its meaning; the rest is for argparse."""
    return field(default=default, metadata={"help": text, **argument})


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, where and for how long.

    Options that can be swept over (threads, provider, streams, imgsz, precision) take one value, a list, or a text with
    commas: "1,2,all". Each combination is measured; they take turns in random order, so that a drift of the machine
    meets all alike.
    """

    # ONNX files or bundles, or what `yolokd export format=` wrote. They are interleaved frame by frame.
    models: Sequence[str | Path] = field(
        metadata={
            "flag": "--model",
            "nargs": "+",
            "metavar": "MODEL",
            "help": "ONNX files or bundles (default: the bundle this program lies in)",
        }
    )
    # Or frames (H, W, 3) BGR uint8 in memory, cycled in the order given: these allow a single run in this process.
    source: Any = field(
        default=None,
        metadata={
            "help": "an image or a folder, 32 or more if possible; or a video file or a camera: then the latency from "
            "capture to result (default: the bundle's own images)"
        },
    )
    random: bool = _option(False, "measure on noise of the model's input size, without images")
    precision: Any = _option(None, "which file of a bundle, or a list: fp32,int8 (default fp32)")
    # The counts and the time of a profile must both be reached. Or limits of your own.
    profile: str | Limits = _option("smoke", "how long (default smoke)", choices=tuple(PROFILES))
    provider: Any = _option("cpu", f"auto or one of {', '.join(PROVIDERS)}; a list is swept over: cpu,trt")
    threads: Any = _option(None, "CPU threads, or a list: 1,2,all (default all usable cores)")
    streams: Any = _option(1, "processes that detect at the same time, or a list: 1,2,4")
    imgsz: Any = _option(None, "input size for files without a fixed one, or a list: 320,480x640")
    repeats: int | None = _option(None, "runs, each a new process (default 5, for soak 1)", type=number(int, 1))
    apart: bool = _option(False, "each model in processes of its own, which take turns, as it will run alone")
    quick: bool = _option(False, "a single run")
    time_limit: float | None = _option(
        None, "seconds after which to stop a run anyway", type=number(float, 0.001), metavar="S"
    )
    power: bool = _option(False, "sample the board's power")
    idle: float = _option(10.0, "idle baseline (default 10)", type=number(float, 0), metavar="S")
    trtexec: bool = _option(False, "measure with trtexec as well, where installed")
    seed: int = _option(0, "of image and model order (default 0)", type=int)
    fp16: bool = _option(False, "half precision in TensorRT (provider trt)")
    cache: str | None = _option(None, "TensorRT's engines (default YOLOKD_CACHE or ~/.cache/yolokd)", metavar="DIR")
    allow_fallback: bool = _option(False, "take the next provider if one is not active")
    accuracy: Any = _option(None, "records of `val --out`: the accuracy of these files here", nargs="+", metavar="FILE")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(option.default, bool) and not isinstance(value, bool):
                # a word such as `no` would count as yes, and could cost a report
                raise EdgeError(f"{option.name}={value} is neither True nor False: write one of the two.")
        for key, value in (("time_limit", self.time_limit), ("idle", self.idle)):
            if value is not None and not (isinstance(value, (int, float)) and value >= 0):
                raise EdgeError(f"{key}={value} is not a number of seconds: write one such as {key}=10.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise EdgeError(f"seed={self.seed} is not a whole number of 0 or more: give one such as seed=0.")
        if self.repeats is not None and (not isinstance(self.repeats, int) or self.repeats < 1):
            raise EdgeError(f"The number of runs must be at least 1, not {self.repeats!r}.")
        if self.random and self.source is not None:
            raise EdgeError("random measures without images: give either random or a source.")
        for file in self.accuracy_records:
            read_record(file)

    @property
    def accuracy_records(self) -> list[str]:
        """Files with accuracies."""
        return [str(file) for file in _values(self.accuracy) if file is not None]

    @property
    def in_memory(self) -> bool:
        """Whether the frames are given themselves, not their path."""
        return self.source is not None and not isinstance(self.source, (str, Path))

    @property
    def profile_name(self) -> str:
        """The profile's name in the record."""
        return self.profile if isinstance(self.profile, str) else "custom"

    @property
    def runs(self) -> int:
        """Runs of each combination."""
        if self.quick or self.in_memory and self.repeats is None:
            return 1
        return REPEATS.get(self.profile_name, 1) if self.repeats is None else self.repeats

    @property
    def limits(self) -> Limits:
        """When to stop: the profile's limits, cut short by the time limit."""
        if isinstance(self.profile, str) and self.profile not in PROFILES:
            raise EdgeError(f"Unknown profile '{self.profile}': choose {', '.join(PROFILES)}.")
        if self.time_limit is not None and not self.time_limit > 0:
            raise EdgeError(f"The time limit must be above 0 s, not {self.time_limit:g}.")
        limits = PROFILES[self.profile] if isinstance(self.profile, str) else self.profile
        if self.time_limit is None:
            return limits
        return limits._replace(t_max_s=self.time_limit, warm_up_cap_s=min(self.time_limit, limits.warm_up_cap_s))

    def combinations(self) -> list[BenchOptions]:
        """One per combination that a sweep measures, each with a single value; a single one without lists."""
        axes = {
            "threads": [_count(v, "Threads") for v in _values(self.threads)],
            "provider": _values(self.provider),
            "imgsz": [_size(v) for v in _values(self.imgsz)],
            "streams": [_count(v, "Streams") or usable_cores() for v in _values(self.streams)],
            "precision": _values(self.precision),
        }
        for name in axes["precision"]:
            if name not in (None, *PRECISIONS):
                raise EdgeError(f"Unknown precision '{name}': choose {', '.join(PRECISIONS)}.")
        for name in axes["provider"]:
            check_provider(name)
        if not all(axes.values()):
            raise EdgeError("A sweep over nothing: give at least one value for each option.")
        check_fp16(self.fp16, axes["provider"])
        return [replace(self, **dict(zip(axes, values))) for values in product(*axes.values())]  # noqa: B905


def _values(value: Any) -> list[Any]:
    """A sweep's values: a list as it is, a text split at its commas, anything else alone."""
    if isinstance(value, str):
        return [word for word in value.split(",") if word]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _count(value: Any, what: str) -> int | None:
    """A number of at least 1; None and "all" mean every usable core."""
    if value is None or value == "all":
        return None
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(value, float) and value != count:
        raise EdgeError(f"{what} must be whole numbers of at least 1, not {value!r}.")
    return count


def _size(value: Any) -> tuple[int, int] | None:
    """(height, width) from 320, "320" or "320x640"."""
    if value is None:
        return None
    sides = [_count(side, "Input sizes") or 0 for side in str(value).split("x")]
    if len(sides) > 2 or 0 in sides:
        raise EdgeError(f"An input size is one number or HEIGHTxWIDTH, not {value!r}.")
    if max(sides) > MAX_SIDE:
        raise EdgeError(f"An input size has sides of at most {MAX_SIDE} pixels, not {value!r}.")
    return sides[0], sides[-1]
