"""What every method keeps on every tap it declares."""

from __future__ import annotations

import ast
import inspect
import math
import pkgutil
import re
import tokenize
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch
from helpers.views import (
    DENSE,
    HEAD,
    OTHER_SIZES,
    build,
    change,
    make_pair,
    reads,
    tensors,
    trainable,
    without_objects,
)

from yolokd import methods
from yolokd.methods import METHODS
from yolokd.methods.base import ANY_HEADS, TAXONOMY_LEVELS
from yolokd.views import FIELDS, FUNCTIONS, MAPS

# A method that reads maps alone does not see the heads: one pair of them stands for all
CASES = [
    (name, tap, heads)
    for name, cls in METHODS.items()
    for tap in cls.taps or (HEAD,)
    for heads in (cls.heads if cls.needs | cls.student_needs | cls.teacher_needs else cls.heads[:1])
]


def cases(chosen):
    chosen = list(chosen)
    return pytest.mark.parametrize(("name", "tap", "heads"), chosen, ids=["-".join(case) for case in chosen])


every_case = cases(CASES)
BARE = {"at"}  # methods on maps that have no weights of their own
# methods for which an object's size in pixels, or between cells, matters
BY_PIXELS = {"icd", "fgfi", "roi", "gid", "match", "masks"}
ON_POINTS = {"gid", "pgd"}  # methods on maps that also pair anchor points
ACROSS_CELLS = {"mgd", "reviewkd", "fbkd"}  # methods whose 3x3 convs see other neighbours on a finer grid
BY_NUMBER = {
    "ld",
    "ld_rotated",
    "rm",
    "lad",
    "pgd",
    "bounded",
}  # methods that take a fixed number of points for each object, of which a finer grid has more
LEARNS = {  # what a head method trains, if not logits
    "bckd_box": "boxes", "bounded": "boxes", "ld": "bins", "crosskd": "towers", "probiou": "rotated",
    "ld_rotated": "rotated_bins",
    "oks": "keypoints", "masks": "coefficients",
}  # fmt: skip
LAYERED = {
    "detr_logit": "layer_logits",
    "qskd": "layer_logits",
    "match": "layer_logits",
}  # what one trains in a student with a decoder
LAYERED |= {"detr_query": "decode", "kd_detr": "decode", "clock": "decode", "d3etr": "decode"}
DRAWS_QUERIES = {"kd_detr"}
SHARED = {"base", "ops", "sets"}  # what is no method's own
MODULES = [Path(methods.__path__[0]) / f"{m.name}.py" for m in pkgutil.iter_modules(methods.__path__)]


def value(name, tap, pair, **options) -> torch.Tensor:
    return build(name, pair, tap, dtype=torch.float32, **options)(pair.student, pair.teacher, pair.batch)


def pair32(seed=0, **kwargs):
    return make_pair(seed, dtype=torch.float32, **kwargs)


def converted(pair, change_one, only=(*FIELDS, "decode")):
    return replace(pair, student=change(pair.student, change_one, only), teacher=change(pair.teacher, change_one, only))


def reordered(batch, images):
    """The batch with these of its images, and their objects along."""
    objects = [i for image in images for i in (batch["batch_idx"] == image).nonzero().flatten().tolist()]
    new = [float(n) for n, image in enumerate(images) for _ in (batch["batch_idx"] == image).nonzero()]
    chosen = {key: batch[key][objects] for key in ("cls", "bboxes")}
    return {"img": batch["img"][images], **chosen, "batch_idx": torch.tensor(new)}


@every_case
def test_finite_positive_scalar_in_float32(name, tap, heads):
    got = value(name, tap, pair32(heads=heads))
    assert got.shape == () and got.dtype == torch.float32 and got.isfinite() and got > 0


@every_case
def test_float64_is_not_narrowed(name, tap, heads):
    pair = make_pair(heads=heads)
    assert build(name, pair, tap)(pair.student, pair.teacher, pair.batch).dtype == torch.float64


@every_case
def test_gradient_to_student_and_own_parameters_only(name, tap, heads):
    pair = pair32(heads=heads)
    student, teacher = trainable(pair.student), trainable(pair.teacher)
    method = stirred(build(name, pair, tap, dtype=torch.float32))
    method(student, teacher, pair.batch).backward()
    assert all(x.grad is None for field in (*FIELDS, "decode") for x in tensors(teacher, field))
    main = tap if tap in MAPS else LEARNS.get(name, "logits")
    main = LAYERED.get(name, main) if heads.startswith("set") else main
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in tensors(student, main))
    undeclared = [field for field in (*FIELDS, "decode") if field not in reads(method)]
    assert all(x.grad is None for field in undeclared for x in tensors(student, field))
    for parameter_name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-5, parameter_name
    learns = not set(MAPS).isdisjoint(reads(method)) and name not in BARE
    assert bool(list(method.parameters())) == (learns or "decode" in reads(method))


