"""The command line: `python3 -m yolokd_edge detect|bench|throughput|monitor|profile|layers|verify|val|doctor`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from yolokd_edge.accuracy import val_command
from yolokd_edge.arguments import number, size
from yolokd_edge.bench.options import BenchOptions
from yolokd_edge.bench.report import text_table
from yolokd_edge.bench.sweep import measure_models
from yolokd_edge.bench.workers import worker_main
from yolokd_edge.bundle import is_bundle, open_bundle, own_bundle
from yolokd_edge.common import DEFECT, PARITY, EdgeError, json_text, printable, tell
from yolokd_edge.contract import PRECISIONS
from yolokd_edge.detect import detect_command, engine_settings
from yolokd_edge.doctor import ERROR, diagnose
from yolokd_edge.images import silence_opencv
from yolokd_edge.layers import layers_command
from yolokd_edge.live import monitor_command
from yolokd_edge.load.capture import as_text as capture_text
from yolokd_edge.load.capture import is_moving, measure_capture
from yolokd_edge.load.command import throughput_command
from yolokd_edge.load.options import LoadOptions
from yolokd_edge.load.report import check_place
from yolokd_edge.load.report import write as write_record
from yolokd_edge.profiling import profile_command
from yolokd_edge.provenance import known_provenance, provenance_text
from yolokd_edge.runtimes.coverage import coverage_main
from yolokd_edge.runtimes.table import PROVIDERS
from yolokd_edge.verify import parity_text, verify_bundle
from yolokd_edge.version import VERSION

# How this program starts itself in a new process; no user's verbs.
WORKERS: dict[str, Callable[[str], int]] = {
    "_worker": lambda folder: worker_main(Path(folder)),
    "_coverage": coverage_main,
}
ENGINE = ("fp16", "cache", "allow_fallback")  # options of bench that every verb takes that runs a model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Exit code 0, 1 `doctor` found an error or a rate is not served, 2 bad input or usage, 3 too few queries to say
    whether it is, 4 provider not active, 5 other results than expected or none that are numbers, 70 a defect, with a
    traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in WORKERS:
        try:
            return WORKERS[words[0]](words[1])
        except Exception:
            traceback.print_exc()
            return DEFECT
    args = parser().parse_args(words)
    silence_opencv()  # stderr belongs to our own sentences
    try:
        return args.run(args) or 0
    except EdgeError as error:
        print(f"yolokd_edge: {printable(error)}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:  # a defect of ours: Python itself would end with 1, by which tests mean a failure
        traceback.print_exc()
        return DEFECT
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line, readable with --help."""
    top = argparse.ArgumentParser(prog="yolokd_edge", description="Run or measure an exported detector.")
    top.add_argument("--version", action="version", version=VERSION)
    verbs = top.add_subparsers(dest="verb", required=True)
    engine = argparse.ArgumentParser(add_help=False)
    _add_options(engine, BenchOptions, ENGINE)
    device = argparse.ArgumentParser(add_help=False, parents=[engine])
    device.add_argument("--provider", default="cpu", choices=("auto", *PROVIDERS), help="where to run (default cpu)")
    device.add_argument("--threads", type=number(int, 1), help="CPU threads (default: all usable cores)")
    _bench_arguments(verbs.add_parser("bench", parents=[engine], help="measure latency"))
    _throughput_arguments(verbs.add_parser("throughput", help="measure throughput against latency, and under load"))
    _doctor_arguments(verbs.add_parser("doctor", help="say what is wrong with this installation and board"))
    _detect_arguments(verbs.add_parser("detect", parents=[device], help="detect in images, a video or a camera"))
    _monitor_arguments(verbs.add_parser("monitor", help="say every second what the board does"))
    _profile_arguments(verbs.add_parser("profile", parents=[device], help="say where the network's time goes"))
    _layers_arguments(verbs.add_parser("layers", parents=[device], help="find the first layer that goes wrong"))
    _val_arguments(verbs.add_parser("val", parents=[device], help="measure accuracy on images with ground truth"))
    _verify_arguments(verbs.add_parser("verify", parents=[device], help="compare this device with what a bundle says"))
    return top


