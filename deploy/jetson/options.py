"""Options of the board's tests. In an unpacked bundle this file is called conftest.py, where pytest finds it itself."""

from __future__ import annotations

from typing import Any


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
    group.addoption("--provider", default="cpu", help="cpu, cuda, trt or auto (default cpu)")
    group.addoption("--precision", default="fp32", help="fp32, fp16 or int8 (default fp32)")
    group.addoption("--threads", type=int, help="CPU threads (default: all usable cores)")
    group.addoption("--source", help="image or folder to measure on (default: the bundle's parity images)")
    group.addoption("--profile", default="standard", help="how long budgets are measured (default standard)")
    group.addoption(
        "--soak", type=float, default=600, metavar="S", help="seconds of the soak, 0 for none (default 600)"
    )
    group.addoption(
        "--max-drift", type=float, default=1.03, metavar="RATIO", help="last third over first of a soak (default 1.03)"
    )
