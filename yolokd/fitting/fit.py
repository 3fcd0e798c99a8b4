"""`yolokd fit`: a latency budget in, a trained, exported and measured student out.

The run's folder is its journal: what is measured, ranked and trained lies there, and the same command goes on with what
is missing. Nothing is announced that was not measured.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import select_device

from yolokd.data.mirror import link, spread
from yolokd.detectors.opening import open_model
from yolokd.detectors.rtdetr import RTDETRReader
from yolokd.errors import Interrupted, StudyError, UsageError
from yolokd.fitting import measuring, outcome
from yolokd.fitting.candidates import Candidate, outermost, works
from yolokd.fitting.files import DETECTIONS, FINAL, export_detections, export_random
from yolokd.fitting.measuring import Journal
from yolokd.fitting.ranking import BATCH, Rank, Sample, rank
from yolokd.fitting.request import BOARD, HERE, Request, names_of, read_request
from yolokd.fitting.search import Round, epoch_seconds, plan_race, race_seconds
from yolokd.fitting.times import Times, spread_out
from yolokd.latency import schema
from yolokd.latency.bench import bench_into
from yolokd.onnx import parity, profile
from yolokd.onnx.export import export
from yolokd.studies.plan import Job
from yolokd.studies.processes import run_all, usable_cores
from yolokd.studies.worker import RESULT, SPEC, read_json, write_json
from yolokd_edge.progress import Progress

OUT = "runs/fit"
TIMED_ON, CHECKED = 32, 8  # validation images for latency and for parity
RANKING = "ranking.json"


def fit(
    teacher: str | Path,
    data: str | Path,
    budget: str,
    device: str | Path = "here",
    accuracy: float | None = None,
    family: str | None = None,
    widths: Any = None,
    depths: Any = None,
    sizes: Any = None,
    search: float = 1.0,
    out: str | Path = OUT,
    devices: Any = None,
    threads: int | None = None,
    **arguments: Any,
) -> dict[str, Any] | None:
    """Find the most accurate student within a latency budget, train it under the teacher, export and measure it.

    Args:
        teacher: the trained model's .pt file: a YOLO that detects, segments, or finds poses or rotated boxes, or an
            RT-DETR.
        data: the data set's YAML.
        budget: the most that a percentile of a stage may take, such as total.p95=12ms.
        device: where the student is to run: `here`; `board`, which writes a zip file of candidates to measure there;
            or the report.json that comes back, with the student's own after a comma once it was measured.
        accuracy: least mAP50-95 in points; a student that stays below it ends the command with 3.
        family: a model YAML such as yolo11n.yaml, for a layout other than the teacher's own.
        widths: factors on the channels, as in a model YAML, such as [0.125,0.25]; by default shares of the family's.
        depths: factors on the number of repeated blocks, likewise.
        sizes: image sizes in pixels; by default imgsz=, four and three fifths of it.
        search: the most that ranking and race may cost, as a share of one training.
        out: the run's folder. The same command goes on with what is missing.
        devices: a comma list such as 0,1: each training of the race has one to itself, the student the first.
        threads: CPU threads of each training; by default the usable cores, shared out.
        **arguments: whatever else `yolokd train` takes, for every training; imgsz= is the largest image, by default
            that of the teacher's training. `bench.NAME` is an option of `yolokd bench`, such as bench.threads=1.

    Returns:
        What OUT/result.json holds, latencies in ms and mAP as fractions; None where the board has to measure first.

    Raises:
        UsageError: something asked for cannot be done, or nothing is within the budget; nothing was trained.
        DoubtError: the student is there and over the budget, or less accurate than asked.
    """
    request = read_request(
        teacher, data, budget, device, accuracy, family, widths, depths, sizes, search, out, devices, threads, arguments
    )
    try:
        with FileLock(request.out / ".lock", timeout=0):
            return carry_out(request)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"the fit was stopped and its trainings ended: the same command goes on in {request.out}.", stop
        ) from stop
    except Timeout as error:
        raise UsageError(
            f"out={request.out} is being worked on by another process: wait for it or name another."
        ) from error


def carry_out(request: Request) -> dict[str, Any] | None:
    """Do what is missing."""
    images = some_images(request, "images", TIMED_ON)
    print(f"{len(request.candidates)} candidates of {request.family.file.stem}, budget {request.budget}", flush=True)
    times = Times(works(request.family, request.candidates))
    journal = Journal(request.out, request.device)
    if request.device == BOARD:
        make_bundle(request, times, images)
        return None
    find_times(request, journal, times, images)
    able = within_budget(request, journal, times, images)
    ranks = ranked(request, able)
    winner, race = chosen(request, able, ranks)
    return finished(request, journal, times, images, winner, ranks, race)


def some_images(request: Request, name: str, most: int) -> Path:
    """A folder of the run with links to some validation images, evenly spaced."""
    folder = request.out / name
    if not folder.is_dir():
        part = request.out / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        images = list(filter(parity.readable, spread(request.images, 2 * most)))
        for i, image in enumerate(spread(images, most)):
            link(image, part / f"{i:06d}{image.suffix}")
        part.rename(folder)
    return folder


# --- latency --------------------------------------------------------------------------------------------------------


def model_file(request: Request, images: Path, name: str) -> Path:
    """The ONNX file of a name, exported where it is missing."""
    file = request.out / "models" / name
    if file.is_file():
        return file
    if name == DETECTIONS:
        teacher = open_model(request.teacher, "teacher", request.trust)
        file.parent.mkdir(exist_ok=True)
        return export_detections(teacher, sorted(images.iterdir()), request.largest.imgsz, file)
    candidate = next(c for c in request.candidates if f"{c.name}.onnx" == name)
    return export_random(request.family, candidate, names_of(request.arguments, request.data), file)


def model_files(request: Request, images: Path, names: Sequence[str]) -> list[Path]:
    """The files of some names."""
    files = []
    with Progress("exporting candidates", len(names)) as progress:
        for name in names:
            files.append(model_file(request, images, name))
            progress.step()
    return files


def find_times(request: Request, journal: Journal, times: Times, images: Path) -> None:
    """Measure what has to be known, or read it from a board's reports."""
    everything = request.candidates
    if request.reports:
        measuring.read_reports(journal, request.reports, measuring.read_hashes(request.out))
        times.beyond = journal.beyond(request.largest, request.budget)
        times.add(journal.ms(everything, request.budget))
        return

    if not (request.out / RANKING).is_file():  # else the choice is made, and trainings of it have begun
        journal.drop_invalid()

    def proposed() -> list[Candidate]:
        if times.shares is None:
            return spread_out(everything, times.works, measuring.FIRST)
        slack = 1 + (0 if math.isnan(times.typical_error()) else times.typical_error())
        within = [c for c in everything if times.of(c) <= request.budget.ms]
        nearly = [c for c in everything if c not in times.ms and times.of(c) <= request.budget.ms * slack]
        return list(dict.fromkeys([*outermost(within), *outermost([*within, *nearly])])) or [
            min(everything, key=times.of)
        ]

    def exported(names: list[str]) -> list[Path]:
        return model_files(request, images, names)

    measuring.measure_here(
        journal, times, proposed, request.largest, request.budget, exported, images, request.bench
    )  # fmt: skip


