"""Files of /sys that tell clocks, temperatures, cooling and power. A new sensor is a class, named in SENSORS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from yolokd_edge.board.host_sensors import CpuEnergy, NvidiaGpu, PiPower
from yolokd_edge.board.jetson_stats import JetsonStats
from yolokd_edge.board.readings import COLDEST
from yolokd_edge.board.sensor import Sensor
from yolokd_edge.board.system import list_paths, read_int, read_text

GPU_NODE = re.compile(r"gpu|gp10b|gv11b|ga10b|gb10b|gm20b", re.IGNORECASE)  # devfreq nodes of Jetson GPUs


class CpuClocks(Sensor):
    """Clock of the fastest core, kHz."""

    def __init__(self) -> None:
        self.cores = [p / "cpufreq" for p in list_paths("/sys/devices/system/cpu/cpu[0-9]*")]
        self.cores = [p for p in self.cores if p.is_dir()]

    def present(self) -> bool:
        """Whether any core tells its clock."""
        return bool(self.cores)

    def read(self) -> dict[str, Any]:
        """The key `cpu_khz`."""
        return {"cpu_khz": max(_ints(p / "scaling_cur_freq" for p in self.cores), default=None)}

    def limits(self) -> tuple[int, int] | None:
        """Lowest and highest clock allowed, kHz."""
        low = _ints(p / "scaling_min_freq" for p in self.cores)
        high = _ints(p / "scaling_max_freq" for p in self.cores)
        return (min(low), max(high)) if low and high else None

    def governor(self) -> str | None:
        """Names of the governors in use."""
        return ",".join(sorted({g for g in (read_text(p / "scaling_governor") for p in self.cores) if g})) or None


class Gpu(Sensor):
    """Clock (Hz) and load (%) of a Jetson's GPU."""

    def __init__(self) -> None:
        nodes = [p for p in list_paths("/sys/class/devfreq/*") if GPU_NODE.search(p.name)]
        self.node = nodes[0] if nodes else None

    def present(self) -> bool:
        """Whether there is such a GPU."""
        return self.node is not None

    def read(self) -> dict[str, Any]:
        """The keys `gpu_hz` and `gpu_load`."""
        if self.node is None:
            return {"gpu_hz": None, "gpu_load": None}
        load = read_int(self.node / "device/load")  # per mille
        return {"gpu_hz": read_int(self.node / "cur_freq"), "gpu_load": None if load is None else load / 10}

    def limits(self) -> tuple[int | None, int | None] | None:
        """Lowest and highest clock allowed, Hz."""
        return (read_int(self.node / "min_freq"), read_int(self.node / "max_freq")) if self.node else None


class ThermalZones(Sensor):
    """Temperatures by zone, deg C."""

    def __init__(self) -> None:
        self.zones = [(read_text(p / "type") or p.name, p) for p in list_paths("/sys/class/thermal/thermal_zone*")]

    def present(self) -> bool:
        """Whether there is any zone."""
        return bool(self.zones)

    def read(self) -> dict[str, Any]:
        """The key `temps`, without zones of powered-off units."""
        values = {name: read_int(zone / "temp") for name, zone in self.zones}
        return {"temps": {name: v / 1000 for name, v in values.items() if v is not None and v / 1000 > COLDEST}}

    def passive_trip(self) -> float | None:
        """The lowest temperature (deg C) at which the board starts to throttle, over all zones."""
        trips = _ints(
            kind.with_name(kind.name.replace("_type", "_temp"))
            for _, zone in self.zones
            for kind in zone.glob("trip_point_*_type")
            if read_text(kind) == "passive" and not only_warns(zone, kind.name[len("trip_point_") : -len("_type")])
        )
        return min((t / 1000 for t in trips if t > 0), default=None)


class CoolingDevices(Sensor):
    """States of what the kernel slows down to cool the board; 0 is full speed."""

    def __init__(self) -> None:
        kinds = [(read_text(p / "type") or p.name, p) for p in list_paths("/sys/class/thermal/cooling_device*")]
        # Names repeat, so the number tells them apart.
        self.states = [(f"{p.name}:{kind}", p / "cur_state") for kind, p in kinds if throttles(kind)]

    def present(self) -> bool:
        """Whether anything can be slowed down."""
        return bool(self.states)

    def read(self) -> dict[str, Any]:
        """The key `cooling`."""
        return {"cooling": _known((name, read_int(p)) for name, p in self.states)}


class OverCurrent(Sensor):
    """Counters of over-current events on a Jetson."""

    worth_sampling = False

    def __init__(self) -> None:
        self.counters = [p for folder in _hwmon("soctherm_oc") for p in sorted(folder.glob("oc*_event_cnt"))]

    def present(self) -> bool:
        """Whether there is any counter."""
        return bool(self.counters)

    def read(self) -> dict[str, Any]:
        """The key `oc`."""
        return {"oc": _known((p.name[: -len("_event_cnt")], read_int(p)) for p in self.counters)}


