"""Does a bundle do on this device what it says, and fast enough? Each test leaves its figure in the report.

    pytest --pyargs yolokd_edge.jetson --bundle name-edge.zip --budget total.p99=15ms --junitxml report.xml

or, in an unpacked bundle and without yolokd, `pytest jetson --budget total.p99=15ms`. Needs pytest, numpy, OpenCV and
ONNX Runtime.

A budget passes if the whole 95 % interval of its percentile is within it, fails if the whole interval is above, and is
else inconclusive.

A budget or a soak that may have failed because other programs took the CPU is neither passed nor failed: the test is
skipped with the reasons, which start with "inconclusive", and pytest ends with 3 unless a test failed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from yolokd_edge.bench import sweep
from yolokd_edge.bench.options import BenchOptions, Limits
from yolokd_edge.bench.schema import PERCENTILES
from yolokd_edge.bench.statistics import samples_needed
from yolokd_edge.bench.verdict import BLOCKS, measure_drift
from yolokd_edge.bundle import Bundle, find_own_bundle, open_bundle
from yolokd_edge.common import PARITY, USAGE, EdgeError
from yolokd_edge.detector import Detector, check_manifest, load
from yolokd_edge.runtimes.base import TensorRT
from yolokd_edge.runtimes.table import PROVIDERS, check_fp16
from yolokd_edge.verify import parity_text, verify_bundle

# pytest's default XML has no place for figures beside a test in its strict form; CI tools read them all the same.
pytestmark = pytest.mark.filterwarnings("ignore:record_property is incompatible:pytest.PytestWarning")
DISTURBED = "contended"  # how bench's reasons begin where other programs took the CPU


def pytest_generate_tests(metafunc: Any) -> None:
    """One test per budget."""
    if "budget" in metafunc.fixturenames:
        budgets = [budget for option in metafunc.config.getoption("budget") for budget in option]
        metafunc.parametrize("budget", budgets, ids=[f"{b.stage}.{b.percentile}={b.ms:g}ms" for b in budgets])


@pytest.fixture(scope="session")
def bundle(pytestconfig: Any) -> Bundle:
    """The bundle, every file of it checked."""
    path = pytestconfig.getoption("bundle") or find_own_bundle()
    if not path:
        pytest.exit("No bundle: give --bundle name-edge.zip.", returncode=USAGE)
    try:
        return open_bundle(path)
    except EdgeError as error:
        pytest.exit(str(error), returncode=error.code)


@pytest.fixture(scope="session")
def options(pytestconfig: Any) -> dict[str, Any]:
    """Provider, threads, precision, and how TensorRT builds its engine."""
    given = {key: pytestconfig.getoption(key) for key in ("provider", "threads", "precision")}
    tensorrt = TensorRT(pytestconfig.getoption("fp16"), pytestconfig.getoption("cache"))
    try:
        check_fp16(tensorrt.fp16, [given["provider"]])
    except EdgeError as error:
        pytest.exit(str(error), returncode=error.code)
    return dict(given, tensorrt=tensorrt)


@pytest.fixture(scope="session")
def detector(bundle: Bundle, options: dict[str, Any]) -> Detector:
    """The bundle's model on the provider asked for."""
    try:
        return load(bundle.folder, **options)
    except EdgeError as error:
        end(error)


@pytest.fixture(scope="session")
def source(bundle: Bundle, pytestconfig: Any) -> Path:
    """The images to measure on."""
    return Path(pytestconfig.getoption("source") or bundle.folder / "parity")


def end(error: EdgeError) -> NoReturn:
    """Fail where the device computes something wrong; else nothing can be tested, and the session ends with the code
    that the command line has for it: 4 for a provider that is not active, 2 for what was asked for wrongly."""
    if error.code == PARITY:
        pytest.fail(str(error), pytrace=False)
    pytest.exit(str(error), returncode=error.code)


def fail_unless(condition: bool, sentence: str) -> None:
    """Fail with one sentence and no traceback: the reader looks for a figure, not for code."""
    if not condition:
        pytest.fail(sentence, pytrace=False)


def test_contract(bundle: Bundle, detector: Detector, record_property: Any) -> None:
    """The model is what the manifest says it is."""
    record_property("contract", detector.contract.output)
    record_property("imgsz", list(detector.contract.hw))
    record_property("classes", detector.contract.nc)
    record_property("model", detector.path.name)
    record_property("sha256", bundle.manifest["files"][detector.path.name]["sha256"])
    try:
        check_manifest(bundle, detector)
    except EdgeError as error:
        pytest.fail(str(error), pytrace=False)


def test_parity(bundle: Bundle, options: dict[str, Any], record_property: Any) -> None:
    """This device computes what was computed where the bundle was made."""
    try:
        figures = verify_bundle(bundle, **options)
    except EdgeError as error:
        end(error)
    record_property("parity", json.dumps(figures))
    fail_unless(figures["pass"], f"This device computes something else than the bundle says: {parity_text(figures)}.")


def test_provider(detector: Detector, options: dict[str, Any], record_property: Any) -> None:
    """The provider asked for computes (nearly) all of the graph."""
    active, share = detector.active, detector.coverage
    record_property("provider", active)
    record_property("ep_nodes", detector.nodes)
    provider = PROVIDERS.get(options["provider"])
    requested = provider.names[0] if provider else active  # `auto` asks for none
    fail_unless(active == requested, f"{detector.path.name} runs on {active} and not on {requested}.")
    if share is None:
        pytest.skip("this ONNX Runtime cannot tell which provider a node runs on")
    record_property("ep_coverage", round(share, 4))
    least = (provider or PROVIDERS["trt"]).coverage
    fail_unless(
        share >= least,
        f"{active} runs {share:.0%} of the nodes, less than {least:.0%}: {detector.nodes}.",
    )


