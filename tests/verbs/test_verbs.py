"""Every verb of the table: help, unknown keys, completion, and what the documents say of it."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
import shutil
import subprocess
from importlib import import_module

import pytest
from helpers.cli import refusal
from helpers.training import ASSETS
from ultralytics.utils import DEFAULT_CFG_DICT

import yolokd.verbs
from yolokd import cli
from yolokd.config import options
from yolokd.config.recipes import shipped_recipes
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.onnx import export, formats
from yolokd.verbs import VERBS, help, load
from yolokd.verbs.completion import script, words_after
from yolokd.verbs.declaration import Verb, read_function, read_meanings
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.load.options import LoadOptions

GIVEN = {  # what must be given, so that what is refused is the unknown key
    "model": ASSETS / "student.pt", "teacher": ASSETS / "teacher.pt", "data": "my.yaml", "source": "images",
    "methods": "pkd", "base.json": "base.json", "report.json": "report.json", "report.json ...": "report.json",
    "DIR": "runs",
}  # fmt: skip


def test_the_table_has_every_module_that_declares_a_verb():
    names = [m.name for m in pkgutil.iter_modules(yolokd.verbs.__path__)]
    assert {n for n in names if hasattr(load(n), "run")} == VERBS.keys()
    assert set(VERBS.values()) == help.GROUPS.keys()


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb(name, capsys):
    """The same text in three ways; usage, each argument with its meaning, examples that name the verb."""
    verb: Verb = load(name).VERB
    printed = []
    for argv in (["help", name], [name, "--help"], [name, "model=x", "-h"]):
        assert cli.main(argv) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    text = printed[0]
    assert text.startswith(f"yolokd {name}: {verb.summary}.\n\nExample")
    assert re.search(rf"^Usage:\n  yolokd {name if name != 'help' else ''}", text, re.MULTILINE)
    assert text.index("Example") < text.index("Usage:") and "\033" not in text
    assert 1 <= len(verb.examples) <= 3 and all(f"yolokd {name}" in example for example in verb.examples)
    assert all(len(line) <= 120 for line in text.splitlines()) and not verb.summary.endswith(".")
    for option in verb.all_options():
        assert re.search(rf"^  {re.escape(option.spelling)}\s+\S", text, re.MULTILINE) and option.meaning
        assert not option.default or f"default: {option.default.split()[0]}" in " ".join(text.split())


def test_options_are_told_in_groups_and_in_colour_on_a_terminal_only(capsys, monkeypatch):
    groups = help.grouped(load("train").VERB.all_options())
    assert list(groups) == ["Required", "Options", "Stored answers", "Another student", "Data and files", "Teachers"]
    assert {o.name for o in groups["Required"]} == {"model", "teacher", "data"}
    plain = help.explain("train")
    assert re.sub(r"\033\[\d+m", "", help.coloured(plain)) == plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for no, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no)
        help.run(["train"])
        assert ("\033[36mmodel=\033[0m" in capsys.readouterr().out) == coloured


@pytest.mark.parametrize("name", VERBS)
def test_an_unknown_key_is_refused(name, capsys, tmp_path, monkeypatch):
    """In one sentence that names it, without a traceback, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    verb: Verb = load(name).VERB
    needed = [o for o in verb.all_options() if o.required or o.name in ("methods", "model")]
    given = [str(GIVEN.get(o.name, 1)) if o.bare else f"{o.name}={GIVEN.get(o.name, 1)}" for o in needed]
    cost = ["--cost"] if name == "methods" else []
    assert "no_such_key" in refusal(capsys, tmp_path, name, *cost, *given, "no_such_key=1")


@pytest.mark.parametrize(("words", "meant"), [(["nonsense"], "known are"), (["trian"], "'train'")])
def test_help_of_what_is_no_verb(words, meant, capsys, tmp_path):
    said = refusal(capsys, tmp_path, "help", *words)
    assert repr(words[0]) in said and meant in said
    assert said.removeprefix("yolokd: ") == refusal(capsys, tmp_path, *words).removeprefix("yolokd: ")
    assert meant in refusal(capsys, tmp_path, *words, "--help")