class PowerRails(Sensor):
    """Power by rail, mW, from a Jetson's INA3221 sensors."""

    def __init__(self) -> None:
        self.chips = _hwmon("ina3221.*")

    def present(self) -> bool:
        """Whether there is any such chip."""
        return bool(self.chips)

    def read(self) -> dict[str, Any]:
        """The key `rails`, without what is not connected."""
        rails = {}
        for folder in self.chips:
            for label in sorted(folder.glob("in*_label")):
                number = label.name[2 : -len("_label")]
                volt, ampere = read_int(folder / f"in{number}_input"), read_int(folder / f"curr{number}_input")
                if volt is not None and ampere is not None:
                    rails[read_text(label) or label.name] = volt * ampere / 1000  # mV * mA = uW
        rails.pop("NC", None)
        return {"rails": rails}


class Fan(Sensor):
    """Level of the fan, 0 to 255."""

    worth_sampling = False

    def __init__(self) -> None:
        self.levels = [folder / "pwm1" for folder in _hwmon("pwm-?fan") if (folder / "pwm1").exists()]

    def present(self) -> bool:
        """Whether there is a fan that tells its level."""
        return bool(self.levels)

    def read(self) -> dict[str, Any]:
        """The key `fan`."""
        return {"fan": next(iter(_ints(self.levels)), None)}


SENSORS: tuple[type[Sensor], ...] = (
    CpuClocks, Gpu, ThermalZones, CoolingDevices, OverCurrent, PowerRails, Fan, CpuEnergy, NvidiaGpu, PiPower,
    JetsonStats,
)  # fmt: skip
Kind = TypeVar("Kind", bound=Sensor)


class Sensors:
    """All sensors of this board, read together.

    Args:
        power: Whether power is wanted; else sensors that tell nothing else are left alone.
    """

    def __init__(self, power: bool = True) -> None:
        self.all = [kind() for kind in SENSORS if power or not kind.only_for_power]

    def of(self, kind: type[Kind]) -> Kind:
        """The sensor of a class."""
        return next(sensor for sensor in self.all if isinstance(sensor, kind))

    def find(self, kind: type[Kind]) -> Kind | None:
        """The sensor of a class, None where it was left alone."""
        return next((sensor for sensor in self.all if isinstance(sensor, kind)), None)

    def read(self) -> dict[str, Any]:
        """What all of them tell now, in one mapping."""
        return {key: value for sensor in self.all for key, value in sensor.read().items()}

    def curves(self, reading: Mapping[str, Any]) -> dict[str, float]:
        """What all of them keep of a reading."""
        return {name: value for sensor in self.all for name, value in sensor.curves(reading).items()}

    def close(self) -> None:
        """Let all of them give back what they hold."""
        for sensor in self.all:
            sensor.close()

    def moving(self) -> bool:
        """Whether there is anything worth sampling while frames are timed."""
        return any(sensor.worth_sampling and sensor.present() for sensor in self.all)

    def limits(self) -> dict[str, Any]:
        """Governor, and lowest and highest clock allowed, of CPU and GPU."""
        cpu = self.of(CpuClocks)
        return {"governor": cpu.governor(), "cpu_khz": cpu.limits(), "gpu_hz": self.of(Gpu).limits()}

    def passive_trip(self) -> float | None:
        """The lowest temperature (deg C) at which the board starts to throttle."""
        return self.of(ThermalZones).passive_trip()


def _ints(paths: Iterable[Path]) -> list[int]:
    """The numbers in those files that hold one."""
    return [value for value in map(read_int, paths) if value is not None]


def _known(pairs: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    return {name: value for name, value in pairs if value is not None}


def _hwmon(pattern: str) -> list[Path]:
    """Folders of the hardware monitors of a name."""
    return [p for p in list_paths("/sys/class/hwmon/hwmon*") if re.fullmatch(pattern, read_text(p / "name") or "")]


def throttles(kind: str) -> bool:
    """Whether a cooling device slows something down: a fan cools, and a Jetson's hot-surface-alert only warns."""
    return "fan" not in kind.lower() and kind != "hot-surface-alert"


def only_warns(zone: Path, trip: str) -> bool:
    """Whether all cooling devices that a zone binds to a trip point throttle nothing; not where it names none."""
    bound = [p for p in zone.glob("cdev*_trip_point") if read_text(p) == trip]
    kinds = [read_text(zone / p.name[: -len("_trip_point")] / "type") for p in bound]
    return bool(kinds) and not any(kind is None or throttles(kind) for kind in kinds)
