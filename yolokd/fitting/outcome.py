"""What a fit says: tables on the way, and at the end the student with its files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolokd.data.findings import counted
from yolokd.errors import DoubtError
from yolokd.fitting import picture
from yolokd.fitting.candidates import Candidate
from yolokd.fitting.files import FINAL
from yolokd.fitting.measuring import as_flags
from yolokd.fitting.ranking import Rank
from yolokd.fitting.request import SCHEMA, Request
from yolokd.fitting.search import Round
from yolokd.fitting.times import Times
from yolokd.studies.worker import write_json
from yolokd_edge.progress import spoken


@dataclass(frozen=True)
class Told:
    """All that is known in the end."""

    request: Request
    times: Times
    winner: Candidate
    ranks: Mapping[Candidate, Rank]
    race: Mapping[str, Any]
    result: Mapping[str, Any]  # of the student's training
    teacher: Mapping[str, Any]  # its accuracy
    measured: float | None  # ms of the student's own file; None until a board has measured it


def estimate(times: Times) -> str:
    """What is known of the latency so far."""
    said = f"{len(times.ms)} of {len(times.works)} candidates measured, detections add {times.beyond:.2f} ms"
    if times.errors:
        said += (
            f"; an estimate from the others is off by {100 * times.typical_error():.1f} % (median), "
            f"{100 * times.largest_error():.1f} % (largest)"
        )
    return said


def ranking(ranks: Mapping[Candidate, Rank]) -> str:
    """The candidates within the budget, the best first."""
    rows = [[c.name, f"{r.loss:.3f}", f"{r.seconds:.1f}", f"{r.step:.3f}"] for c, r in ranks.items()]
    return table(["candidate", "loss without training", "seconds", "seconds a step"], rows)


def of_search(
    rounds: Sequence[Round], expected: float, spent: float, training: float, share: float, epochs: int
) -> str:
    """What the search costs, before its dear part begins."""
    said = f"One training of {counted(epochs, 'epoch')} takes about {spoken(training)}; ranking took {spoken(spent)}."
    if not rounds:
        return (
            f"{said} search={share:g} leaves no room for a race of two (or there is one candidate), so the best-ranked "
            "candidate is taken."
        )
    told = ", then ".join(f"{r.entrants} candidates for {counted(r.epochs, 'epoch')}" for r in rounds)
    return (
        f"{said} The race: {told}, at most about {spoken(expected)}. Ranking and race: "
        f"{(expected + spent) / training:.2f} of the training (search={share:g})."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(told: Told) -> list[dict[str, Any]]:
    """What is drawn and written of each model: the teacher, the raced candidates, and the student last."""
    times, budget = told.times, told.request.budget
    found = []
    family = told.request.family
    as_teacher = Candidate(round(family.width, 6), round(family.depth, 6), told.request.largest.imgsz)
    if told.request.own_family and as_teacher in times.ms and told.teacher:
        ms = times.of(as_teacher)
        found.append(
            {"name": "teacher", "ms": ms, "map50": told.teacher["map50"], "map50_95": told.teacher["map50_95"]}
        )
    for candidate in told.ranks:
        score = told.race["scores"].get(candidate, {})
        own = {key: score.get(key) for key in ("map50", "map50_95", "epochs")}
        found.append({"name": candidate.name, "ms": times.of(candidate), "loss": told.ranks[candidate].loss, **own})
    final = {key: told.result[key] for key in ("map50", "map50_95")}
    ms = times.of(told.winner) if told.measured is None else told.measured
    found.append({"name": f"student {told.winner.name}", "ms": ms, **final, "within": ms <= budget.ms})
    return found


def costs(told: Told) -> dict[str, float | None]:
    """Seconds of the parts, and the search as a share of the training."""
    raced, ranked, trained = float(told.race["took"]), float(told.race["ranking"]), told.race["trained"]
    share = None if not trained else (raced + ranked) / trained
    expected = float(told.race["expected"])
    return {"ranking": ranked, "race": raced, "training": trained, "share": share, "expected": expected}


def write(told: Told) -> dict[str, Any]:
    """Write result.json, fit.md and the picture, and print the table; returns what result.json holds."""
    out, budget, models = told.request.out, told.request.budget, rows(told)
    predicted = told.times.of(told.winner)
    error = None if told.measured is None else predicted / told.measured - 1
    content = {
        "schema": SCHEMA,
        "budget": {"metric": budget.metric, "ms": budget.ms},
        "student": {
            "name": told.winner.name, "width": told.winner.width, "depth": told.winner.depth,
            "imgsz": told.winner.imgsz, "checkpoint": told.result["checkpoint"], "onnx": str(out / FINAL),
            "map50": told.result["map50"], "map50_95": told.result["map50_95"], "predicted_ms": predicted,
            "measured_ms": told.measured, "error": error,
        },
        "teacher": dict(told.teacher), "models": models, "seconds": costs(told),
        "estimate": {"typical_error": told.times.typical_error(), "largest_error": told.times.largest_error()},
        "beyond_ms": told.times.beyond,
    }  # fmt: skip
    content = {key: finite(value) for key, value in content.items()}
    write_json(out / "result.json", content)
    text = summary(told, models)
    (out / "fit.md").write_text(text + "\n", encoding="utf-8")
    picture.draw(models, budget, out / "fit.png")
    print(
        f"\n{text}\n\nCheckpoint: {told.result['checkpoint']}\nFile:       {out / FINAL}\nPicture:    {out / 'fit.png'}"
    )
    if told.measured is None:
        print(
            f"Not measured yet: copy {FINAL} into the unzipped {out.name} bundle on the board and run, with whatever "
            "you gave to measure.sh behind it,\n"
            f"    python3 yolokd_edge bench --model {FINAL} --source images {as_flags(told.request.bench)} "
            "--out student.json\n"
            f"then give both reports, device={told.request.device},student.json."
        )
    return content


def finite(content: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def summary(told: Told, models: Sequence[Mapping[str, Any]]) -> str:
    """The table of models, then latency and costs in sentences."""
    budget, spent = told.request.budget, costs(told)

    def percent(value: Any) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    lines = []
    for model in models:
        after = counted(model["epochs"], "epoch") if model.get("epochs") else ""
        loss = f"{model['loss']:.3f}" if model.get("loss") is not None else "-"
        line = [model["name"], f"{model['ms']:.2f}", loss, percent(model["map50"]), percent(model["map50_95"])]
        lines.append([*line, after or ("to the end" if model["map50"] is not None else "no")])
    text = table(["model", f"{budget.metric} ms", "loss before", "mAP50", "mAP50-95", "trained"], lines)
    predicted = told.times.of(told.winner)
    if told.measured is None:
        said = f"{told.winner.name} without training takes {predicted:.2f} ms there, detections included."
    else:
        said = (
            f"{budget.metric} of {FINAL}: {told.measured:.2f} ms measured, {predicted:.2f} ms predicted "
            f"({100 * (predicted / told.measured - 1):+.1f} %), budget {budget.ms:g} ms."
        )
    cost = f"Ranking took {spoken(spent['ranking'] or 0)}, the race {spoken(spent['race'] or 0)}"
    if spent["share"] is not None and spent["training"]:
        cost += f", the training {spoken(spent['training'])}: the search cost {spent['share']:.2f} of it"
    return f"{text}\n\n{said} {estimate(told.times)}.\n\n{cost}."


def refuse_miss(told: Told, invalid: bool) -> None:
    """Say it with an exit code where the student is not what was asked for, or nobody knows.

    Args:
        invalid: whether the measurement of its file is not to be used.
    """
    budget, least, reached = told.request.budget, told.request.accuracy, 100 * float(told.result["map50_95"])
    if told.measured is not None and invalid:
        raise DoubtError(
            f"whether {FINAL} keeps {budget} is not known, as its measurement is invalid (why is said above): give the "
            "same command again on a quiet machine, which measures it anew."
        )
    if told.measured is not None and told.measured > budget.ms:
        raise DoubtError(
            f"{FINAL} takes {told.measured:.2f} ms, over the budget of {budget}: measure again on a quiet machine, or "
            "give a smaller budget in another folder."
        )
    if least is not None and reached < least:
        raise DoubtError(
            f"{told.winner.name} reaches mAP50-95 {reached:.1f}, below accuracy={least:g}: train longer, raise the "
            "budget, or take a better teacher."
        )
