"""The system's own files and tools: board, release, chip, memory and load."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

JETPACK = {32: "4", 35: "5", 36: "6", 38: "7", 39: "7"}
JETPACK_EXACT = {"36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5": "6.2.2", "38.4": "7.1", "39.2": "7.2"}
GPU_ARCH = {"tegra210": "sm_53", "tegra186": "sm_62", "tegra194": "sm_72", "tegra234": "sm_87", "tegra264": "sm_110"}


def system_path(path: str) -> Path:
    """A path of the system, below YOLOKD_SYSROOT where that is set (a recorded system, for tests)."""
    return Path(os.environ.get("YOLOKD_SYSROOT") or "/") / path.lstrip("/")


def read_text(path: Path) -> str | None:
    """What a file of the system says, or None: such files vanish, need rights, or answer with an I/O error."""
    try:
        return path.read_text(errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The whole number in a file of the system, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def list_paths(pattern: str) -> list[Path]:
    """Paths of the system that fit a pattern in their last part."""
    folder, _, name = pattern.rpartition("/")
    return sorted(system_path(folder).glob(name))


def tool_output(*command: str, timeout_s: float = 10.0) -> str | None:
    """What a program prints, or None where it is absent, may not run or hangs. A failing one may still have printed."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            (path, *command[1:]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") or None


def l4t_version() -> str | None:
    """L4T release such as 36.4.3, from /etc/nv_tegra_release."""
    found = re.search(
        r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", read_text(system_path("/etc/nv_tegra_release")) or ""
    )
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack_version(l4t: str | None) -> str | None:
    """JetPack of an L4T release: exact where known, else its major number."""
    if l4t is None:
        return None
    plain = re.sub(r"(\.0)+$", "", l4t)
    return JETPACK_EXACT.get(plain) or JETPACK.get(int(l4t.split(".")[0]))


def soc() -> str | None:
    """The chip, such as tegra234, from the device tree."""
    names = re.split(r"[\0,]", read_text(system_path("/proc/device-tree/compatible")) or "")
    return next((name for name in names if re.match(r"tegra\d+$", name)), None)


def first_value(path: Path, key: str) -> str | None:
    """The value after the colon of the first line that starts with key, in a file such as /proc/cpuinfo."""
    lines = (read_text(path) or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line), None)


def board_model() -> str | None:
    """The board's model as the device tree says it."""
    return read_text(system_path("/proc/device-tree/model"))


def is_jetson() -> bool:
    """Whether this is a Jetson."""
    return l4t_version() is not None or "jetson" in (board_model() or "").lower()


@lru_cache(maxsize=None)
def nvidia_smi(field: str) -> str | None:
    """A field of the first GPU that nvidia-smi knows."""
    out = tool_output("nvidia-smi", "--query-gpu=" + field, "--format=csv,noheader,nounits")
    line = out.splitlines()[0].strip() if out else ""
    return line if line and "[" not in line and "fail" not in line.lower() else None


def gpu_architecture() -> str | None:
    """Compute capability such as sm_87: from the chip on a Jetson, else from nvidia-smi."""
    chip = soc()
    if chip in GPU_ARCH:
        return GPU_ARCH[chip]
    found = nvidia_smi("compute_cap")
    return "sm_" + found.replace(".", "") if found else None


def available_mb() -> float | None:
    """Memory that the system could still give, MB."""
    text = first_value(system_path("/proc/meminfo"), "MemAvailable")
    return int(text.split()[0]) / 1024 if text else None


def cpu_times() -> tuple[int, int] | None:
    """(stolen, all) clock ticks of all CPUs so far."""
    words = (read_text(Path("/proc/stat")) or "").splitlines()[:1]
    ticks = [int(v) for v in words[0].split()[1:9]] if words else []
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


def load_average() -> float | None:
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
