"""New processes that measure: nothing else in their memory, all starting to time frames together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.plan import Plan
from yolokd_edge.bench.trial import Trial, frames_of, open_detectors, run_trial
from yolokd_edge.boxes import PAD
from yolokd_edge.common import DEFECT, USAGE, EdgeError, own_command
from yolokd_edge.runtimes.table import PROVIDERS

READY = "ready"


def worker_main(folder: Path) -> int:
    """Measure what the plan in a folder says and leave the trials there; the parent gives the start signal.

    Only our own word goes to the parent's pipe: what a library prints may be mistaken for it, or fill the pipe.
    """
    parent = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def go() -> None:
        print(READY, file=parent, flush=True)
        if not sys.stdin.readline():
            raise EdgeError("The process that started this measurement has gone.")

    plan = Plan.from_json((folder / "plan.json").read_text(encoding="utf-8"))
    try:
        if plan.build:
            (folder / "built.json").write_text(json.dumps(_build_seconds(plan.options)), encoding="utf-8")
            return 0
        trials = run_trial(plan, frames_of(plan.options), True, go)
    except EdgeError as error:
        (folder / "error.json").write_text(json.dumps({"message": str(error), "code": error.code}), encoding="utf-8")
        return error.code
    arrays: dict[str, Any] = {
        f"{k}/{name}": values for k, trial in enumerate(trials) for name, values in trial.series.items()
    }
    np.savez(str(folder / "series.npz"), **arrays)
    (folder / "facts.json").write_text(json.dumps([t.facts for t in trials]), encoding="utf-8")
    return 0


def _build_seconds(options: BenchOptions) -> list[float | None]:
    """Run each of the models once, so that TensorRT's engines are kept; how long a new one took."""
    out = []
    for detector in open_detectors(options):
        start = time.perf_counter()
        detector.detect(np.full((*detector.contract.hw, 3), PAD, np.uint8))
        seconds = (detector.trt or {}).get("build_s")
        out.append(None if seconds is None else round(seconds + time.perf_counter() - start, 1))
    return out


def _start(folder: Path, plan: Plan, errors: Any) -> Any:
    """A process that does what a plan says; its stderr goes to a file or, with None, to our own."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    return subprocess.Popen(
        own_command("_worker", str(folder)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
    )


def build_engines(plan: Plan) -> list[float | None]:
    """Build the engines that the plan's processes will need, once and where the user sees it; seconds by model.

    Each of those processes would build unseen, several of them at a time into one folder.
    """
    available = onnxruntime.get_available_providers()
    if plan.options.provider not in ("trt", "auto") or PROVIDERS["trt"].names[0] not in available:
        return [None] * len(plan.options.models)
    with tempfile.TemporaryDirectory() as temporary:
        process = _start(Path(temporary), replace(plan, build=True), None)
        process.communicate()
        _check_end(Path(temporary), process)
        seconds: list[float | None] = json.loads((Path(temporary) / "built.json").read_text(encoding="utf-8"))
        return seconds


def note_build(trials: Sequence[Trial], seconds: float | None) -> None:
    """Write down how long an engine took to build before these trials, which found it in the cache."""
    for trial in trials:
        if seconds is not None and trial.facts["runtime"]["trt"]:
            trial.facts["runtime"]["trt"]["build_s"] = seconds
            trial.facts["missing"].pop("runtime.trt.build_s", None)


def _check_end(folder: Path, process: Any) -> None:
    """Wait for a worker to end, and raise its error."""
    process.stdin.close()  # one that waits for the start signal ends
    process.wait()
    if (folder / "error.json").exists():
        error = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        raise EdgeError(error["message"], error["code"])
    if process.returncode != 0:
        errors = (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else ""
        killed = f"signal {-process.returncode}, often for want of memory"
        lines = errors.strip().splitlines() or [killed if process.returncode < 0 else "it gave no reason"]
        code = DEFECT if process.returncode == DEFECT else USAGE
        raise EdgeError(f"A measuring process ended with code {process.returncode}: {lines[-1][:300]}", code)


def _outcome(folder: Path, process: Any) -> list[Trial]:
    """What a worker left, or its error."""
    _check_end(folder, process)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    with np.load(str(folder / "series.npz")) as kept:
        names = sorted({key.split("/", 1)[1] for key in kept})
        return [Trial({name: kept[f"{k}/{name}"] for name in names}, f) for k, f in enumerate(facts)]


def fresh_trials(plan: Plan, go: Callable[[], None] = lambda: None) -> list[list[Trial]]:
    """Measure in as many new processes as there are streams, all starting together; one list of trials each.

    Args:
        plan: What to measure.
        go: Called when all are warm, before they begin to time frames.
    """
    with tempfile.TemporaryDirectory() as temporary:
        workers: list[tuple[Path, Any]] = []
        try:
            for stream in range(plan.options.streams):
                folder = Path(temporary) / str(stream)
                folder.mkdir()
                with (folder / "stderr").open("wb") as errors:
                    workers.append((folder, _start(folder, replace(plan, stream=stream), errors)))
            # what a library prints while it is imported comes first
            waiting = [p for _, p in workers if any(line.strip() == READY.encode() for line in p.stdout)]
            if len(waiting) == len(workers):
                go()
                for process in waiting:
                    process.stdin.write(b"go\n")
                    process.stdin.flush()
                return [_outcome(folder, process) for folder, process in workers]
            for folder, process in workers:
                if process not in waiting:
                    _outcome(folder, process)  # raises what went wrong
            raise EdgeError("A measuring process ended before it began to time frames.")
        finally:
            for _, process in workers:
                if process.poll() is None:
                    process.kill()
                process.wait()
                process.stdin.close()
                process.stdout.close()
