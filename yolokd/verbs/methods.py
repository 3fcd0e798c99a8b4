"""`yolokd methods`: what method= may name, the options of one, or what each adds to a training step."""

from __future__ import annotations

from yolokd.verbs.arguments import keyed
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="lists the methods, the options of one, or what each costs",
    usage=(
        "yolokd methods [NAME ...]",
        "yolokd methods --cost [model=yolo11n.yaml] [teacher=yolo11s.yaml] [imgsz=640] ...",
        "yolokd methods --table",
    ),
    function="yolokd.studies.step_cost.cost",
    options=(
        Option("NAME", "a method, to show its options with their meanings", bare=True),
        Option("--cost", "what each method adds to a training step, in time and memory; the arguments below are "
               "for it alone", bare=True),
        Option("--table", "the table in docs/methods.md", bare=True),
    ),
    examples=("yolokd methods", "yolokd methods cwd", "yolokd methods --cost method=pkd,mgd mgd.form=full"),
)  # fmt: skip


def run(words: list[str]) -> None:
    """Print the tree, some methods, their cost or the table."""
    if "--cost" in words:
        cost([word for word in words if word != "--cost"])
        return
    from yolokd.config import taxonomy

    if words == ["--table"]:
        print(taxonomy.table())
    else:
        print("\n\n".join(taxonomy.describe(name) for name in words) or taxonomy.describe())


def cost(words: list[str]) -> None:
    """Measure what the methods add to a step."""
    from yolokd import compat

    compat.check()
    from yolokd.config.parse import parse_pairs
    from yolokd.studies import step_cost

    dotted = [word for word in words if "." in word.partition("=")[0]]  # options of methods
    step_cost.cost(**keyed([word for word in words if word not in dotted], VERB), **parse_pairs(dotted))
