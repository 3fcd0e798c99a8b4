"""`yolokd methods` tells what method= may name, from the methods themselves."""

from __future__ import annotations

from dataclasses import fields

import pytest

from yolokd import cli
from yolokd.errors import UsageError
from yolokd.gains import Gain
from yolokd.methods import METHODS
from yolokd.verbs.methods import LEVELS, describe, table


def test_every_method_is_listed_under_its_level_with_its_paper():
    lines = describe().splitlines()
    level, listed = "", {}
    for line in lines:
        if line in LEVELS:
            level = line
        else:
            name, paper = line.split(maxsplit=1)
            listed[name] = (level, paper)
    assert listed == {name: (cls.level, cls.paper) for name, cls in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_one_method_shows_its_taps_and_options_with_defaults(name):
    text, cls = describe(name), METHODS[name]
    assert cls.paper in text and f"{name}.gain=1.0" in text
    assert all(f"{name}@{tap}" in text for tap in cls.taps)
    assert all(f"{name}.{f.name}={f.default!r}" in text for f in fields(cls.Options))


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_explained(name):
    lines = [line.strip() for line in describe(name).splitlines()]
    for option in [f"{name}.{f.name}=" for f in (*fields(METHODS[name].Options), *fields(Gain))]:
        (line,) = [x for x in lines if x.startswith(option)]
        assert len(line.split("=", 1)[1].split()) >= 3, line


def test_the_readme_has_the_table(request):
    """`python -m yolokd.verbs.methods` prints it anew."""
    assert table() in (request.config.rootpath / "README.md").read_text(encoding="utf-8")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'cwdd', did you mean 'cwd'"):
        describe("cwdd")


def test_the_verb_prints_one_all_or_several(capsys):
    printed = []
    for names in ([], ["cwd"], ["cwd", "pkd"]):
        assert cli.main(["methods", *names]) == 0
        printed.append(capsys.readouterr().out)
    assert printed == [describe() + "\n", describe("cwd") + "\n", f"{describe('cwd')}\n\n{describe('pkd')}\n"]
