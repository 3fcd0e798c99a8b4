"""The command line: verbs, exit codes, and what an import costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError

import pytest
from helpers.cli import refusal

import yolokd
from yolokd import cli
from yolokd.errors import ParityError
from yolokd.verbs import VERBS, version

SCRIPT = Path(sys.executable).with_name("yolokd")


def python(code: str) -> str:
    """Output of a fresh interpreter."""
    # not in the checkout, whose folder yolokd/ would hide the installed package
    return subprocess.run(
        [sys.executable, "-c", code], cwd=sys.prefix, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("argv", [[], ["help"], ["--help"], ["-h"]])
def test_help_has_one_line_for_every_verb(argv, capsys):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[1] for line in lines if line.startswith("  yolokd ")]
    assert listed == list(VERBS)
    assert len(lines) == len(VERBS) + 2 * len(set(VERBS.values())) + 6, "a head, two for a group, and the end"


@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_version(argv, capsys):
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == yolokd.__version__ + "\n"


@pytest.mark.parametrize(("verb", "meant"), [("trian", "'train'"), ("exprt", "'export'"), ("Train", "'train'")])
def test_an_unknown_verb_is_refused_with_the_nearest(verb, meant, capsys, tmp_path):
    said = refusal(capsys, tmp_path, verb, "epochs=3")
    assert repr(verb) in said and meant in said


def test_a_verb_like_none_is_refused_with_the_list(capsys, tmp_path):
    assert "known are train, study" in refusal(capsys, tmp_path, "qqqqqq")


@pytest.mark.parametrize("rest", [["--data-only"], ["--data-only", "a", "b"], ["sed=3"]])
def test_demo_refuses_what_it_does_not_know(rest, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(capsys, tmp_path, "demo", *rest)


def test_bench_refuses_what_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "images").mkdir()
    photo = Path(__import__("ultralytics").__file__).parent / "assets" / "bus.jpg"
    assert "no model" in refusal(capsys, tmp_path, "bench", f"source={photo}")
    assert "no images" in refusal(capsys, tmp_path, "bench", "model=text.onnx")
    assert "text.onnx" in refusal(capsys, tmp_path, "bench", "model=text.onnx", f"source={photo}")
    assert "none.onnx" in refusal(capsys, tmp_path, "bench", "model=none.onnx", f"source={photo}")
    assert "images" in refusal(capsys, tmp_path, "bench", "model=text.onnx", "source=images")
    said = refusal(capsys, tmp_path, "bench", "model=text.onnx", f"source={photo}", "profil=smoke")
    assert "'profil', did you mean 'profile'" in said
    assert "seed=abc is not" in refusal(capsys, tmp_path, "bench", "model=text.onnx", f"source={photo}", "seed=abc")


@pytest.mark.parametrize(("error", "code"), [(ParityError("differs"), 5), (ValueError("a bug"), 70)])
def test_only_what_a_user_can_mend_becomes_an_exit_code(error, code, monkeypatch, capsys):
    def fail(rest):
        raise error

    monkeypatch.setattr(version, "run", fail)
    assert cli.main(["version"]) == code
    said = capsys.readouterr().err
    if code == 70:  # 1, which Python ends with, would tell a gate of a regression
        assert "Traceback" in said and said.endswith("ValueError: a bug\n")
    else:
        assert said == f"yolokd: {error}\n"


def test_an_http_error_is_no_exit_code(monkeypatch, capsys):
    """It has a `code` of its own, 404 or so."""

    def fail(rest):
        raise HTTPError("http://localhost", 404, "gone", None, None)

    monkeypatch.setattr(version, "run", fail)
    assert cli.main(["version"]) == 70
    assert "404" in capsys.readouterr().err


def test_the_installed_command_exits_with_the_code_and_one_line(tmp_path):
    run = subprocess.run([SCRIPT, "train", "epochs=1"], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("yolokd: no student") and run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_importing_the_package_and_asking_for_help_imports_nothing_heavy():
    """Nor does a word that is no verb, or completion."""
    code = (
        "import sys, yolokd, yolokd.cli as c; c.main(['version']); c.main([]); c.main(['trian'])\n"
        "assert not [v for v in c.VERBS if c.main(['help', v])] and not c.main(['completion', 'bash'])\n"
        "print({'torch', 'ultralytics'} & set(sys.modules))"
    )
    assert python(code).splitlines()[-1] == "set()"


def test_public_names_are_functions_whatever_was_imported_before():
    """`yolokd.train` is the function also after its module was imported, which binds names on packages."""
    code = (
        "import pkgutil, importlib, inspect, yolokd\n"
        "for module in pkgutil.walk_packages(yolokd.__path__, 'yolokd.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print({n for n in yolokd.__all__ if not callable(getattr(yolokd, n))})"
    )
    assert python(code).splitlines()[-1] in ("{'METHODS', '__version__'}", "{'__version__', 'METHODS'}")


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = yolokd.trian


def test_the_package_is_a_command_too(tmp_path):
    run = subprocess.run([sys.executable, "-m", "yolokd", "trian"], cwd=sys.prefix, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "yolokd: unknown verb 'trian', did you mean 'train'.\n"


@pytest.mark.parametrize(
    ("verb", "code"), [("print('x' * 10**6)", 141), ("print('x')", 0), ("print('x'); raise ParityError('differs')", 5)]
)
def test_a_reader_who_leaves_early_is_no_failure(verb, code):
    """`yolokd methods | head`: no traceback; a gate keeps its exit code where it has one."""
    script = (
        "import sys; from yolokd import cli; from yolokd.errors import ParityError; from yolokd.verbs import version\n"
        f"def run(words): {verb}\n"
        "version.run = run; sys.stdin.read(); sys.exit(cli.main(['version']))"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=sys.prefix, env=buffered, **pipes, text=True)
    process.stdout.close()  # before it writes anything
    process.stdin.close()
    assert process.wait(timeout=60) == code
    assert process.stderr.read() == ("yolokd: differs\n" if code == 5 else "")
    process.stderr.close()


def test_a_broken_pipe_elsewhere_is_a_defect(monkeypatch, capsys):
    """Such as to a worker: standard output is still read."""

    def fail(rest):
        raise BrokenPipeError

    monkeypatch.setattr(version, "run", fail)
    assert cli.main(["version"]) == 70
    assert "BrokenPipeError" in capsys.readouterr().err


def test_names_in_any_error_cannot_write_to_the_terminal(monkeypatch, capsys):
    def fail(verb):
        raise ParityError("\x1b[2Jmodel\nyolokd: all is well\u202e")

    monkeypatch.setattr(cli, "load", fail)
    assert cli.main(["train"]) == 5
    assert capsys.readouterr().err == "yolokd: \\x1b[2Jmodel\\nyolokd: all is well\\u202e\n"
