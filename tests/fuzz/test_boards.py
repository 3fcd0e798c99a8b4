"""What a board's tools print, thousands of times garbled: the record says what is left, and nothing raises."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.boards import EVERY
from helpers.fuzzing import Wish, fuzz, mistyped, strict

from yolokd_edge.board.tegrastats import parse_tegrastats
from yolokd_edge.board.telemetry import Telemetry
from yolokd_edge.board.tools import parse_get_throttled, parse_jetson_clocks, parse_nvpmodel
from yolokd_edge.common import json_text

TOOLS = (
    "NV Power Mode: MAXN_SUPER\n2", "throttled=0x50005", "POWER MODE ID: 3\nMODE ID: 1",
    "cpu0: Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000\n"
    "GPU MinFreq=1020000000 MaxFreq=1020000000\nEMC MinFreq=204000000 MaxFreq=3199000000 FreqOverride=1",
)  # fmt: skip


def use_lines(lines: list[str]) -> dict:
    """What telemetry makes of lines, which never raises."""
    nothing = {"gpu_hz": None, "gpu_load": None, "cpu_khz": None, "temps": {}, "cooling": {}, "oc": {}, "rails": {}}
    nothing |= dict.fromkeys(("nvml_mw", "nvml_mhz", "nvml_load", "nvml_reasons"))
    sensors = SimpleNamespace(
        limits=lambda: {"governor": None, "cpu_khz": None, "gpu_hz": None}, of=lambda kind: sensors,
        find=lambda kind: None, read=lambda: {"fan": None}, passive_trip=lambda: 99.0, curves=lambda reading: {},
    )  # fmt: skip
    stamps = [round(k * 1e9) for k in range(len(lines))]
    monitor = SimpleNamespace(
        lines=list(zip(stamps, lines, strict=True)), readings=[(0, nothing), (stamps[-1], nothing)], sensors=sensors,
        power=True, power_mode=parse_nvpmodel(lines[0]), firmware=[parse_get_throttled(lines[0]) or 0] * 2,
        locked=parse_jetson_clocks(lines[0])["locked"], tegrastats="tegrastats",
    )  # fmt: skip
    seen = Telemetry(monitor, [(stamps[0] + 1, stamps[-1] - 1)])
    missing: dict[str, str] = {}
    record = {
        "clocks": seen.clocks(missing), "thermal": seen.thermal(missing), "power": seen.power(9, missing),
        "throttled": seen.throttled(True), "lfb": seen.lfb(), "missing": missing, "line": parse_tegrastats(lines[0]),
        "clocks of tools": parse_jetson_clocks(lines[0]),
    }  # fmt: skip
    strict(json_text(record))
    assert all(np.isfinite(curve).all() for curve in seen.series().values())
    return record


@pytest.mark.parametrize("line", EVERY)
def test_a_valid_line_tells_of_the_board(line: str) -> None:
    record = use_lines([line.format(load=3, tj=49, mw=4700)] * 3)
    assert record["line"]["rails"] or record["line"]["cores"]


@pytest.mark.parametrize(
    "line",
    ["RAM 1/{}MB", "CPU [1%@{}]", "CPU [1%,{}%]@2", "GR3D_FREQ 1%@[{}] tj@{}C", "VIC {} VDD_IN {}mW/1mW VDD_CPU 1/{}",
     "MODE ID: {}", "{}", "throttled=0x{}", "GPU MinFreq={} MaxFreq={}"],
)  # fmt: skip
def test_lines_found_by_fuzzing(line: str) -> None:
    """A number of more digits than Python reads, and a word that a search began anew in each place."""
    record = use_lines([line.replace("{}", "9" * 5000)] * 3)
    assert "999" not in json.dumps(record)


@pytest.mark.slow
def test_tegrastats_and_other_tools() -> None:
    texts = [line.format(load=3, tj=49.1, mw=4761) for line in EVERY] + list(TOOLS)

    def use(wish: Wish) -> None:
        numbers = [*wish.edits, *wish.typos]
        line = texts[sum(sum(n) for n in numbers) % len(texts)]
        # a place in the text by the higher bits, as most are drawn small
        use_lines([mistyped(line, numbers), line, mistyped(line, numbers[:1])])

    fuzz(use, ())
