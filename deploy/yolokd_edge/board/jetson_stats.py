"""jetson-stats (jtop), where it is installed and tegrastats is not, as in a container that has jtop's socket."""

from __future__ import annotations

import shutil
from importlib import import_module
from typing import Any

from yolokd_edge.board.readings import COLDEST, TOTAL_RAILS
from yolokd_edge.board.sensor import Sensor


class JetsonStats(Sensor):
    """Power by rail (mW), temperatures (deg C) and the GPU's load (%) from jetson-stats' service.

    It reads the same chips as tegrastats, whose process costs less, so that it is asked only where that is absent.
    """

    def __init__(self) -> None:
        self._client = None
        if shutil.which("tegrastats"):
            return
        try:
            client: Any = import_module("jtop").jtop(interval=0.5)
            client.start()
            self._client = client
        except Exception:  # not installed, no service, another version of it: its errors share no base with others
            pass

    def present(self) -> bool:
        """Whether its service answers."""
        return self._client is not None

    def read(self) -> dict[str, Any]:
        """The keys `jtop_mw`, `jtop_temps` and `jtop_load`; empty and None where the service tells nothing."""
        found: dict[str, Any] = {"jtop_mw": {}, "jtop_temps": {}, "jtop_load": None}
        client: Any = self._client
        try:
            if client is None or not client.ok(spin=True):
                return found
            return {
                "jtop_mw": _rails(client.power),
                "jtop_temps": _temperatures(client.temperature),
                "jtop_load": _load(client.gpu),
            }
        except Exception:  # the service ended, or is of a version that tells it otherwise
            return found

    def close(self) -> None:
        """Leave the service."""
        client: Any = self._client
        if client is not None:
            self._client = None
            client.close()


def _rails(power: Any) -> dict[str, float]:
    """As tegrastats names them: jtop takes the rail that feeds the others out of their list."""
    rails = {name: float(row["power"]) for name, row in power["rail"].items() if row.get("online", True)}
    total = power["tot"]
    if total.get("name") in TOTAL_RAILS:
        rails[total["name"]] = float(total["power"])
    return rails


def _temperatures(zones: Any) -> dict[str, float]:
    """By zone in lower case, without those of powered-off units."""
    known = {name.lower(): float(row["temp"]) for name, row in zones.items() if row.get("online", True)}
    return {name: value for name, value in known.items() if value > COLDEST}


def _load(gpus: Any) -> float | None:
    """Of the busiest GPU."""
    loads = [gpu["status"]["load"] for gpu in gpus.values() if "load" in gpu.get("status", {})]
    return float(max(loads)) if loads else None
