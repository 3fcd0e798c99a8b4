"""What a board says about itself: every generation's line, a fake system root, fake tools; and what is made of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.boards import (
    AGX_ORIN_ROOT,
    AGX_ORIN_USER,
    AGX_XAVIER,
    EVERY,
    NANO,
    OLD_LIST,
    ORIN_NANO,
    PEAKS,
    THOR_ROOT,
    THOR_USER,
    TWO_CLUSTERS,
    TX2,
    XAVIER_NX,
    board,
    replay,
    system_root,
    tool,
    write,
)
from helpers.edge import EDGE, metadata, toy

from yolokd_edge import cli, live
from yolokd_edge.bench.facts import device_facts
from yolokd_edge.board import sensors
from yolokd_edge.board.host_sensors import CpuEnergy, NvidiaGpu, PiPower
from yolokd_edge.board.jetson_stats import JetsonStats
from yolokd_edge.board.monitor import Monitor
from yolokd_edge.board.readings import junction, total_power
from yolokd_edge.board.sensors import Sensor, Sensors
from yolokd_edge.board.system import jetpack_version, tool_output
from yolokd_edge.board.tegrastats import parse_tegrastats
from yolokd_edge.board.telemetry import Telemetry
from yolokd_edge.board.tools import parse_jetson_clocks, parse_nvpmodel

__all__ = ["board"]  # a fixture
S = 1_000_000_000  # ns


# --- tegrastats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "gpu", "emc", "tj", "power"),
    [
        (TX2, (0, None), (0, None), 42.5, (3140, "module_input", "VDD_IN")),
        (NANO, (0, [76]), (0, 1600), 45, (1750, "module_input", "POM_5V_IN")),
        (XAVIER_NX, (0, [1109]), (2, 1600), 31.35, (6140, "module_input", "VDD_IN")),
        (AGX_XAVIER, (0, [114]), (0, 1331), 36.5, (5258, "sum_of_rails", "GPU+CPU+SOC+CV+VDDRQ+SYS5V")),
        (
            AGX_ORIN_ROOT,
            (5, [0]),
            (0, 204),
            41.656,
            (7009, "sum_of_rails", "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0+VDDQ_VDD2_1V8AO"),
        ),
        (AGX_ORIN_USER, (0, None), (None, None), 49.812, (8984, "sum_of_rails", "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0")),
        (
            ORIN_NANO.format(load=97, tj=49.156, mw=4761),
            (97, None),
            (None, None),
            49.156,
            (4761, "module_input", "VDD_IN"),
        ),
        (THOR_USER, (None, None), (None, None), 31.218, (16802, "board_input", "VIN")),
        (THOR_ROOT, (None, [314, 315, 316]), (0, 2750), 38.875, (19780, "board_input", "VIN")),
        (PEAKS, (45, [612]), (None, None), 51, (5000, "module_input", "VDD_IN")),
        (TWO_CLUSTERS, (45, [612, 306]), (None, None), -3.5, (5860, "sum_of_rails", "VDD_CPU_CV+VIN_SYS_5V0")),
    ],
)
def test_every_generation_is_read(line: str, gpu: tuple, emc: tuple, tj: float, power: tuple) -> None:
    found = parse_tegrastats(line)
    assert (found["gpu_load"], found["gpu_mhz"]) == gpu
    assert (found["emc_load"], found["emc_mhz"]) == emc
    assert junction(found["temps"]) == tj  # neither the PMIC's constant nor a powered-off zone
    assert total_power(found["rails"]) == power


@pytest.mark.parametrize(
    ("told", "load", "mhz"),
    [
        ("GR3D_FREQ 12%,34%@[612,306]", 34, [612, 306]),
        ("GR3D_FREQ [12%,34%]@[612,306]", 34, [612, 306]),
        ("GR3D_FREQ 12%, 34%@612", 34, [612]),
        ("GR3D_FREQ 7%@[612, 306]", 7, [612, 306]),
        ("GR3D_FREQ off", None, None),
    ],
)
def test_several_loads_of_the_gpu_and_one_that_is_off(told: str, load: int | None, mhz: list[int] | None) -> None:
    found = parse_tegrastats(f"RAM 1/2MB {told} cpu@50C VDD_IN 4761mW/4778mW")
    assert (found["gpu_load"], found["gpu_mhz"]) == (load, mhz)
    assert found["temps"] == {"cpu": 50} and found["rails"] == {"VDD_IN": 4761}


def test_loads_of_engines_and_rails_without_an_average() -> None:
    line = (
        "NVENC 40%@998 NVDEC_FREQ 7% NVDLA0_FREQ 93%@1600 VIC_FREQ 0%@115 NVJPG off cpu@50C VDD_IN 4761mW VDD_SOC 1400"
    )
    found = parse_tegrastats(line)
    assert found["engines_load"] == {"NVENC": 40, "NVDEC": 7, "NVDLA0": 93, "VIC": 0}
    assert found["engines_mhz"] == {"NVENC": 998, "NVDEC": None, "NVDLA0": 1600, "VIC": 115, "NVJPG": None}
    assert found["rails"] == {"VDD_IN": 4761}, "a number alone is no power"


def test_the_rest_of_a_line() -> None:
    tx2, nano, orin, thor = (parse_tegrastats(line) for line in (TX2, NANO, AGX_ORIN_ROOT, THOR_ROOT))
    assert tx2["ram_mb"] == (2020, 7852) and tx2["swap_mb"] is None and tx2["lfb"] == "1164x4MB" and tx2["time"] is None
    assert (
        tx2["cores"] == [{"load_pct": v, "mhz": 345} for v in (9, 21, 25)] + [None] + [{"load_pct": 1, "mhz": 345}] * 2
    )
    assert tx2["temps"]["pmic"] == 100 and len(tx2["temps"]) == 8 and len(tx2["rails"]) == 6
    assert nano["swap_mb"] == (191, 1982) and nano["engines_mhz"] == {"APE": 25}
    assert (orin["gpu2_load"], orin["time"]) == (7, "01-03-2023 16:07:54")
    assert orin["engines_mhz"] == {"NVJPG1": 729, "VIC": 115, "APE": 233}
    assert not {"cv0", "gpu", "cv2"} & set(orin["temps"]) and "NC" not in orin["rails"]
    assert thor["engines_mhz"] == {"NVENC0": 314, "VIC": None, "OFA": 315, "PVA0": None, "APE": 300}
    xavier = parse_tegrastats(AGX_XAVIER)
    assert xavier["temps"]["gpu"] == 35 and xavier["rails"]["GPU"] == 467 and xavier["cores"][1] is None
    old = parse_tegrastats(OLD_LIST)
    assert old["cores"] == [{"load_pct": 0, "mhz": 518}, {"load_pct": 12, "mhz": 518}, None, None]
    assert parse_tegrastats(PEAKS)["ram_mb"] == (1024, 2048)


@pytest.mark.parametrize("line", EVERY)
def test_of_a_cut_line_the_whole_words_are_read(line: str) -> None:
    whole = parse_tegrastats(line)
    for end in range(len(line)):
        part = parse_tegrastats(line[:end])
        assert part["temps"].items() <= whole["temps"].items(), line[:end]
        assert part["rails"].items() <= whole["rails"].items(), line[:end]
        assert part["ram_mb"] in (None, whole["ram_mb"])
        loads, all_loads = ([core and core["load_pct"] for core in row["cores"] or []] for row in (part, whole))
        assert loads == all_loads[: len(loads)]


def test_no_line_makes_the_parser_raise() -> None:
    rng = random.Random(0)
    characters = "".join(EVERY) + "[]@%/,C\0é\n"
    for _ in range(3000):
        parse_tegrastats("".join(rng.choice(characters) for _ in range(rng.randrange(200))))
    empty = parse_tegrastats("")
    assert not any(empty.values()) and 0 not in empty.values()


# --- tools and system root ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", {"id": 2, "name": "MAXN_SUPER"}),
        ("NVPM WARN: power budget is not set!\nNV Power Mode: 15W\n0", {"id": 0, "name": "15W"}),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W\nMODE ID: 2", {"id": 2, "name": "MODE_30W"}),
        ("NV Power Mode: MAXN", {"id": None, "name": "MAXN"}),
        ("sudo: a password is required", None),
        ("", None),
    ],
)
def test_power_mode(text: str, mode: dict | None) -> None:
    assert parse_nvpmodel(text) == mode


def test_jetson_clocks(board: Path) -> None:
    shown = parse_jetson_clocks(tool_output("jetson_clocks", "--show") or "")
    assert set(shown["units"]) == {"cpu0", "GPU", "DLA0_CORE", "EMC"} and shown["locked"] is True
    free = "GPU MinFreq=306000000 MaxFreq=1020000000 CurrentFreq=306000000"
    assert parse_jetson_clocks(free)["locked"] is False
    assert parse_jetson_clocks("Permission denied")["locked"] is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("36.4.3", "6.2"), ("36.4.7", "6.2.1"), ("36.5", "6.2.2"), ("36.5.0", "6.2.2"), ("38.4", "7.1"), ("39.2.0", "7.2"),
     ("32.7.4", "4"), ("35.1", "5"), ("36.3.0", "6"), ("40.1", None), (None, None)],
)  # fmt: skip
def test_jetpack(l4t: str | None, jetpack: str | None) -> None:
    assert jetpack_version(l4t) == jetpack


def test_device_fingerprint(board: Path) -> None:
    device = device_facts(missing := {})
    assert (device["kind"], device["soc"], device["l4t"], device["jetpack"]) == (
        "jetson",
        "tegra234",
        "36.4.4",
        "6.2.1",
    )
    assert device["board_model"].endswith("Developer Kit Super") and device["gpu"] == "17000000.gpu (sm_87)"
    assert device["mem_total_mb"] == 7620 and device["cpu_model"].startswith("ARMv8")
    assert len(device["serial_hash"]) == 16 and "1423123456789" not in json.dumps(device) and not missing


def test_sensors_read_what_can_be_read(board: Path) -> None:
    sensors = Sensors()
    now = sensors.read()
    assert now["temps"] == {"cpu-thermal": 48.468, "tj-thermal": 49.156, "PMIC-Die": 100.0}  # zone 1 cannot be read
    assert junction(now["temps"]) == 49.156
    assert (now["cpu_khz"], now["gpu_hz"], now["gpu_load"]) == (1728000, 1020000000, 87.3)
    assert now["cooling"] == {"cooling_device1:cpufreq-cpu0": 0}  # neither a fan nor a warning throttles
    assert now["oc"] == {"oc1": 0, "oc3": 7} and sensors.passive_trip() == 99
    write(board / "root", {"sys/class/thermal/thermal_zone0/cdev1_trip_point": 0})  # now the trip throttles as well
    assert Sensors().passive_trip() == 70
    assert now["rails"] == {"VDD_IN": 6000.0, "VDD_SOC": 1400.0}


# --- what is made of it, on a scripted clock ------------------------------------------------------------------------


def watched(lines: list[tuple[float, str]], readings: list[tuple[float, dict]], power: bool = True) -> Monitor:
    """A monitor that saw lines of tegrastats and changed readings of /sys at these seconds."""
    monitor = Monitor(power)
    monitor.tegrastats = "tegrastats" if lines else None
    monitor.lines = [(round(t * S), line) for t, line in lines]
    monitor.readings = [(round(t * S), {**monitor.sensors.read(), **changes}) for t, changes in readings]
    return monitor


def orin(mw: float, tj: float = 50, load: int = 90) -> str:
    return ORIN_NANO.format(load=load, tj=tj, mw=round(mw))


def test_energy_of_a_frame_gross_and_net(board: Path) -> None:
    lines = [(t / 10, orin(4000 if t < 100 else 10_000)) for t in range(301)]
    telemetry = Telemetry(watched(lines, [(0, {})]), [(12 * S, 22 * S)], (0, 9 * S))
    power = telemetry.power(100, missing := {}, 0.4)
    assert power == {
        "source": "tegrastats", "scope": "module_input", "rail": "VDD_IN", "interval_ms": 100.0,
        "idle_w": pytest.approx(4), "mean_w": pytest.approx(10), "max_w": 10.0, "j_per_frame": pytest.approx(1.0),
        "j_per_frame_net": pytest.approx(0.6), "overhead_pct": 0.4,
    }  # fmt: skip
    assert not missing


def test_energy_follows_the_power_between_the_samples(board: Path) -> None:
    ramp = [(0, orin(0)), (10, orin(10_000)), (20, orin(0))]
    telemetry = Telemetry(watched(ramp, [(0, {})]), [(5 * S, 10 * S), (12 * S, 16 * S)])
    power = telemetry.power(10, missing := {})
    assert power["j_per_frame"] == pytest.approx((37.5 + 24.0) / 10)
    assert power["mean_w"] == pytest.approx(61.5 / 9)
    assert power["idle_w"] is power["j_per_frame_net"] is None
    assert set(missing) == {"power.idle_w", "power.j_per_frame_net", "power.overhead_pct"}


def test_power_from_the_sensor_where_there_is_no_tegrastats(board: Path) -> None:
    telemetry = Telemetry(watched([], [(t, {}) for t in range(5)]), [(S, 3 * S)])
    power = telemetry.power(4, {})
    assert (power["source"], power["rail"], power["j_per_frame"]) == ("ina3221", "VDD_IN", pytest.approx(3.0))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            [],
            "no tegrastats, jetson-stats or ina3221, no readable powercap counter, no NVML and no pmic_read_adc",
        ),
        ([(1.5, TWO_CLUSTERS.partition(" VDD")[0])], "tegrastats reports no rail"),
        ([(0, orin(5000)), (1.5, orin(5000))], "tegrastats gave too few samples while frames were timed"),
    ],
)
def test_missing_power_is_null_with_a_reason(board: Path, lines: list, reason: str) -> None:
    telemetry = Telemetry(watched(lines, [(0, {"rails": {}})]), [(S, 2 * S)])
    assert telemetry.power(10, missing := {}) is None
    assert missing == {"power": reason}


def test_power_that_nobody_asked_for(board: Path) -> None:
    assert Telemetry(watched([(0, orin(1))], [(0, {})], power=False), [(0, S)]).power(1, missing := {}) is None
    assert "--power" in missing["power"]


STEADY = [(t, {}) for t in range(10)]


@pytest.mark.parametrize(
    ("readings", "certain", "doubtful"),
    [
        (STEADY, [], []),
        ([(t, {"gpu_hz": 918_000_000}) for t in range(10)], ["the GPU ran at 918 of 1020 MHz"], []),
        (
            [(t, {"gpu_hz": 1_020_000_000 if t < 7 else 600_000_000}) for t in range(10)],
            ["the GPU clock fell from 1020 to 600 MHz"],
            [],
        ),
        (
            [(t, {"cooling": {"cooling_device1:cpufreq-cpu0": int(3 < t < 6)}}) for t in range(10)],
            ["cooling device cooling_device1:cpufreq-cpu0 rose by 1"],
            [],
        ),
        ([(t, {"oc": {"oc1": t, "oc3": 0}}) for t in range(10)], ["9 over-current events of oc1"], []),
        ([(t, {"oc": {"oc1": 0, "oc3": 2 * t}}) for t in range(10)], [], ["18 over-current events of oc3"]),
        (
            [(t, {"oc": {"oc3": t}, "gpu_hz": 900_000_000}) for t in range(10)],
            ["the GPU ran at 900 of 1020 MHz", "9 over-current events of oc3"],
            [],
        ),
        (
            [(t, {"temps": {"tj-thermal": 90.0 + t, "PMIC-Die": 100.0}}) for t in range(10)],
            ["99.0 deg C and rising, throttling starts at 99.0"],
            [],
        ),
        ([(t, {"temps": {"tj-thermal": 97.0}}) for t in range(10)], [], []),  # hot, and not rising
    ],
)
def test_throttling_is_seen(board: Path, readings: list, certain: list[str], doubtful: list[str]) -> None:
    telemetry = Telemetry(watched([], readings), [(0, 9 * S)])
    found = telemetry.throttled(uses_gpu=True)
    assert found == ([f"throttled: {c}" for c in certain], [f"throttled: {d}" for d in doubtful])


@pytest.mark.parametrize(("load", "void"), [(400, False), (950, True)])
def test_a_governor_that_follows_the_load_throttles_nothing(board: Path, load: int, void: bool) -> None:
    (board / "bin/jetson_clocks").unlink()
    system_root(board / "root", gpu_min_freq=306_000_000, device_load=load)
    readings = [(t, {"gpu_hz": 510_000_000}) for t in range(10)]
    certain, doubtful = Telemetry(watched([], readings), [(0, 9 * S)]).throttled(uses_gpu=True)
    what = "the GPU ran at 510 of 1020 MHz"
    assert (certain, doubtful) == (
        ([f"throttled: {what}"], []) if void else ([], [f"dvfs: {what}, with clocks that follow the load"])
    )


@pytest.mark.parametrize(
    ("before", "after", "certain", "doubtful"),
    [
        ("0x0", "0x0", [], []),
        ("0x0", "0x1", ["under-voltage"], []),
        ("0x0", "0x40000", ["throttled by the firmware"], []),  # came and went
        ("0x80008", "0x80000", ["soft temperature limit"], []),
        ("0x20000", "0x20000", [], ["the CPU's clock was capped"]),
        ("VCHI initialization failed", "", [], []),
    ],
)
def test_a_raspberry_pi_tells_of_throttling(
    board: Path, before: str, after: str, certain: list[str], doubtful: list[str]
) -> None:
    tool(board / "bin", "vcgencmd", f"test $1 = get_throttled && echo throttled={before}")
    with Monitor() as monitor:
        tool(board / "bin", "vcgencmd", f"echo throttled={after}")
    found = Telemetry(monitor, [(0, S)]).throttled(uses_gpu=False)
    assert found[0] == [f"throttled: {what}" for what in certain]
    assert [text.partition(" since")[0] for text in found[1]] == [f"throttling: {what}" for what in doubtful]


def test_what_happens_outside_the_window_does_not_count(board: Path) -> None:
    readings = [(t, {"gpu_hz": 306_000_000 if t < 5 else 1_020_000_000}) for t in range(30)]
    assert Telemetry(watched([], readings), [(10 * S, 20 * S)]).throttled(True) == ([], [])


def test_clocks_and_temperatures_of_the_record(board: Path) -> None:
    lines = [(t, orin(5000, tj=50 + t)) for t in range(10)]
    telemetry = Telemetry(watched(lines, STEADY), [(2 * S, 6 * S)])
    clocks, heat = telemetry.clocks(missing := {}), telemetry.thermal(missing)
    assert clocks["power_mode"] == {"id": 2, "name": "MAXN_SUPER"} and clocks["jetson_clocks"] is True
    assert clocks["governor"] == "performance" and clocks["fan"] == 88
    assert clocks["gpu_hz"] == {"min": 1020000000, "max": 1020000000, "cur_median": 1020000000}
    assert clocks["cpu_khz"]["cur_median"] == 1728000
    assert (heat["tj_start"], heat["tj_max"]) == (51, 57)  # with the sample before and after the window
    assert heat["cooling_delta"] == {"cooling_device1:cpufreq-cpu0": 0} and heat["oc_delta"] == {"oc1": 0, "oc3": 0}
    assert set(missing) == {"clocks.emc_hz"} and telemetry.lfb() == "3x4MB"
    assert telemetry.gpu_seen_busy() is True
    assert telemetry.series()["tj_c"].shape == (10, 2)


# --- what is no Jetson ----------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch) -> Path:
    """A system with no Jetson's sensor and no tool."""
    monkeypatch.setenv("YOLOKD_SYSROOT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return tmp_path


def processor(root: Path, **counted: int) -> None:
    for k, (name, value) in enumerate(counted.items()):
        zone = f"sys/class/powercap/intel-rapl:{k}"
        write(root, {f"{zone}/name": name, f"{zone}/energy_uj": value, f"{zone}/max_energy_range_uj": 50_000_000})
        write(root, {f"{zone}:0/name": "core", f"{zone}:0/energy_uj": 5})  # a part of it


def test_power_of_a_processor_is_what_its_counter_rose_by(host: Path) -> None:
    """20 W for two seconds, over the end of the counter's range, then 40 W."""
    processor(host, package0=40_000_000)
    joules = [40, 10, 30, 20, 10]  # in the counter, which starts again at 0 behind 50
    readings = [(t, {"energy_uj": {"package0": j * 1_000_000}}) for t, j in enumerate(joules)]
    power = Telemetry(watched([], readings), [(round(0.5 * S), 2 * S), (2 * S, 4 * S)]).power(10, {})
    assert (power["source"], power["rail"], power["scope"]) == ("rapl", "package0", "sum_of_rails")
    assert power["j_per_frame"] == pytest.approx((20 * 1.5 + 40 * 2) / 10, rel=1e-6)
    assert power["mean_w"] == pytest.approx(110 / 3.5)


def test_the_platform_counter_contains_the_packages(host: Path) -> None:
    processor(host, **{"package-0": 7, "psys": 9})
    assert CpuEnergy().read() == {"energy_uj": {"psys": 9}}
    assert "energy_uj" not in Monitor(power=False).sensors.read(), "nobody asked for power"


class Card:
    """The package nvidia-ml-py with one card."""

    def __init__(self) -> None:
        self.mw, self.reasons = 30_000, 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, number: int) -> str:
        return f"card{number}"

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        return self.mw

    def nvmlDeviceGetClockInfo(self, card: str, kind: int) -> int:
        return {0: 1, 1: 1980}[kind]

    def nvmlDeviceGetUtilizationRates(self, card: str) -> object:
        return type("Rates", (), {"gpu": 87})()

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: str) -> int:
        return self.reasons


