"""Every command of README.md is run: as it stands there, on small data, with the budgets cut that are named here.

The table below says what each must leave and say. A command that README.md has and the table lacks fails a test, and so
does a row that no command has any more. `yolo11n.pt`, `big.pt`, `my.yaml` and `my/images` stand for a user's own files:
here they are small ones.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.checkout import ROOT, as_a_user
from helpers.training import ASSETS

from yolokd.demo.scenes import compose
from yolokd.verbs import VERBS

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = 145
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAMS = ("yolokd", "yolo", "pip", "python", "python3", "eval")
SMALL_DEMO = """
import sys
from yolokd.cli import main
from yolokd.demo import setting
setting.SCENES = {"train": 16, "val": 8}
setting.BUDGET |= {"imgsz": 64, "epochs": 1, "close_mosaic": 0}
raise SystemExit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Outcome:
    """What a command must end with, say and leave, in the folder where the user's files are."""

    says: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    short: str = ""  # arguments that replace those of the same name, or are added


BUDGET = "epochs=1 imgsz=64 workers=0"
BEST = "runs/detect/train/weights/best"
OWN_DATA = {
    "yolokd check model=yolo11n.pt teacher=big.pt data=my.yaml epochs=100 imgsz=640": Outcome(
        ("teacher", "estimate on", "verdict: "), codes=(0, 3), short=BUDGET
    ),  # 3: so little data deserves a warning
    "yolokd train model=yolo11n.pt teacher=big.pt data=my.yaml epochs=100 imgsz=640": Outcome(
        ("Results saved to", "report.html"), (f"{BEST}.pt", "runs/detect/train/report.html"), short=BUDGET
    ),
    f"yolokd export model={BEST}.pt": Outcome(("equal to PyTorch on",), (f"{BEST}.onnx",)),
    f"yolokd bench model={BEST}.onnx source=my/images": Outcome(
        ("total p50", "verdict"), ("runs/bench/bench/report.json",), short="quick=True"
    ),
    f"yolokd bundle model={BEST}.pt data=my.yaml int8=True": Outcome(
        ("Bundled", "model_int8_cpu.onnx", "mAP50-95"), (f"{BEST}-edge.zip",), short="calibrator=minmax"
    ),  # others are compared in a test of their own
    "yolokd study methods=builtin,default model=yolo11n.pt teacher=big.pt data=my.yaml seeds=3 epochs=100": Outcome(
        ("student", "builtin", "default"),
        ("runs/study/compare.json", "runs/study/report.html"),
        short=f"{BUDGET} seeds=1 init=head",  # the race between starts is in the training's command
    ),
}
# After unpacking the bundle; README.md gives the first command in full and of the others the last word. Their options
# are those of the bundle's own README.
ON_THE_BOARD = {
    "python3 -m yolokd_edge doctor": Outcome(("model.onnx: student best.pt, taught by big.pt",)),
    "python3 -m yolokd_edge verify": Outcome(("model.onnx on CPUExecutionProvider, ", " 0 without a partner")),
    "python3 -m yolokd_edge detect": Outcome(('"detections": [{"box": ',), short="--source parity --json"),
    "python3 -m yolokd_edge bench": Outcome(
        ("total p50",), ("report.json",), short="--source parity --time-limit 1 --repeats 1 --out report.json"
    ),
}
QUICK = {
    "yolokd help": Outcome(tuple(VERBS)),
    "yolokd help VERB": Outcome(("Usage:", "yolokd train")),
    'eval "$(yolokd completion bash)"': Outcome(("_yolokd",)),
}
MENTIONS = {"yolokd study", "yolokd fit"}  # as names of things
TESTED_ELSEWHERE = {
    "pip install .": ("tests/test_installation.py", '"installed"'),
    "yolokd demo real=True": ("tests/demo/test_demo.py", '["real=True", f"data={data}"'),  # it would download its data
}
DEMO = "yolokd demo"


def blocks(language: str) -> list[str]:
    return [text for found, text in FENCE.findall(README) if found == language]


def ordered(shell_blocks: list[str]) -> list[str]:
    """Their commands, without comments; blanks are single ones and continued lines joined."""
    lines = [
        re.sub(r"(^|\s)#.*", "", line) for block in shell_blocks for line in block.replace("\\\n", "").splitlines()
    ]
    return [" ".join(line.split()) for line in lines if line.strip()]


