"""What was seen of the board while frames were timed: clocks, heat, throttling and power."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, Tuple

import numpy as np

from yolokd_edge.board.host_sensors import THROTTLE_REASONS, CpuEnergy
from yolokd_edge.board.monitor import Monitor
from yolokd_edge.board.readings import junction, total_power
from yolokd_edge.board.sensors import Fan
from yolokd_edge.board.tegrastats import parse_tegrastats
from yolokd_edge.board.tools import firmware_signs

BUSY_GPU = 90  # % of load from which a governor has no reason to choose less than the highest clock
Window = Tuple[int, int]  # start and end of a measurement on the clock, ns


class Telemetry:
    """What a Monitor saw, judged over the windows in which frames were timed.

    Args:
        monitor: One that has ended.
        windows: Start and end (ns) of each measurement, in order, not overlapping.
        idle: Start and end (ns) of the idle baseline, or None.
    """

    def __init__(self, monitor: Monitor, windows: Sequence[Window], idle: Window | None = None) -> None:
        self.monitor, self.windows, self.idle = monitor, list(windows), idle
        self.stats = [(t, parse_tegrastats(line)) for t, line in monitor.lines]
        self.limits = monitor.sensors.limits()

    def _inside(self, samples: Sequence[tuple[int, Any]]) -> list[Any]:
        """Samples within a window, and the one before and after each, so that a short window has some."""
        times = [t for t, _ in samples]
        kept: dict[int, Any] = {}
        for start, end in self.windows:
            low, high = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
            for k in range(max(low - 1, 0), min(high + 1, len(samples))):
                kept[k] = samples[k][1]
        return [kept[k] for k in sorted(kept)]

    def gpu_mhz(self) -> list[float]:
        """GPU clock while measuring, MHz: from /sys, else from tegrastats."""
        readings = self._inside(self.monitor.readings)
        values = [r["gpu_hz"] / 1e6 for r in readings if r["gpu_hz"]] or [
            float(r["nvml_mhz"]) for r in readings if r["nvml_mhz"]
        ]
        return values or [float(max(s["gpu_mhz"])) for s in self._inside(self.stats) if s["gpu_mhz"]]

    def gpu_loads(self) -> list[float]:
        """GPU load while measuring, %."""
        values = [float(s["gpu_load"]) for s in self._inside(self.stats) if s["gpu_load"] is not None]
        readings = self._inside(self.monitor.readings)
        keys = ("gpu_load", "nvml_load", "jtop_load")
        return values or next((own for k in keys if (own := [r[k] for r in readings if r.get(k) is not None])), [])

    def gpu_seen_busy(self) -> bool | None:
        """Whether the GPU did anything while measuring; None where the board does not tell."""
        loads = self.gpu_loads()
        return max(loads) > 0 if loads else None

    def clocks(self, missing: dict[str, str]) -> dict[str, Any] | None:
        """The record's `clocks`."""
        readings, stats, limits = self._inside(self.monitor.readings), self._inside(self.stats), self.limits
        cpu = [r["cpu_khz"] for r in readings if r["cpu_khz"] is not None]
        if not cpu:
            cores = [[c["mhz"] for c in s["cores"] or () if c and c["mhz"]] for s in stats]
            cpu = [max(row) * 1000 for row in cores if row]
        gpu, emc = self.gpu_mhz(), [s["emc_mhz"] for s in stats if s["emc_mhz"] is not None]
        out = {
            "power_mode": self.monitor.power_mode,
            "jetson_clocks": self.pinned(),
            "governor": limits["governor"],
            "cpu_khz": _clock(limits["cpu_khz"], cpu),
            "gpu_hz": _clock(limits["gpu_hz"], [mhz * 1e6 for mhz in gpu]),
            "emc_hz": int(median(emc) * 1e6) if emc else None,
            "fan": self.monitor.sensors.of(Fan).read()["fan"],
        }
        if all(value is None for value in out.values()):
            missing["clocks"] = "the system tells neither clocks nor a power mode"
            return None
        why = {
            "power_mode": "nvpmodel is not installed or reports no mode",
            "jetson_clocks": "neither jetson_clocks nor /sys tells clock limits",
            "governor": "no cpufreq in /sys",
            "cpu_khz": "no cpufreq in /sys and no tegrastats",
            "gpu_hz": "no GPU in /sys/class/devfreq and none in tegrastats",
            "emc_hz": "tegrastats is absent or not run as root",
            "fan": "no pwmfan in /sys/class/hwmon",
        }
        missing.update({"clocks." + key: why[key] for key, value in out.items() if value is None})
        for key in ("cpu_khz", "gpu_hz", "power_mode"):
            for part, value in (out[key] or {}).items():
                if value is None:
                    missing[f"clocks.{key}.{part}"] = "not reported"
        return out

    def pinned(self) -> bool | None:
        """Whether CPU and GPU clocks are fixed; None where nothing tells."""
        if self.monitor.locked is not None:
            return self.monitor.locked
        ends = [pair for pair in (self.limits["cpu_khz"], self.limits["gpu_hz"]) if pair and None not in pair]
        return all(low == high for low, high in ends) if ends else None

    def _temps(self) -> list[tuple[int, dict[str, float]]]:
        from_stats = [(t, s["temps"]) for t, s in self.stats if s["temps"]]
        readings = self.monitor.readings
        from_zones = [(t, r["temps"]) for t, r in readings if r["temps"]]
        return from_stats or from_zones or [(t, r["jtop_temps"]) for t, r in readings if r.get("jtop_temps")]

    def thermal(self, missing: dict[str, str]) -> dict[str, Any] | None:
        """The record's `thermal`; temperatures in deg C."""
        temps = self._inside(self._temps())
        levels = [tj for tj in map(junction, temps) if tj is not None]
        inside = self._inside(self.monitor.readings)
        cooling = rise([r["cooling"] for r in inside], peak=True)
        counters = rise([r["oc"] for r in inside])
        if not levels and cooling is None and counters is None:
            missing["thermal"] = "no thermal zone can be read and tegrastats reports none"
            return None
        zones: dict[str, float] = {}
        for row in temps:
            for name, value in row.items():
                zones[name] = max(value, zones.get(name, value))
        out = {
            "tj_start": levels[0] if levels else None,
            "tj_max": max(levels) if levels else None,
            "zones": zones or None,
            "cooling_delta": cooling,
            "oc_delta": counters,
        }
        why = {"cooling_delta": "no cooling device in /sys", "oc_delta": "no soctherm_oc in /sys/class/hwmon"}
        missing.update({"thermal." + k: why.get(k, "no thermal zone can be read") for k, v in out.items() if v is None})
        return out

    def _slow_gpu(self) -> str | None:
        """How far the GPU's clock stayed or fell below its highest, if it did."""
        gpu, top = self.gpu_mhz(), (self.limits["gpu_hz"] or (None, None))[1]
        if not gpu:
            return None
        highest, third = top / 1e6 if top else max(gpu), max(len(gpu) // 3, 1)
        if median(gpu) < 0.97 * highest:
            return f"the GPU ran at {median(gpu):.0f} of {highest:.0f} MHz"
        first, last = median(gpu[:third]), median(gpu[-third:])
        return f"the GPU clock fell from {first:.0f} to {last:.0f} MHz" if last < 0.97 * first else None

    def throttled(self, uses_gpu: bool) -> tuple[list[str], list[str]]:
        """Signs that the board slowed itself down: those that void the figures, and those that only cast doubt."""
        certain, doubtful = firmware_signs(self.monitor.firmware)
        slow, loads = self._slow_gpu() if uses_gpu else None, self.gpu_loads()
        if slow and (self.pinned() or loads and median(loads) >= BUSY_GPU):
            certain.append(f"throttled: {slow}")
        elif slow:  # a governor gives a GPU that often waits less than its highest clock
            doubtful.append(f"dvfs: {slow}, with clocks that follow the load")
        certain += self._driver_signs() if uses_gpu else []
        heat = self.thermal({}) or {}
        for name, rise in sorted((heat.get("cooling_delta") or {}).items()):
            if rise > 0:
                certain.append(f"throttled: cooling device {name} rose by {rise}")
        for name, rise in sorted((heat.get("oc_delta") or {}).items()):
            if rise > 0:
                sign = f"throttled: {rise} over-current events of {name}"
                # OC3 ticks all the time on some boards at full power
                (doubtful if name == "oc3" and not certain else certain).append(sign)
        trip, levels = self.monitor.sensors.passive_trip(), [junction(t) for t in self._inside(self._temps())]
        known = [tj for tj in levels if tj is not None]
        if trip is not None and known and known[-1] > known[0] and max(known) > trip - 5:
            certain.append(f"throttled: {max(known):.1f} deg C and rising, throttling starts at {trip:.1f}")
        return certain, doubtful

    def _driver_signs(self) -> list[str]:
        """For what reasons the driver of a graphics card says that it lowered clocks."""
        seen = [r["nvml_reasons"] or 0 for r in self._inside(self.monitor.readings)]
        known = {what: sum(bool(bits & bit) for bits in seen) for bit, what in THROTTLE_REASONS.items()}
        return [f"throttled: the GPU's driver says {what}" for what, count in known.items() if count]

    def lfb(self) -> str | None:
        """Largest free block of memory, as tegrastats prints it."""
        return next((s["lfb"] for s in self._inside(self.stats) if s["lfb"]), None)

    def _watts(self) -> tuple[list[tuple[int, float]], tuple[str, str, str] | None]:
        """(ns, W) samples of the total, with source, scope and rails; always the same rails, or the sample is left."""
        readings = self.monitor.readings
        sources: dict[str, list[tuple[int, dict[str, float]]]] = {
            "tegrastats": [(t, s["rails"]) for t, s in self.stats if s["rails"]],
            "ina3221": [(t, r["rails"]) for t, r in readings if r["rails"]],
            "jtop": [(t, r["jtop_mw"]) for t, r in readings if r.get("jtop_mw")],
            "pmic": [(t, r["pmic_mw"]) for t, r in readings if r.get("pmic_mw")],
            **self._host_rails(),
        }
        source, rows = next(((name, rows) for name, rows in sources.items() if rows), ("", []))
        totals = [(t, total_power(rails)) for t, rails in rows]
        known = [(t, total) for t, total in totals if total is not None]
        if not known:
            return [], None
        (_, scope, rails), _ = Counter((source, *total[1:]) for _, total in known).most_common(1)[0]
        same = [(t, total[0] / 1000) for t, total in known if total[1:] == (scope, rails)]
        return same, (source, scope, rails)

    def _host_rails(self) -> dict[str, list[tuple[int, dict[str, float]]]]:
        """mW of processors, from what their counters rose by, and of a graphics card."""
        readings, counter = self.monitor.readings, self.monitor.sensors.find(CpuEnergy)
        card = [{} if r["nvml_mw"] is None else {"gpu0": float(r["nvml_mw"])} for _, r in readings]
        if counter is None or not any(r.get("energy_uj") for _, r in readings):
            return {"nvml": [(t, mw) for (t, _), mw in zip(readings, card) if mw]}  # noqa: B905
        rows = []
        for k, ((start, before), (end, after)) in enumerate(zip(readings, readings[1:])):  # noqa: B905
            if end > start:
                used = {
                    name: counter.used(name, before["energy_uj"][name], now) * 1e6 / (end - start)  # uJ / ns -> mW
                    for name, now in after["energy_uj"].items()
                    if name in before["energy_uj"]
                }
                rows += [(start, {**used, **card[k]}), (end - 1, {**used, **card[k + 1]})]  # the same in between
        rows += [(readings[-1][0], rails) for _, rails in rows[-1:]]
        return {"rapl+nvml" if any(card) else "rapl": rows}

    def power(self, frames: int, missing: dict[str, str], overhead_pct: float | None = None) -> dict[str, Any] | None:
        """The record's `power`: on-board sensors over the windows, energy by the trapezoidal rule."""
        if not self.monitor.power:
            missing["power"] = "not asked for (--power)"
            return None
        samples, origin = self._watts()
        if origin is None:
            why = "tegrastats reports no rail" if self.monitor.lines else "tegrastats printed nothing"
            none = "no tegrastats, jetson-stats or ina3221, no readable powercap counter, no NVML and no pmic_read_adc"
            missing["power"] = why if self.monitor.tegrastats else none
            return None
        source, scope, rail = origin
        times, watts = np.array([t for t, _ in samples], float), np.array([w for _, w in samples])
        energies = [energy(times, watts, window) for window in self.windows]
        if any(energy is None for energy in energies):
            missing["power"] = f"{source} gave too few samples while frames were timed"
            return None
        joules, seconds = sum(e for e in energies if e), sum(end - start for start, end in self.windows) / 1e9
        loaded = np.concatenate([watts[(times >= a) & (times <= b)] for a, b in self.windows])
        before = watts[(times >= self.idle[0]) & (times <= self.idle[1])] if self.idle else watts[:0]
        idle = float(before.mean()) if len(before) else None
        if idle is None:
            missing["power.idle_w"] = missing["power.j_per_frame_net"] = "no sample of an idle baseline"
        if overhead_pct is None:
            missing["power.overhead_pct"] = "no run without the sampler"
        gaps = np.diff(times)
        return {
            "source": source,
            "scope": scope,
            "rail": rail,
            "interval_ms": round(float(np.median(gaps)) / 1e6, 1) if len(gaps) else None,
            "idle_w": idle,
            "mean_w": joules / seconds,
            "max_w": float(loaded.max()) if len(loaded) else joules / seconds,
            "j_per_frame": joules / frames,
            "j_per_frame_net": None if idle is None else (joules / seconds - idle) * seconds / frames,
            "overhead_pct": overhead_pct,
        }

    def series(self) -> dict[str, np.ndarray]:
        """What was sampled, for plots: name -> (n, 2) float64 of ns on the frames' clock and the value."""
        readings = self.monitor.readings
        rows: dict[str, list[tuple[int, float | None]]] = {}
        rows["tj_c"] = [(t, junction(temps)) for t, temps in self._temps()]
        rows["cpu_mhz"] = [(t, r["cpu_khz"] / 1e3) for t, r in readings if r["cpu_khz"]]
        rows["gpu_mhz"] = [(t, r["gpu_hz"] / 1e6) for t, r in readings if r["gpu_hz"]] or [
            (t, float(max(s["gpu_mhz"]))) for t, s in self.stats if s["gpu_mhz"]
        ]
        rows["power_w"] = list(self._watts()[0])
        for t, reading in readings:
            for name, value in self.monitor.sensors.curves(reading).items():
                rows.setdefault(name, []).append((t, value))
        return {name: np.array([r for r in row if r[1] is not None], np.float64) for name, row in rows.items() if row}


def _clock(ends: Any, current: Sequence[float]) -> dict[str, Any] | None:
    low, high = ends or (None, None)
    if low is None and high is None and not current:
        return None
    return {"min": low, "max": high, "cur_median": int(median(current)) if current else None}


def rise(rows: Sequence[dict[str, int]], peak: bool = False) -> dict[str, int] | None:
    """How far each counter rose from the first row to the last, or to its peak; None without counters."""
    if not rows or not rows[0]:
        return None
    return {
        name: (max(r.get(name, first) for r in rows) if peak else rows[-1].get(name, first)) - first
        for name, first in rows[0].items()
    }


def energy(times: np.ndarray, watts: np.ndarray, window: Window) -> float | None:
    """Joules within a window (ns): trapezoids between the samples, its ends interpolated; None if not bracketed."""
    start, end = window
    inside = (times > start) & (times < end)
    if not len(times) or times[0] > start or times[-1] < end or end <= start:
        return None
    t = np.concatenate([[start], times[inside], [end]])
    w = np.interp(t, times, watts)
    return float(((w[1:] + w[:-1]) / 2 * np.diff(t)).sum() / 1e9)
