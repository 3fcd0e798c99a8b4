"""`yolokd export`: write an ONNX file, or another format, and prove that it computes the same."""

from __future__ import annotations

from yolokd.errors import UsageError
from yolokd.verbs.declaration import Option, Verb

VERB = Verb(
    summary="writes an ONNX file, or another format, and proves that it computes the same",
    usage=(
        "yolokd export model=best.pt [out=student.onnx] [contract=raw|e2e|nms] [source=images/] [imgsz=640] ...",
        "yolokd export model=best.pt format=openvino|ncnn|mnn|litert|torchscript [source=images/] [imgsz=640] ...",
    ),
    function="yolokd.onnx.export.export",
    options=(
        Option(
            "model",
            "the checkpoint: a YOLO for detect, segment, pose or obb, or an RT-DETR, with colour images",
            required=True,
        ),
        Option("imgsz", "input size", "the training's"),
        *(
            Option(name, f"Ultralytics' own export argument {name}", "Ultralytics'")
            for name in ("opset", "simplify", "device", "verbose")
        ),
        Option("conf", "with contract=nms: the least confidence, which becomes part of the file", "0.25"),
        *(
            Option(name, f"with contract={contracts}: becomes part of the file", "Ultralytics'")
            for name, contracts in (("iou", "nms"), ("max_det", "nms or e2e"), ("agnostic_nms", "nms"))
        ),
    ),
    notes=("Exit code 5: the file computes something else than the checkpoint; it was not kept.",),
    examples=(
        "yolokd export model=runs/detect/train/weights/best.pt",
        "yolokd export model=best.pt contract=nms conf=0.3 imgsz=320",
        "yolokd export model=best.pt format=openvino",
    ),
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Export."""
    from yolokd.config.parse import parse_pairs
    from yolokd.onnx.export import export

    arguments = parse_pairs(words)
    if "model" not in arguments:
        raise UsageError("no model: give the checkpoint to export, model=best.pt.")
    export(**arguments)
