"""`yolokd study cfg=taxonomy`: every method that the pair can have from each start, and the table by level."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.cli import refusal
from helpers.studies import SCRIPTED, starts
from helpers.training import ASSETS, TINY, pico

from yolokd.config.recipes import read_arguments, shipped_recipes
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.reports.trained import study as with_report
from yolokd.studies import arms, processes, report, step_meter
from yolokd.studies import plan as planning
from yolokd.studies.plan import plan_study
from yolokd.studies.runner import study
from yolokd.studies.step_meter import WARMUP, StepMeter


@pytest.fixture
def given(scenes, teacher, tmp_path, monkeypatch):
    """Arguments of the comparison, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    model = str(ASSETS / "student.pt")
    return {"cfg": "taxonomy", "model": model, "teacher": str(teacher), "data": str(scenes), **TINY}


@pytest.fixture
def few(monkeypatch):
    """As if these were all: a method for YOLOs, one for RT-DETRs and a whole recipe."""
    monkeypatch.setattr(arms, "everything", lambda: ["pkd", "detr_logit", "bckd.full"])


def test_all_is_every_method_and_every_recipe():
    assert set(arms.everything()) == {*METHODS, *shipped_recipes()} and len(set(arms.everything())) == len(
        arms.everything()
    )


def test_the_pair_decides_which_methods_apply(given, tmp_path):
    """Nothing of all is lost: it is an arm from both starts, or left out with a reason that names what is missing."""
    plan = plan_study(None, None, 1, "study", dict(given))
    names = [arm.name for arm in plan.arms]
    assert names[:4] == ["alone", "alone-teacher", "default-own", "default-teacher"]
    kept = {name.rpartition("-")[0] for name in names[2:]}
    assert kept | plan.left_out.keys() == set(arms.everything()) and not kept & plan.left_out.keys()
    assert {"pkd", "ld", "bckd.full", "match"} <= kept
    assert "keypoints" in plan.left_out["oks"] and "a set of boxes" in plan.left_out["detrdistill.full"]
    of = {arm.name: arm for arm in plan.arms}
    assert (of["ld-teacher"].arguments["init"], of["ld-own"].arguments["init"]) == ("teacher", "own")
    assert (of["ld.full-own"].level, of["alone-teacher"].level) == ("head", "")
    assert "teacher" not in of["alone"].arguments and of["alone-teacher"].arguments["kd"] == 0
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_a_start_that_the_pair_cannot_have_is_left_out(given, few):
    plan = plan_study(None, None, 1, "study", {**given, "model": "rtdetr-l.yaml"})
    assert [arm.name for arm in plan.arms] == ["alone", "pkd-own"]
    assert plan.left_out.keys() == {"starts=teacher", "detr_logit", "bckd.full"}
    assert "none has a partner" in plan.left_out["starts=teacher"]


def test_what_concerns_the_pair_is_no_reason_to_leave_all_out(given, few, tmp_path):
    """A broken class map is refused, not listed once for every method."""
    (tmp_path / "map.yaml").write_text("no such class: neither\n")
    with pytest.raises(UsageError, match="no such class"):
        plan_study(None, None, 1, "study", {**given, "classes": "map.yaml"})


