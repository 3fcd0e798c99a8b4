"""What an ONNX file says of itself, thousands of times nearly right: the runtime's own error, or strict JSON."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.edge import ORIGIN, entry, metadata
from helpers.fuzzing import Wish, changed, fuzz, mistyped, strict

from yolokd_edge.bench.facts import accuracy_facts, parity_facts
from yolokd_edge.common import EdgeError, json_text
from yolokd_edge.contract import RAW, Contract, metadata_entry, read_contract, says_fp16
from yolokd_edge.provenance import known_provenance, provenance_text

OURS = {
    **ORIGIN, "accuracy": {"map50": 0.5, "dataset": "d.yaml"}, "parity": {"pass": True, "raw": {"a": 0.1}},
    "int8": {"images": 8}, "train_run": "runs/a",
}  # fmt: skip
METADATA = {
    **metadata(RAW, 2),
    "args": {"quantize": None, "nms": None},
    "names": {0: "cat", 1: "dog"},
    "imgsz": [32, 64],
}


def written(document: object) -> dict[str, str]:
    """The entries as an exporter writes them: Python's or, for ours, JSON's text."""
    entries = document if isinstance(document, dict) else {"names": document}
    ours = entries.get("yolokd")
    texts = {str(k): v if isinstance(v, str) else repr(v)[:9000] for k, v in entries.items() if k != "yolokd"}
    return {**texts, "yolokd": ours if isinstance(ours, str) else json.dumps(ours)} if "yolokd" in entries else texts


def use_metadata(entries: dict[str, str]) -> Contract:
    content = b"".join(
        b"\x0a" + bytes([len(k) & 127]) + k.encode("utf-8", "replace") + b"\x12" + bytes([len(v) & 127])
        + v.encode("utf-8", "replace")
        for k, v in entries.items()
    )  # fmt: skip
    metadata_entry(content, "imgsz"), says_fp16(content)
    contract = read_contract(entries, Path("model.onnx"))
    assert min(contract.hw) > 0 and sorted(contract.names) == list(range(contract.nc))
    assert provenance_text(contract.meta) is None or provenance_text(contract.meta)
    missing: dict[str, str] = {}
    facts = {
        "accuracy": accuracy_facts(SimpleNamespace(contract=contract), [], missing),
        "parity": parity_facts(contract, missing),
        "missing": missing,
    }
    strict(json_text({**facts, **missing, "provenance": known_provenance(contract.meta)}))
    return contract


DOCUMENT = {**METADATA, "yolokd": json.loads(entry(RAW, **OURS)["yolokd"])}


def test_valid_metadata_is_read_as_it_was_written() -> None:
    contract = use_metadata(written(DOCUMENT))
    assert (contract.names, contract.hw, contract.meta) == ({0: "cat", 1: "dog"}, (32, 64), DOCUMENT["yolokd"])


@pytest.mark.parametrize(
    "change",
    [{"accuracy": True}, {"parity": [1]}, {"accuracy": {"map50": float("nan")}}, {"gain": float("inf")}],
    ids=str,
)
def test_metadata_found_by_fuzzing(change: dict) -> None:
    """What `bench` then asked for its parts, or could not write into its report."""
    with pytest.raises(EdgeError, match="'yolokd' metadata"):
        use_metadata(written({**DOCUMENT, "yolokd": {**DOCUMENT["yolokd"], **change}}))


def wished_metadata(wish: Wish) -> Contract:
    entries = written(changed(DOCUMENT, wish.edits))
    for where, gone, piece in wish.typos if entries else ():
        key = list(entries)[where % len(entries)]
        entries[key] = mistyped(entries[key], [(where >> 4, gone, piece)])
    return use_metadata(entries)


@pytest.mark.slow
def test_metadata() -> None:
    fuzz(wished_metadata, EdgeError)