def test_a_graphics_card_tells_power_load_clock_and_why_it_slows_down(host: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", card := Card())
    telemetry = Telemetry(watched([], [(t, {}) for t in range(5)]), [(S, 3 * S)])
    power = telemetry.power(6, {})
    assert (power["source"], power["rail"], power["j_per_frame"]) == ("nvml", "gpu0", pytest.approx(10))
    assert telemetry.gpu_mhz() == [1980.0] * 5 and telemetry.gpu_loads() == [87.0] * 5 and telemetry.gpu_seen_busy()
    assert telemetry.throttled(True) == ([], [])
    card.reasons = 0x40
    slow = Telemetry(watched([], [(t, {}) for t in range(5)]), [(S, 3 * S)])
    assert slow.throttled(True)[0] == ["throttled: the GPU's driver says heat"]
    assert slow.throttled(False)[0] == [], "the model does not run there"
    processor(host, package0=0)
    both = [(t, {"energy_uj": {"package0": 15_000_000 * t}}) for t in range(5)]
    power = Telemetry(watched([], both), [(S, 3 * S)]).power(9, {})
    assert (power["source"], power["rail"]) == ("rapl+nvml", "package0+gpu0")
    assert power["j_per_frame"] == pytest.approx((15 + 30) * 2 / 9)


def test_a_card_that_tells_nothing_and_one_that_is_not_there(host: Path, monkeypatch) -> None:
    class Silent(Card):
        def nvmlDeviceGetPowerUsage(self, card: str) -> int:
            raise RuntimeError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", Silent())
    assert NvidiaGpu().read()["nvml_mw"] is None and NvidiaGpu().read()["nvml_load"] == 87
    assert Telemetry(watched([], [(t, {}) for t in range(5)]), [(S, 3 * S)]).power(6, {}) is None
    monkeypatch.setitem(sys.modules, "pynvml", type(sys)("pynvml"))  # no driver: even nvmlInit fails
    assert not NvidiaGpu().present()


class Jtop:
    """The package jetson-stats as its version 7.2 tells what a line of tegrastats tells."""

    def __init__(self, line: str) -> None:
        told, self.closed = parse_tegrastats(line), False
        rails = {
            n: {"power": int(mw), "volt": 5000, "online": True, "type": "INA3221"} for n, mw in told["rails"].items()
        }
        first = next((n for n in ("VIN", "POM_5V_IN", "VDD_IN") if n in rails), None)  # which it takes out of the list
        tot = {**rails.pop(first), "name": first} if first else {"power": sum(r["power"] for r in rails.values())}
        self.power = {"rail": rails, "tot": tot}
        zones = {name.upper(): {"temp": value, "online": True} for name, value in told["temps"].items()}
        self.temperature = {**zones, "CV0": {"temp": -256, "online": False}}
        self.gpu = {
            "ga10b": {"type": "integrated", "status": {"load": float(told["gpu_load"] or 0), "railgate": False}}
        }

    def __call__(self, interval: float) -> Jtop:
        assert interval == 0.5
        return self

    def start(self) -> None: ...

    def ok(self, spin: bool) -> bool:
        assert spin, "else it waits for the next sample"
        return not self.closed

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    "line", [ORIN_NANO.format(load=61, tj=51.5, mw=9000), AGX_ORIN_USER, AGX_XAVIER, NANO, THOR_ROOT]
)
def test_jetson_stats_agrees_with_tegrastats(line: str, host: Path, monkeypatch) -> None:
    """The same power of the same rails, temperature and load, whichever of the two tells them."""
    client = Jtop(line)
    monkeypatch.setitem(sys.modules, "jtop", type(sys)("jtop"))
    monkeypatch.setattr(sys.modules["jtop"], "jtop", client, raising=False)
    told, read = parse_tegrastats(line), JetsonStats().read()
    ours, theirs = total_power(read["jtop_mw"]), total_power(told["rails"])
    assert ours[:2] == theirs[:2] and set(ours[2].split("+")) == set(theirs[2].split("+"))
    assert junction(read["jtop_temps"]) == junction(told["temps"]) and read["jtop_load"] == (told["gpu_load"] or 0)
    with Monitor(power=True) as monitor:
        pass
    assert client.closed and monitor.readings[-1][1]["jtop_mw"] == read["jtop_mw"]
    monitor.readings = [(t * S, monitor.readings[-1][1]) for t in range(4)]
    telemetry = Telemetry(monitor, [(S, 3 * S)])
    power = telemetry.power(5, {})
    assert (power["source"], power["mean_w"]) == ("jtop", pytest.approx(theirs[0] / 1000))
    assert telemetry.thermal({})["tj_max"] == junction(told["temps"]) and telemetry.gpu_loads()[0] == read["jtop_load"]