def _add_options(verb: argparse.ArgumentParser, kind: Any, names: Iterable[str]) -> None:
    """Arguments made from fields of a dataclass of options."""
    for option in dataclasses.fields(kind):
        if option.name not in names:
            continue
        given = dict(option.metadata)
        flag = given.pop("flag", "--" + option.name.replace("_", "-"))
        if isinstance(option.default, bool):
            given["action"] = "store_true"
        elif option.default is not dataclasses.MISSING:
            given["default"] = option.default
        verb.add_argument(flag, dest=option.name, **given)


def _bench_arguments(verb: argparse.ArgumentParser) -> None:
    _add_options(verb, BenchOptions, {option.name for option in dataclasses.fields(BenchOptions)} - set(ENGINE))
    verb.add_argument("--out", help="report to write, such as report.json; the raw samples go beside it")
    verb.set_defaults(run=_bench_command)


def _bench_command(args: argparse.Namespace) -> None:
    given = {option.name: getattr(args, option.name) for option in dataclasses.fields(BenchOptions)}
    if given["source"] is None and not given["random"]:
        if given["models"]:
            raise EdgeError("No images: give --source with an image or a folder of images, or --random for noise.")
        given["source"] = str(own_bundle() / "parity")
    given["models"] = given["models"] or [str(own_bundle())]
    options = BenchOptions(**given)
    if is_moving(options.source):
        _bench_camera(options, args.out)
        return
    print(text_table(measure_models(options, args.out, own_process=True)))


def _bench_camera(options: BenchOptions, out: str | None) -> None:
    if out is not None:
        check_place(out)
    record = measure_capture(options)
    tell(capture_text(record), None if out is None else partial(write_record, record, out))


def _throughput_arguments(verb: argparse.ArgumentParser) -> None:
    _add_options(verb, LoadOptions, [option.name for option in dataclasses.fields(LoadOptions)])
    verb.add_argument("--out", help="report to write, such as throughput.json")
    verb.set_defaults(run=throughput_command)


def _doctor_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", help="an ONNX file or bundle that should run here (default: the bundle this program lies in, if any)"
    )
    verb.add_argument("--provider", default="auto", choices=("auto", *PROVIDERS), help="where (default auto)")
    verb.add_argument("--json", action="store_true", help="print the findings as JSON")
    verb.set_defaults(run=_doctor_command)


def _doctor_command(args: argparse.Namespace) -> int:
    found = diagnose(args.model, args.provider)
    if args.json:
        print(json_text([f._asdict() for f in found], indent=1))
    else:
        print("\n".join(str(f) for f in found) or "Nothing is wrong.")
    return 1 if any(f.level == ERROR for f in found) else 0