def stirred(method):
    """With other weights than its first: a layer that starts at 0 hides those before it until it has moved."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in method.parameters():
            p += 0.1 * torch.randn(p.shape, generator=random, dtype=p.dtype)
    return method


@every_case
def test_a_step_lowers_the_loss(name, tap, heads):
    """The gradient points the right way, for the student and the adapters together."""
    pair = make_pair(heads=heads)
    student, method = trainable(pair.student), build(name, pair, tap).eval()
    first = method(student, pair.teacher, pair.batch)
    first.backward()
    with torch.no_grad():
        leaves = [x for field in reads(method) for x in tensors(student, field)] + list(method.parameters())
        for x in leaves:
            if x.grad is not None:
                x -= 1e-3 * x.grad
    assert method(student, pair.teacher, pair.batch) < first


@every_case
def test_one_image(name, tap, heads):
    assert value(name, tap, pair32(heads=heads, batch=1)).isfinite()


@every_case
def test_images_without_objects(name, tap, heads):
    pair = pair32(heads=heads)
    assert_finite(name, tap, replace(pair, batch=without_objects(pair.batch)))


@every_case
def test_order_of_images_does_not_matter(name, tap, heads):
    pair = make_pair(heads=heads, batch=3)
    shuffled = replace(converted(pair, lambda x: x[[2, 0, 1]]), batch=reordered(pair.batch, [2, 0, 1]))
    method = build(name, pair, tap).eval()  # a method that draws numbers does not in eval mode
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(shuffled.student, shuffled.teacher, shuffled.batch).item() == pytest.approx(expected, rel=1e-12)
    # but which student's image meets which teacher's does
    assert method(shuffled.student, pair.teacher, pair.batch).item() != pytest.approx(expected, rel=1e-6)


@every_case
def test_a_batch_twice_is_worth_the_same(name, tap, heads):
    pair = make_pair(heads=heads, batch=2)
    twice = replace(converted(pair, lambda x: torch.cat((x, x))), batch=reordered(pair.batch, [0, 1, 0, 1]))
    method = build(name, pair, tap).eval()  # a method that draws numbers does not in eval mode
    expected = method(pair.student, pair.teacher, pair.batch).item()
    assert method(twice.student, twice.teacher, twice.batch).item() == pytest.approx(expected, rel=1e-9)


@cases(case for case in CASES if case[0] not in BY_NUMBER | BY_PIXELS and case[2] == DENSE)
def test_maps_of_twice_the_size_are_worth_the_same(name, tap, heads):
    """Every cell and anchor point four times, as on an image of twice the side."""
    pair = make_pair(heads=heads)
    pair = replace(pair, batch=on_cell_borders(pair.batch))
    grids = (*MAPS, "prototypes")
    larger = converted(pair, lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), grids)
    larger = converted(larger, four_times, tuple(f for f in FIELDS if f not in grids))
    larger = replace(larger, batch={**pair.batch, "img": pair.batch["img"].repeat(1, 1, 2, 2)})
    method = build(name, pair, tap).eval()  # a method that draws numbers does not in eval mode
    expected = method(pair.student, pair.teacher, pair.batch).item()
    tolerance = 0.1 if name in ACROSS_CELLS else 1e-9
    assert method(larger.student, larger.teacher, larger.batch).item() == pytest.approx(expected, rel=tolerance)


def on_cell_borders(batch):
    """Boxes grown to whole cells of the coarsest level (two a side), where a finer grid marks the same cells."""
    centre, size = batch["bboxes"].split(2, -1)
    low, high = (2 * (centre - size / 2)).floor() / 2, (2 * (centre + size / 2)).ceil() / 2
    return {**batch, "bboxes": torch.cat(((low + high) / 2, high - low), -1)}


def four_times(x):
    """(B, N, ...) -> (B, 4 N, ...), each level's grid with every point as 2 x 2."""
    parts = []
    for part, (h, w) in zip(x.split([h * w for h, w in OTHER_SIZES[0][0]], 1), OTHER_SIZES[0][0], strict=True):
        grid = part.reshape(len(x), h, w, *x.shape[2:])
        parts.append(grid.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2))
    return torch.cat(parts, 1)