def make_bundle(request: Request, times: Times, images: Path) -> None:
    """Write the zip file that is to be measured on the board."""
    target = request.out / measuring.BOARD
    if target.is_file():
        raise UsageError(f"{target} exists already: measure it on the board, and give its report, device=report.json.")
    some = spread_out(request.candidates, times.works, measuring.ON_A_BOARD)
    names = [DETECTIONS, *(f"{c.name}.onnx" for c in dict.fromkeys([request.largest, *some]))]
    files = model_files(request, images, names)
    hashes = measuring.write_bundle(target, files, images, request.budget, request.bench)
    measuring.write_hashes(request.out, hashes)
    size = target.stat().st_size / 1e6
    print(
        f"Wrote {target} ({size:.1f} MB, {len(names) - 1} candidates). On the board: unzip it, install what its "
        "README.md says, and run\n    sh measure.sh\nThen give its report to the same command, device=report.json."
    )


def within_budget(request: Request, journal: Journal, times: Times, images: Path) -> list[Candidate]:
    """The measured candidates to choose from; refuses a budget that none keeps."""
    budget = request.budget
    print(outcome.estimate(times), flush=True)
    within = [c for c in times.ms if times.of(c) <= budget.ms]
    if within:
        return outermost(within)
    least = min(times.ms, key=times.of)
    record = journal.records[f"{least.name}.onnx"]
    stages = ", ".join(
        f"{stage} {schema.get(record, f'results.stages.{stage}.p50'):.2f} ms" for stage in ("pre", "infer", "post")
    )
    slow = profile.slowest(model_file(request, images, f"{least.name}.onnx"), most=3)
    where = ", ".join(f"{node['name']} {node['share']:.0%}" for node in slow)
    said = f", most of infer in {where}" if request.device == HERE else ""
    raise UsageError(
        f"budget={budget}: the smallest candidate, {least.name}, takes {times.of(least):.2f} ms ({stages}; detections "
        f"add {times.beyond:.2f} ms{said}): raise the budget, or give smaller widths=, depths= or sizes=."
    )


