"""What other tools of a board print: power mode, locked clocks, a Raspberry Pi's throttling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# What bits 0 to 3 of a Raspberry Pi's flags mean.
FIRMWARE = ("under-voltage", "the CPU's clock was capped", "throttled by the firmware", "soft temperature limit")


def parse_nvpmodel(text: str) -> dict[str, Any] | None:
    """Power mode from `nvpmodel -q`: {id, name}, either possibly None; None where the text tells neither."""
    name = re.search(r"NV Power Mode\s*:\s*(\S+)", text)
    number = re.search(r"MODE ID\s*:\s*(\d{1,12})\b", text) or re.search(r"^\s*(\d{1,12})\s*$", text, re.MULTILINE)
    if not name and not number:
        return None
    return {"id": int(number.group(1)) if number else None, "name": name.group(1) if name else None}


def parse_jetson_clocks(text: str) -> dict[str, Any]:
    """Clocks from `jetson_clocks --show`: unit (cpu0, GPU, EMC) -> its numbers, and locked: these three kinds pinned.

    A unit is pinned where lowest and highest clock agree; EMC where FreqOverride is 1. Others, such as an AGX Orin's
    DLA0_CORE, keep a range whatever jetson_clocks does. locked is None without units.
    """
    units: dict[str, Any] = {}
    for line in text.splitlines():
        head = re.match(r"\s*(\w+)\s*:?\s", line)
        numbers = {key: int(value) for key, value in re.findall(r"\b(\w+)=(\d{1,18})\b", line)}
        if head and "MinFreq" in numbers and "MaxFreq" in numbers and numbers.get("Online") != 0:
            units[head.group(1)] = numbers
    counted = [numbers for name, numbers in units.items() if re.match(r"(cpu\d+|GPU|EMC)$", name)]
    pinned = [u["MinFreq"] == u["MaxFreq"] or u.get("FreqOverride") == 1 for u in counted]
    return {"units": units, "locked": all(pinned) if pinned else None}


def parse_get_throttled(text: str) -> int | None:
    """The flags that a Raspberry Pi's `vcgencmd get_throttled` prints as throttled=0x50005."""
    found = re.search(r"throttled=(0x[0-9a-fA-F]{1,16})\b", text)
    return int(found.group(1), 16) if found else None


def parse_pmic_adc(text: str) -> dict[str, float]:
    """Power by rail, mW, from a Raspberry Pi 5's `vcgencmd pmic_read_adc`: its currents by its voltages."""
    amperes = dict(re.findall(r"(\w+)_A current\(\d+\)=(\d{1,6}\.\d+)A", text))
    volts = dict(re.findall(r"(\w+)_V volt\(\d+\)=(\d{1,6}\.\d+)V", text))
    return {rail: 1000 * float(amperes[rail]) * float(volts[rail]) for rail in amperes if rail in volts}


def firmware_signs(flags: Sequence[int]) -> tuple[list[str], list[str]]:
    """What a Raspberry Pi's flags before and after measuring say: certain signs of throttling, and doubtful ones.

    Bits 0 to 3 tell of now and 16 to 19 of any time since the start, so that one of those new since the first look
    came up while measuring, and one that was there already hides whether it came again.
    """
    certain, doubtful = [], []
    for bit, what in enumerate(FIRMWARE):
        ever = [f >> 16 + bit & 1 for f in flags]
        if any(f >> bit & 1 for f in flags) or ever and ever[-1] > ever[0]:
            certain.append(f"throttled: {what}")
        elif any(ever):
            doubtful.append(f"throttling: {what} since the board started, perhaps again; restart it to be sure")
    return certain, doubtful
