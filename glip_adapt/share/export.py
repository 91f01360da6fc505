"""A baked model as one graph, picture in, boxes out: for ``torch.export`` and, through it, for ONNX.

The graph holds what ``predict`` does after resizing: pixel statistics, padding, network, decoding. It takes one picture
whose sides, resized as the metadata of the file prescribe, lie between ``least_side`` and 4096 pixels.

Shape letters: A anchors over all levels, K classes, N boxes, H W pixels.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from glip_adapt.adapters.baked import BakedGlip
from glip_adapt.core.files import written_whole
from glip_adapt.core.structures import Detections, HeadOutput, Pyramid, SizeHW, TextFeatures
from glip_adapt.data.transforms import DIVISOR
from glip_adapt.engine.predict import PredictConfig
from glip_adapt.trunks.glip import anchors as codec
from glip_adapt.trunks.glip.anchors import STRIDES
from glip_adapt.trunks.glip.decode import (
    CANDIDATES_PER_LEVEL,
    MAX_DETECTIONS,
    NMS_IOU,
    SCORE_THRESHOLD,
    class_probabilities,
)
from glip_adapt.trunks.glip.swin import SwinBlock

MAX_SIDE = 4096  # pixels
OPSET = 20
OUTPUTS = ("boxes_xyxy", "scores", "labels")


class DetectionGraph(nn.Module):
    """The whole detector as a function of one picture that can be traced."""

    def __init__(self, model: BakedGlip) -> None:
        super().__init__()
        self.glip = model.glip
        self.captions = len(model.texts())
        for i, text in enumerate(model.texts()):
            self.register_buffer(f"features_{i}", text.features)
            self.register_buffer(f"mask_{i}", text.mask)
            self.register_buffer(f"token_map_{i}", text.token_map)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, 4) in inclusive pixels, scores (N,) best first, and labels (N,).

        Args:
            pixels: (1, 3, H, W) uint8, RGB, 0–255; resized as ``PredictConfig`` says, not padded.
        """
        size_hw = (pixels.shape[2], pixels.shape[3])
        pyramid = self._encode(pixels, size_hw)
        parts, first_label = [], 0
        for i in range(self.captions):
            text = TextFeatures(*(self.get_buffer(f"{name}_{i}") for name in ("features", "mask", "token_map")))
            found = _best(decode_picture(self.glip.predict(self.glip.fuse(pyramid, text)), size_hw))
            parts.append(replace(found, labels=found.labels + first_label))
            first_label += text.token_map.shape[1]
        merged = _merge(parts)
        return merged.boxes_xyxy, merged.scores, merged.labels

    def _encode(self, pixels: Tensor, size_hw: SizeHW) -> Pyramid:
        encoder = self.glip.image_encoder
        normalised = (pixels.flip(1).to(encoder.pixel_mean) - encoder.pixel_mean) / encoder.pixel_std
        height, width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in size_hw)
        padded = F.pad(normalised, (0, width - size_hw[1], 0, height - size_hw[0]))
        return Pyramid.from_levels(encoder.fpn(encoder.backbone(padded)), (size_hw,))


def decode_picture(output: HeadOutput, size_hw: SizeHW) -> Detections:
    """Return what ``model.decode.decode`` does for one picture, before the limit of 100 and in no order.

    No step depends on how many candidates there are: those below the threshold take part with a score of zero and go
    at the end.
    """
    class_scores = class_probabilities(output)[0]
    classes = class_scores.shape[1]
    score = torch.where(class_scores > SCORE_THRESHOLD, class_scores * output.centerness[0, :, None].sigmoid(), 0.0)
    scores, places, start = [], [], 0
    for level in score.split([h * w for h, w in output.level_shapes_hw]):
        best = F.pad(level.flatten(), (0, CANDIDATES_PER_LEVEL)).topk(CANDIDATES_PER_LEVEL)
        scores.append(best.values)
        places.append(best.indices + start * classes)
        start += level.shape[0]
    score, place = torch.cat(scores), torch.cat(places)
    score, place = score[score > 0].sqrt(), place[score > 0]
    anchor, labels = place // classes, place % classes
    corners = codec.decode(output.box_deltas[0, anchor], output.anchors_xyxy[anchor]).unflatten(1, (2, 2))
    x, y = (corners[..., i].clamp(0, size_hw[1 - i] - 1) for i in range(2))
    boxes_xyxy = torch.stack((x, y), dim=-1).flatten(1)
    kept = _class_aware_nms(boxes_xyxy, score, labels, classes)
    return Detections(boxes_xyxy[kept], score[kept], labels[kept])


