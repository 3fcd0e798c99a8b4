"""Options of the board's tests. In an unpacked bundle this file is called conftest.py, where pytest finds it itself."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BUNDLE = Path(__file__).resolve().parents[1]
if (BUNDLE / "yolokd_edge").is_dir():  # an unpacked bundle: its own runtime is what is tested here
    sys.path.insert(0, str(BUNDLE))

from yolokd_edge.bench.schema import PERCENTILES, STAGES  # noqa: E402
from yolokd_edge.common import USAGE  # noqa: E402
from yolokd_edge.runtimes.table import PROVIDERS  # noqa: E402

MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
INCONCLUSIVE = 3  # exit code


class Budget(NamedTuple):
    """Most milliseconds that a percentile of a stage may take."""

    stage: str
    percentile: str
    ms: float


def read_budgets(text: str) -> list[Budget]:
    """Parse `total.p99=15ms`, or several with commas between."""
    budgets = []
    for part in text.split(","):
        found = re.match(r"(\w+)\.(\w+)=(\d+(?:\.\d+)?)(us|ms|s)$", part.strip())
        if not found or found[1] not in STAGES or found[2] not in PERCENTILES or not float(found[3]):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no budget: write a stage ({', '.join(STAGES)}), a percentile ({', '.join(PERCENTILES)}) "
                "and a time with its unit, such as total.p99=15ms"
            )
        budgets.append(Budget(found[1], found[2], float(found[3]) * MS[found[4]]))
    return budgets


def pytest_addoption(parser: Any) -> None:
    """What to test, where, and what it may cost."""
    group = parser.getgroup("yolokd", "yolokd: latency tests of a bundle on this device")
    group.addoption("--bundle", help="the bundle (default: the unpacked one that the tests lie in)")
    group.addoption(
        "--budget",
        action="append",
        default=[],
        metavar="STAGE.PERCENTILE=TIME",
        help="most time a frame may take, such as total.p99=15ms; may be given more than once",
    )
    group.addoption("--provider", default="cpu", help=f"{', '.join(PROVIDERS)} or auto (default cpu)")
    group.addoption("--precision", default="fp32", help="fp32, fp16 or int8 (default fp32)")
    group.addoption("--fp16", action="store_true", help="half precision in TensorRT (provider trt)")
    group.addoption("--cache", metavar="DIR", help="TensorRT's engines (default YOLOKD_CACHE or ~/.cache/yolokd)")
    group.addoption("--threads", type=int, help="CPU threads (default: all usable cores)")
    group.addoption("--source", help="image or folder to measure on (default: the bundle's parity images)")
    group.addoption("--profile", default="standard", help="how long a run for budgets is (default standard: 30 s)")
    group.addoption("--repeats", type=int, help="runs, each a new process (default the profile's: 5, for soak 1)")
    group.addoption(
        "--soak", type=float, default=600, metavar="S", help="seconds of the soak, 0 for none (default 600)"
    )
    group.addoption(
        "--max-drift", type=float, default=1.03, metavar="RATIO", help="last third over first of a soak (default 1.03)"
    )


def pytest_configure(config: Any) -> None:
    """Read the budgets here and not as a type of argparse, whose errors end pytest with 4: that means a provider."""
    try:
        config.option.budget = [read_budgets(text) if isinstance(text, str) else text for text in config.option.budget]
    except argparse.ArgumentTypeError as error:
        pytest.exit(f"--budget: {error}", returncode=USAGE)


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """Where nothing failed, something inconclusive must not look like a pass to whoever reads only the exit code."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", ()) if reporter else ()
    if exitstatus == 0 and any("Skipped: inconclusive" in str(report.longrepr) for report in skipped):
        session.exitstatus = INCONCLUSIVE
