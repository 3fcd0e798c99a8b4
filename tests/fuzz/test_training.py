"""What a user asks of a training, thousands of times nearly right: one sentence, or options that keep on every way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from helpers.fuzzing import INPUTS, VALUES, Wish, as_yaml, changed, fuzz, mistyped, strict

from yolokd.config import options
from yolokd.config.checks import check_values
from yolokd.config.options import DistillOptions
from yolokd.config.parse import parse_pairs
from yolokd.config.recipes import asked_methods, check_options, read_arguments, shipped_recipes
from yolokd.config.schedule import GAIN
from yolokd.data.splits import find_data, read_data, split_images
from yolokd.detectors.class_map import coverage, match_classes
from yolokd.errors import UsageError
from yolokd.methods import METHODS
from yolokd.studies.arms import read_arms
from yolokd.studies.plan import read_seeds


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two teachers, a folder of images with their labels."""
    monkeypatch.chdir(tmp_path)
    for name in ("big.pt", "other.onnx"):
        (tmp_path / name).write_bytes(b"x")
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data/images/0.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "data/labels/0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return tmp_path


# --- options --------------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, Any] = {
    "model": "yolo11n.yaml", "data": "d.yaml", "teacher": "big.pt,other.onnx", "method": "pkd@backbone,logit",
    "kd": 1.0, "init": "own", "balance": "auto", "levels": "resize", "teacher_imgsz": 64, "teachers": "best",
    "trust": False, "classes": {"cat": "animal"}, "cache": "teacher,ram", "cache_views": 3, "cache_limit": 2.0,
    "logit.gain": 2.0, "pkd@backbone.warmup": 1, "logit.schedule": "cosine", "teacher.contract": "raw", "epochs": 3,
    "imgsz": 64, "batch": 8, "lr0": 0.01, "optimizer": "SGD", "workers": 2, "device": "cpu", "seed": 1, "name": "a",
    "fraction": 1.0,
}  # fmt: skip
UNLABELED = {k: v for k, v in ARGUMENTS.items() if not k.startswith("cache")} | {
    "unlabeled": "data/images", "unlabeled_ratio": 0.5, "classes": [0, 1], "balance": 0.5,
}  # fmt: skip


def use_options(arguments: dict[str, Any]) -> DistillOptions:
    folded = options.fold(dict(arguments))
    check_values({k: v for k, v in folded.items() if k != "kd"})
    plain = folded["kd"]
    found = DistillOptions.of(folded)
    assert DistillOptions.from_dict(json.loads(json.dumps(plain))) == found or found.teacher_names
    assert DistillOptions.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == found
    assert options.fold(folded) == folded
    strict(json.dumps(plain, allow_nan=False))
    return found


@pytest.mark.parametrize("arguments", [ARGUMENTS, UNLABELED])
def test_valid_options_keep_on_every_way(arguments: dict[str, Any], folder: Path) -> None:
    found = use_options(arguments)
    assert found.methods["logit"]["gain"] == 2.0 and len(found.teacher) == 2
    words = [f"{k}={v}" for k, v in arguments.items()]
    assert use_options(parse_pairs(words)) == found


@pytest.mark.parametrize("kd", [{}, {"": None}, {"teacher": ["a.pt"]}], ids=str)
def test_options_found_by_fuzzing(kd: dict[str, Any], folder: Path) -> None:
    """A mapping counted as options that had been read."""
    with pytest.raises(UsageError, match="is not a number of 0 or more"):
        use_options({**ARGUMENTS, "kd": kd})


@pytest.mark.parametrize("name", ["x" * 3000, "~nobody-9/x", "a\0b", "\ud800"], ids=ascii)
def test_a_name_that_no_file_can_have_is_one_sentence(name: str, folder: Path) -> None:
    for key, end in (("teacher", ".pt"), ("classes", ".yaml"), ("unlabeled", ""), ("method", ".yaml")):
        with pytest.raises(UsageError, match=f"{key}=.* names no file"):
            use_options({**UNLABELED, key: name + end, "logit.gain": 1})