def test_jetson_stats_is_left_alone_beside_tegrastats_and_survived_where_it_ends(host: Path, monkeypatch) -> None:
    client = Jtop(AGX_ORIN_USER)
    monkeypatch.setitem(sys.modules, "jtop", type(sys)("jtop"))
    assert not JetsonStats().present(), "a package that is another"
    monkeypatch.setattr(sys.modules["jtop"], "jtop", client, raising=False)
    sensor = JetsonStats()
    assert sensor.present() and sensor.read()["jtop_mw"]
    client.power = {"other": "version"}
    assert sensor.read() == {"jtop_mw": {}, "jtop_temps": {}, "jtop_load": None}
    client.closed = True
    assert sensor.read()["jtop_mw"] == {}
    tool(host / "bin", "tegrastats", "exit 0")
    assert not JetsonStats().present()


def test_power_of_a_raspberry_pi(host: Path) -> None:
    said = """
     3V3_SYS_A current(1)=0.50000000A
     VDD_CORE_A current(7)=2.00000000A
     3V3_SYS_V volt(9)=3.30000000V
     VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.10000000V"""
    tool(host / "bin", "vcgencmd", f"test $1 = pmic_read_adc && echo '{said}'")
    assert PiPower().read() == {"pmic_mw": {"3V3_SYS": pytest.approx(1650), "VDD_CORE": pytest.approx(1600)}}
    power = Telemetry(watched([], [(t, {}) for t in range(5)]), [(S, 3 * S)]).power(2, {})
    assert (power["source"], power["mean_w"]) == ("pmic", pytest.approx(3.25))


