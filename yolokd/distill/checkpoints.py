"""A run's checkpoints: written whole or not at all, and found again to go on from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, YAML

from yolokd.detectors.opening import read_checkpoint
from yolokd.errors import UsageError, as_path, one_line, printable

WEIGHTS = "weights"  # the folder of a run that Ultralytics writes checkpoints into
STAGE = ".unfinished"  # in there: what is being written, of no use after a crash
SIGNED = "yolokd"  # a finished checkpoint's entry, see provenance.py
GIVE_LAST = "give such a run's folder or its weights/last.pt"


class NothingLeftError(UsageError):
    """A run that cannot be gone on with: finished, not ours, or without a whole checkpoint."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside the file to write to, which takes the file's place when all is written."""
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        move(part, file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def move(part: Path, file: Path) -> None:
    """Put a written file in another's place, its content on the disk first: a power cut leaves one of the two."""
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, file)


@dataclass(frozen=True)
class State:
    """A whole checkpoint to go on from."""

    file: Path
    arguments: dict[str, Any]  # of the training, the distillation's options under "kd"
    place: Path | None  # the run's folder, if the checkpoint lies in one


def find(given: Any, trust: bool = False) -> State:
    """The newest whole state of the run that resume= names, by its folder or by a checkpoint in it.

    Raises:
        UsageError: there is none, or nothing is left to do.
    """
    path = Path(os.path.abspath(as_path("resume", given)))
    if path.is_dir():
        path = (path if path.name == WEIGHTS else path / WEIGHTS) / "last.pt"
        if not path.parent.is_dir():
            raise NothingLeftError(
                f"resume={given} is not the folder of a run: it has no folder {WEIGHTS}/; {GIVE_LAST}."
            )
    elif not path.is_file() and not (path.name == "last.pt" and path.parent.name == WEIGHTS and path.parent.is_dir()):
        raise NothingLeftError(
            f"resume={given} is not a file: give the interrupted run's folder or its weights/last.pt."
        )
    place = path.parent.parent if path.parent.name == WEIGHTS else None
    try:
        _, checkpoint = read_checkpoint(path, "resume", trust)
    except UsageError:
        raise
    except Exception as error:  # a torn file ends in any of a dozen types
        return _instead(path, given, place, trust, error)
    arguments = begun(checkpoint, place)
    if arguments is not None:
        return State(path, arguments, place)
    if checkpoint.get(SIGNED):
        best = path.with_name("best.pt")
        raise NothingLeftError(
            f"resume={given}: this run is finished, nothing is left to do; its model is "
            f"{best if best.is_file() else path}."
        )
    raise NothingLeftError(f"resume={given} is not an interrupted run of yolokd: {GIVE_LAST}.")


def _instead(path: Path, given: Any, place: Path | None, trust: bool, error: Exception) -> State:
    """The newest of the run's other checkpoints, where the one that was named cannot be read."""
    found: list[tuple[int, State]] = []
    for file in sorted(path.parent.glob("*.pt")) if place else ():
        if file == path or not (file.name in ("best.pt", "last.pt") or file.name.startswith("epoch")):
            continue
        with suppress(Exception):
            _, checkpoint = read_checkpoint(file, "resume", trust)
            arguments = begun(checkpoint, None)
            if arguments is not None:
                found.append((checkpoint["epoch"], State(file, arguments, place)))
    why = f"cannot be read ({one_line(error) or type(error).__name__})" if path.is_file() else "is not there"
    said = f"{path} {why}"
    if not found:
        raise NothingLeftError(
            f"resume={given}: {said}, and no other checkpoint beside it can be gone on from: begin the training anew."
        )
    epoch, state = max(found, key=lambda one: one[0])
    LOGGER.warning(printable(f"{said}: the run goes on from {state.file}, which is of epoch {epoch + 1}."))
    return state


def begun(checkpoint: dict[str, Any], place: Path | None) -> dict[str, Any] | None:
    """The training's arguments in an unfinished run's checkpoint; None if it is no run of ours, or a finished one.

    An earlier version could be killed when the optimizer was gone and the origin not yet written; such a run's own
    options are in its args.yaml only.
    """
    arguments = checkpoint.get("train_args") or {}
    if checkpoint.get("optimizer") is not None and checkpoint.get("epoch", -1) >= 0:
        return dict(arguments) if isinstance(arguments.get("kd"), dict) else None
    if checkpoint.get("optimizer") is not None or checkpoint.get(SIGNED) or place is None or not arguments:
        return None
    try:
        kd = YAML.load(place / "args.yaml").get("kd")
    except Exception:  # none there, or not one of Ultralytics'
        return None
    return {**arguments, "kd": kd} if isinstance(kd, dict) else None


def how_to_go_on(last: Path | None) -> str:
    """What a stopped training's user can do, by its last.pt."""
    if last is None or not Path(last).is_file():
        return "no epoch was saved yet, give the same command to begin anew"
    return f"`yolokd train resume={last}` goes on after the last saved epoch"


def is_over(checkpoint: dict[str, Any], epochs: int, patience: int, timed: bool) -> bool:
    """Whether no epoch is left to train after this one: the last of all, or one at which Ultralytics stops early."""
    done = int(checkpoint.get("epoch", -1)) + 1
    stopper = checkpoint.get("stopper") or {}
    early = bool(patience and stopper and done - stopper.get("best_epoch", done) >= patience)
    return done < 1 or early or (done >= epochs and not timed)


def cut_table(file: Path, epochs: int) -> None:
    """Leave in results.csv the rows of the first epochs only: those after them are trained again, or were cut short."""
    if not file.is_file():
        return
    header, *rows = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    kept: dict[int, str] = {}  # of an epoch that an older version trained twice, the second
    for row in rows:
        number, columns = row.partition(",")[0].strip(), row.count(",")
        if number.isdigit() and int(number) <= epochs and columns == header.count(","):
            kept[int(number)] = row
    if not header.startswith("epoch"):
        file.unlink()  # Ultralytics writes the header into a new file only
        return
    with replacing(file) as part:
        part.write_text("".join(f"{line}\n" for line in (header, *kept.values())), encoding="utf-8")