def _detect_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--source", required=True, help="image, folder, video, or camera (0, /dev/video0, rtsp://...)")
    verb.add_argument("--model", help="an ONNX file or a bundle (default: the bundle that this program lies in)")
    verb.add_argument("--precision", choices=PRECISIONS, help="which file of a bundle (default fp32)")
    verb.add_argument("--imgsz", type=size, help="input size for a file without a fixed one, such as 320 or 320x480")
    verb.add_argument("--conf", type=number(float, 0, 1), help="lowest confidence (default the bundle's, or 0.25)")
    verb.add_argument("--iou", type=number(float, 0, 1), help="NMS overlap (default the bundle's, or 0.7)")
    verb.add_argument("--max-det", type=number(int, 1), help="most detections (default the bundle's, or 300)")
    verb.add_argument("--frames", type=number(int, 1), metavar="N", help="stop after N frames")
    verb.add_argument("--save", metavar="DIR", help="folder for the images or the video with drawn boxes")
    verb.add_argument("--json", action="store_true", help="print one JSON line per frame")
    verb.add_argument("--origin", action="store_true", help="first print who taught the model")
    verb.set_defaults(run=detect_command)


def _monitor_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--interval", type=number(float, 0.1), default=1.0, metavar="S", help="seconds (default 1)")
    verb.add_argument("--count", type=number(int, 1), metavar="N", help="lines (default: until Ctrl-C)")
    verb.add_argument("--json", action="store_true", help="print one JSON line each time")
    verb.set_defaults(run=monitor_command)


def _profile_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--source", help="an image or a folder (default: the bundle's own)")
    verb.add_argument("--model", help="an ONNX file or a bundle (default: the bundle that this program lies in)")
    verb.add_argument("--precision", choices=PRECISIONS, help="which file of a bundle (default fp32)")
    verb.add_argument("--imgsz", type=size, help="input size for a file without a fixed one, such as 320 or 320x480")
    verb.add_argument("--runs", type=number(int, 1), default=30, metavar="N", help="runs that count (default 30)")
    verb.add_argument("--top", type=number(int, 1), default=10, metavar="N", help="rows of a table (default 10)")
    verb.add_argument("--json", action="store_true", help="print all nodes as JSON")
    verb.set_defaults(run=profile_command)


def _layers_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--source", help="an image or a folder, of which the first counts (default: the bundle's own)")
    verb.add_argument("--model", help="an ONNX file or bundle, the reference, on the CPU (default: the bundle's FP32)")
    verb.add_argument("--against", metavar="MODEL", help="another ONNX file of the same export (default: the same)")
    verb.add_argument("--precision", choices=PRECISIONS, help="which file of a bundle is compared with its FP32 file")
    verb.add_argument("--imgsz", type=size, help="input size for a file without a fixed one, such as 320 or 320x480")
    verb.add_argument("--limit", type=number(float, 1e-9), help="relative difference from which a layer is wrong "
                      "(default 0.001; with FP16 0.02, with INT8 0.3)")  # fmt: skip
    verb.add_argument("--top", type=number(int, 1), default=10, metavar="N", help="rows of the table (default 10)")
    verb.add_argument("--json", action="store_true", help="print all layers as JSON")
    verb.set_defaults(run=layers_command)


def _val_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", required=True, help="a data set's YAML, or a folder of images with YOLO labels")
    verb.add_argument("--split", default="val", help="which list of the YAML (default val)")
    verb.add_argument("--model", help="an ONNX file or a bundle (default: the bundle that this program lies in)")
    verb.add_argument("--precision", choices=PRECISIONS, help="which file of a bundle (default fp32)")
    verb.add_argument("--imgsz", type=size, help="input size for a file without a fixed one, such as 320 or 320x480")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.add_argument("--out", help="record to write, such as accuracy.json, which `bench --accuracy` takes")
    verb.set_defaults(run=val_command)


def _verify_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", help="a bundle (default: the unpacked one that this program lies in)")
    verb.add_argument("--precision", default="fp32", choices=PRECISIONS, help="which file (default fp32)")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.add_argument("--origin", action="store_true", help="say who taught the model, too")
    verb.set_defaults(run=_verify_command)


def _verify_command(args: argparse.Namespace) -> None:
    path = own_bundle() if args.model is None else Path(args.model)
    if not is_bundle(path):
        raise EdgeError(f"{path} is not a bundle: verify compares with what a bundle says, made with `yolokd bundle`.")
    bundle = open_bundle(path)
    figures = verify_bundle(bundle, args.provider, args.threads, args.precision, **engine_settings(args))
    provenance = bundle.manifest.get("provenance")
    if args.origin and args.json:
        figures["provenance"] = known_provenance(provenance)
    print(json_text(figures) if args.json else parity_text(figures))
    if args.origin and not args.json:
        print(printable(f"{figures['model']}: {provenance_text(provenance) or 'nothing is known of its training'}"))
    if not figures["pass"]:
        why = "; ".join(figures["why"])
        raise EdgeError(f"this device does not compute what the bundle says: {why}; see the figures above.", PARITY)
