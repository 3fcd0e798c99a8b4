"""`monitor`: a line every second of what the board does: clocks, loads, temperature, power, memory."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

from yolokd_edge.board.monitor import Monitor
from yolokd_edge.board.system import available_mb, load_average
from yolokd_edge.board.telemetry import Telemetry
from yolokd_edge.common import EdgeError, json_text, printable

KEPT = 4  # the latest samples, of which the power of a counter needs two


def now(monitor: Monitor) -> dict[str, Any]:
    """The latest of everything; what the board does not tell is left out."""
    del monitor.readings[:-KEPT], monitor.lines[:-KEPT]
    told = Telemetry(monitor, [(0, monitor.clock())])
    latest = {name: round(float(curve[-1, 1]), 3) for name, curve in told.series().items() if len(curve)}
    loads, stats = told.gpu_loads(), told.stats[-1][1] if told.stats else {}
    signs = told.throttled(uses_gpu=False)[0]
    engines = {name: f"{load} %" for name, load in (stats.get("engines_load") or {}).items()}
    found = {
        "load": load_average(),
        "cpu_mhz": latest.get("cpu_mhz"),
        "gpu_load": loads[-1] if loads else None,
        "gpu_mhz": latest.get("gpu_mhz"),
        "engines": engines or None,
        "tj_c": latest.get("tj_c"),
        "power_w": latest.get("power_w"),
        "free_mb": available_mb(),
        "throttled": signs or None,
    }
    return {name: value for name, value in found.items() if value is not None}


FORMS = {
    "load": "load {}", "cpu_mhz": "cpu {:.0f} MHz", "gpu_load": "gpu {:.0f} %", "gpu_mhz": "gpu {:.0f} MHz",
    "tj_c": "{:.1f} deg C", "power_w": "{:.2f} W", "free_mb": "{:.0f} MB free",
}  # fmt: skip


def as_line(found: dict[str, Any]) -> str:
    """One line of it."""
    words = [FORMS[name].format(found[name]) for name in FORMS if name in found]
    words += [f"{name} {load}" for name, load in (found.get("engines") or {}).items()]
    return printable("  ".join([time.strftime("%H:%M:%S"), *words, *(found.get("throttled") or [])]))


def monitor_command(args: argparse.Namespace) -> None:
    """Print until Ctrl-C, or as many lines as asked for."""
    with Monitor(power=True) as monitor:
        try:
            for number in itertools.count(1):
                time.sleep(args.interval)
                monitor.look()
                found = now(monitor)
                if not found:
                    raise EdgeError("This system tells neither clocks nor temperature, power or memory.")
                line = json_text({"time": round(time.time(), 3), **found}) if args.json else as_line(found)
                print(line, flush=True)
                if number == args.count:
                    return
        except KeyboardInterrupt:  # how it is meant to end
            return
