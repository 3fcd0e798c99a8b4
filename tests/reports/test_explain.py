"""The paragraph: each verdict and each limit from figures that show it, and nothing said that was not measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import runs

from yolokd.reports.explain import explain

FLAT = runs.table([0.3] * 12, train__logit_loss=[1.0] * 12)
RISING = [0.1 + 0.02 * i for i in range(12)]
FALLING = [3.0 - 0.1 * i for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes) -> Path:
    """A study of three seeds whose figures the tests change; nothing was scored for a report."""
    return runs.study(tmp_path_factory.mktemp("explain") / "study", scenes, [0.05, 0.07, 0.06], FLAT)


def said(folder: Path, rows: list[dict[str, float]] = FLAT, **changes) -> str:
    """The paragraph with other epochs of the first seed, and other figures in compare.json for the while."""
    file = folder / "compare.json"
    before = file.read_text()
    content = json.loads(before)
    for row in content["comparisons"]:
        row |= {k: v for k, v in changes.items() if k in row}
    content |= {k: v for k, v in changes.items() if k in content}
    runs.write_rows(folder / "default" / "seed0" / "train", rows)
    file.write_text(json.dumps(content))
    try:
        return explain(folder)
    finally:
        file.write_text(before)


def test_it_helped_and_nothing_else_was_measured(folder):
    text = said(folder)
    assert text.startswith("Distilling helped: with default mAP50-95 changed by +6.0 points")
    assert "For which classes and sizes was not measured (`yolokd report" in text
    assert "too short" not in text and "too little" not in text and "dominated" not in text
    figures = set(re.findall(r"[+-]?\d+\.\d+", text.replace(str(folder), "")))
    assert figures == {"+6.0", "+3.5", "+8.5", "50.0", "20.0"}, "all are in compare.json"


@pytest.mark.parametrize(
    ("changes", "words", "advice"),
    [
        ({"verdict": "worse", "mean": -0.05, "ci95": [-0.06, -0.04]}, "made the student worse", "`init=own`"),
        ({"verdict": "no evidence of a difference", "ci95": [-0.01, 0.13]}, "no evidence that", "more seeds"),
        ({"verdict": "one seed: no conclusion", "ci95": [None, None], "n": 1, "seeds": [0]}, "no conclusion", "seeds"),
    ],
)  # fmt: skip
def test_other_verdicts(folder, changes, words, advice):
    text = said(folder, **changes)
    assert words in text and advice in text.partition("To try next")[2] and "Distilling helped" not in text
    assert ("no interval with one seed, 1 seed)" in text) == (changes["ci95"] == [None, None])


@pytest.mark.parametrize(("teacher", "words"), [(0.2, "no better"), (0.21, "hardly better"), (0.3, "not the limit")])
def test_the_teacher(folder, teacher, words):
    text = said(folder, teacher={"map50": 0.5, "map50_95": teacher})
    assert f"{words}: the teacher has {100 * teacher:.1f} mAP50-95 and the student alone 20.0" in text
    assert ("a better teacher" in text) == (teacher < 0.22)


def test_a_term_that_dominated(folder):
    text = said(folder, runs.table([0.3] * 12, train__logit_loss=[9.0] * 12))
    assert "The term logit dominated: it made up 75% of the loss" in text and "a lower `logit.gain=`" in text


def test_too_short(folder):
    assert "in the last epoch of 12 mAP50-95 still rose by 2.0 points" in said(folder, runs.table(RISING))
    assert "cannot be told from 3 epochs" in said(folder, runs.table(RISING[:3]))


def test_too_little_data(folder):
    val = [*FALLING[:6], *(v + 0.5 for v in FALLING[:6][::-1])]
    text = said(folder, runs.table([0.3] * 12, train__box_loss=FALLING, val__box_loss=val))
    assert "too little data: after epoch 6 the validation loss rose by 29% while the training loss fell on." in text
    assert "more images" in text and "training images" not in text, "their number was not measured"
    rising = runs.table([0.3] * 12, train__box_loss=FALLING[::-1], val__box_loss=val)
    assert "too little data:" not in said(folder, rising), "the training itself goes wrong"


def test_a_run_without_a_teacher(tmp_path, scenes):
    folder = runs.run(tmp_path / "run", runs.STUDENT, scenes, runs.table([0.1] * 12), teacher=None)
    assert explain(folder).startswith("This run was not distilled")