def measure(
    bundle: Bundle, options: dict[str, Any], source: Path, **how: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Bench's record of the bundle's model, and its samples."""
    try:
        path = bundle.model(options["precision"], options["provider"])
    except EdgeError as error:
        end(error)
    engine = options["tensorrt"]
    how.update(threads=options["threads"], provider=options["provider"], fp16=engine.fp16, cache=engine.cache)
    try:
        records, series = sweep.collect(BenchOptions([path], source, **how))
    except EdgeError as error:
        end(error)
    return records[0], series[0]


def judge(record: dict[str, Any], problem: str | None) -> None:
    """Fail with the problem, unless other programs disturbed the measurement: then nobody knows whose fault it is."""
    reasons = [reason for reason in record["stability"]["reasons"] if reason.startswith(DISTURBED)]
    if problem and reasons:
        pytest.skip(f"inconclusive: {problem} But the device was not idle: {'; '.join(reasons)}.")
    fail_unless(not problem, problem or "")


@pytest.fixture(scope="session")
def record(bundle: Bundle, options: dict[str, Any], source: Path, pytestconfig: Any) -> dict[str, Any]:
    """One measurement for all budgets: the profile's runs, each in a process of its own."""
    profile, repeats = pytestconfig.getoption("profile"), pytestconfig.getoption("repeats")
    return measure(bundle, options, source, profile=profile, repeats=repeats)[0]


def test_budget(budget: Any, record: dict[str, Any], record_property: Any) -> None:
    """A percentile of a stage, over the frames of all runs, stays within its budget."""
    results, stage, stability = record["results"], record["results"]["stages"][budget.stage], record["stability"]
    name, ms, runs = f"{budget.stage}.{budget.percentile}", stage[budget.percentile], len(results["runs"])
    needed = samples_needed(PERCENTILES[budget.percentile])
    record_property("budget_ms", budget.ms)
    record_property(name + "_ms", ms)
    record_property(name + "_upper95_ms", stage["upper95"][budget.percentile])
    record_property(
        name + "_by_run_ms", [run["stages"][budget.stage].get(budget.percentile) for run in results["runs"]]
    )
    record_property("n", results["n"])
    record_property("verdict", stability["verdict"])
    record_property("reasons", stability["reasons"])
    if ms is None:
        pytest.skip(
            f"inconclusive: {name} cannot be told from {results['n']} frames, it needs {needed}: "
            "take a longer --profile."
        )
    ends = stage["ci95"].get(budget.percentile)
    record_property(name + "_ci95_ms", ends)
    where = (
        f"({results['n']} frames of {runs} runs, largest {stage['max']:.2f} ms, "
        f"{record['runtime']['providers_active'][0]})"
    )
    judge_budget(budget, name, ms, ends, where, record)


def judge_budget(
    budget: Any, name: str, ms: float, ends: list[float] | None, where: str, record: dict[str, Any]
) -> None:
    """Pass what is shown to be within the budget, fail what is shown to be over it: the point says neither."""
    if ends is None:
        pytest.skip(f"inconclusive: {name} is {ms:.2f} ms, of which no interval can be told {where}: measure longer.")
    low, high = ends
    if low > budget.ms:
        over = f"{name} is {ms:.2f} ms, over the budget of {budget.ms:g} ms by {ms / budget.ms - 1:.0%}"
        judge(record, f"{over}, 95 % interval {low:.2f} to {high:.2f} ms {where}.")
    elif high > budget.ms:
        pytest.skip(
            f"inconclusive: {name} is {ms:.2f} ms, and its 95 % interval of {low:.2f} to {high:.2f} ms holds the "
            f"budget of {budget.ms:g} ms {where}: measure longer or with more --repeats."
        )


def test_thermal_soak(
    bundle: Bundle, options: dict[str, Any], source: Path, pytestconfig: Any, record_property: Any
) -> None:
    """Under load for minutes, the device does not throttle and is as fast at the end as at the start."""
    seconds, max_drift = pytestconfig.getoption("soak"), pytestconfig.getoption("max_drift")
    if not seconds > 0:
        pytest.skip("no soak was asked for (--soak 0)")
    limits = Limits(3 * BLOCKS, seconds, max(seconds, 60.0), min(seconds, 60.0))
    record, series = measure(bundle, options, source, profile=limits)
    moved, stability, heat = measure_drift(series), record["stability"], record["thermal"] or {}
    if moved is None:
        pytest.fail(f"{record['results']['n']} frames in {seconds:g} s are too few to tell a drift.", pytrace=False)
    record_property("soak_s", record["results"]["duration_s"])
    record_property("soak_n", record["results"]["n"])
    record_property("soak_p50_ms", record["results"]["stages"]["total"]["p50"])
    record_property("soak_drift", round(moved.thirds, 4))
    record_property("soak_block_medians_ms", [round(level, 4) for level in moved.block_medians])
    record_property("soak_tj", [heat.get("tj_start"), heat.get("tj_max")])
    record_property("soak_verdict", stability["verdict"])
    record_property("soak_reasons", stability["reasons"])
    problems = [reason for reason in stability["reasons"] if reason.startswith("throttled")]
    if moved.thirds > max_drift:
        problems.append(f"the last third took {moved.thirds:.3f} times as long as the first, more than {max_drift:g}")
    judge(record, f"After {seconds:g} s: {'; '.join(problems)}." if problems else None)
    if stability["verdict"] == "invalid":
        pytest.skip(f"inconclusive: the measurement is not valid: {'; '.join(stability['reasons'])}.")