@pytest.mark.parametrize("name", [name for name in VERBS if load(name).VERB.function])
def test_options_read_from_the_source_are_those_of_the_function(name):
    """Names, order and defaults, as Python itself sees them."""
    module, _, function = load(name).VERB.function.rpartition(".")
    real = inspect.signature(getattr(import_module(module), function)).parameters.values()
    named = [p for p in real if p.kind is not p.VAR_KEYWORD]
    read = read_function(f"{module}.{function}")
    assert [o.name for o in read] == [p.name for p in named]
    kinds = {"bench": BenchOptions, "throughput": LoadOptions}
    further = {field.name for field in dataclasses.fields(kinds[function])} if function in kinds else set()
    for option, parameter in zip(read, named, strict=True):
        if option.name in further - {"model"}:
            continue  # told in words
        assert option.required == (parameter.default is parameter.empty)
        assert option.required or option.default == ("" if parameter.default is None else str(parameter.default))
    assert {*load(name).VERB.hidden} <= {o.name for o in read}


def test_meanings_from_a_docstring():
    text = """One line.

    Args:
        first: what it is, in
            two lines.
        json, md: files: new ones.
        **rest: ``others``.

    Returns:
        no: option.
    """
    assert read_meanings(inspect.cleandoc(text)) == {
        "first": "what it is, in two lines.", "json": "files: new ones.", "md": "files: new ones.", "rest": "`others`.",
    }  # fmt: skip


def test_options_in_a_dataclass_are_options_too(tmp_path, monkeypatch):
    (tmp_path / "measuring_options.py").write_text(
        "from dataclasses import dataclass, field\n"
        "@dataclass(frozen=True)\nclass Options:\n"
        "    source: str = field(metadata={'help': 'images'})\n"
        "    runs: int = field(default=5, metadata={'help': 'how often'})\n"
        "    place: str = field(default=None, metadata={'help': 'where (default here)', 'choices': ['a', 'b']})\n"
        "def measure(source, *, name=None, **options):\n"
        '    """Measure.\n\n    Args:\n        source: a folder.\n        name: its name.\n'
        '        options: How: `measuring_options.Options` says what each\n            means.\n    """\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    read = [(o.name, o.meaning, o.default) for o in read_function("measuring_options.measure")]
    assert read == [
        ("source", "a folder.", ""),
        ("name", "its name.", ""),
        ("runs", "how often", "5"),
        ("place", "where: a, b", "here"),
    ]


def test_train_and_export_tell_what_they_take():
    """These functions take **arguments, so that a signature does not name them."""
    train = {o.name for o in load("train").VERB.all_options()}
    assert train == {*options.OURS, "model", "data", "cfg", "cache", "check", "report", "NAME.option"}
    taken = {*formats.THROUGH_ONNX, *export.BAKED["nms"]}
    assert {o.name for o in load("export").VERB.options} == {"model", *taken}
    study = {o.name for o in load("study").VERB.all_options()}
    of_study = {"methods", "arms", "seeds", "out", "jobs", "threads", "devices", "engine", "starts"}
    of_study |= {"fit", "standard", "prune"}
    assert study == train - {"method"} | of_study


# --- The documents ---


def plain(text: str) -> str:
    """Markdown's code and links as plain words."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Argument -> (meaning, default) from the first table of arguments of a page or of a part of one."""
    table = re.search(r"^\| argument \|.*\n\|[-|]*\n((?:\|.*\n)*)", page, re.MULTILINE)
    found = {}
    for line in table[1].splitlines():
        names, meaning, default = [cell.strip() for cell in line.strip("|").split(" | ")]
        for name in re.findall(r"`(?:--)?([\w.-]+)(?:=\w*)?`|`([\w.]+\.json) ([\w.]+\.json)`", names):
            found |= {n.replace("-", "_"): (plain(meaning), default) for n in name if n}
    return found


PAGES = {"train": ("training.md", ""), "study": ("study.md", ""), "export": ("export-and-bundle.md", "## Export"),
         "bundle": ("export-and-bundle.md", "## Bundle"), "bench": ("bench-and-gate.md", "## Bench"),
         "throughput": ("bench-and-gate.md", "## Throughput"),
         "compare": ("bench-and-gate.md", "## Compare"), "report": ("report.md", "## Report"),
         "explain": ("report.md", "## Explain")}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_a_verb_has_its_arguments_and_defaults(name, request):
    file, part = PAGES[name]
    page = (request.config.rootpath / "docs" / file).read_text(encoding="utf-8")
    listed = rows(page[page.index(part) :])
    arguments = load(name).VERB.all_options()
    if name == "study":  # the rest is on the page of train
        arguments = [o for o in arguments if o.name not in {p.name for p in load("train").VERB.options}]
    assert {o.name for o in arguments} == listed.keys()
    for option in arguments:
        meaning, default = listed[option.name]
        if literal := re.fullmatch(r"`([^`]*)`", default):
            words = option.default.split(",")[0] if option.name == "method" else option.default
            assert words in ("", literal[1]) or float(words) == float(literal[1]), option.name
        if name == "train":
            in_help = plain(option.meaning).removeprefix("with cache=teacher: ")
            assert re.sub(r"[:,] (see below|Any pair)$", "", meaning) == in_help


def test_the_list_of_commands_in_the_documents(request):
    """The same verbs with the same words; page after page, not in the help's order."""
    index = (request.config.rootpath / "docs" / "index.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `yolokd (\w+)` \| (.*?)(?:: `[^|]*)? \|", index, re.MULTILINE))
    assert {n: plain(text) for n, text in listed.items()} == {n: load(n).VERB.summary for n in VERBS}