# --- `monitor` ------------------------------------------------------------------------------------------------------


def test_monitor_prints_what_the_board_tells(board: Path, capsys) -> None:
    replay(board / "bin", [orin(6000, tj=50, load=87).replace("RAM", "NVDEC 40%@998 RAM")] * 30)
    assert cli.main(["monitor", "--interval", "0.3", "--count", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    for word in ("cpu 1728 MHz", "gpu 87 %", "gpu 1020 MHz", "50.0 deg C", "6.00 W", "NVDEC 40 %"):
        assert word in second
    assert cli.main(["monitor", "--interval", "0.3", "--count", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["power_w"] == 6.0 and found["engines"] == {"NVDEC": "40 %"}


def test_monitor_shows_the_power_of_a_counter_and_ends_with_ctrl_c(host: Path, capsys, monkeypatch) -> None:
    processor(host, package0=0)
    energy, waits = host / "sys/class/powercap/intel-rapl:0/energy_uj", []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        energy.write_text(str(12_000_000 * len(waits)))
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", sleep)
    monkeypatch.setattr(Sensors, "moving", lambda self: False)
    monkeypatch.setattr(live, "Monitor", lambda power: Monitor(power, lambda: len(waits) * S))
    assert cli.main(["monitor"]) == 0
    assert [line.split("  ")[2] for line in capsys.readouterr().out.splitlines()] == ["12.00 W", "12.00 W"]


def test_a_system_that_tells_nothing_gives_null_and_reasons(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("YOLOKD_SYSROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with Monitor(power=True) as monitor:
        pass
    telemetry = Telemetry(monitor, [(0, S)])
    missing: dict[str, str] = {}
    assert telemetry.clocks(missing) is telemetry.thermal(missing) is telemetry.power(1, missing) is None
    assert set(missing) == {"clocks", "thermal", "power"}
    assert telemetry.throttled(True) == ([], []) and telemetry.pinned() is telemetry.gpu_seen_busy() is None
    device = device_facts(missing)
    assert device["l4t"] is device["serial_hash"] is device["mem_total_mb"] is None
    assert {"device.l4t", "device.serial_hash", "device.mem_total_mb"} <= set(missing)


def test_a_cut_last_line_and_an_empty_tegrastats_are_survived(board: Path) -> None:
    replay(board / "bin", [orin(5000)] * 2, end=f"printf %s '{orin(6000)[:-6]}'; sleep 60")
    with Monitor(power=True) as monitor:
        while len(monitor.lines) < 2:
            monitor._stop.wait(0.02)
        monitor._stop.wait(0.3)
    watts = Telemetry(monitor, [(0, S)])._watts()[0]
    assert [w for _, w in watts] == [5.0, 5.0, 6.0]  # the cut line lost its last word only
    replay(board / "bin", [], end="exit 0")
    with Monitor(power=True) as monitor:
        pass
    assert monitor.lines == []


# --- the whole way on a fake board ----------------------------------------------------------------------------------


def bench_on(board: Path, *more: str) -> tuple[int, list[dict], str]:
    images = board / "images"
    images.mkdir(exist_ok=True)
    cv2.imwrite(str(images / "a.png"), np.full((40, 60, 3), 90, np.uint8))
    model = toy(board / "toy.onnx", np.zeros((1, 7, 42)), metadata())
    out = board / "report.json"
    command = [
        sys.executable,
        str(EDGE),
        "bench",
        "--model",
        str(model),
        "--source",
        str(images),
        "--threads",
        "1",
    ]
    command += ["--quick", "--time-limit", "0.6", "--power", "--idle", "0.4", "--out", str(out), *more]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode, json.loads(out.read_text()) if out.exists() else [], run.stderr


def test_a_steady_board_is_measured_with_its_power(board: Path) -> None:
    replay(board / "bin", [orin(5000)] * 600)
    code, (record,), error = bench_on(board)
    assert (code, error) == (0, "idle baseline of the board: 0.4 s\n")
    assert record["power"]["scope"] == "module_input" and record["power"]["mean_w"] == pytest.approx(5)
    n, seconds = record["results"]["n"], record["results"]["duration_s"]
    assert record["power"]["j_per_frame"] == pytest.approx(5 * seconds / n, rel=0.01)
    assert record["power"]["j_per_frame_net"] == pytest.approx(0, abs=1e-9)
    assert record["power"]["overhead_pct"] is not None
    assert record["clocks"]["power_mode"]["name"] == "MAXN_SUPER" and record["thermal"]["tj_max"] == 50
    assert record["device"]["jetpack"] == "6.2.1" and record["memory"]["lfb"] == "3x4MB"
    assert not any("throttled" in reason or "dvfs" in reason for reason in record["stability"]["reasons"])
    with np.load(board / "report.npz") as kept:
        assert {"0/telemetry/power_w", "0/telemetry/tj_c", "0/telemetry/gpu_mhz"} <= set(kept)


def test_a_board_that_heats_up_to_its_limit_gives_an_invalid_record(board: Path) -> None:
    replay(board / "bin", [orin(9000, tj=round(94 + k / 100, 2)) for k in range(600)])
    system_root(board / "root", min_freq=306000000)
    code, (record,), _ = bench_on(board)
    assert code == 0 and record["stability"]["verdict"] == "invalid"
    assert any("and rising, throttling starts at 99.0" in reason for reason in record["stability"]["reasons"])


def test_a_board_without_tools_gives_nulls(board: Path) -> None:
    for name in ("nvpmodel", "jetson_clocks"):
        (board / "bin" / name).unlink()
    write(board / "root", {"sys/class/hwmon/hwmon1/name": "none"})
    code, (record,), _ = bench_on(board)
    assert code == 0 and record["power"] is None and record["clocks"]["power_mode"] is None
    assert record["unavailable"]["power"].startswith(
        "no tegrastats, jetson-stats or ina3221, no readable powercap counter"
    )
    assert "nvpmodel" in record["unavailable"]["clocks.power_mode"]


# --- a sensor more --------------------------------------------------------------------------------------------------


class Npu(Sensor):
    """Load of a chip that only this test knows."""

    def present(self) -> bool:
        return True

    def read(self) -> dict[str, object]:
        return {"npu_load": 42.0}

    def curves(self, reading) -> dict[str, float]:
        return {"npu_load": reading["npu_load"]}


def test_a_new_sensor_is_a_class_and_gets_its_curve(board: Path, monkeypatch) -> None:
    monkeypatch.setattr(sensors, "SENSORS", (*sensors.SENSORS, Npu))
    with Monitor() as monitor:
        pass
    assert all(reading["npu_load"] == 42.0 for _, reading in monitor.readings)
    curve = Telemetry(monitor, [(0, S)]).series()["npu_load"]
    assert len(curve) == len(monitor.readings) and set(curve[:, 1]) == {42.0}


def test_no_two_sensors_tell_the_same_key(board: Path) -> None:
    keys = [key for kind in sensors.SENSORS for key in kind().read()]
    own = [kind for kind in sensors.SENSORS if kind not in (CpuEnergy, NvidiaGpu, PiPower, JetsonStats)]
    assert len(keys) == len(set(keys)) >= 8 and all(kind().present() for kind in own)
