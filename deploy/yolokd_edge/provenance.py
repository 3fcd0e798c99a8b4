"""Who taught the student: what a bundle's manifest, or a file's own metadata, says of where a model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("student", "teachers", "teacher", "start", "methods", "gain", "dataset")


def provenance_text(provenance: Any) -> str | None:
    """One line such as "student best.pt, taught by big.pt (cwd), on coco.yaml"; None where nothing is known.

    Every field may be missing or of another form: the line is for reading, and never a reason to stop.
    """
    if not isinstance(provenance, Mapping):
        return None
    student, teachers = _file(provenance.get("student")), _teachers(provenance)
    methods, dataset = _names(provenance.get("methods")), _file(provenance.get("dataset"))
    parts = [f"student {student}"] if student else []
    if teachers:
        by = f"taught by {' and '.join(teachers)}"
        parts.append(f"{by} ({', '.join(methods)})" if methods else by)
    if provenance.get("start") == "teacher":
        first = f" {teachers[0]}" if teachers else ""
        parts.append(f"started from its teacher{first}")
    if dataset and parts:
        parts.append(f"on {dataset}")
    return ", ".join(parts) or None


def known_provenance(provenance: Any) -> dict[str, Any] | None:
    """The fields that say something, for a program to read."""
    if not isinstance(provenance, Mapping):
        return None
    return {key: provenance[key] for key in KEYS if provenance.get(key) is not None} or None


def _teachers(provenance: Mapping[str, Any]) -> list[str]:
    """File names of all teachers; older manifests name only the first, as `teacher`."""
    several = provenance.get("teachers")
    listed = several if isinstance(several, (list, tuple)) else [provenance.get("teacher")]
    return [name for name in map(_file, listed) if name]


def _names(methods: Any) -> list[str]:
    """Names from a list, or from a mapping of names to options."""
    return [str(name) for name in methods] if isinstance(methods, (list, tuple, dict)) else []


def _file(entry: Any) -> str | None:
    """The file name of an entry {"file", "sha256"}, or of a plain text."""
    name = entry.get("file") if isinstance(entry, Mapping) else entry
    return name if isinstance(name, str) and name else None
