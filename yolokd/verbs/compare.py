"""`yolokd compare`: is a new latency report slower than an old one? A gate for CI."""

from __future__ import annotations

import sys

from yolokd.errors import UsageError
from yolokd.verbs.arguments import files_and_options, keyed
from yolokd.verbs.declaration import Option, Verb

STUDY = ("methods=", "arms=")  # by which `compare` was a study of trainings up to 0.1

VERB = Verb(
    summary="says whether a new latency report is slower than an old one: a gate for CI",
    usage=(
        "yolokd compare base.json new.json [--max-regress 5%] [--metric total.p50,total.p99] [--min-map-delta -0.5]",
        "               [--json FILE] [--md FILE] [--junit FILE]",
    ),
    function="yolokd.latency.gate.compare",
    options=(
        Option("base.json", "the report to compare with", required=True, bare=True),
        Option("new.json", "the report to judge; without it base.json must hold several models measured interleaved, "
               "and its first is the base", bare=True),
    ),
    hidden=("base", "new"),
    notes=(
        "Options may be written --max-regress 5% or max_regress=5%.",
        "Exit codes: 0 pass, 1 regression, 3 inconclusive, 4 a provider that was asked for was not active, 5 parity "
        "failed.",
        "To compare trainings use `yolokd study`.",
    ),
    examples=("yolokd compare base.json new.json --max-regress 5% --min-map-delta -0.5 --junit gate.xml",),
)  # fmt: skip


def run(words: list[str]) -> None:
    """Judge; what is not a pass is raised with its exit code."""
    if any(word.removeprefix("--").startswith(STUDY) for word in words):
        old_study(words)
        return
    from yolokd.latency.gate import gate

    files, options = files_and_options(words)
    if not 1 <= len(files) <= 2:
        raise UsageError(
            f"compare takes two reports, base.json new.json, or one of models measured interleaved, and was given "
            f"{len(files)}; to compare trainings use `yolokd study methods=`."
        )
    gate(*files, **keyed(options, VERB))


def old_study(words: list[str]) -> None:
    """What `compare methods=` was: a study, in the folder that it had, so that one begun then goes on."""
    print("yolokd: `yolokd compare methods=` is now `yolokd study methods=`; use the new name.", file=sys.stderr)
    from yolokd import compat

    compat.check()
    from yolokd.verbs import study

    study.run(words, out="runs/compare")
