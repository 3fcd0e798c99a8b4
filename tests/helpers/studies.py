"""Runs of a study in which nothing is trained."""

from __future__ import annotations

from pathlib import Path

# A training that takes no time: its score is the arm's plus the seed's, and it counts how often it ran.
SCRIPTED = """
import json, os, pathlib, sys
folder, threads, device = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
spec = json.loads((folder / "run.json").read_text())
with (folder / "starts").open("a") as file:
    file.write(f"{threads} {os.environ['OMP_NUM_THREADS']} {device}\\n")
if (folder / "crash").exists():
    print("CUDA out of memory")
    os.kill(os.getpid(), 9)
arguments = spec["arguments"]
score = {"val": 0.6}.get(spec["kind"], 0.2)
score += 0.1 * ("teacher" in arguments) + 0.02 * ("distill_model" in arguments) + 0.01 * arguments.get("seed", 0)
result = {"map50": score, "map50_95": score / 2, "wall_s": 10 + 5 * ("teacher" in arguments)}
(folder / "result.json").write_text(json.dumps(result))
"""


def starts(out: Path) -> dict[str, int]:
    """How often each run was begun."""
    return {str(f.parent.relative_to(out)): len(f.read_text().splitlines()) for f in sorted(out.rglob("starts"))}