def _class_aware_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return what ``boxes.class_aware_nms`` keeps, class by class, whether there are boxes of a class or not."""
    half_open = boxes_xyxy + boxes_xyxy.new_tensor((0.0, 0.0, 1.0, 1.0))
    # The tracer takes it that two boxes or more survive, so two outside of the picture do, after all others.
    outside, last = boxes_xyxy.new_tensor(((-2, -2, -1, -1), (-4, -4, -3, -3))), scores.new_tensor((-1, -1))
    kept = []
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)
        survivors = nms(torch.cat((half_open[members], outside)), torch.cat((scores[members], last)), NMS_IOU)
        kept.append(members[survivors[:-2]])
    return torch.cat(kept)


def _best(found: Detections) -> Detections:
    """At most 100, best first; everything that ties with the hundredth stays too."""
    scores, order = found.scores.sort(descending=True)
    good = scores >= F.pad(scores, (0, MAX_DETECTIONS))[MAX_DETECTIONS - 1]
    order = order[good]
    return Detections(found.boxes_xyxy[order], scores[good], found.labels[order])


def _merge(parts: Sequence[Detections]) -> Detections:
    """All of what the captions found, best first."""
    if len(parts) == 1:
        return parts[0]
    scores, order = torch.cat([part.scores for part in parts]).sort(descending=True)
    boxes_xyxy = torch.cat([part.boxes_xyxy for part in parts])[order]
    labels = torch.cat([part.labels for part in parts])[order]
    return Detections(boxes_xyxy, scores, labels)


def least_side(model: BakedGlip) -> int:
    """Return the smallest height and width in pixels of a picture that the exported model takes.

    A tracer holds whatever is one for a constant: below, the coarsest map has one cell, or one Swin window is enough.
    """
    windows = [module.window for module in model.glip.modules() if isinstance(module, SwinBlock)]
    return max([STRIDES[-1], *(DIVISOR * window for window in windows)]) + 1


def export_program(model: BakedGlip) -> torch.export.ExportedProgram:
    """Return the model as a program of ``torch.export``, for pictures with sides from ``least_side`` to 4096 pixels.

    Its input and outputs are those of ``DetectionGraph.forward``, (1, 3, H, W) uint8 RGB to boxes, scores and labels.
    Tracing takes minutes for the larger trunks.

    Args:
        model: from ``AdaptedGlip.bake`` or ``load_baked``, on a CPU.
    """
    least = least_side(model)
    sides = {2 + i: torch.export.Dim(name, min=least, max=MAX_SIDE) for i, name in enumerate(("height", "width"))}
    example = torch.zeros(1, 3, least + DIVISOR, least + 3 * DIVISOR, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            DetectionGraph(model).eval(),
            (example,),
            dynamic_shapes={"pixels": sides},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # whole pixels per cell hold for each size, but unproven
        )


def export_onnx(model: BakedGlip, path: str | Path) -> None:
    """Write the model as an ONNX file: input ``pixels``, outputs ``boxes_xyxy``, ``scores``, ``labels``.

    Input and outputs are those of ``export_program``. The metadata of the file says what the labels mean, ``classes``
    (JSON), how a picture is resized first, ``short_side`` and ``max_long_side``, and the ``least_side`` that both sides
    must have then, in pixels: a long, narrow picture may fall below it.

    Args:
        model: from ``AdaptedGlip.bake`` or ``load_baked``, on a CPU.
        path: file to write, .onnx.

    Raises:
        RuntimeError: if the packages of the extra ``onnx`` are not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise RuntimeError("ONNX export needs packages that are not installed: pip install 'glip-adapt[onnx]'.")
    path = Path(path)
    program = torch.onnx.export(
        export_program(model),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert program is not None
    shown = PredictConfig.of(model.trunk.name)
    program.model.metadata_props.update(
        trunk=model.trunk.name,
        method=model.method,
        classes=json.dumps(model.class_names),
        short_side=str(shown.short_side),
        max_long_side=str(shown.max_long_side),
        least_side=str(least_side(model)),
    )
    with written_whole(path) as temporary:
        program.save(temporary, external_data=False)
