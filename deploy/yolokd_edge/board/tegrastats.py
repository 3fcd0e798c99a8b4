"""tegrastats, NVIDIA's tool on every Jetson: its lines in all their generations."""

from __future__ import annotations

import re
from typing import Any

from yolokd_edge.board.readings import COLDEST

NO_RAILS = ("NC", "RAM", "SWAP", "IRAM")  # not connected; and memory looks like a rail where a line is cut
# A number of more than 12 digits is none that a board has.
_DATE = re.compile(r"^(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)(?=\s)")
_PAIR = re.compile(r"(?<!\S)(RAM|SWAP|IRAM) (\d{1,12})/(\d{1,12})([kMG])B(?=[\s(]|$)")
_LFB = re.compile(r"(?<!\S)RAM \S+ ?\(lfb (\d{1,12}x\d{1,12}[kMG]B)\)")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)(\]?)(?:@(\d{1,12}))?")
_CORE = re.compile(r"^(\d{1,12})%(?:@(\d{1,12}))?$")
_LOAD = re.compile(r"(?<!\S)(GR3D|GR3D2|EMC)_FREQ \[?((?:\d{1,12}%,? ?)*)\]?(?:@(?:\[([\d, ]*)\]|(\d{1,12})))?(?=\s|$)")
_ENGINE = re.compile(r"(?<!\S)([A-Z][A-Z0-9]*?)(?:_FREQ)? (?:(?:(\d{1,12})%)?(?:@?(\d{1,12}))?|(off))(?=\s|$)")
_ZONE = re.compile(r"(?<!\S)([A-Za-z][\w.-]*)@(-?\d{1,12}(?:\.\d{1,12})?)C(?:/-?\d{1,12}(?:\.\d{1,12})?C)?(?=\s|$)")
_RAIL = re.compile(
    r"(?<!\S)([A-Za-z]\w*) (\d{1,12}(?:\.\d{1,12})?)(?:mW(?=\s|$)|(?:mW)?/\d{1,12}(?:\.\d{1,12})?(?:mW)?"
    r"(?:/\d{1,12}(?:\.\d{1,12})?(?:mW)?)?(?=\s|$))"
)
_SIZE_MB = {"k": 1 / 1024, "M": 1, "G": 1024}


def _cores(found: Any) -> list[dict[str, int | None] | None] | None:
    """Load and clock per core, None for one that is off; a core that a cut line ends in is left out."""
    if not found:
        return None
    words = found.group(1).split(",")
    if not found.group(2):
        words.pop()
    cores: list[dict[str, int | None] | None] = []
    for word in words:
        core = _CORE.match(word.strip())
        if core is None:
            cores.append(None)
            continue
        mhz = core.group(2) or found.group(3)
        cores.append({"load_pct": int(core.group(1)), "mhz": None if mhz is None else int(mhz)})
    return cores


def parse_tegrastats(line: str) -> dict[str, Any]:
    """Read one line of tegrastats, of any L4T from 32 to 39, with or without root.

    Returns:
        time (as printed), ram_mb, swap_mb (used, total), lfb, cores (load_pct and mhz each, None where off), gpu_load
        and emc_load (%; the highest of several), gpu_mhz (a list, one per cluster), gpu2_load, gpu2_mhz, emc_mhz,
        engines_mhz and engines_load (such as NVENC, NVDEC, NVDLA0), temps (zone in lower case -> deg C, powered-off
        zones dropped) and rails (name -> mW now). What the line does not tell is None
        or absent, never 0. Nothing raises: of a cut line the complete words are read.
    """
    date, pairs = _DATE.match(line), {}
    for name, used, total, unit in _PAIR.findall(line):
        pairs[name] = (int(used) * _SIZE_MB[unit], int(total) * _SIZE_MB[unit])
    out: dict[str, Any] = dict.fromkeys(("gpu_load", "gpu_mhz", "gpu2_load", "gpu2_mhz", "emc_load", "emc_mhz"))
    for name, load, many, one in _LOAD.findall(line):
        key = {"GR3D": "gpu", "GR3D2": "gpu2", "EMC": "emc"}[name]
        clocks = [int(v) for v in (many or one).replace(",", " ").split() if len(v) <= 12]
        loads = [int(v) for v in re.findall(r"\d+", load)]
        out[key + "_load"] = max(loads) if loads else None
        out[key + "_mhz"] = (clocks or None) if key != "emc" else (clocks[0] if clocks else None)
    engines = [e for e in _ENGINE.findall(line) if any(e[1:]) and e[0] not in ("GR3D", "GR3D2", "EMC", "CPU")]
    lfb = _LFB.search(line)
    temps = {name.lower(): float(value) for name, value in _ZONE.findall(line)}
    out.update(
        time=date.group(1) if date else None,
        ram_mb=pairs.get("RAM"),
        swap_mb=pairs.get("SWAP"),
        lfb=lfb.group(1) if lfb else None,
        cores=_cores(_CPU.search(line)),
        engines_mhz={name: int(mhz) if mhz else None for name, _, mhz, _ in engines},
        engines_load={name: int(load) for name, load, _, _ in engines if load},
        temps={name: value for name, value in temps.items() if value > COLDEST},
        rails={name: float(now) for name, now in _RAIL.findall(line) if name not in NO_RAILS},
    )
    return out
