"""What a sensor is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Sensor:
    """Something that the board tells. Its files are looked for once, so that a reading is cheap."""

    worth_sampling = True  # while frames are timed; else it is read before and after only
    only_for_power = False  # whether it is left alone where nobody asked for power

    def present(self) -> bool:
        """Whether this board has it."""
        raise NotImplementedError

    def read(self) -> dict[str, Any]:
        """What it tells now: the same keys each time, which no other sensor has."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds, when all is read."""
        return None

    def curves(self, reading: Mapping[str, Any]) -> dict[str, float]:
        """Numbers of an earlier reading that are kept with the raw samples, as telemetry/NAME."""
        return {}
