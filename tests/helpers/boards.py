"""A Jetson that is not there: a system root, tools first in PATH, and lines of tegrastats of every generation."""

from __future__ import annotations

from pathlib import Path

import pytest

TX2 = (
    "RAM 2020/7852MB (lfb 1164x4MB) CPU [9%@345,21%@345,25%@345,off,1%@345,1%@345] EMC_FREQ 0% GR3D_FREQ 0% PLL@42.5C "
    "MCPU@42.5C PMIC@100C Tboard@40C GPU@41C BCPU@42.5C thermal@41.9C Tdiode@41.25C VDD_SYS_GPU 153/158 "
    "VDD_SYS_SOC 536/547 VDD_4V0_WIFI 633/527 VDD_IN 3140/3208 VDD_SYS_CPU 536/590 VDD_SYS_DDR 557/601"
)
NANO = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,3%@1224,"
    "6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C "
    "POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
XAVIER_NX = (
    "RAM 1000/7765MB (lfb 1x4MB) CPU [47%@1420,96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 APE 150 MTS fg 1% bg 9% "
    "AO@29C GPU@30C thermal@31.35C VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051"
)
AGX_XAVIER = (
    "RAM 1000/30536MB (lfb 1x4MB) CPU [1%@1190,off] EMC_FREQ 0%@1331 GR3D_FREQ 0%@114 VIC_FREQ 115 APE 150 AUX@36C "
    "CPU@36.5C GPU@35C PMIC@50C GPU 467mW/467mW CPU 467mW/467mW SOC 1245mW/1245mW CV 0mW/0mW VDDRQ 311mW/311mW "
    "SYS5V 2768mW/2768mW"
)
AGX_ORIN_ROOT = (
    "01-03-2023 16:07:54 RAM 2257/30536MB (lfb 5392x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,0%@729] "
    "EMC_FREQ 0%@204 GR3D_FREQ 5%@0 GR3D2_FREQ 7%@0 NVJPG1 729 VIC_FREQ 115 APE 233 CV0@-256C CPU@41.437C "
    "GPU@-256C tj@41.656C SOC1@38.937C CV2@-256C VDD_GPU_SOC 2390mW/2390mW VDD_CPU_CV 796mW/796mW "
    "VIN_SYS_5V0 3522mW/3522mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
AGX_ORIN_USER = (
    "05-04-2025 12:59:49 RAM 3492/62840MB (lfb 35x4MB) SWAP 0/31420MB (cached 0MB) CPU [30%@729,5%@1497] "
    "GR3D_FREQ 0% cpu@49.968C soc2@47C soc0@47.562C tj@49.812C soc1@46.812C VDD_GPU_SOC 3124mW/3124mW "
    "VDD_CPU_CV 720mW/720mW VIN_SYS_5V0 5140mW/5140mW"
)
ORIN_NANO = (
    "04-27-2026 14:59:41 RAM 775/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) CPU [1%@729,0%@729] GR3D_FREQ {load}% "
    "cpu@48.468C soc2@47.531C soc0@48.062C gpu@48.562C tj@{tj}C soc1@49.156C VDD_IN {mw}mW/4778mW "
    "VDD_CPU_GPU_CV 515mW/501mW VDD_SOC 1428mW/1428mW"
)
THOR_USER = (
    "01-20-2026 22:46:22 RAM 17842/125772MB (lfb 79x4MB) CPU [0%@972,0%@972] cpu@30.468C tj@31.218C soc012@30.218C "
    "soc345@31.218C VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 5535mW/5535mW VIN_SYS_5V0 5040mW/5040mW VIN 16802mW/16802mW"
)
THOR_ROOT = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,315,316] "
    "NVENC0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C "
    "soc345@37.406C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
)
# Not captured anywhere: what the grammar allows. Old CPU list, a single clock in brackets, peaks (R39).
OLD_LIST = "RAM 900/3995MB (lfb 12x1MB) cpu [0%,12%,off,off]@518 EMC 8%@408 GR3D 0%@76".replace("cpu", "CPU")
PEAKS = (
    "06-01-2026 00:00:01 RAM 1/2GB (lfb 1x4MB) CPU [7%@800,off] GR3D_FREQ 45%@[612] cpu@50.5C/61C tj@51C/62.5C "
    "VDD_IN 5000mW/4800mW/9000mW VDD_SOC 1400mW/1400mW/1500mW"
)
TWO_CLUSTERS = "GR3D_FREQ 45%@[612,306] tj@-3.5C VDD_CPU_CV 720mW/720mW VIN_SYS_5V0 5140mW/5140mW"
EVERY = (
    TX2, NANO, XAVIER_NX, AGX_XAVIER, AGX_ORIN_ROOT, AGX_ORIN_USER, ORIN_NANO.format(load=3, tj=49.156, mw=4761),
    THOR_USER, THOR_ROOT, OLD_LIST, PEAKS, TWO_CLUSTERS,
)  # fmt: skip


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def system_root(root: Path, **changes: object) -> Path:
    """An Orin Nano with JetPack 6.2.1, clocks locked; changes by name of the last part of a path."""
    zones = "sys/class/thermal/thermal_zone"
    files: dict[str, object] = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nA\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/device-tree/serial-number": "1423123456789\0",
        "proc/meminfo": "MemTotal: 7802880 kB\nMemAvailable: 5000000 kB\nSwapTotal: 3901440 kB",
        "proc/cpuinfo": "processor : 0\nmodel name : ARMv8 Processor rev 1 (v8l)\nFeatures : fp asimd asimddp",
        zones + "0/type": "cpu-thermal",
        zones + "0/temp": 48468,
        # as on an Orin NX: a trip that only warns of a hot surface, below the one that throttles
        zones + "0/trip_point_0_type": "passive",
        zones + "0/trip_point_0_temp": 70000,
        zones + "0/cdev0/type": "hot-surface-alert",
        zones + "0/cdev0_trip_point": 0,
        zones + "0/cdev1/type": "cpufreq-cpu0",
        zones + "0/cdev1_trip_point": 1,
        zones + "1/type": "cv0-thermal",  # powered off: reading it fails on a board, as on a folder here
        zones + "1/temp/unreadable": "",
        zones + "2/type": "tj-thermal",
        zones + "2/temp": 49156,
        zones + "2/trip_point_0_type": "passive",
        zones + "2/trip_point_0_temp": 99000,
        zones + "2/trip_point_1_type": "critical",
        zones + "2/trip_point_1_temp": 104500,
        zones + "3/type": "PMIC-Die",
        zones + "3/temp": 100000,
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": 1,
        "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0",
        "sys/class/thermal/cooling_device1/cur_state": 0,
        "sys/class/thermal/cooling_device2/type": "hot-surface-alert",
        "sys/class/thermal/cooling_device2/cur_state": 0,
        "sys/class/devfreq/17000000.gpu/cur_freq": 1020000000,
        "sys/class/devfreq/17000000.gpu/min_freq": 1020000000,
        "sys/class/devfreq/17000000.gpu/max_freq": 1020000000,
        "sys/class/devfreq/17000000.gpu/device/load": 873,
        "sys/class/devfreq/15340000.vic/cur_freq": 115200000,
        "sys/class/hwmon/hwmon0/name": "soctherm_oc",
        "sys/class/hwmon/hwmon0/oc1_event_cnt": 0,
        "sys/class/hwmon/hwmon0/oc3_event_cnt": 7,
        "sys/class/hwmon/hwmon1/name": "ina3221",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/in1_input": 5000,
        "sys/class/hwmon/hwmon1/curr1_input": 1200,
        "sys/class/hwmon/hwmon1/in2_label": "VDD_SOC",
        "sys/class/hwmon/hwmon1/in2_input": 5000,
        "sys/class/hwmon/hwmon1/curr2_input": 280,
        "sys/class/hwmon/hwmon2/name": "pwmfan",
        "sys/class/hwmon/hwmon2/pwm1": 88,
    }
    for k in range(2):
        folder = f"sys/devices/system/cpu/cpu{k}/cpufreq/scaling_"
        files.update({folder + "governor": "performance", folder + "cur_freq": 1728000})
        files.update({folder + "min_freq": 1728000, folder + "max_freq": 1728000})
    for name in files:
        for change, value in changes.items():
            if name.replace("/", "_").replace(".", "_").endswith(change):
                files[name] = value
    write(root, files)
    return root


