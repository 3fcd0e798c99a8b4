"""Reader of RT-DETR (RTDETRDecoder). Denoising queries, which contain ground truth, are left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from yolokd.detectors.reader import Reader, Recorded, keep_output, name
from yolokd.views import Decode, Spec, View

LAYERS = frozenset({"layer_queries", "layer_logits", "layer_boxes", "attention"})  # one tensor per decoder layer
ENTRY = frozenset({"content", "references", "decode"})  # known when the decoder starts


class RTDETRReader(Reader):
    """Reads one Ultralytics detection model whose last layer is an RTDETRDecoder."""

    branches = ("decoder",)
    fields = frozenset({"backbone", "neck", "logits", "boxes"}) | LAYERS | ENTRY

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        # model.stride is [32] for every RT-DETR, so strides are computed from the sizes of the maps
        size = 128
        with self.record(frozenset({"neck"})) as recorded:
            self.dry_run(size)
        self.strides = tuple(size // m.shape[-1] for m in recorded["neck"])
        self.stages = self._backbone_stages(size)
        with self.record(frozenset({"neck", "backbone"})) as recorded:
            self.dry_run(size)
        widths = {"neck": self._channels(tuple(recorded["neck"]))}
        widths["backbone"] = self._channels(tuple(recorded[i] for i in self.stages))
        head = self.head
        self.spec = Spec(
            self.strides,
            widths,
            head.nc,
            name=name(model),
            dense=False,
            provides=self.fields if self.stages else self.fields - {"backbone"},
            layers=head.num_decoder_layers,
            width=head.hidden_dim,
        )

    def loss_factor(self, images: int) -> int:
        """1: RT-DETR's loss is a mean over the objects of the batch."""
        return 1

    def _freeze_head(self, fields: frozenset[str], branches: tuple[str, ...], fuse: bool) -> None:
        super()._freeze_head(fields, branches, fuse)
        self.head.decoder.training = bool(fields & (LAYERS | {"decode"}))  # the flag alone: every layer's predictions

    def _hooks(self, recorded: Recorded, fields: frozenset[str]) -> list[Any]:
        hooks = super()._hooks(recorded, fields)
        if fields & ENTRY:
            hooks.append(
                self.head.decoder.register_forward_pre_hook(lambda module, args: recorded.__setitem__("entry", args))
            )
        return hooks + (_layer_hooks(self.head.decoder, recorded) if fields & {"layer_queries", "attention"} else [])

    def views(self, recorded: Recorded, fields: frozenset[str], strides: tuple[int, ...]) -> dict[str, View]:
        """The one view of a recorded pass."""
        values = self._map_fields(recorded, fields, strides)
        if fields - values.keys():
            # size of the image in pixels, from its first level
            height, width = (self.strides[0] * n for n in recorded["neck"][0].shape[-2:])
            size = recorded["neck"][0].new_tensor([width, height, width, height], dtype=torch.float32)
            values.update(self._predictions(recorded, fields, size))
        return {"decoder": View(strides, **{f: values[f] for f in fields if f in values})}

    def _predictions(self, recorded: Recorded, fields: frozenset[str], size: Tensor) -> dict[str, Any]:
        boxes, logits, _, _, denoising = recorded["out"]
        own = slice(denoising["dn_num_split"][0] if denoising else 0, None)  # denoising queries come first
        predictions: dict[str, Any] = _layers(boxes[:, :, own], logits[:, :, own], size)
        predictions["logits"], predictions["boxes"] = predictions["layer_logits"][-1], predictions["layer_boxes"][-1]
        if fields & ENTRY:
            content, references, memory, shapes = recorded["entry"][:4]
            predictions["content"] = content[:, own]
            predictions["references"] = _corners(references[:, own].detach().float().sigmoid(), size)
            predictions["decode"] = self._decode(memory, shapes, size)
        if fields & {"layer_queries", "attention"}:
            predictions["layer_queries"] = tuple(q[:, own] for q in _in_order(recorded, "queries"))
            predictions["attention"] = tuple(a[1][:, own, own] for a in _in_order(recorded, "attention"))
        return predictions

    def proposals(self, recorded: Recorded) -> View:
        """Logits and boxes of the cells that became queries, as the encoder of a recorded pass predicts them."""
        height, width = (self.strides[0] * n for n in recorded["neck"][0].shape[-2:])
        boxes, logits = recorded["out"][2:4]
        return View(self.strides, logits=logits, boxes=_corners(boxes, boxes.new_tensor([width, height] * 2)))

    def _decode(self, memory: Tensor, shapes: list[list[int]], size: Tensor) -> Decode:
        """This decoder, applied to the images of a recorded pass, as a function of queries."""
        head = self.head

        def decode(content: Tensor, references: Tensor) -> dict[str, tuple[Tensor, ...]]:
            entry = box_convert(references / size, "xyxy", "cxcywh").logit(1e-5)
            heads = head.dec_bbox_head, head.dec_score_head, head.query_pos_head
            recorded: Recorded = {}
            hooks = _layer_hooks(head.decoder, recorded)
            try:
                # in the queries' dtype: outside autocast a map in half precision does not match the decoder's weights
                boxes, logits = head.decoder(content, entry.to(content.dtype), memory.to(content.dtype), shapes, *heads)
            finally:
                for hook in hooks:
                    hook.remove()
            predictions = _layers(boxes, logits, size)
            predictions["layer_queries"] = _in_order(recorded, "queries")
            predictions["attention"] = tuple(a[1] for a in _in_order(recorded, "attention"))
            return predictions

        return decode


def _layer_hooks(decoder: Any, recorded: Recorded) -> list[Any]:
    hooks = []
    for i, layer in enumerate(decoder.layers):
        hooks.append(layer.register_forward_hook(keep_output(recorded, ("queries", i))))
        hooks.append(layer.self_attn.register_forward_hook(keep_output(recorded, ("attention", i))))
    return hooks


def _in_order(recorded: Recorded, what: str) -> tuple[Any, ...]:
    """What the layers stored, first to last; a teacher that predicts from an earlier layer stops there."""
    return tuple(recorded[key] for key in sorted(k for k in recorded if isinstance(k, tuple) and k[0] == what))


def _layers(boxes: Tensor, logits: Tensor, size: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Predictions per layer, from (D, B, N, 4) cxcywh as fractions of the image and (D, B, N, K)."""
    wide = boxes if boxes.dtype == torch.float64 else boxes.float()
    return {"layer_logits": tuple(logits), "layer_boxes": tuple(_corners(wide, size))}


def _corners(boxes: Tensor, size: Tensor) -> Tensor:
    """(..., 4) cxcywh as fractions of the image -> xyxy in pixels."""
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners * size