@every_case
def test_inputs_are_left_alone(name, tap, heads):
    pair = pair32(heads=heads)
    before, batch = converted(pair, torch.clone), {key: x.clone() for key, x in pair.batch.items()}
    student = trainable(pair.student)
    build(name, pair, tap, dtype=torch.float32)(student, pair.teacher, pair.batch).backward()
    for field in (*FIELDS, "decode"):
        for now, then in ((student, before.student), (pair.teacher, before.teacher)):
            assert all(map(torch.equal, tensors(now, field), tensors(then, field)))
    assert all(torch.equal(pair.batch[key], batch[key]) for key in batch)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_inputs(name, tap, heads, dtype):
    """Large values too: the squares of 1000 overflow float16."""
    pair = pair32(heads=heads)
    half = converted(pair, lambda x: x.to(dtype))
    exact = converted(half, lambda x: x.float())
    assert value(name, tap, half).dtype == torch.float32
    # what a method draws for the teacher's decoder is in the teacher's precision
    tolerance = 1e-2 if name in DRAWS_QUERIES else 1e-6
    assert value(name, tap, half).item() == pytest.approx(value(name, tap, exact).item(), rel=tolerance)
    large = converted(pair, lambda x: (1000 * x).to(dtype), MAPS)
    student, method = trainable(large.student), build(name, large, tap, dtype=torch.float32)
    got = method(student, large.teacher, large.batch)
    got.backward()
    assert got.isfinite() and all(p.grad.isfinite().all() for p in method.parameters())
    # fp16 carries no gradient above 65504: the maps' gradients must stay below as they would with float32 maps
    for field in reads(method):
        assert all(x.grad is None or x.grad.isfinite().all() for x in tensors(student, field))


class Poison:
    """Stands for a field that nobody declared: any use of it is an error."""

    def _refuse(self, *_, **__):
        raise AssertionError("a field was used that the method does not declare")

    __getattribute__ = __getitem__ = __iter__ = __len__ = __bool__ = __call__ = __eq__ = __hash__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __array__ = _refuse


@every_case
@pytest.mark.parametrize("stand_in", [Poison, lambda: None], ids=["poison", "none"])
def test_reads_what_it_declares_and_nothing_else(name, tap, heads, stand_in):
    pair = pair32(heads=heads)
    declared = reads(build(name, pair, tap))
    undeclared = {field: stand_in() for field in (*FIELDS, *FUNCTIONS) if field not in declared}
    bare = replace(pair, student=replace(pair.student, **undeclared), teacher=replace(pair.teacher, **undeclared))
    assert torch.equal(value(name, tap, bare), value(name, tap, pair))


@every_case
def test_misses_what_it_declares(name, tap, heads):
    """Every declared field is needed, on one side at least, and its lack is named."""
    pair = pair32(heads=heads)
    for field in reads(build(name, pair, tap)):
        bare = replace(
            pair, student=replace(pair.student, **{field: None}), teacher=replace(pair.teacher, **{field: None})
        )
        with pytest.raises(ValueError, match=field):
            value(name, tap, bare)


@every_case
def test_state_round_trip(name, tap, heads):
    pair = pair32(heads=heads)
    one, other = (build(name, pair, tap, seed=seed, dtype=torch.float32).eval() for seed in (1, 2))
    expected = one(pair.student, pair.teacher, pair.batch)
    if list(one.parameters()):
        assert not torch.equal(other(pair.student, pair.teacher, pair.batch), expected)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(pair.student, pair.teacher, pair.batch), expected)


@every_case
@pytest.mark.parametrize("widths", [((2, 3), (4, 2)), ((3, 3), (3, 3)), ((5, 1), (1, 6))])
def test_any_widths(name, tap, heads, widths):
    assert value(name, tap, pair32(heads=heads, widths=widths)).isfinite()


@cases(case for case in CASES if case[1] in MAPS and case[0] not in ON_POINTS)
@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_any_map_sizes(name, tap, heads, sizes):
    """Maps alone: anchor points correspond only at equal sizes."""
    assert value(name, tap, pair32(heads=heads, sizes=sizes)).isfinite()