# --- Completion ---


def complete(line: str, breaks: str = "=") -> list[str]:
    """What bash offers for the last word of a line, where the characters `breaks` split words, as `=` does in bash."""
    words = re.findall(rf"[{breaks}]|[^ {breaks}]+" if breaks else r"\S+", line) + ([""] if line.endswith(" ") else [])
    given = " ".join(f"'{word}'" for word in words)
    test = f"""COMP_WORDBREAKS=' {breaks}'; COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_WORDS=({given})
    COMP_CWORD={len(words) - 1}; _yolokd; printf '%s\\n' "${{COMPREPLY[@]}}\""""
    done = subprocess.run(["bash", "-c", script("bash") + test], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("yolokd tra", ["train"]),
        ("yolokd ", list(VERBS)),
        ("yolokd train epo", ["epochs="]),
        ("yolokd train model=a.pt teacher.c", ["teacher.contract="]),
        ("yolokd train method=pk", ["pkd"]),
        ("yolokd train method=defau", ["default"]),
        ("yolokd train method=pkd,log", ["pkd,logit"]),
        ("yolokd study methods=pkd+log", ["pkd+logit"]),
        ("yolokd study methods=buil", ["builtin"]),
        ("yolokd train method=buil", []),
        ("yolokd bundle fp", ["fp16="]),
        ("yolokd methods cw", ["cwd"]),
        ("yolokd help stu", ["study"]),
    ],
)
def test_bash_completes(line, offered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complete(line) == offered
    word = line.split()[-1]
    whole = [word.partition("=")[0] + "=" + o for o in offered] if "=" in word else offered
    assert complete(line, breaks="") == whole, "a shell whose words do not end at ="


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.pt").touch()
    assert complete("yolokd export model=be") == ["best.pt"] and complete("yolokd plot be") == ["best.pt"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_is_one_that_it_can_read(shell):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n"], input=script(shell), check=True, text=True)


def test_completion_knows_all_arguments_methods_and_recipes():
    assert {f"{key}=" for key in DEFAULT_CFG_DICT} <= set(words_after("train"))
    assert METHODS.keys() <= set(words_after("methods"))
    for shell in ("bash", "zsh"):
        assert "@" not in script(shell).replace("[@]", "")
        assert all(f" {name} " in script(shell) for name in [*METHODS, *shipped_recipes()] if name != "fitnet")


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_completion_is_for_two_shells(words, capsys, tmp_path):
    assert "bash or zsh" in refusal(capsys, tmp_path, "completion", *words)


# --- Study and compare ---


@pytest.mark.parametrize(("verb", "folder"), [("study", None), ("compare", "runs/compare")])
def test_the_old_name_of_a_study_works_and_names_the_new_one(verb, folder, monkeypatch, capsys):
    """And goes on in the folder that it had."""
    seen = []
    monkeypatch.setattr("yolokd.studies.runner.study", lambda **given: seen.append(given))
    monkeypatch.setattr("yolokd.reports.trained.after", lambda *_: None)
    assert cli.main([verb, "methods=pkd", "seeds=2"]) == 0
    told = capsys.readouterr().err
    assert seen == [{"methods": "pkd", "seeds": 2} | ({"out": folder} if folder else {})]
    assert told.count("\n") == (verb == "compare") and ("`yolokd study methods=`" in told) == (verb == "compare")
    assert cli.main([verb, "arms=arms.yaml", "out=mine"]) == 0
    assert seen[1] == {"arms": "arms.yaml", "out": "mine"}


def test_a_gate_without_reports_names_the_study(capsys, tmp_path):
    assert "`yolokd study methods=`" in refusal(capsys, tmp_path, "compare")


def test_a_missing_argument_is_named_with_its_meaning():
    with pytest.raises(UsageError, match="no teacher: give teacher=, checkpoint"):
        load("steptime").run(["model=a.pt", "data=b.yaml"])
