"""Does a bundle do on this device what it says, and fast enough? Each test leaves its figure in the report.

    pytest --pyargs yolokd.deploy.jetson --bundle name-edge.zip --budget total.p99=15ms --junitxml report.xml

or, in an unpacked bundle and without yolokd, `pytest jetson --budget total.p99=15ms`. Needs pytest, numpy, OpenCV and
ONNX Runtime.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the runtime lies one folder up, here and in a bundle

import yolokd_edge as edge  # noqa: E402

# pytest's default XML has no place for figures beside a test in its strict form; CI tools read them all the same.
pytestmark = pytest.mark.filterwarnings("ignore:record_property is incompatible:pytest.PytestWarning")
COVERAGE = 0.95  # least share of the graph's nodes on the provider asked for


def pytest_generate_tests(metafunc: Any) -> None:
    """One test a budget."""
    if "budget" in metafunc.fixturenames:
        budgets = [budget for option in metafunc.config.getoption("budget") for budget in option]
        metafunc.parametrize("budget", budgets, ids=[f"{b.stage}.{b.percentile}={b.ms:g}ms" for b in budgets])


@pytest.fixture(scope="session")
def bundle(pytestconfig: Any) -> edge.Bundle:
    """The bundle, every file of it checked."""
    path = pytestconfig.getoption("bundle")
    try:
        return edge.open_bundle(path or edge.own_bundle())
    except edge.EdgeError as error:
        pytest.exit(f"{error}" if path else "No bundle: give --bundle name-edge.zip.", returncode=error.code)


@pytest.fixture(scope="session")
def options(pytestconfig: Any) -> dict[str, Any]:
    """Provider, threads and precision."""
    return {key: pytestconfig.getoption(key) for key in ("provider", "threads", "precision")}


@pytest.fixture(scope="session")
def detector(bundle: edge.Bundle, options: dict[str, Any]) -> edge.Detector:
    """The bundle's model on the provider asked for."""
    try:
        return edge.load(bundle.folder, **options)
    except edge.EdgeError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def frames(bundle: edge.Bundle, pytestconfig: Any) -> list[np.ndarray]:
    """What is measured on."""
    return edge.read_frames(pytestconfig.getoption("source") or bundle.folder / "parity")


def fail_unless(condition: bool, sentence: str) -> None:
    """Fail with one sentence and no traceback: the reader looks for a figure, not for code."""
    if not condition:
        pytest.fail(sentence, pytrace=False)


def test_contract(bundle: edge.Bundle, detector: edge.Detector, record_property: Any) -> None:
    """The model is what the manifest says it is."""
    record_property("contract", detector.contract.output)
    record_property("imgsz", list(detector.contract.hw))
    record_property("classes", detector.contract.nc)
    record_property("model", detector.path.name)
    record_property("sha256", bundle.manifest["files"][detector.path.name]["sha256"])
    try:
        edge.check_manifest(bundle, detector)
    except edge.EdgeError as error:
        pytest.fail(str(error), pytrace=False)


def test_parity(bundle: edge.Bundle, options: dict[str, Any], record_property: Any) -> None:
    """This device computes what was computed where the bundle was made."""
    try:
        figures = edge.verify(bundle, **options)
    except edge.EdgeError as error:
        pytest.fail(str(error), pytrace=False)
    record_property("parity", json.dumps(figures))
    fail_unless(
        figures["pass"], f"This device computes something else than the bundle says: {edge.parity_text(figures)}."
    )


def test_provider(detector: edge.Detector, options: dict[str, Any], record_property: Any) -> None:
    """The provider asked for computes (nearly) all of the graph."""
    active, nodes = detector.session.get_providers()[0], edge.assigned_nodes(detector.session)
    record_property("provider", active)
    record_property("ep_nodes", nodes)
    wanted = edge.PROVIDERS.get(options["provider"], (active,))[0]
    fail_unless(active == wanted, f"{detector.path.name} runs on {active} and not on {wanted}.")
    if nodes is None:
        pytest.skip("this ONNX Runtime cannot tell which provider a node runs on")
    share = nodes.get(active, 0) / max(sum(nodes.values()), 1)
    record_property("ep_coverage", round(share, 4))
    fail_unless(share >= COVERAGE, f"{active} runs {share:.0%} of the nodes, less than {COVERAGE:.0%}: {nodes}.")


