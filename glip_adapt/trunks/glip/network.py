"""The network of GLIP: four stages in a row, and the seams that adapters use.

GLIP, arXiv 2112.03857, figure 2. Adapters replace or wrap the parts named here; the network never asks whether one is
present.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from glip_adapt.core import boxes
from glip_adapt.core.structures import Detections, Fused, ImageBatch, Pyramid, SizeHW, TextFeatures, Tokens
from glip_adapt.trunks.glip.decode import MAX_DETECTIONS, candidates, class_probabilities, decode
from glip_adapt.trunks.glip.fpn import ImageEncoder
from glip_adapt.trunks.glip.graph import DetectionGraph, least_side
from glip_adapt.trunks.glip.head import AnchorHead, HeadOutput
from glip_adapt.trunks.glip.objective import GlipObjective, answers
from glip_adapt.trunks.glip.tower import FusionTower
from glip_adapt.trunks.linear import mixing_layers
from glip_adapt.trunks.protocol import Examples, Network, Seams
from glip_adapt.trunks.swin import SwinBackbone

CROSS_ATTENTION = ("query_image", "key_text", "value_image", "value_text", "out_image", "out_text")
TEXT_LAYER = ("query", "key", "value", "out", "hidden", "hidden_out")
CONVOLUTIONS = ("offset", "same.conv", "finer.conv", "coarser.conv")
BERT_LAYERS = "text_encoder.bert.encoder.layer"
BERT_LAYER = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)
# Tensors whose public names hold "bias" (maskrcnn_benchmark/solver/build.py of the public code).
BIASES = frozenset({"bias", "relative_position_bias_table", "bias_lang", "bias0"})


class Glip(Network):
    """Grounded Language-Image Pre-training, the detector."""

    last_pixel = 1.0
    evidence = "head.evidence"

    def __init__(
        self, *, image_encoder: ImageEncoder, text_encoder: nn.Module, tower: FusionTower, head: AnchorHead
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.text_prompt = nn.Identity()
        self.tower = tower
        self.head = head
        self.text_width = head.text_width
        self.objective = GlipObjective(head.anchor_scale)
        self._image_layers = mixing_layers(image_encoder, "image_encoder")  # before any is wrapped

    @property
    def seams(self) -> Seams:
        """The places that adapters use."""
        fused = [f"tower.blocks.{i}" for i, block in enumerate(self.tower.blocks) if block.fusion is not None]
        bert = [f"{BERT_LAYERS}.{i}" for i, _ in self.get_submodule(BERT_LAYERS).named_children()]
        return Seams(
            prediction_layers=tuple(f"head.{name}" for name in self.head.prediction_layers),
            text_encoder="text_encoder",
            word_embeddings="text_encoder.bert.embeddings.word_embeddings",
            linear={
                "fusion": (
                    *(f"{block}.fusion.attention.{name}" for block in fused for name in CROSS_ATTENTION),
                    *(f"{block}.text_layer.{name}" for block in fused for name in TEXT_LAYER),
                ),
                "text": tuple(f"{layer}.{name}" for layer in bert for name in BERT_LAYER),
                "head": ("head.text_projection", "head.box_deltas", "head.centerness"),
                "convolutions": tuple(
                    f"tower.blocks.{i}.dyhead.{name}" for i, _ in enumerate(self.tower.blocks) for name in CONVOLUTIONS
                ),
                "image": self._image_layers,
            },
            biases=BIASES,
        )

    def set_recompute(self, recompute: bool) -> None:
        """Choose whether Swin and tower blocks are computed again in the backward pass: slower, much less memory."""
        for module in self.modules():
            if isinstance(module, SwinBackbone | FusionTower):
                module.recompute = recompute

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile image encoder, tower and head in place; the arguments are those of ``torch.compile``."""
        for stage in (self.image_encoder, self.tower, self.head):
            stage.compile(*args, **options)

    def encode_image(self, images: ImageBatch) -> Pyramid:
        """Return five feature maps (B, C, h, w) of strides 8 … 128."""
        return self.image_encoder(images)

    def encode_text(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, D)."""
        return self.text_encoder(tokens)

    def fuse(self, pyramid: Pyramid, text: TextFeatures) -> Fused:
        """Return both modalities after the tower; a learned prompt enters here."""
        return self.tower(pyramid, self.text_prompt(text))

    def predict(self, fused: Fused, prepared: Sequence[Any] = ()) -> HeadOutput:
        """Return token logits, box deltas and centerness over all anchors."""
        return self.head(fused)

    def decode(self, output: HeadOutput, sizes_hw: Sequence[SizeHW], limit: int | None = None) -> list[Detections]:
        """Return the detections of each image, best first; boxes are edges in pixels of the image before resizing."""
        kept = decode(output, limit or MAX_DETECTIONS)
        return [
            Detections(boxes.to_edges(boxes.scale(found.boxes_xyxy, seen_hw, size_hw)), found.scores, found.labels)
            for found, seen_hw, size_hw in zip(kept, output.image_sizes_hw, sizes_hw, strict=True)
        ]

    def candidates(self, output: HeadOutput) -> list[Detections]:
        """Return the best candidates of each image, up to 1000 a level, before non-maximum suppression."""
        return candidates(output)

    def examples(self, output: HeadOutput, prepared: Sequence[Any]) -> Examples:
        """Return the anchors with the classes of their boxes; one with a box counts by how well it is centred."""
        return Examples(output.candidates, class_probabilities(output), *answers(output, prepared))

    def graph(self, texts: Sequence[TextFeatures]) -> tuple[nn.Module, int]:
        """Return a module that ``torch.export`` can trace, and the smallest side of an image that it takes, pixels."""
        return DetectionGraph(self, texts), least_side(self)

    def without_text(self) -> Glip:
        """Return a network that shares all modules but text encoder and prompt."""
        parts: dict[str, Any] = {"image_encoder": self.image_encoder, "tower": self.tower, "head": self.head}
        return type(self)(text_encoder=nn.Identity(), **parts)