def test_nothing_that_applies_is_refused(given, monkeypatch):
    monkeypatch.setattr(arms, "everything", lambda: ["detr_logit"])
    with pytest.raises(UsageError, match=r"nothing of methods=all can be had: method detr_logit compares a set"):
        plan_study(None, None, 1, "study", dict(given))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("methods=detr_logit", "arm detr_logit-own: method detr_logit compares a set of boxes"),
        ("starts=auto", "may differ from arm to arm"),
        ("starts=own,own", "not a list of different ones"),
        ("starts=far", "own, head, neck, teacher"),
        ("init=own", "init=own and starts= both say"),
        ("methods=all,all", "an arm twice"),
        ("cwd.tauu=2", "tauu"),
        ("pkd.gain=-1", "pkd.gain"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(given, tmp_path, capsys, words, said):
    key = words.partition("=")[0]
    argv = [f"{k}={v}" for k, v in given.items() if k != key]
    assert said in refusal(capsys, tmp_path, "study", *argv, words)


def test_the_file_is_for_studies_only(capsys, tmp_path):
    with pytest.raises(UsageError, match="cfg=taxonomy has methods=, which is for `yolokd study`"):
        read_arguments("taxonomy")


def test_it_goes_on_where_it_stopped(given, few, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(planning, "check_data", lambda plan: None)
    monkeypatch.setattr(processes, "WORKER", ["-c", SCRIPTED])
    study(**given, seeds=1, out="study")
    assert "1 of methods=all cannot be had: detr_logit." in capsys.readouterr().err
    found = study(**given, seeds=2, out="study")
    names = ["alone", "alone-teacher", "bckd.full-own", "bckd.full-teacher", "pkd-own", "pkd-teacher"]
    assert starts(tmp_path / "study") == {**{f"{n}/seed{k}": 1 for n in names for k in (0, 1)}, "teacher": 1}
    assert (
        found["left_out"].keys()
        == {"detr_logit"}
        == json.loads((tmp_path / "study/compare.json").read_text())["left_out"].keys()
    )
    text = (tmp_path / "study/compare.md").read_text()
    assert "## Left out, because the pair cannot have it\n\n- `detr_logit`: method detr_logit compares a set" in text
    assert "## Difference to the student alone with init=teacher" in text


def test_the_table_by_level_has_gains_over_the_same_start_and_costs():
    """alone-teacher is 10 points above alone; pkd adds 5 to it and loses 2 from the student's own start."""
    at = {"alone": 0.2, "alone-teacher": 0.3, "pkd-own": 0.18, "pkd-teacher": 0.35}
    results = {
        (arm, seed): {
            "map50": value + 0.01 * seed,
            "map50_95": value / 2,
            "step_ms": 100.0 + 50 * (arm != "alone"),
            "memory_mb": 400.0 + 100 * (arm != "alone"),
        }
        for arm, value in at.items()
        for seed in (0, 1)
    }
    levels = {"alone": "", "alone-teacher": "", "pkd-own": "neck", "pkd-teacher": "neck"}
    from_start = {"alone": "own", "alone-teacher": "teacher", "pkd-own": "own", "pkd-teacher": "teacher"}
    found = report.summarise(levels, (0, 1), results, None, {}, from_start)
    rows = {tuple(row.split(" | ")[1:3]): row for row in report.level_table(found).splitlines()[2:]}
    alone = "|  | student alone | own | 20.5 |  |  | 10.0 |  |  | 100 ms (1.00) | 400 MB (1.00) |"
    assert rows["student alone", "own"] == alone
    assert "| 30.5 | +10.0 | +10.0 to +10.0 | 15.0 | +5.0 |" in rows["student alone", "teacher"]
    assert "| 18.5 | -2.0 |" in rows["pkd", "own"], "a loss stays in it"
    assert "| 35.5 | +5.0 |" in rows["pkd", "teacher"] and "150 ms (1.50) | 500 MB (1.25)" in rows["pkd", "teacher"]
    missing = {key: value for key, value in results.items() if key[0] != "alone-teacher"}
    text = report.level_table(report.summarise(levels, (0, 1), missing, None, {}, from_start))
    assert "| neck | pkd | teacher | 35.5 |  |  |" in text, "no gain over another start instead"


# --- What a step costs ---


def test_a_meter_measures_steps_and_not_what_is_between_them(monkeypatch):
    meter, trainer, now = StepMeter(), SimpleNamespace(device=torch.device("cpu")), [0.0]
    monkeypatch.setattr(step_meter.time, "perf_counter", lambda: now[0])
    assert meter.result() == {"step_ms": None, "memory_mb": None}
    for k in range(WARMUP + 3):
        now[0] += 0.05
        meter.begin(trainer)
        held = torch.ones(25 * (k == WARMUP + 1), 1_000_000)
        del held
        now[0] += 0.01
        meter.end(trainer)
    found = meter.result()
    assert found["step_ms"] == pytest.approx(10)
    if meter.peaks:  # Linux
        assert found["memory_mb"] > min(meter.peaks) / 1e6 + 60, "100 MB were held in one step"


@pytest.mark.slow
def test_the_comparison_for_real(given, monkeypatch, tmp_path):
    """One command on a very small set: trains, leaves out, tells gains and costs, and does nothing twice."""
    monkeypatch.setattr(arms, "everything", lambda: ["pkd", "detr_logit"])
    small = {**given, "model": pico("yolo11"), "epochs": 2, "batch": 6}
    found = with_report(**small, seeds=1, out="study", threads=1)
    assert not found["failed"] and found["missing"] == 0 and found["left_out"].keys() == {"detr_logit"}
    rows = {row["arm"]: row for row in found["summary"]}
    assert rows.keys() == {"alone", "alone-teacher", "pkd-own", "pkd-teacher"}
    assert all(row["step_ms"] > 0 and row["step_ratio"] > 0 for row in rows.values())
    gains = {(c["arm"], c["reference"]) for c in found["comparisons"]}
    assert ("pkd-teacher", "alone-teacher") in gains and ("pkd-own", "alone") in gains
    made = sorted(tmp_path.glob("study/*/seed0/train/results.csv"))
    assert len(made) == 4 and (tmp_path / "study/report.html").is_file()
    before = [file.stat().st_mtime_ns for file in made]
    assert with_report(**small, seeds=1, out="study", threads=1)["summary"] == found["summary"]
    assert [file.stat().st_mtime_ns for file in made] == before
