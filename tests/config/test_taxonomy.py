"""`yolokd methods` tells what method= may name, from the methods themselves."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from yolokd import cli
from yolokd.config.schedule import Gain
from yolokd.config.taxonomy import describe, heads, table
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.methods.base import ANY_HEADS, DENSE_HEADS, DENSE_TEACHER, SET_HEADS, TAXONOMY_LEVELS, Method


def test_the_tree_has_every_method_under_its_level_with_all_that_it_declares():
    level, name, listed = "", "", {}
    for line in describe().splitlines():
        if not line.startswith(" "):
            level = line
        elif not line.startswith("   "):
            name = line.strip()
            listed[name] = {"level": level}
        else:
            what, text = line.split(maxsplit=1)
            listed[name][what] = text
    assert list(dict.fromkeys(entry["level"] for entry in listed.values())) == [
        level for level in TAXONOMY_LEVELS if any(cls.taxonomy_level == level for cls in METHODS.values())
    ]
    assert listed.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        entry = listed[name]
        assert (entry["level"], entry["paper"], entry["reported"]) == (cls.taxonomy_level, cls.paper, cls.reported)
        assert all(field in entry["reads"] for field in cls.needs | set(cls.taps))
        assert entry["heads"] == heads(cls)
        assert entry["default"] == ("gain 1" + (f", on {cls.taps[0]}" if cls.taps else ""))


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (ANY_HEADS, "any"),
        (DENSE_HEADS, "YOLO under YOLO"),
        (DENSE_TEACHER, "YOLO or RT-DETR under YOLO"),
        (SET_HEADS, "RT-DETR under RT-DETR"),
        (("dense/set", "set/dense", "set/set"), "YOLO under RT-DETR, RT-DETR under YOLO or RT-DETR"),
    ],
)
def test_heads_in_words(pairs, text):
    assert heads(type("Some", (Method,), {"heads": pairs})) == text


@pytest.mark.parametrize("name", METHODS)
def test_a_published_gain_has_figures_and_a_source(name):
    """Or says that there is none."""
    reported = METHODS[name].reported
    assert reported in {"none published for detection", "figures not at hand"} or re.search(
        r"[+\d]\d*\.\d.*(COCO AP|VOC mAP|DOTA AP).*\([^()]+\)$", reported
    )


@pytest.mark.parametrize("name", METHODS)
def test_one_method_shows_its_taps_and_options_with_defaults(name):
    text, cls = describe(name), METHODS[name]
    assert cls.paper in text and f"{name}.gain=1.0" in text and cls.reported in text
    assert all(f"{name}@{tap}" in text for tap in cls.taps)
    assert all(f"{name}.{f.name}={f.default!r}" in text for f in fields(cls.Options))


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_explained(name):
    lines = [line.strip() for line in describe(name).splitlines()]
    for option in [f"{name}.{f.name}=" for f in (*fields(METHODS[name].Options), *fields(Gain))]:
        (line,) = [x for x in lines if x.startswith(option)]
        assert len(line.split("=", 1)[1].split()) >= 3, line


def test_the_documents_have_the_table(request, capsys):
    """`yolokd methods --table` prints it anew."""
    assert cli.main(["methods", "--table"]) == 0
    assert capsys.readouterr().out == table() + "\n"
    assert table() in (request.config.rootpath / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_picture_of_the_taxonomy_names_every_method(request):
    picture = (request.config.rootpath / "docs/images/taxonomy.svg").read_text(encoding="utf-8")
    texts = " ".join(re.findall(r">([^<>]+)</text>", picture)).split()
    assert set(METHODS) <= set(texts), set(METHODS) - set(texts)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'cwdd', did you mean 'cwd'"):
        describe("cwdd")


def test_the_verb_prints_one_all_or_several(capsys):
    printed = []
    for names in ([], ["cwd"], ["cwd", "pkd"]):
        assert cli.main(["methods", *names]) == 0
        printed.append(capsys.readouterr().out)
    assert printed == [describe() + "\n", describe("cwd") + "\n", f"{describe('cwd')}\n\n{describe('pkd')}\n"]
