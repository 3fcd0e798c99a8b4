"""What one run is told to do: the options of one combination, on their way to a worker process and to the record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from yolokd_edge.bench.options import BenchOptions, Limits


@dataclass(frozen=True)
class Plan:
    """One run of one combination of options."""

    options: BenchOptions  # with a single value for each that can be swept over
    limits: Limits
    created_utc: str = ""
    command: list[str] = field(default_factory=list)  # how the program was started
    repeat: int = 0
    stream: int = 0
    build: bool = False  # only build TensorRT's engines

    def to_json(self) -> str:
        """The plan as a text, of options whose images are given by their path."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        options = content["options"]
        for key, kind in (("profile", lambda value: Limits(*value)), ("imgsz", tuple)):  # JSON knows lists only
            if isinstance(options[key], list):
                options[key] = kind(options[key])
        content.update(options=BenchOptions(**options), limits=Limits(*content["limits"]))
        return cls(**content)