def tool(folder: Path, name: str, script: str) -> None:
    """An executable shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)


def replay(folder: Path, lines: list[str], end: str = "sleep 60") -> None:
    """A tegrastats that prints lines at the interval asked for, then does `end`."""
    (folder / "lines").write_text("".join(line + "\n" for line in lines))
    script = (
        f'test "$1" = --interval || exit 9\nwhile read -r line; do echo "$line"; sleep 0.0$2; done < {folder}/lines'
    )
    tool(folder, "tegrastats", f"{script}\n{end}")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake Orin Nano with its tools; the folder of the tools is `bin` beside the root."""
    tools = tmp_path / "bin"
    tool(tools, "nvpmodel", "echo 'NVPM WARN: fan mode is not set!'; echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    tool(
        tools,
        "jetson_clocks",
        "echo 'SOC family:tegra234'; echo 'cpu0: Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 "
        "CurrentFreq=1728000 IdleStates: WFI=0'; echo 'cpu1: Online=0 Governor=schedutil MinFreq=7 MaxFreq=9 "
        "CurrentFreq=7'; echo 'GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000'; "
        "echo 'DLA0_CORE: Online=1 MinFreq=0 MaxFreq=1408000000 CurrentFreq=0'; "  # an AGX Orin's, pinned or not
        "echo 'EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1'",
    )
    root = system_root(tmp_path / "root")
    monkeypatch.setenv("YOLOKD_SYSROOT", str(root))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return tmp_path