# --- accuracy -------------------------------------------------------------------------------------------------------


def ranked(request: Request, able: Sequence[Candidate]) -> dict[Candidate, Rank]:
    """The rank of each candidate, the best first."""
    file = request.out / RANKING
    known: dict[str, Any] = read_json(file) or {}
    device = select_device(request.pool[0], verbose=False)
    samples: dict[int, Sample] = {}
    for candidate in able:
        if candidate.name in known:
            continue
        ready = request.ready(candidate)
        if candidate.imgsz not in samples:
            model = ready.student.model
            detr = isinstance(ready.student, RTDETRReader)
            samples[candidate.imgsz] = Sample(
                request.data, request.arguments, candidate.imgsz, device, str(model.task), detr
            )
        found = rank(ready, samples[candidate.imgsz])
        known[candidate.name] = {"loss": found.loss, "seconds": found.seconds, "step": found.step}
        write_json(file, known)
        LOGGER.info(f"{candidate.name}: loss {found.loss:.3f} without training, {found.seconds:.0f} s")
    ranks = {c: Rank(**known[c.name]) for c in able}
    if not any(math.isfinite(r.loss) for r in ranks.values()):
        raise UsageError(
            f"teacher={request.teacher} gives no candidate a start with a finite loss: check the teacher with "
            "`yolokd check`."
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1].loss))


def chosen(
    request: Request, able: Sequence[Candidate], ranks: dict[Candidate, Rank]
) -> tuple[Candidate, dict[str, Any]]:
    """The winner, and what is to be told of the race."""
    order = list(ranks)
    costs = [epoch_seconds(r.step, BATCH, request.images_an_epoch) for r in ranks.values()]
    training, spent = request.epochs * costs[0], sum(r.seconds for r in ranks.values())
    rounds = plan_race(costs, request.epochs, request.search * training - spent)
    expected = race_seconds(rounds, costs)
    said = outcome.of_search(rounds, expected, spent, training, request.search, request.epochs)
    print(f"{outcome.ranking(ranks)}\n\n{said}", flush=True)
    scores: dict[Candidate, dict[str, Any]] = {}
    left = order[: rounds[0].entrants] if rounds else order[:1]
    for number, each in enumerate(rounds, 1):
        left = left[: each.entrants]
        scores |= raced(request, number, each, left)
        left = sorted(left, key=lambda c: -fitness(scores[c]))
    took = sum(float(score["took"]) for score in scores.values())
    about = {"expected": expected + spent, "training": training, "ranking": spent}
    return left[0], {**about, "took": took, "scores": scores, "rounds": rounds}


