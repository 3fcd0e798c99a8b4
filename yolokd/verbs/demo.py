"""`yolokd demo`: the whole job on bundled data without a network, or on photographs with one."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="does the whole job on bundled data without a network, or on photographs",
    usage=(
        "yolokd demo [seed=0] [out=DIR]",
        "yolokd demo real=True [data=coco128.yaml] [teacher=yolo11n.pt]",
        "yolokd demo --data-only DIR",
    ),
    function="yolokd.demo.run.demo",
    options=(Option("--data-only DIR", "write just the data set, DIR/scenes.yaml", bare=True),),
    notes=("It says what it will do and, after a few measured steps, how long each part will take.",),
    examples=("yolokd demo", "yolokd demo real=True", "yolokd demo --data-only my-scenes"),
)
OPENING = """\
The demo trains a small detector twice, alone and under a bigger one, exports the models, checks the
files, times them and writes a report. It needs {needs}.
Loading PyTorch; the times of all parts follow in a moment."""


def run(words: list[str]) -> None:
    """Run the demo, or write its data only."""
    data_only = words[:1] == ["--data-only"]
    if not data_only:
        check_words(words)
        real = "real=True" in [word.removeprefix("--") for word in words]
        needs = "13 MB of downloads, unless they are here" if real else "no network"
        print(OPENING.format(needs=needs), flush=True)  # before what takes seconds to import
    from yolokd import compat

    compat.check()
    from yolokd.demo.run import demo
    from yolokd.demo.setting import write_data

    if not data_only:
        demo(**keyed(words, VERB))
    elif len(words) == 2:
        print(write_data(words[1]))
    else:
        raise UsageError(f"--data-only takes one new folder and was given {' '.join(words[1:]) or 'none'}.")


def check_words(words: list[str]) -> None:
    """Refuse an unknown word before anything is said."""
    from yolokd.config.parse import check_keys

    known = [option.name for option in VERB.all_options() if not option.bare]
    check_keys((word.removeprefix("--").partition("=")[0] for word in words), known)