def commands() -> set[str]:
    """Those of the shell blocks, and those in sentences."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", README))]
    return {*ordered(blocks("bash")), *(s for s in spans if " " in s and s.split()[0] in PROGRAMS)}


def shortened(command: str, changes: str) -> str:
    """The command with other values for some of its arguments, or with these added."""
    for change in changes.split():
        key = change.partition("=")[0]
        command, count = re.subn(rf"(?<=\s){key}=\S+", change, command)
        command += "" if count else f" {change}"
    return command


def shell(command: str, folder: Path, codes: tuple[int, ...] = (0,)) -> str:
    """What a command of bash says, in a folder."""
    done = subprocess.run(["bash", "-e", "-c", command], cwd=folder, env=as_a_user(), capture_output=True, text=True)
    assert done.returncode in codes, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def check(command: str, outcome: Outcome, folder: Path) -> None:
    said = shell(shortened(command, outcome.short), folder, outcome.codes)
    assert not [words for words in outcome.says if words not in said], f"{command}\n{said[-3000:]}"
    assert not [name for name in outcome.leaves if not (folder / name).is_file()], command


@pytest.fixture
def own_files(tmp_path) -> Path:
    """A folder as the reader of README.md may have one."""
    shutil.copy(ASSETS / "student.pt", tmp_path / "yolo11n.pt")
    shutil.copy(ASSETS / "teacher.pt", tmp_path / "big.pt")
    data = compose(tmp_path / "data", train=24, val=16, imgsz=64, seed=3)
    shutil.copy(data, tmp_path / "my.yaml")
    shutil.copytree(data.parent / "images" / "val", tmp_path / "my" / "images")
    return tmp_path


def test_readme_is_short():
    assert len(README.splitlines()) <= LINES


def test_every_command_has_a_row_and_every_row_a_command():
    rows = {*OWN_DATA, next(iter(ON_THE_BOARD)), *QUICK, *MENTIONS, *TESTED_ELSEWHERE, DEMO}
    assert commands() == rows
    sentence = " ".join(README.split())
    assert all(f"`{command.split()[-1]}`" in sentence for command in list(ON_THE_BOARD)[1:])
    assert (
        len(blocks("bash")) >= 2
        and len(blocks("python")) == 1
        and {f for f, _ in FENCE.findall(README)}
        == {
            "bash",
            "python",
        }
    )


def test_what_is_a_command():
    assert ordered(["a  b \\\n c   # d\n# e\n"]) == ["a b c"]
    assert shortened("yolokd train epochs=100 data=my.yaml", "epochs=1 imgsz=64") == (
        "yolokd train epochs=1 data=my.yaml imgsz=64"
    )
    assert len(commands()) > 8


def test_the_rest_is_named_or_tested_elsewhere():
    assert {mention.split()[1] for mention in MENTIONS} <= set(VERBS)
    for file, words in TESTED_ELSEWHERE.values():
        assert words in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", QUICK)
def test_help_and_completion(command, tmp_path):
    call = f"{command}; complete -p yolokd" if command.startswith("eval") else command.replace("VERB", "train")
    check(call, QUICK[command], tmp_path)


@pytest.mark.slow
def test_demo(tmp_path):
    """On few scenes; its table has the columns and the lines of the one in README.md."""
    (tmp_path / "demo.py").write_text(SMALL_DEMO)
    said = shell(f"python3 demo.py {DEMO.split(maxsplit=1)[1]}", tmp_path)
    shown = [line for line in README.splitlines() if line.startswith(("| model |", "| teacher |", "| student "))]
    assert len(shown) >= 4 and shown[0] in said
    assert all(f"\n{line.split('|')[1].join('||')}" in said for line in shown[1:4])
    left = tmp_path / "runs" / "demo"
    assert all((left / name).is_file() for name in ("accuracy-latency.png", "report.html", "student-distilled.onnx"))


@pytest.mark.slow
def test_your_own_data(own_files):
    """In the order of README.md, as each takes what an earlier one left; then from the unpacked bundle."""
    in_order = [words for words in ordered(blocks("bash")) if words in OWN_DATA]
    assert len(in_order) == len(OWN_DATA)
    for command in in_order:
        check(command, OWN_DATA[command], own_files)
    with zipfile.ZipFile(own_files / f"{BEST}-edge.zip") as bundle:
        bundle.extractall(own_files / "board")
    for command, outcome in ON_THE_BOARD.items():
        check(command, outcome, own_files / "board")


@pytest.mark.slow
def test_python(own_files):
    """The snippet, with a small budget and without the five processes of a measurement."""
    (snippet,) = blocks("python")
    small = snippet.replace("epochs=100", "epochs=1, imgsz=64, workers=0")
    small = small.replace('"my/images")', '"my/images", quick=True)')
    assert small.count("epochs=1,") == small.count("quick=True") == 1
    (own_files / "snippet.py").write_text(f"{small}\nprint(onnx, report[0]['results']['stages']['total'])\n")
    said = shell("python3 snippet.py", own_files)
    assert "best.onnx" in said and "'p50'" in said
