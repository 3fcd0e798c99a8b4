"""INT8 decided by measurement: calibrators, the error of outputs, layers left in float, and images that look alike."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

import yolokd
from yolokd.errors import UsageError
from yolokd.onnx import calibration, likeness, output_error, quantize, summary, trials
from yolokd.onnx.calibration import CALIBRATORS, ENTROPY, MINMAX, PERCENTILE
from yolokd.onnx.output_error import OutputError
from yolokd.onnx.trials import Trials, Wishes
from yolokd_edge.detector import Detector
from yolokd_edge.images import list_images, read_image

# --- the error --------------------------------------------------------------------------------------------------------


def row(x: float, width: float, score: float, label: int) -> list[float]:
    return [x, 0.0, x + width, 99.0, score, label]


def detections(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


def test_the_error_of_detections_known_by_hand() -> None:
    ours = [detections(row(0, 99, 0.8, 1), row(200, 99, 0.4, 2)), detections()]
    assert output_error.error(ours, ours) == pytest.approx(0, abs=1e-7)
    assert output_error.error(ours, [detections(), detections()]) == 1
    other_class = [detections(row(0, 99, 0.8, 3), row(200, 99, 0.4, 3)), detections()]
    assert output_error.error(ours, other_class) == 1
    # widths 99 and 79 with one pixel more are an IoU of 0.8; the score 0.4 became 0.5; 0.1 is new
    theirs = [detections(row(0, 79, 0.8, 1), row(200, 99, 0.5, 2)), detections(row(0, 9, 0.1, 1))]
    common, total = 0.8 * 0.8 + 1.0 * 0.4, 0.8 + 0.4 + 0.8 + 0.5 + 0.1
    assert output_error.error(ours, theirs) == pytest.approx(1 - 2 * common / total, abs=1e-6)
    assert output_error.error(theirs, ours) == pytest.approx(output_error.error(ours, theirs))


# --- calibrators ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(teacher, tmp_path_factory) -> Path:
    """The bundled teacher as an FP32 file of 64 px."""
    folder = tmp_path_factory.mktemp("full")
    return yolokd.export(Path(shutil.copy(teacher, folder / "teacher.pt")), folder / "full.onnx", imgsz=64)


@pytest.fixture(scope="module")
def images(scenes) -> list[Path]:
    return list_images(scenes.parent / "images/train")


@pytest.fixture(scope="module")
def held(scenes) -> list[Path]:
    return list_images(scenes.parent / "images/val")


@pytest.fixture(scope="module")
def measure(full, held) -> OutputError:
    return OutputError(full, held)


@pytest.fixture(scope="module")
def found(full, images) -> dict[str, TensorsData]:
    return calibration.ranges(full, images[:8], CALIBRATORS)


def activations(file: Path, tensors: list[str], images: list[Path]) -> dict[str, np.ndarray]:
    """All values of some tensors, by a session of their own."""
    import onnxruntime

    model = load_model_with_shape_infer(file)
    model.graph.output.extend(v for v in model.graph.value_info if v.name in tensors)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    detector = Detector(file, threads=1)
    feeds = [{session.get_inputs()[0].name: detector.preprocess(read_image(path))[0]} for path in images]
    values = [session.run(tensors, feed) for feed in feeds]
    return {name: np.concatenate([v[k].ravel() for v in values]) for k, name in enumerate(tensors)}


def ends(ranges: TensorsData, name: str) -> list[float]:
    return [float(np.ravel(end)[0]) for end in ranges[name].range_value]


def test_ranges_are_those_of_the_values(full, images, found) -> None:
    names = [n.output[0] for n in onnx.load(full).graph.node if n.op_type == "Conv"][:20]
    values = activations(full, names, images[:8])
    plain = calibration.ranges(full, images[:8], [MINMAX])[MINMAX]
    tail = (100 - calibration.PERCENT) / 2
    narrower = 0
    for name, all_values in values.items():
        lowest, highest = ends(found[MINMAX], name)
        assert (lowest, highest) == pytest.approx((all_values.min(), all_values.max()), rel=1e-5)
        assert ends(plain, name) == pytest.approx([lowest, highest], rel=1e-5)
        bins = 2.5 * max(abs(lowest), abs(highest)) * 2 / calibration.BINS
        cut = np.percentile(all_values, [tail, 100 - tail], method="inverted_cdf")
        assert ends(found[PERCENTILE], name) == pytest.approx(cut, abs=bins)
        low, high = ends(found[ENTROPY], name)
        assert lowest <= low < high <= highest and high - low > 0.02 * (highest - lowest)
        narrower += high - low < 0.98 * (highest - lowest)
    assert narrower >= 5  # entropy does cut something


def test_merged_bins_hold_the_same_values() -> None:
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    end = np.abs(values).max()
    counts, edges = np.histogram(values, 2062, range=(-end, end))
    merged, coarse, extra = calibration.coarser(counts, edges, np.float32(3))
    assert len(merged) <= calibration.COARSE and len(merged) % 2 == 0 and extra == 3
    again, _ = np.histogram(values, coarse)
    assert np.abs(np.cumsum(merged) - np.cumsum(again)).max() <= 2  # values on an edge
    assert coarse[len(merged) // 2] == pytest.approx(0, abs=1e-6) and merged.sum() == 20_000


def test_what_is_measured_on_is_not_calibrated_on(scenes) -> None:
    from yolokd.data.splits import find_data

    data = find_data(scenes)
    images, held, split = calibration.image_sets(data, 8)
    assert len(images) == 8 and split == "val" and len(held) == 8  # 16 training images left are too few
    assert all("train" in p.parts for p in images) and all("val" in p.parts for p in held)
    assert calibration.image_sets(data, 0)[0] == []


def test_held_out_training_images_where_there_are_enough(scenes, tmp_path: Path) -> None:
    from yolokd.data.splits import find_data

    listed = tmp_path / "train.txt"
    (tmp_path / "images").mkdir()
    source = list_images(scenes.parent / "images/train")
    copies = [shutil.copy(source[k % len(source)], tmp_path / f"images/{k}{source[0].suffix}") for k in range(50)]
    listed.write_text("\n".join(map(str, copies)))
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({**yaml.safe_load(scenes.read_text()), "train": str(listed)}))
    images, held, split = calibration.image_sets(find_data(data), 10)
    assert (len(images), len(held), split) == (10, output_error.IMAGES, "train") and not set(images) & set(held)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fragile(full, tmp_path_factory) -> Path:
    """A file of which one layer cannot be rounded: a channel of its input is 2000, which its weights do not use."""
    model = onnx.load(full)
    tensors = {t.name: t for t in model.graph.initializer}
    first, second = [n for n in model.graph.node if n.op_type == "Conv"][:2]
    assert "model.0" in first.name and "model.1" in second.name

    def change(name: str, place: object, value: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[place] = value
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    weakest = int(np.abs(numpy_helper.to_array(tensors[second.input[1]])).sum((0, 2, 3)).argmin())
    change(second.input[1], (slice(None), weakest), 0.0)
    change(first.input[1], weakest, 0.0)
    change(first.input[2], weakest, 2000.0)
    file = tmp_path_factory.mktemp("fragile") / "fragile.onnx"
    onnx.save(model, file)
    return file


def rounded_convolutions(file: Path) -> set[str]:
    graph = onnx.load(file).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return {n.name for n in graph.node if n.op_type == "Conv" and makers.get(n.input[1]) == "DequantizeLinear"}


# What TensorRT takes has no rounding behind a convolution: there the layer that reads the large channel suffers alone.
@pytest.mark.parametrize(
    ("scheme", "costly"),
    [(quantize.CPU, {"model.0", "model.1"}), (quantize.TENSORRT, {"model.1"})],
    ids=["cpu", "trt"],
)
def test_the_layer_that_costs_most_is_found_and_stays_in_float(
    scheme: dict, costly: set[str], fragile: Path, images: list[Path], held: list[Path], tmp_path: Path
) -> None:
    measure = OutputError(fragile, held)
    assert measure
    plain = Trials(fragile, images[:8], measure, Wishes(MINMAX))
    before = plain.write(tmp_path / "all.onnx", scheme)
    assert before["layers"] == before["left"] == [] and before["chosen"] == MINMAX
    tries = Trials(fragile, images[:8], measure, Wishes(MINMAX, float_layers=len(costly)))
    tries.layers = tries.layers[:4]  # a minute's measuring would find the same
    tried = tries.write(tmp_path / "left.onnx", scheme)
    names = [r["layer"] for r in tried["layers"]]
    errors = [r["error"] for r in tried["layers"]]
    assert errors == sorted(errors, reverse=True) and {"model.0", "model.1", "head cv2", "head cv3"} <= set(names)
    assert set(names[: len(costly)]) == costly and errors[len(costly) - 1] > 3 * errors[names.index("model.2.cv1")]
    left = tried["left"]
    assert [r["layer"] for r in left] == names[: len(costly)]
    everything = measure.of(tmp_path / "all.onnx")
    assert everything == pytest.approx(before["calibrators"][MINMAX], abs=1e-6)
    assert measure.of(tmp_path / "left.onnx") == pytest.approx(left[-1]["error"], abs=1e-6)
    assert left[-1]["error"] < everything / 2
    graph = onnx.load(tmp_path / "left.onnx")
    stay = {*quantize.head_convolutions(graph, fragile), *(f"/{layer}/conv/Conv" for layer in costly)}
    convolutions = {n.name for n in graph.graph.node if n.op_type == "Conv"}
    assert convolutions - rounded_convolutions(tmp_path / "left.onnx") == stay
    assert fragile.stat().st_size / 4 < left[0]["bytes"] < fragile.stat().st_size / 2
    assert f"and {len(costly)} more" in Detector(tmp_path / "left.onnx").contract.meta["int8"]["excluded"]


def test_layers_stay_in_float_until_the_error_is_within_the_limit(full, images, measure, monkeypatch) -> None:
    tries = Trials(full, images[:2], measure, Wishes(MINMAX))
    costs = [(f"layer {k}", [name], 0.1 - 0.01 * k) for k, name in enumerate(tries.layers[:6])]
    costs.insert(1, ("head cv2", tries.head[:3], 0.095))  # measured, but in float anyway
    given: list[list[str]] = []

    class Counted:
        file = full

        def error(self, ranges: object, floats: list[str]) -> float:
            given.append(list(floats))
            return 0.08 - 0.02 * len(floats)

    def leave(**wishes: object) -> list[str]:
        given.clear()
        tries.wishes = Wishes(MINMAX, **wishes)
        return [row["name"] for row in tries._leave(Counted(), MINMAX, costs, 0.08)]

    warned: list[str] = []
    monkeypatch.setattr(trials.LOGGER, "warning", warned.append)
    assert leave(max_error=8) == [] and not given  # it is within from the start
    assert leave(max_error=3.9) == tries.layers[:3] == given[-1]
    assert leave(max_error=4.1) == tries.layers[:2] and not warned
    assert leave(float_layers=1) == tries.layers[:1] and not warned
    assert leave(float_layers=3, max_error=7) == tries.layers[:1] and not warned
    assert leave(float_layers=1, max_error=1) == tries.layers[:1]
    assert Wishes(float_layers=0, max_error=7).searches and not Wishes(float_layers=0).searches
    assert len(warned) == 1 and "off by 6.00 % with 1 layers in float, more than max_error=1" in warned[0]


def test_auto_takes_the_calibrator_of_the_least_error(full, images, held, measure, tmp_path: Path) -> None:
    # images of which one is far brighter than what is measured on: its extremes widen the ranges of minmax only
    tries = Trials(full, images[:8], measure, Wishes())
    wide = copy.deepcopy(tries.ranges[MINMAX])
    for name in wide.keys():
        data = wide[name]
        data.lowest, data.highest = data.lowest * 8, data.highest * 8
    tries.ranges = {MINMAX: wide, PERCENTILE: tries.ranges[PERCENTILE]}
    tried = tries.write(tmp_path / "auto.onnx", quantize.CPU)
    assert tried["chosen"] == PERCENTILE and tried["calibrators"][MINMAX] > tried["calibrators"][PERCENTILE] > 0
    assert measure.of(tmp_path / "auto.onnx") == pytest.approx(tried["calibrators"][PERCENTILE], abs=1e-6)
    said = Detector(tmp_path / "auto.onnx").contract.meta["int8"]
    assert said["calibrator"] == "percentile: 99.99 % of the values" and said["float_layers"] == []
    assert (said["calib_n"], said["calib_sha"]) == (8, calibration.digest(images[:8]))


def test_layers_have_the_names_that_users_know() -> None:
    assert trials.short("/model.2/m.0/cv1/conv/Conv") == "model.2.m.0.cv1"
    assert trials.short("/model.22/cv2.0/cv2.0.2/Conv") == "model.22.cv2.0.cv2.0.2"
    assert trials.short("Conv_7") == "Conv_7"


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"calibrator": "max"}, "calibrator=max is not known: give auto, minmax, percentile or entropy."),
        ({"float_layers": -1}, "float_layers=-1 is not a number of layers"),
        ({"float_layers": True}, "float_layers=True is not a number of layers"),
        ({"float_layers": 2.5}, "float_layers=2.5 is not a number of layers"),
        ({"max_error": 101}, "max_error=101 is not a percentage"),
        ({"max_error": "low"}, "max_error=low is not a percentage"),
        ({"max_error": float("nan")}, "max_error=nan is not a percentage"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wishes: dict, sentence: str, teacher, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        yolokd.bundle(teacher, tmp_path / "a.zip", int8=True, **wishes)


def test_wishes_for_int8_need_int8(teacher, scenes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_error=2 is for the INT8 files: add int8=True, or leave it out"):
        yolokd.bundle(teacher, tmp_path / "a.zip", data=scenes, max_error=2)


def test_more_float_layers_than_layers_are_refused(full, images, measure) -> None:
    with pytest.raises(UsageError, match=r"float_layers=999: the student has \d+ convolutions outside the head"):
        Trials(full, images[:2], measure, Wishes(float_layers=999))


def test_without_detections_nothing_is_compared(full, images, tmp_path: Path, monkeypatch) -> None:
    nothing, warned = OutputError(full, []), list[str]()
    assert not nothing
    for wishes in (Wishes(float_layers=1), Wishes(MINMAX, max_error=1)):
        with pytest.raises(UsageError, match="nothing is detected in the 0 images that INT8 is measured on"):
            Trials(full, images[:2], nothing, wishes)
    monkeypatch.setattr(trials.LOGGER, "warning", warned.append)
    tried = Trials(full, images[:2], nothing, Wishes()).write(tmp_path / "a.onnx", quantize.CPU)
    assert len(warned) == 1 and "calibrator=minmax is taken" in warned[0]
    assert tried == {"calibrators": {}, "chosen": MINMAX, "layers": [], "left": []}


def test_what_was_tried_is_told() -> None:
    error = {"value": 0.0213, "split": "train", "n": 32}
    tried = {
        "calibrators": {MINMAX: 0.05, ENTROPY: 0.03},
        "chosen": ENTROPY,
        "layers": [{"layer": "model.1", "error": 0.02}, {"layer": "head cv2", "error": 0.01}],
        "left": [{"layer": "model.1", "error": 0.0213, "bytes": 1_234_567}],
    }
    models = {"a.onnx": {}, "f.onnx": {"output_error": {**error, "value": 0.0001}}}
    models["b.onnx"] = {"output_error": error, "trials": tried}
    said = summary.tried(models, {"b.onnx": 1.5})
    assert "in 32 training images that nothing is calibrated on" in said
    assert "b.onnx  2.13 %  1.50 x FP32" in said and "f.onnx  0.01 %  -" in said
    assert "b.onnx: minmax 5.00 %, entropy 3.00 %; entropy is taken" in said
    assert "head cv2       1.00 %" in said and "left in float, with those above  off by  MB\n" in said
    assert re.search(r"^model\.1 +2\.13 %  1\.23$", said, re.M)
    assert "nothing was compared" in summary.tried({"a.onnx": {}}, {})


# --- images that look alike -------------------------------------------------------------------------------------------


def looks(count: int, seed: int, mean: float = 110, contrast: float = 50, varied: float = 15) -> np.ndarray:
    """Features of a set of images: means and contrasts that differ from image to image."""
    rng = np.random.default_rng(seed)
    light = rng.normal(0, varied, (count, 1)) + rng.normal(0, 5, (count, 3))
    return np.concatenate([mean + light, contrast + rng.normal(0, varied / 3, (count, 3))], axis=1)


@pytest.mark.parametrize(("n", "m"), [(64, 64), (64, 8), (8, 64), (16, 16), (6, 6)])
def test_sets_of_one_kind_look_alike(n: int, m: int) -> None:
    said = [likeness.difference(looks(n, 2 * k), looks(m, 2 * k + 1)) for k in range(200)]
    assert sum(found is not None for found in said) <= 2  # CHANCE of 200


@pytest.mark.parametrize("sizes", [(64, 64), (8, 8), (4, 64)])
@pytest.mark.parametrize(
    ("other", "feature"),
    [({"mean": 220}, "mean"), ({"mean": 20}, "mean"), ({"contrast": 5}, "contrast"), ({"contrast": 120}, "contrast")],
)
def test_sets_that_differ_are_told_apart_in_either_direction(other: dict, feature: str, sizes: tuple) -> None:
    n, m = sizes
    for ours, theirs in ((looks(n, 0), looks(m, 1, **other)), (looks(n, 0, **other), looks(m, 1))):
        found = likeness.difference(ours, theirs)
        assert found is not None and found[0].startswith(feature) and found[1] == 1.0


def test_a_difference_is_judged_by_how_much_images_differ_among_themselves() -> None:
    assert likeness.difference(looks(64, 0, varied=60), looks(64, 1, mean=130, varied=60)) is None
    found = likeness.difference(looks(64, 0, varied=6), looks(64, 1, mean=130, varied=6))
    assert found is not None and found[0].startswith("mean")


def test_half_of_the_images_of_another_kind_are_seen() -> None:
    night = np.concatenate([looks(32, 1), looks(32, 2, mean=15)])
    for ours, theirs in ((looks(64, 0), night), (night, looks(64, 0))):
        assert likeness.difference(ours, theirs) is not None


def test_the_distance_is_kolmogorovs_and_smirnovs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = rng.integers(0, 9, 7) * 1.0, rng.integers(2, 12, 5) * 1.0
        shares = [abs(np.mean(ours <= x) - np.mean(theirs <= x)) for x in np.arange(-1, 13, 0.5)]
        assert likeness.ks_distance(ours, theirs) == pytest.approx(max(shares))


def test_the_warning_names_what_differs(scenes, tmp_path: Path, monkeypatch) -> None:
    import cv2

    warned: list[str] = []
    monkeypatch.setattr(likeness.LOGGER, "warning", warned.append)
    train, val = (list_images(scenes.parent / f"images/{split}") for split in ("train", "val"))
    likeness.warn_if_unlike(train, val)
    assert not warned
    for k, path in enumerate(train):
        image = read_image(path)
        image[..., 2] //= 8  # red
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
    pale = list_images(tmp_path)
    likeness.warn_if_unlike(pale, val)
    likeness.warn_if_unlike(val, pale)
    assert len(warned) == 2 and all("look unlike the validation images: the " in text for text in warned)
    assert all("of red alone sorts" in text for text in warned)
