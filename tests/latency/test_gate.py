"""`yolokd compare base.json new.json`: exit codes, intervals against known numbers, what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.cli import contents, refusal
from helpers.reports import record, write

from yolokd import cli
from yolokd.errors import UsageError
from yolokd.latency.gate import combine_means, compare, ratio, read_metrics, read_share

RUNS = (9.9, 10.0, 10.1, 10.0, 9.95)  # ms, p50 of five runs


def times(factor: float) -> tuple[float, ...]:
    return tuple(factor * run for run in RUNS)


@pytest.fixture
def code(tmp_path, capsys):
    """Function: two records and options -> exit code and what was said."""

    def run(old, new, *options):
        argv = [write(tmp_path / "base.json", old), write(tmp_path / "new.json", new), *options]
        capsys.readouterr()
        found = cli.main(["compare", *map(str, argv)])
        said = capsys.readouterr()
        assert (said.err == "") == (found == 0) and said.err.count("\n") <= 1
        return found, said.out + said.err

    return run


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [(1.0, 0), (0.8, 0), (1.02, 0), (1.2, 1), (2.0, 1), (1.05, 3), (1.045, 3), (1.055, 3)],
)
def test_the_gate_over_runs(code, factor, wanted):
    """Runs spread by 1 %, 5 % is allowed: only ratios near 1.05 cannot be told."""
    found, said = code(record(10, RUNS), record(10 * factor, times(factor)), "--max-regress", "5%")
    assert found == wanted, said


@pytest.mark.parametrize(("spread", "wanted"), [(0.01, 0), (0.2, 3)])
def test_the_gate_within_one_run_each(code, spread, wanted):
    found, said = code(record(10, spread=spread), record(10.1, spread=spread))
    assert found == wanted, said
    assert "| frames |" in said


def test_one_regression_among_metrics_decides(code):
    new = record(10, RUNS)
    for part in (new["results"], *new["results"]["runs"]):
        part["stages"]["total"]["p99"] *= 1.5
    found, said = code(record(10, RUNS), new)
    assert found == 1
    assert "regression, student.onnx (cpu, 160x160, threads 1): total.p99: at least 4" in said
    assert code(record(10, RUNS), new, "--metric=total.p50")[0] == 0


def test_no_interval_no_verdict(code):
    found, said = code(record(10), record(10))
    assert found == 3 and "measure with profile=standard repeats=5" in said
    assert code(record(10, RUNS[:2]), record(10, RUNS[:2]))[0] == 3, "two runs are too few"


def test_a_percentile_that_is_not_there_is_named_with_its_reason(code):
    new = record(10, RUNS, results__stages__total__p99=None)
    new["unavailable"]["results.stages.*.p99"] = "100 samples, 299 needed"
    found, said = code(record(10, RUNS), new)
    assert found == 3 and "new has no total.p99: 100 samples, 299 needed" in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device__cpu_model": "CPU Y"}, "device.cpu_model was CPU X and is CPU Y"),
        ({"device__cores_online": 4}, "device.cores_online"),
        ({"model__imgsz": [320, 320]}, "model.imgsz"),
        ({"protocol__images__sha": "cd"}, "protocol.images.sha"),
        ({"runtime__intra_threads": 2}, "runtime.intra_threads"),
        ({"protocol__streams": 2}, "protocol.streams"),
        ({"clocks__jetson_clocks": False}, "clocks.jetson_clocks was True and is False"),
        ({"runtime__trt__fp16": True}, "runtime.trt.fp16 was False and is True"),
        ({"stability__verdict": "invalid", "stability__reasons": ["throttled: hot"]}, "throttled: hot"),
        ({"stability__verdict": None}, "not judged"),
    ],
)
def test_what_cannot_be_compared_is_inconclusive(code, change, named):
    """However much slower the figures are, and on either side."""
    usual = {"clocks__jetson_clocks": True, "runtime__trt__fp16": False}
    found, said = code(record(10, RUNS, **usual), record(30, times(3), **{**usual, **change}))
    assert found == 3 and named in said
    assert code(record(10, RUNS, **{**usual, **change}), record(10, RUNS, **usual))[0] == 3


def test_what_one_report_does_not_know_is_no_difference(code):
    assert code(record(10, RUNS), record(10, RUNS, device__cpu_model=None))[0] == 0


def test_warnings_are_told_and_do_not_decide(code):
    new = record(10, RUNS, stability__verdict="valid_with_warnings", stability__reasons=["dvfs_active"])
    found, said = code(record(10, RUNS), new)
    assert found == 0 and "- new: dvfs_active" in said


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"runtime__provider_requested": "trt"}, 4),
        ({"runtime__fallback": True}, 4),
        ({"runtime__provider_requested": "auto"}, 0),
        ({"parity__pass": False}, 5),
        ({"parity": None}, 0),
        ({"parity__pass": False, "runtime__fallback": True}, 4),
        ({"parity__pass": False, "stability__verdict": "invalid"}, 5),
    ],
)
def test_provider_and_parity(code, change, wanted):
    assert code(record(10, RUNS), record(10, RUNS, **change))[0] == wanted


def test_a_gpu_that_ran_half_the_graph(code):
    gpu = {"runtime__provider_requested": "trt", "runtime__providers_active": ["TensorrtExecutionProvider"]}
    assert code(record(10, RUNS, **gpu), record(10, RUNS, **gpu, runtime__ep_coverage=0.97))[0] == 0
    found, said = code(record(10, RUNS, **gpu), record(10, RUNS, **gpu, runtime__ep_coverage=0.5))
    assert found == 4 and "only 50% of the graph ran on TensorrtExecutionProvider" in said


@pytest.mark.parametrize(("new", "wanted"), [(0.211, 0), (0.206, 0), (0.2059, 1), (0.3, 0), (None, 3)])
def test_accuracy(code, new, wanted):
    found, said = code(record(10, RUNS), record(10, RUNS, accuracy__map50_95=new), "--min-map-delta", "-0.5")
    assert found == wanted, said


def test_accuracy_on_other_images_is_inconclusive(code):
    new = record(10, RUNS, accuracy__n_images=100, accuracy__map50_95=0.1)
    assert code(record(10, RUNS), new, "--min-map-delta=-0.5")[0] == 3
    assert code(record(10, RUNS), new)[0] == 0, "not asked for"


# --- Intervals ---


def test_paired_runs_cancel_what_both_met():
    """Runs differ by a factor of 2, the ratio is 1.1 in each: paired it is certain, unpaired it is not."""
    load = (10.0, 14.0, 20.0, 12.0, 16.0)
    old, new = record(14, load), record(15.4, tuple(1.1 * v for v in load))
    middle, low, high, how = ratio(old, new, "total.p50", paired=True)
    assert (middle, low, high) == (pytest.approx(1.1),) * 3 and how == "5 paired runs"
    middle, low, high, how = ratio(old, new, "total.p50", paired=False)
    assert middle == pytest.approx(1.1) and low < 0.9 and high > 1.3 and how == "5 and 5 runs"


def test_three_runs_are_judged_by_what_three_can_tell():
    """Their extremes, 4.5 to 5.6 %, would be a certain regression above 4 %; three runs leave 3.7 to 6.4 % open."""
    old, new = record(10, (10.0, 10.0, 10.0)), record(10.5, (10.45, 10.5, 10.56))
    middle, low, high, how = ratio(old, new, "total.p50", paired=True)
    assert middle == pytest.approx(1.0503, abs=1e-4) and how == "3 paired runs"
    assert (low, high) == (pytest.approx(1.0367, abs=1e-4), pytest.approx(1.0641, abs=1e-4))


def test_a_folder_that_cannot_be_written_is_found_before_judging(tmp_path, capsys, monkeypatch):
    both = [write(tmp_path / f"{n}.json", record(10, RUNS)) for n in ("a", "b")]
    monkeypatch.setattr("os.access", lambda *a, **k: False)  # root may write anywhere
    said = refusal(capsys, tmp_path, "compare", *map(str, both), "--junit", str(tmp_path / "gate.xml"))
    assert "gate.xml cannot be written" in said


def test_intervals_within_runs_combine_as_errors_do():
    """Equal, symmetric intervals on the log scale grow by the root of two."""
    s = 1.02
    middle, low, high = combine_means(10, (10 / s, 10 * s), 11, (11 / s, 11 * s))
    assert middle == pytest.approx(1.1)
    assert (math.log(high / middle), math.log(middle / low)) == (pytest.approx(math.sqrt(2) * math.log(s)),) * 2
    assert combine_means(10, (10, 10), 11, (10.5, 12)) == pytest.approx((1.1, 1.05, 1.2)), "a base without error"
    assert combine_means(10, (10, 12), 11, (11, 11)) == pytest.approx((1.1, 11 / 12, 1.1)), (
        "a slow base makes a small ratio"
    )


def test_one_report_of_interleaved_models(tmp_path):
    load = (10.0, 14.0, 20.0, 12.0, 16.0)
    old, new = (record(14 * f, tuple(f * v for v in load), protocol__interleaved=True) for f in (1, 1.1))
    new["model"]["file"] = "new.onnx"
    both = write(tmp_path / "ab.json", old, new)
    outcome = compare(both)
    assert outcome["code"] == 1 and outcome["pairs"][0]["metrics"][0]["interval"] == "5 paired runs"
    assert compare(both, max_regress="20%")["code"] == 0
    apart = write(tmp_path / "apart.json", record(14, load), record(14, load))
    with pytest.raises(UsageError, match="interleaved"):
        compare(apart)


def test_sweeps_are_matched_by_settings(tmp_path):
    def sweep(name, *threads, slow=1.0):
        cells = [record(10 * slow / t, times(slow / t), runtime__intra_threads=t, model__file=name) for t in threads]
        return write(tmp_path / f"{name}.json", *cells)

    outcome = compare(sweep("old", 1, 2), sweep("new", 2, 1))
    assert outcome["code"] == 0 and len(outcome["pairs"]) == 2
    missing = compare(sweep("old", 1, 2), sweep("new2", 1))
    assert missing["code"] == 3 and "the new report has no record of it" in missing["pairs"][1]["problems"][0]["why"]
    with pytest.raises(UsageError, match="measured twice"):
        compare(sweep("old", 1, 2), sweep("new3", 1, 1))


# --- What is written ---


def test_outputs(code, tmp_path):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "md", "junit")}
    options = [f"--{kind}={path}" for kind, path in files.items()]
    assert code(record(10, RUNS), record(12, times(1.2)), "--metric=total.p50,infer.p50", *options)[0] == 1
    outcome = json.loads(files["json"].read_text())
    assert (outcome["schema"], outcome["verdict"], outcome["code"]) == ("yolokd.compare/1", "regression", 1)
    assert "| total.p50 | 10.000 ms | 12.000 ms | 1.200 |" in files["md"].read_text()
    suite = ElementTree.fromstring(files["junit"].read_text())
    assert {k: suite.get(k) for k in ("tests", "failures", "errors")} == {"tests": "2", "failures": "2", "errors": "0"}
    assert [c.get("name") for c in suite.iter("testcase")] == ["total.p50", "infer.p50"]
    assert suite.find("testcase/failure").get("type") == "regression"


def test_junit_of_reports_that_cannot_be_compared_passes_nothing(code, tmp_path):
    old, new = record(10, RUNS), record(10, RUNS, device__cpu_model="CPU <&> Y")
    assert code(old, new, f"--junit={tmp_path / 'j.xml'}")[0] == 3
    suite = ElementTree.fromstring((tmp_path / "j.xml").read_text())
    assert suite.get("errors") == suite.get("tests") == "3", "the difference and both figures"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "damaged or not a JSON"),
        ('[{"schema": "yolokd.latency/1"', "damaged or not a JSON"),
        ("[" * 100_000, "damaged or not a JSON"),
        ("[]", "does not hold a record"),
        ("[1]", "of schema None"),
        ('{"schema": "yolokd.latency/2"}', "of schema 'yolokd.latency/2'"),
        ('{"schema": "yolokd.latency/1"}', "damaged: model is null"),
        (json.dumps(record(-1)), "not a time in ms"),
        (json.dumps(record(10, results__stages__total="fast")), "results.stages.total is"),
        (json.dumps(record(10, results__stages__total__p50="fast")), "results.total.p50 is 'fast'"),
        (json.dumps(record(10, results__runs=[{}])), "results.runs"),
        (json.dumps(record(float("nan"))), "NaN is not a number"),
        (json.dumps(record(10, model__bytes=10**400)), "is not a number"),  # this and what follows: found by fuzzing
        (json.dumps(record(10, accuracy__map50_95=1e308)), "accuracy.map50_95 is 1e+308, not a fraction"),
        (json.dumps(record(1e-320)), "not a time in ms"),
    ],
)
@pytest.mark.parametrize("side", ["base", "new"])
def test_a_bad_report_is_refused(tmp_path, capsys, content, named, side):
    good, bad = write(tmp_path / "good.json", record(10, RUNS)), tmp_path / "bad.json"
    bad.write_text(content)
    files = (bad, good) if side == "base" else (good, bad)
    said = refusal(capsys, tmp_path, "compare", *files, f"--md={tmp_path / 'out.md'}")
    assert named in said and "bad.json" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-regress", "fast"], "max_regress=fast"),
        (["--max-regress", "-1%"], "max_regress=-1%"),
        (["--max-regress"], "without a value"),
        (["--metric", "total.p42"], "total.p42"),
        (["--metric=total.p50,total.p50"], "twice"),
        (["--min-map-delta", "low"], "min_map_delta=low"),
        (["--max-regres=5%"], "did you mean 'max_regress'"),
        (["--junit=new.json"], "junit=new.json exists already"),
        (["--junit=gone/j.xml"], "cannot write to the folder"),
        (["--junit=a.xml", "--md=a.xml"], "named twice"),
        (["third.json"], "was given 3"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    write(Path("base.json"), record(10, RUNS)), write(Path("new.json"), record(10, RUNS))
    assert named in refusal(capsys, tmp_path, "compare", "base.json", "new.json", *options)


def test_a_missing_report_and_none_at_all(tmp_path, capsys):
    assert "gone.json does not exist" in refusal(capsys, tmp_path, "compare", tmp_path / "gone.json", tmp_path / "b")
    assert "takes two reports" in refusal(capsys, tmp_path, "compare")


def test_reports_stay_as_they_are(code, tmp_path):
    write(tmp_path / "base.json", record(10, RUNS)), write(tmp_path / "new.json", record(10, RUNS))
    before = contents(tmp_path)
    code(record(10, RUNS), record(10, RUNS))
    assert contents(tmp_path) == before


def test_options_are_read_as_people_write_them():
    assert read_share("5%") == read_share(0.05) == read_share("0.05") == 0.05
    assert read_share("0%") == read_share(0) == 0
    assert read_metrics("total.p50, infer.p99") == ["total.p50", "infer.p99"]