def fitness(score: dict[str, Any]) -> float:
    """By what candidates are compared: Ultralytics' own, in which masks and keypoints count beside boxes."""
    found = score.get("fitness")
    return float(score["map50_95"] if found is None else found)


def raced(request: Request, number: int, each: Round, left: Sequence[Candidate]) -> dict[Candidate, dict[str, Any]]:
    """The scores of a round, each training in a process of its own."""
    place = request.out / "race" / f"round{number}"
    jobs = {}
    for candidate in left:
        arguments = {**request.training(candidate), "epochs": each.epochs, "plots": False}
        jobs[candidate] = Job(candidate.name, place / candidate.name, {"kind": "train", "arguments": arguments})
    run_jobs(request, list(jobs.values()), f"round {number} of the race, {each.epochs} epochs each")
    found = {}
    for candidate, job in jobs.items():
        result = job.result() or {}
        found[candidate] = {**result, "epochs": each.epochs, "took": elapsed(job)}
    return found


def elapsed(job: Job) -> float:
    """Seconds of a run's process, from its beginning to its result."""
    return max((job.folder / RESULT).stat().st_mtime - (job.folder / SPEC).stat().st_mtime, 0.0)


def run_jobs(request: Request, jobs: Sequence[Job], what: str) -> None:
    """Run trainings that are not done."""
    waiting = [job for job in jobs if job.result() is None]
    threads = request.threads or max(1, usable_cores() // len(request.pool))
    failed = []
    for job, code in run_all(waiting, request.pool, threads):
        result = job.result()
        if code != 0 or result is None:
            failed.append(job)
            continue
        print(
            f"{what}: {job.label} mAP50 {100 * result['map50']:.1f}, mAP50-95 {100 * result['map50_95']:.1f}",
            flush=True,
        )
    if failed:
        raise StudyError(
            f"the training of {failed[0].label} failed (why is in {failed[0].folder / 'log.txt'}): the same command "
            "tries it again."
        )


# --- the student ----------------------------------------------------------------------------------------------------


def finished(
    request: Request, journal: Journal, times: Times, images: Path, winner: Candidate, ranks: dict[Candidate, Rank],
    race: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Train the winner, export and measure it, and tell."""
    out = request.out
    print(f"\nTraining {winner.name} for {request.epochs} epochs; its log is {out / 'student' / 'log.txt'}", flush=True)
    job = Job(winner.name, out / "student", {"kind": "train", "arguments": request.training(winner)})
    compared = Job("teacher", out / "teacher", {"kind": "val", "arguments": of_teacher(request)})
    run_jobs(request, [job], "student")
    run_jobs(request, [compared], "validation")
    result, file = job.result() or {}, out / FINAL
    if not file.is_file():
        folder = some_images(request, "checked", CHECKED)
        export(result["checkpoint"], file, source=folder, imgsz=winner.imgsz, trust=request.trust)
    if request.device == HERE:
        journal.drop_invalid([FINAL])
    if FINAL not in journal.records and request.device == HERE:
        records, _ = bench_into([file], images, project=str(out / "times"), name="student", **request.bench)
        journal.add(records)
    record = journal.records.get(FINAL)
    measured = None if record is None else request.budget.of(record)
    race = {**race, "trained": None if result.get("resumed") else elapsed(job)}
    told = outcome.Told(request, times, winner, ranks, race, result, compared.result() or {}, measured)
    found = outcome.write(told)
    outcome.refuse_miss(told, record is not None and measuring.is_invalid(record))
    return found


def of_teacher(request: Request) -> dict[str, Any]:
    """The arguments of the teacher's validation."""
    kept = ("data", "batch", "device", "workers", "split", "single_cls", "iou", "max_det")
    arguments = {k: request.arguments[k] for k in kept if k in request.arguments}
    if not isinstance(arguments.get("batch", 16), int) or arguments.get("batch", 16) < 1:
        del arguments["batch"]
    return {"model": request.teacher, "imgsz": request.largest.imgsz, **arguments}
