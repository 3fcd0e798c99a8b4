"""The command line: `yolokd VERB key=value ...`, in the style of `yolo`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any

HELP = """\
yolokd: train a small YOLO under a large one, export it, measure it.

  yolokd train   model=yolo11n.pt teacher=big.pt data=my.yaml [method=pkd,logit] [kd=1.0] [cwd.tau=2] [...]
  yolokd export  model=best.pt [out=student.onnx] [contract=raw|e2e|nms] [source=images/] [...]
  yolokd bundle  model=best.pt [out=name-edge.zip] [data=my.yaml] [fp16=True] [int8=True] [contract=raw] [imgsz=640]
  yolokd inspect model=a.onnx                             parameters, FLOPs, memory and the ten slowest nodes
  yolokd bench   model=a.onnx[,b.onnx] source=images/ [profile=smoke|standard|soak] [quick=True]
                 [provider=cpu|cuda|trt|auto|openvino|ncnn] [repeats=5] [threads=1,2] [streams=1,2] [imgsz=320] [...]
  yolokd compare base.json new.json [--max-regress 5%] [--metric total.p50,total.p99] [--min-map-delta -0.5]
                 [--json FILE] [--md FILE] [--junit FILE]  is the new one slower? a gate for CI
  yolokd pareto  reports/*.json [x=latency|energy|size] [metric=total.p50] [out=pareto.png] [json=FILE] [md=FILE]
  yolokd plot    report.json [out=DIR]                     distribution, stages, latency over time
  yolokd compare methods=builtin,default,pkd+logit model=... teacher=... data=... [arms=arms.yaml] [seeds=3]
                 [out=runs/compare] [jobs=1] [...]         trains every arm with every seed, paired statistics
  yolokd demo    [seed=0] [out=DIR] | --data-only DIR     data, training, export and bench without a network
  yolokd methods [NAME]                                   what method= may name, and the options of one
  yolokd methods --cost [model=yolo11n.yaml] [teacher=yolo11s.yaml] [imgsz=640] [...]   what each adds to a step
  yolokd version | help

Every other argument of `yolo train` is passed on, of `yolo export` imgsz, opset, simplify and device (...).
A student smaller than a family's smallest: model=yolo11n.yaml width=0.125 depth=0.5
Exit codes: 0 done or pass, 1 regression, 2 bad input, 3 inconclusive or a study's run failed, 4 provider not active,
5 exported file differs from the checkpoint, 70 anything else that failed (with a traceback).
"""
CODES = (1, 2, 3, 4, 5)
DEFECT = 70  # not 1, by which Python ends and a gate means a regression
STAND_ON_ULTRALYTICS = {"train", "export", "bundle", "demo", "steptime"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; what a user can mend is one sentence on stderr with its exit code, never a traceback."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["help"]
    verb = "help" if {"-h", "--help"} & {verb, *rest} else verb.removeprefix("--")
    try:
        if verb not in VERBS:
            from yolokd.config.parse import did_you_mean
            from yolokd.errors import UsageError

            raise UsageError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}.")
        if verb in STAND_ON_ULTRALYTICS:
            from yolokd import compat

            compat.check()
        VERBS[verb](rest)
    except Exception as error:
        code = getattr(error, "code", None)
        if not isinstance(code, int) or code not in CODES:  # an HTTP error has a code too
            traceback.print_exc()
            return DEFECT
        print(f"yolokd: {error}", file=sys.stderr)
        return code
    return 0


def _train(rest: list[str]) -> None:
    from yolokd.config.parse import parse_pairs
    from yolokd.distill.training import train

    train(**parse_pairs(rest))


def _export(rest: list[str]) -> None:
    from yolokd.config.parse import parse_pairs
    from yolokd.errors import UsageError
    from yolokd.onnx.export import export

    arguments = parse_pairs(rest)
    if "model" not in arguments:
        raise UsageError("no model: give the checkpoint to export, model=best.pt.")
    export(**arguments)


def _bundle(rest: list[str]) -> None:
    from yolokd.errors import UsageError
    from yolokd.onnx.bundle import bundle

    arguments = _checked(rest, bundle)
    if "model" not in arguments:
        raise UsageError("no model: give the checkpoint to bundle, model=best.pt.")
    bundle(**arguments)


def _inspect(rest: list[str]) -> None:
    from yolokd.errors import UsageError
    from yolokd.onnx.inspect import inspect

    arguments = _checked(rest, inspect)
    if "model" not in arguments:
        raise UsageError("no model: give the exported file to inspect, model=student.onnx.")
    inspect(**arguments)


def _bench(rest: list[str]) -> None:
    from yolokd.errors import UsageError
    from yolokd.verbs.bench import bench

    # `yolokd bench model=a.onnx b.onnx source=...`: bare words after model= are further models
    models = [w for a in rest for w in a.removeprefix("model=").split(",") if a.startswith("model=") or "=" not in a]
    arguments = _checked([a for a in rest if "=" in a and not a.startswith("model=")], bench, skip={"models"})
    if not models:
        raise UsageError("no model: give the exported files to time, model=a.onnx,b.onnx.")
    if "source" not in arguments:
        raise UsageError("no images: give an image or a folder of them, source=images/.")
    bench(models, **arguments)


def _compare(rest: list[str]) -> None:
    """Two things of one name: with methods= or arms= a study of trainings, else a gate over latency reports."""
    if any(a.removeprefix("--").startswith(("methods=", "arms=")) for a in rest):
        from yolokd import compat
        from yolokd.config.parse import parse_pairs
        from yolokd.studies.runner import study

        compat.check()
        study(**parse_pairs(rest))
        return
    from yolokd.errors import UsageError
    from yolokd.latency.gate import compare, gate

    files, options = _files(rest)
    if not 1 <= len(files) <= 2:
        raise UsageError(
            f"compare takes two reports, base.json new.json, or one of models measured interleaved, and was given "
            f"{len(files)}; to compare trainings give methods=."
        )
    gate(*files, **_checked(options, compare, skip={"base", "new"}))


def _pareto(rest: list[str]) -> None:
    from yolokd.latency.pareto import pareto

    files, options = _files(rest)
    pareto(files, **_checked(options, pareto, skip={"files"}))


def _plot(rest: list[str]) -> None:
    from yolokd.errors import UsageError
    from yolokd.latency.plot_report import plot

    files, options = _files(rest)
    if len(files) != 1:
        raise UsageError(f"plot draws one report and was given {len(files)}: yolokd plot report.json.")
    plot(*files, **_checked(options, plot, skip={"report"}))


def _files(rest: list[str]) -> tuple[list[str], list[str]]:
    """Bare words, and options as key=value: also `--max-regress 5%`, as CI scripts are used to."""
    from yolokd.errors import UsageError

    files, options, words = [], [], iter(rest)
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("--") and not equals:
            value = next(words, "")
            if not value:
                raise UsageError(f"{word} is given without a value.")
        elif not equals:
            files.append(word)
            continue
        options.append(f"{key.removeprefix('--').replace('-', '_')}={value}")
    return files, options


def _demo(rest: list[str]) -> None:
    from yolokd.demo.run import demo, write_data
    from yolokd.errors import UsageError

    if rest and rest[0] == "--data-only":
        if len(rest) != 2:
            raise UsageError(f"--data-only takes one new folder and was given {' '.join(rest[1:]) or 'none'}.")
        print(write_data(rest[1]))
    else:
        demo(**_checked(rest, demo))


def _steptime(rest: list[str]) -> None:
    from yolokd.config.parse import parse_pairs
    from yolokd.errors import UsageError
    from yolokd.studies.step_time import steptime

    arguments = parse_pairs(rest)
    if missing := [key for key in ("model", "teacher", "data") if key not in arguments]:
        raise UsageError(f"no {missing[0]}: steptime compares trainings, give model=, teacher= and data=.")
    steptime(**arguments)


def _methods(rest: list[str]) -> None:
    if "--cost" in rest:
        _cost([a for a in rest if a != "--cost"])
        return
    from yolokd.verbs.methods import describe

    print("\n\n".join(describe(name) for name in rest) or describe())


def _cost(rest: list[str]) -> None:
    from yolokd import compat

    compat.check()
    from yolokd.config.parse import parse_pairs
    from yolokd.studies.step_cost import cost

    cost(
        **_checked([a for a in rest if "." not in a.partition("=")[0]], cost, skip={"dotted"}),
        **parse_pairs([a for a in rest if "." in a.partition("=")[0]]),
    )


def _version(rest: list[str]) -> None:
    from yolokd import __version__

    print(__version__)


def _checked(rest: list[str], function: Callable[..., Any], skip: Collection[str] = ()) -> dict[str, Any]:
    """key=value arguments for a function, unknown keys refused."""
    import inspect

    from yolokd.config.parse import check_keys, parse_pairs

    arguments = parse_pairs(rest)
    check_keys(arguments, [p for p in inspect.signature(function).parameters if p not in skip])
    return arguments


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "export": _export,
    "bundle": _bundle,
    "inspect": _inspect,
    "bench": _bench,
    "compare": _compare,
    "pareto": _pareto,
    "plot": _plot,
    "demo": _demo,
    "methods": _methods,
    "steptime": _steptime,
    "version": _version,
    "help": lambda rest: print(HELP),
}

if __name__ == "__main__":
    sys.exit(main())
