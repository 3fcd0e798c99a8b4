"""Rows of label files: which are wrong, and how."""

from __future__ import annotations

import pytest

from yolokd.data.labels import FAULTS, Form, faults, read_rows

DETECT, ONE = Form("detect", 2), Form("detect", None)
SEGMENT, OBB = Form("segment", 2), Form("obb", 2)
POSE = Form("pose", 2, (2, 3))
POLYGON = "1 0.1 0.1 0.5 0.1 0.5 0.5"


def found(text: str, form: Form) -> dict[str, str]:
    return faults([(i, line.split()) for i, line in enumerate(text.splitlines(), 1) if line], form)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        (DETECT, "0 0.5 0.5 1 1"),
        (DETECT, "1 0.995 0.5 1.009 0.2"),  # within Ultralytics' tolerance
        (DETECT, POLYGON),  # of which it takes the box
        (SEGMENT, POLYGON),
        (OBB, f"{POLYGON} 0.1 0.5"),
        (POSE, "0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 1"),
        (ONE, "7 0.5 0.5 0.2 0.2"),
        (Form("detect", 2, (2, 3)), "0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 1"),
    ],
)
def test_a_row_that_is_right(form, row):
    assert found(row, form) == {}


@pytest.mark.parametrize(
    ("form", "row", "kind", "said"),
    [
        (DETECT, "0 0.5 0.5 0.2", "columns", "4 columns"),
        (DETECT, "0 0.5 0.5 0.2 0.2 0.9", "columns", "6 columns"),
        (SEGMENT, "0 0.5 0.5 0.2 0.2", "columns", "5 columns"),
        (SEGMENT, f"{POLYGON} 0.3", "columns", "8 columns"),
        (OBB, POLYGON, "columns", "7 columns"),
        (POSE, "0 0.5 0.5 0.2 0.2 0.4 0.4 0.6 0.6", "columns", "9 columns"),
        (DETECT, "cup 0.5 0.5 0.2 0.2", "number", "cup"),
        (DETECT, "0 0.5 nan 0.2 0.2", "number", "nan"),
        (DETECT, "0 0.5 0.5 inf 0.2", "number", "inf"),
        (DETECT, "2 0.5 0.5 0.2 0.2", "class", "class 2"),
        (DETECT, "-1 0.5 0.5 0.2 0.2", "class", "class -1"),
        (DETECT, "0.5 0.5 0.5 0.2 0.2", "class", "class 0.5"),
        (ONE, "1.5 0.5 0.5 0.2 0.2", "class", "class 1.5"),
        (DETECT, "0 320 0.5 0.2 0.2", "range", "320"),
        (DETECT, "0 0.5 -0.2 0.2 0.2", "range", "-0.2"),
        (POSE, "0 0.5 0.5 0.2 0.2 0.4 1.4 2 0.6 0.6 1", "range", "1.4"),
        (DETECT, "0 0.5 0.5 0 0.2", "empty", "width or height 0"),
        (SEGMENT, "0 0.1 0.2 0.3 0.2 0.5 0.2", "empty", "width or height 0"),
    ],
)
def test_a_row_that_is_wrong(form, row, kind, said):
    assert found(row, form) == {kind: f"line 1: {said}"}
    assert kind in FAULTS


def test_the_first_row_of_each_kind_is_named():
    rows = "0 0.5 0.5 0.2 0.2\n\n5 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2\n6 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2"
    assert found(rows, DETECT) == {"class": "line 3: class 5", "columns": "line 4: 4 columns", "twice": "line 6"}


def test_rows_are_read_as_ultralytics_reads_them(tmp_path):
    """With a byte-order mark, blank lines and any spacing."""
    file = tmp_path / "a.txt"
    file.write_text("\ufeff0 0.5\t0.5 0.2 0.2\n\n 1  0.1 0.1 0.1 0.1 \n", encoding="utf-8")
    assert read_rows(file) == [(1, ["0", "0.5", "0.5", "0.2", "0.2"]), (3, ["1", "0.1", "0.1", "0.1", "0.1"])]
