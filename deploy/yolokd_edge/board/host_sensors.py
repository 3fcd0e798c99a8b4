"""Power of what is no Jetson: the counters of x86 processors, NVIDIA's graphics cards, a Raspberry Pi 5."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from yolokd_edge.board.sensor import Sensor
from yolokd_edge.board.system import list_paths, read_int, read_text, tool_output
from yolokd_edge.board.tools import parse_pmic_adc

# Reasons for which NVIDIA's driver lowers clocks, that are signs of throttling (nvml.h, nvmlClocksThrottleReasons).
THROTTLE_REASONS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


class CpuEnergy(Sensor):
    """Energy that Intel's and AMD's processors count (RAPL), microjoules; often only root may read it."""

    only_for_power = True

    def __init__(self) -> None:
        zones = {read_text(p / "name") or p.name: p for p in list_paths("/sys/class/powercap/intel-rapl:*")}
        zones = {
            name: p for name, p in zones.items() if p.name.count(":") == 1 and read_int(p / "energy_uj") is not None
        }
        # psys is the whole platform, of which the packages are parts
        self.zones = {"psys": zones["psys"]} if "psys" in zones else zones
        self.ranges = {name: read_int(p / "max_energy_range_uj") for name, p in self.zones.items()}

    def present(self) -> bool:
        """Whether any counter can be read."""
        return bool(self.zones)

    def read(self) -> dict[str, Any]:
        """The key `energy_uj`."""
        counted = {name: read_int(p / "energy_uj") for name, p in self.zones.items()}
        return {"energy_uj": {name: value for name, value in counted.items() if value is not None}}

    def used(self, name: str, before: int, after: int) -> int:
        """Microjoules between two readings of a counter, which starts again at 0 behind its range."""
        return after - before if after >= before else after - before + (self.ranges.get(name) or 0)


class NvidiaGpu(Sensor):
    """Clock, load, power and throttling of the first of NVIDIA's graphics cards, through the package nvidia-ml-py."""

    def __init__(self) -> None:
        self._library = self._card = None
        try:
            library: Any = import_module("pynvml")
            library.nvmlInit()
            self._card, self._library = library.nvmlDeviceGetHandleByIndex(0), library
        except Exception:  # not installed, no driver, no card: its errors share no base with others
            pass

    def present(self) -> bool:
        """Whether there is a card and the package."""
        return self._library is not None

    def read(self) -> dict[str, Any]:
        """The keys `nvml_mw`, `nvml_mhz`, `nvml_load` (%) and `nvml_reasons`, None where the card does not tell."""
        library = self._library
        if library is None:
            return dict.fromkeys(("nvml_mw", "nvml_mhz", "nvml_load", "nvml_reasons"))

        def ask(question: str, *more: Any) -> Any:
            try:
                return getattr(library, question)(self._card, *more)
            except Exception:  # not supported by this card
                return None

        load = ask("nvmlDeviceGetUtilizationRates")
        return {
            "nvml_mw": ask("nvmlDeviceGetPowerUsage"),
            "nvml_mhz": ask("nvmlDeviceGetClockInfo", 1),  # 1: of its multiprocessors
            "nvml_load": None if load is None else float(load.gpu),
            "nvml_reasons": ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        }


class PiPower(Sensor):
    """Power by rail that the power chip of a Raspberry Pi 5 delivers, mW; what USB takes is not in it."""

    only_for_power = True

    def __init__(self) -> None:
        self._known = bool(parse_pmic_adc(tool_output("vcgencmd", "pmic_read_adc") or ""))

    def present(self) -> bool:
        """Whether this is such a board."""
        return self._known

    def read(self) -> dict[str, Any]:
        """The key `pmic_mw`."""
        return {"pmic_mw": parse_pmic_adc(tool_output("vcgencmd", "pmic_read_adc") or "") if self._known else {}}