@pytest.mark.slow
def test_options(folder: Path) -> None:
    def use(wish: Wish) -> None:
        given = changed([ARGUMENTS, UNLABELED][len(wish.edits) % 2], wish.edits)
        given = {str(k): v for k, v in given.items()} if isinstance(given, dict) else {"teacher": given}
        if not wish.typos:
            use_options(given)
            return
        words = [f"{k}={v}"[:9000] for k, v in given.items() if not isinstance(v, int) or abs(v) < 10**300]
        for where, gone, piece in wish.typos:
            k = where % len(words) if words else 0
            words[k : k + 1] = [mistyped(word, [(where >> 3, gone, piece)]) for word in words[k : k + 1]]
        use_options(parse_pairs(words))

    fuzz(use, UsageError)


# --- recipes, files of arguments, arms of a study -------------------------------------------------------------------

RECIPE = {
    "optional": True,
    "pairs": {
        "dense/dense": {"logit": {"gain": 15, "schedule": "linear", "floor": 0.1}, "cwd": None},
        "set/set": {"detr_logit": {"gain": 1.0, "warmup": 2}},
    },
    "methods": {"pkd@backbone": {"gain": 0.5}, "fgd": {"temperature": 0.5}},
}


def file_of(folder: Path, document: object, wish: Wish = Wish([], [])) -> str:  # noqa: B008
    """The path of a YAML file of a document, changed as wished."""
    text = mistyped(as_yaml(changed(document, wish.edits)), wish.typos)
    (folder / "file.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return str(folder / "file.yaml")


def use_recipe(file: str) -> dict[str, Any]:
    asked = asked_methods(file, {})
    found = DistillOptions(("big.pt",), **asked)
    assert DistillOptions.from_dict(strict(json.dumps(found.to_dict(), allow_nan=False))) == found
    return asked


def test_a_valid_recipe_is_read_as_it_was_written(folder: Path) -> None:
    asked = use_recipe(file_of(folder, RECIPE))
    again = {"pairs": {k: v for k, v in asked["recipe"].items() if k != "any"}, "methods": asked["recipe"]["any"]}
    assert use_recipe(file_of(folder, {**again, "optional": asked["optional"]})) == asked
    for name in shipped_recipes():
        use_recipe(name)


@pytest.mark.parametrize(
    "text", ["[" * 1200, "a: " + "9" * 5000, "a: 2020-13-45", "a: !!int ''", "a: !!bool x", "a: !!timestamp x"],
    ids=lambda text: text[:16],
)  # fmt: skip
def test_yaml_that_ends_its_reader_is_one_sentence(text: str, folder: Path) -> None:
    """PyYAML has errors of its own, and lets out those of Python's numbers, dates and stack."""
    (folder / "file.yaml").write_text(text)
    for reader in (use_recipe, read_arguments, options.read_classes, options.read_names):
        with pytest.raises(UsageError, match="file.yaml is not a readable YAML file"):
            reader("file.yaml")


@pytest.mark.parametrize("seeds", [[[0]], [0, {}], [True, 2], [0, 0], [-1], 0, "3"], ids=str)
def test_seeds_found_by_fuzzing(seeds: object) -> None:
    with pytest.raises(UsageError, match="neither a number of seeds nor a list"):
        read_seeds(seeds)


@pytest.mark.parametrize("method", METHODS)
def test_every_option_takes_a_value_or_says_why_not(method: str) -> None:
    options_of = [*GAIN, *(f.name for f in dataclasses.fields(METHODS[method].Options))]
    for option in options_of:
        taken = 0
        for value in VALUES:
            try:
                asked = check_options(method, {option: value})
            except UsageError as error:
                assert f"{method}.{option}" in str(error)
            else:
                taken += 1
                strict(json.dumps(asked, allow_nan=False))
        assert taken < len(VALUES), f"{method}.{option} takes anything"


@pytest.mark.slow
def test_recipes(folder: Path) -> None:
    fuzz(lambda wish: use_recipe(file_of(folder, RECIPE, wish)), UsageError)


@pytest.mark.slow
def test_files_of_arguments_and_arms(folder: Path) -> None:
    arms = {"strong": {"method": "pkd", "pkd.gain": 6}, "pkd+logit": None, "alone2": {"lr0": 0.1}}

    def use(wish: Wish) -> None:
        file = file_of(folder, [arms, ARGUMENTS][len(wish.edits) % 2], wish)
        read_arguments(file)
        read_seeds(changed([0, 4, 7], wish.edits))
        for name, own in read_arms(None, file).items():
            assert isinstance(name, str) and isinstance(own, dict) and "/" not in name

    fuzz(use, UsageError, INPUTS // 5)


# --- class maps -----------------------------------------------------------------------------------------------------

DATA_NAMES, TEACHER_NAMES = {0: "animal", 1: "car"}, {0: "Cat", 1: "dog", 2: "car", 3: "bus"}
CLASS_MAP = {"cat": "animal", "dog": "animal", "car": "car"}


def use_classes(folder: Path, mapping: str, names: Any) -> tuple[list[int], list[list[int]]]:
    """Student's and teacher's indices of the shared classes, from a class map's text and the teacher's names."""
    (folder / "map.yaml").write_bytes(mapping.encode("utf-8", "surrogatepass"))
    teacher = options.read_names(file_of(folder, names))
    found = match_classes(DATA_NAMES, teacher, options.read_classes("map.yaml"))
    assert coverage(DATA_NAMES, found, "big.pt").isprintable()
    if found is None:
        return [0, 1], [[0], [1]]
    assert set(found.student.tolist()) <= set(DATA_NAMES) and set(found.teacher.flatten().tolist()) <= set(teacher)
    return found.student.tolist(), found.teacher.tolist()


@pytest.mark.parametrize("names", [TEACHER_NAMES, list(TEACHER_NAMES.values()), {"names": TEACHER_NAMES, "nc": 4}])
def test_a_valid_class_map_says_which_is_which(names: object, folder: Path) -> None:
    assert use_classes(folder, as_yaml(CLASS_MAP), names) == ([0, 1], [[0, 1], [2, 2]])


@pytest.mark.slow
def test_class_maps(folder: Path) -> None:
    def use(wish: Wish) -> None:
        both = changed([CLASS_MAP, TEACHER_NAMES], wish.edits)
        both = both if isinstance(both, list) and len(both) > 1 else [both, TEACHER_NAMES]
        use_classes(folder, mistyped(as_yaml(both[0]), wish.typos), both[1])
        match_classes(DATA_NAMES, TEACHER_NAMES, None, changed([0, 1], []))

    fuzz(use, UsageError)


# --- data sets ------------------------------------------------------------------------------------------------------

DATA = {"path": "data", "train": "images", "val": ["images"], "names": {0: "cat", 1: "dog"}, "nc": 2, "channels": 3}


@contextmanager
def no_download() -> Iterator[None]:
    """Nothing is fetched and nothing run, whatever a data set's YAML says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("safe_download", "check_font"):
            patch.setattr(f"ultralytics.data.utils.{name}", lambda *a, **k: None)
        yield


def use_data(file: str) -> dict[str, Any]:
    found = read_data({"data": file})
    assert isinstance(find_data(file)["names"], dict)
    assert split_images(found, "train") and split_images(found, "val")
    return found


def test_a_valid_data_set_is_read(folder: Path) -> None:
    with no_download():
        found = use_data(file_of(folder, DATA))
    assert found["names"] == DATA["names"] and found["nc"] == 2


@pytest.mark.parametrize("count", [2**31, 10**400, 1e300])
def test_a_number_of_classes_without_names_does_not_fill_the_memory(count: float, folder: Path) -> None:
    file = file_of(folder, {**{k: v for k, v in DATA.items() if k != "names"}, "nc": count})
    for read in (lambda: read_data({"data": file}), lambda: find_data(file)):
        with no_download(), pytest.raises(UsageError, match=r"has nc: .* and no names, more than 100000 classes"):
            read()


@pytest.mark.slow
def test_data_sets(folder: Path) -> None:
    with no_download():
        fuzz(lambda wish: use_data(file_of(folder, DATA, wish)), UsageError)
