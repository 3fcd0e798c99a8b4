"""The page: its content against its sources, safe with foreign names, readable, and never in a training's way."""

from __future__ import annotations

import base64
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from helpers import runs
from helpers.cli import contents, refusal
from helpers.training import TINY

from yolokd import cli
from yolokd.reports import make, measure, parts, subject, svg
from yolokd.reports.after import after
from yolokd.reports.explain import explain

HOSTILE = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a browser would make of a page, as far as it matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, "a tag is left open"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.rows and self.open[-1:] and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def data(tmp_path_factory, scenes) -> Path:
    """The scenes with a hostile name for a class."""
    file = tmp_path_factory.mktemp("hostile") / "data.yaml"
    content = yaml.safe_load(scenes.read_text())
    content["path"] = str(scenes.parent)
    content["names"][9] = HOSTILE
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def study(tmp_path_factory, data) -> Path:
    """A study's folder with its report, under a name that is markup."""
    folder = tmp_path_factory.mktemp("study") / "<b>study&"
    rows = runs.table([0.1 + 0.02 * i for i in range(12)], train__logit_loss=[9.0] * 12)
    runs.study(folder, data, [0.05, 0.07, 0.06], rows)
    assert after(folder, shlex.join(["yolokd", "study", f"out={folder}"])) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(study) -> Page:
    return Page((study / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kept(study) -> dict:
    return json.loads((study / "report-data.json").read_text())


def check_page(page: Page, text: str) -> None:
    """One file that loads nothing, runs nothing and can be read in every way."""
    assert not page.of("script") and not page.of("link") and not page.of("iframe") and not page.of("form")
    assert not [k for _, attributes in page.tags for k in attributes if k.startswith("on")]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"].startswith("#") and a["href"][1:] in ids for a in page.of("a"))
    for image in page.of("img"):
        kind, _, code = image["src"].partition(",")
        assert kind == "data:image/jpeg;base64" and image["alt"]
        assert cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_COLOR) is not None
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.of("html")[0]["lang"] == "en" and len(page.of("h1")) == 1
    assert any(m.get("name") == "viewport" for m in page.of("meta"))
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert ElementTree.fromstring(drawing).get("aria-label")
    assert all(d.get("tabindex") == "0" and d.get("aria-label") for d in page.of("div"))


def test_a_study_is_one_page_that_loads_nothing(study, page):
    check_page(page, (study / "report.html").read_text(encoding="utf-8"))
    for title in ("In words", "Gain", "Predictions side by side", "Where they look", "Curves"):
        assert title in page.text
    assert "could not be made" not in page.text and "Not measured: " not in page.text
    assert len(page.of("img")) == 4 * 4 + 2 * 3 * 3, "truth and three models; levels of two images for three models"


def test_foreign_names_are_text(study, page):
    text = (study / "report.html").read_text(encoding="utf-8")
    assert HOSTILE in page.text and "<script" not in text and "<b>" not in text
    assert "<b>study&" in page.text


def test_the_gain_is_that_of_the_tables(study, page):
    for c in json.loads((study / "compare.json").read_text())["comparisons"]:
        low, high = (f"{100 * end:+.1f}" for end in c["ci95"])
        metric = {"map50": "mAP50", "map50_95": "mAP50-95"}[c["metric"]]
        row = ["default", metric, "3", f"{100 * c['mean']:+.1f}", f"{low} to {high}", c["verdict"]]
        assert row in page.rows


def test_scores_are_those_that_were_measured(page, kept):
    assert [m["role"] for m in kept["models"]] == ["teacher"] + ["student alone", "distilled"] * 3
    assert kept["images"] == {"scored": 8, "of": 8, "imgsz": 64} and kept["training"]["images"] == 24
    teacher, alone, best = kept["models"][:3]
    assert best["map50"] == teacher["map50"] > alone["map50"], "the arm's model is the teacher"
    gain = 100 * (best["sizes"]["small"]["map50"] - alone["sizes"]["small"]["map50"])
    row = next(r for r in page.rows if r[0].startswith("small"))
    assert row[1] == str(best["sizes"]["small"]["objects"])
    assert row[2:5] == [f"{100 * m['sizes']['small']['map50']:.1f}" for m in (teacher, alone, best)]
    assert row[5] == f"{gain:+.1f} [{gain:+.1f}, {gain:+.1f}]", "all seeds have the same models"
    assert [HOSTILE, str(teacher["classes"]["9"]["objects"])] in [r[:2] for r in page.rows]


def test_what_it_was_made_with_is_told(study, page, kept):
    import torch

    assert f"yolokd study 'out={study}'" == kept["command"] and kept["command"] in page.text
    assert ["torch", torch.__version__] in page.rows and ["method logit", "gain=3.0"] in page.rows
    assert ["start", "solved from the teacher's"] in page.rows


def test_made_again_it_keeps_the_command(study, kept, tmp_path, capsys):
    assert cli.main(["report", str(study), f"out={tmp_path / 'again.html'}"]) == 0
    assert capsys.readouterr().out.endswith(f"Report: {tmp_path / 'again.html'}\n")
    again = json.loads((study / "report-data.json").read_text())
    assert again == kept and kept["command"] in Page((tmp_path / "again.html").read_text()).text


def test_a_study_explained(study, kept, capsys):
    assert cli.main(["explain", str(study)]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(
        "Distilling helped: with default mAP50-95 changed by +6.0 points over the student alone (95 %"
    )
    assert "interval +3.5 to +8.5, 3 seeds)" in said
    assert "On 8 validation images, in points of AP50, " in said
    assert "The teacher was not the limit: the teacher has 50.0 mAP50-95 and the student alone 20.0." in said
    assert "The term logit dominated: it made up 75% of the loss" in said and "a lower `logit.gain=`" in said
    assert "in the last epoch of 12 mAP50-95 still rose by 2.0 points" in said and "(`epochs=`)" in said
    paragraph = Page((study / "report.html").read_text()).text
    assert "".join(said.replace("`", "").split()) in "".join(paragraph.split()), (
        "what is code in it has a tag of its own"
    )


# --- one run, a demo, a measurement ---


@pytest.fixture(scope="module")
def demo(tmp_path_factory, scenes) -> Path:
    folder = runs.demo(tmp_path_factory.mktemp("demo") / "demo", scenes)
    assert after(folder) is not None
    return folder


def test_a_demo_has_front_and_latency(demo):
    text = (demo / "report.html").read_text()
    page = Page(text)
    check_page(page, text)
    assert "could not be made" not in page.text
    rows = {row[0]: row for row in page.rows if len(row) == 8}
    assert [rows[n][-1] for n in ("teacher", "student alone", "student distilled")] == ["yes", "", "yes"]
    assert [
        "a.onnx",
        "2.20",
        "2.00 [1.80, 2.20]",
        "3.00",
        "4.00 [1.80, 2.20]"[:4] + " [3.60, 4.40]",
        "8.00",
    ] in page.rows
    said = explain(demo)
    assert (
        "distilling helped: +20.0 points of mAP50 and +10.0 of mAP50-95" in said and "interval was not measured" in said
    )
    assert "cannot be told from 2 epochs" in said


def test_a_run_has_no_gain(tmp_path, scenes, monkeypatch):
    folder = runs.run(tmp_path / "run", runs.TEACHER, scenes, runs.table([0.3] * 12, train__logit_loss=[0.1] * 12))
    monkeypatch.setattr(measure, "FEWEST", 2)
    said = explain(folder)
    assert "not measured: this is one run" in said and f"`yolokd report {folder}` measures it" in said
    assert cli.main(["report", str(folder)]) == 0
    page = Page((folder / "report.html").read_text())
    assert "gain of distilled" not in page.text and "student alone" not in {cell for row in page.rows for cell in row}
    assert "The exact command: not recorded." in page.text
    assert "The teacher is no better" in explain(folder), "the student is the teacher here"


def test_a_measurement(tmp_path):
    file = runs.bench(tmp_path / "bench", names=("a.onnx", HOSTILE))
    assert cli.main(["report", str(file)]) == 0
    text = (tmp_path / "bench" / "report.html").read_text()
    page = Page(text)
    check_page(page, text)
    assert HOSTILE in page.text and text.count("<svg") == 2
    assert cli.main(["explain", str(tmp_path / "bench")]) == 2
    (tmp_path / "bench" / "samples.npz").unlink()
    assert after(file) is not None
    assert "no raw samples beside it" in (tmp_path / "bench" / "report.html").read_text()


# --- what goes wrong ---


def test_a_part_that_cannot_be_made_says_why(tmp_path, scenes):
    """The data has moved and the checkpoint is damaged: curves and arguments are there all the same."""
    folder = runs.run(tmp_path / "run", runs.STUDENT, scenes, runs.table([0.1, 0.2], train__logit_loss=[1.0, 1.0]))
    (folder / "weights" / "best.pt").write_bytes(b"torn")
    arguments = yaml.safe_load((folder / "args.yaml").read_text())
    (folder / "args.yaml").write_text(yaml.safe_dump({**arguments, "data": str(tmp_path / "gone.yaml")}))
    assert after(folder) == folder / "report.html"
    page = Page((folder / "report.html").read_text())
    assert "Not measured: scores on validation images: " in page.text and "gone.yaml" in page.text
    assert "mAP50-95 on the validation images by epoch" in page.text


def test_the_other_parts_do_not_suffer():
    def make() -> list:
        raise OSError("disk full <b>")

    made = [parts.section("bad", "Bad", make), parts.section("good", "Good", lambda: [parts.Text("fine")])]
    page = Page(parts.render("a", "b", made))
    assert "could not be made (disk full <b>)" in page.text and "fine" in page.text


def test_a_report_that_fails_is_one_warning(tmp_path, scenes, monkeypatch):
    from ultralytics.utils import LOGGER

    folder = runs.run(tmp_path / "run", runs.STUDENT, scenes, runs.table([0.1, 0.2]))
    told = []
    monkeypatch.setattr(LOGGER, "warning", told.append)
    for error in (OSError("disk full\x1b[2J"), KeyboardInterrupt(), MemoryError()):
        monkeypatch.setattr(make, "make", lambda *_, e=error: (_ for _ in ()).throw(e))
        assert after(folder, "yolokd train") is None
    assert after(tmp_path / "nothing") is None
    assert len(told) == 4 and all("report was not made (" in t and "\n" not in t and "\x1b" not in t for t in told)
    assert "disk full" in told[0] and "stopped" in told[1] and "MemoryError" in told[2] and "not exist" in told[3]


@pytest.mark.parametrize("verb", ["report", "explain"])
@pytest.mark.parametrize("content", [None, "{", "[]", '{"arms": 1}', "compare"])
def test_what_is_no_run_is_refused(verb, content, tmp_path, capsys):
    if content == "compare":
        keys = ("arguments", "arms", "seeds", "summary", "comparisons", "runs")
        content = json.dumps(dict.fromkeys(keys, 7))
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    refusal(capsys, tmp_path, verb, tmp_path)


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["no/such/folder"], ["FILE"], ["RUN", "out=page.txt"], ["RUN", "out=no/x.html"]]
)
def test_bad_words_are_refused(words, tmp_path, scenes, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    runs.write_rows(tmp_path, runs.table([0.1]))
    refusal(capsys, tmp_path, "report", *(str(tmp_path) if w == "RUN" else w for w in words))


# --- the style ---


def luminance(colour: str) -> float:
    """WCAG 2's, of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_in_light_and_dark():
    """4.5 and more, of text and curves on each ground that they stand on."""
    style = (parts.TEMPLATES / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))
        front = ["ink", "muted", "accent", *(f"c{i}" for i in range(svg.COLOURS))]
        assert {*front, "page", "panel", "edge"} == colours.keys()
        for ground in ("page", "panel"):
            for name in front:
                high, low = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)
    assert "prefers-color-scheme: dark" in style and ":focus-visible" in style


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.001, 0.0012), (-3, 1e6), (5, 5), (0, 0)])
def test_ticks_are_round_and_inside(low, high):
    ends = svg.widened(low, high)
    found = svg.ticks(*ends)
    assert 2 <= len(found) <= 6 and all(ends[0] - 1e-9 <= t <= ends[1] * (1 + 1e-9) + 1e-9 for t in found)


def test_epochs_are_whole_and_curves_are_told_apart_without_colour():
    drawn = svg.curves("x", [svg.Line("a", [(1, 1), (2, 2)])], "epoch", "loss")
    across = [t.text for t in ElementTree.fromstring(drawn).iter("text") if t.get("y") == f"{svg.HEIGHT - 26:.1f}"]
    assert across == ["1", "2"]
    style = (parts.TEMPLATES / "report.css").read_text()
    assert all(f".line.c{i} {{ stroke-dasharray" in style and f".key.c{i}" in style for i in (1, 2, 3))


def test_drawings_escape_and_leave_out_what_is_no_number():
    drawn = svg.curves(HOSTILE, [svg.Line(HOSTILE, [(0, 1), (1, float("nan")), (2, 3)])], "x", HOSTILE)
    tree = ElementTree.fromstring(drawn)
    assert tree.get("aria-label") == HOSTILE and "script" not in {node.tag for node in tree.iter()}
    assert len(tree.find("polyline").get("points").split()) == 2
    with pytest.raises(ValueError, match="no finite number"):
        svg.curves("x", [svg.Line("a", [(0, float("inf"))])], "x", "y")


# --- with a training ---


@pytest.mark.slow
def test_a_training_leaves_its_report(scenes, teacher, tmp_path, capsys):
    words = [f"{k}={v}" for k, v in TINY.items()]
    words += [f"model={runs.STUDENT}", f"teacher={teacher}", f"data={scenes}", f"project={tmp_path}", "name=run"]
    assert cli.main(["train", *words]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    page = Page(text)
    check_page(page, text)
    assert "could not be made" not in page.text and "Not measured: " not in page.text
    found = subject.find(tmp_path / "run")
    assert found.runs[0].terms and found.teachers == (str(teacher),)
    assert all(term.removeprefix("train/") in page.text for term in found.runs[0].terms)
    assert found.runs[0].task_losses == ["train/box_loss", "train/cls_loss", "train/dfl_loss"]
    before = contents(tmp_path)
    assert cli.main(["explain", str(tmp_path / "run")]) == 0 and contents(tmp_path) == before
    assert "2 epochs with a score" in capsys.readouterr().out