@every_case
@pytest.mark.parametrize("sides", ["student", "teacher", "both"])
def test_empty_maps_are_finite(name, tap, heads, sides):
    pair = pair32(heads=heads)
    for side in ("student", "teacher") if sides == "both" else (sides,):
        pair = replace(pair, **{side: change(getattr(pair, side), torch.zeros_like)})
    assert_finite(name, tap, pair)


@every_case
@pytest.mark.parametrize("scores", [(50, 50), (-50, -50), (50, -50), (-50, 50), (500, -500), (-500, -500)])
def test_extreme_logits_are_finite(name, tap, heads, scores):
    pair = pair32(heads=heads)
    student = change(pair.student, lambda z: torch.full_like(z, scores[0]), ("logits", "layer_logits"))
    teacher = change(pair.teacher, lambda z: torch.full_like(z, scores[1]), ("logits", "layer_logits"))
    assert_finite(name, tap, replace(pair, student=student, teacher=teacher))


def assert_finite(name, tap, pair):
    student, method = trainable(pair.student), build(name, pair, tap, dtype=torch.float32)
    got = method(student, pair.teacher, pair.batch)
    assert got.isfinite() and got >= 0
    if got.requires_grad:
        got.backward()
    for x in [x for field in (*FIELDS, "decode") for x in tensors(student, field)] + list(method.parameters()):
        assert x.grad is None or x.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if cls.taps])
def test_refuses_pairs_without_matching_maps(name):
    pair, cls = pair32(), METHODS[name]
    three = replace(pair.teacher_spec, channels={tap: (2, 2, 2) for tap in cls.taps})
    blind = replace(pair.teacher_spec, channels={})
    for teacher, tap, message in [
        (three, cls.taps[0], "student small has 2 and teacher large has 3|has 4 and"),
        (blind, cls.taps[0], "teacher large does not have"),
        (pair.teacher_spec, "stem", rf"{name}\.tap='stem' is not allowed"),
    ]:
        with pytest.raises(ValueError, match=message):
            cls(pair.student_spec, teacher, tap, cls.Options())


@pytest.mark.parametrize("name", METHODS)
def test_declarations(name):
    cls = METHODS[name]
    assert cls.taxonomy_level in TAXONOMY_LEVELS
    assert re.fullmatch(r"[a-z0-9]{2,5}", cls.term)
    assert cls.reported and 0 < cls.unit < math.inf
    source = Path(inspect.getsourcefile(cls)).read_text()
    assert "unit" in vars(cls) and re.search(
        rf"    unit = {re.escape(str(cls.unit))}  # measured \d\S* at unit 1", source
    )
    assert re.search(r"\d{4}", cls.paper) and re.search(r"arXiv:\d{4}\.\d{4}|(CVPR|NeurIPS|ICLR) \d{4}", cls.paper)
    assert set(cls.taps) <= set(MAPS) and cls.needs | cls.student_needs | cls.teacher_needs <= {*FIELDS, *FUNCTIONS}
    first = {"backbone": "backbone", "neck": "neck", "roi": "neck", "feature": "neck"}.get(cls.taxonomy_level)
    assert cls.taps[:1] == ((first,) if cls.taps else ())
    assert cls.taps or cls.taxonomy_level not in {"backbone", "neck", "feature"}
    assert cls.heads and set(cls.heads) <= set(ANY_HEADS)
    assert all(f.default is not MISSING for f in fields(cls.Options))
    assert cls.Options.__dataclass_params__.frozen


def test_terms_are_distinct():
    assert len({cls.term for cls in METHODS.values()}) == len(METHODS)


def test_every_file_is_in_the_dict():
    files = {path.stem for path in MODULES} - SHARED
    assert files == {cls.__module__.rpartition(".")[2] for cls in METHODS.values()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports(path):
    """No detector below methods/, and no method knows another."""
    allowed = {"__future__", "collections", "dataclasses", "math", "numpy", "torch", "torchvision", "typing"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            module = node.module or ""
            names = [f"{module}.{a.name}" for a in node.names] if module == "yolokd.methods" else [module]
        for name in names:
            own = name in {*(f"yolokd.methods.{shared}" for shared in SHARED), "yolokd.views"}
            assert own or name.split(".")[0] in allowed, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_documented(path):
    """A docstring that names the paper's year, and a comment at the end of every option's line."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    with path.open("rb") as file:
        comments = {t.start[0] for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
            lines = [entry.end_lineno for entry in node.body if isinstance(entry, ast.AnnAssign)]
            assert set(lines) <= comments, node.name