@pytest.fixture(scope="session")
def record(bundle: edge.Bundle, options: dict[str, Any], frames: Any, pytestconfig: Any) -> dict[str, Any]:
    """One measurement for all budgets."""
    path = bundle.model(options["precision"], options["provider"])
    profile = pytestconfig.getoption("profile")
    records, _ = edge.collect([path], frames, profile=profile, threads=options["threads"], provider=options["provider"])
    return records[0]


def test_budget(budget: Any, record: dict[str, Any], record_property: Any) -> None:
    """A percentile of a stage stays within its budget."""
    results, stage = record["results"], record["results"]["stages"][budget.stage]
    name, ms, most = f"{budget.stage}.{budget.percentile}", stage[budget.percentile], stage["max"]
    needed = edge.samples_needed(edge.PERCENTILES[budget.percentile])
    record_property("budget_ms", budget.ms)
    record_property(name + "_ms", ms)
    record_property("n", results["n"])
    record_property("reasons", record["stability"]["reasons"])
    fail_unless(
        ms is not None, f"{name} cannot be told from {results['n']} frames, it needs {needed}: take a longer --profile."
    )
    fail_unless(
        ms <= budget.ms,
        f"{name} is {ms:.2f} ms, over the budget of {budget.ms:g} ms by {ms / budget.ms - 1:.0%} "
        f"({results['n']} frames, largest {most:.2f} ms, {record['runtime']['providers_active'][0]}).",
    )


def temperatures() -> dict[str, float]:
    """Degrees Celsius by thermal zone; those that cannot be read or are switched off are left out."""
    found, root = {}, Path(os.environ.get("YOLOKD_SYSROOT", "/"))
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        try:
            degrees = int((zone / "temp").read_text()) / 1000
            name = (zone / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if degrees > -200 and "PMIC" not in name.upper():  # a PMIC's reading is a constant
            found[name] = degrees
    return found


def test_thermal_soak(detector: edge.Detector, frames: Any, pytestconfig: Any, record_property: Any) -> None:
    """Under load for minutes, the device is as fast at the end as at the start."""
    seconds, most = pytestconfig.getoption("soak"), pytestconfig.getoption("max_drift")
    if not seconds > 0:
        pytest.skip("no soak was asked for (--soak 0)")
    edge.measure([detector], frames, edge.Limits(20, min(2.0, seconds), 60.0))  # warm-up
    before, stamp = temperatures(), time.perf_counter()
    (run,), _ = edge.measure([detector], frames, edge.Limits(30, seconds, max(seconds, 60.0)))
    lasted, after = time.perf_counter() - stamp, temperatures()
    total = run.series()["total"] / 1e6
    third = len(total) // 3
    first, last = (float(np.median(part)) for part in (total[:third], total[-third:]))
    hottest = max(after.values()) if after else None
    figures = {"s": lasted, "n": len(total), "first_ms": first, "last_ms": last, "drift": last / first, "c": hottest}
    for key, value in figures.items():
        record_property("soak_" + key, value if isinstance(value, (int, type(None))) else round(value, 4))
    record_property("temperatures_before", before)
    record_property("temperatures_after", after)
    heat = "no thermal zone readable" if hottest is None else f"hottest zone {hottest:.1f} C"
    fail_unless(
        last / first <= most,
        f"After {lasted:.0f} s the median frame takes {last:.2f} ms and took {first:.2f} ms in the first third: "
        f"{last / first:.3f} times, more than {most:g} ({heat}).",
    )
