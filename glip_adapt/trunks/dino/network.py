"""The network of Grounding DINO in four stages, and the seams that adapters use.

arXiv 2303.05499, figure 3; MM-Grounding-DINO, arXiv 2401.02361, and LLMDet, arXiv 2501.18954, are the same network with
other heads. Behaviour follows ``GroundingDinoForObjectDetection`` and ``MMGroundingDinoForObjectDetection`` of
transformers.

Shape letters: B batch, Q queries, A cells over all levels, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import Detections, Fused, ImageBatch, Pyramid, SizeHW, Target, TextFeatures, Tokens
from glip_adapt.trunks.backbones import build_backbone, normalised
from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.dino.decode import DETECTIONS, class_scores, decode
from glip_adapt.trunks.dino.denoising import noisy_queries
from glip_adapt.trunks.dino.geometry import Geometry, geometry
from glip_adapt.trunks.dino.objective import DinoObjective, answers
from glip_adapt.trunks.dino.output import DinoOutput
from glip_adapt.trunks.dino.transformer import Decoder, Encoder
from glip_adapt.trunks.dino.truth import truths_of
from glip_adapt.trunks.linear import mixing_layers
from glip_adapt.trunks.protocol import Examples, Network, Seams
from glip_adapt.trunks.swin import SwinBackbone

# Statistics of ImageNet, as the image processor on the Hub has them: channels in RGB order, range 0–255.
PIXEL_MEAN_RGB = (123.675, 116.28, 103.53)
PIXEL_STD_RGB = (58.395, 57.12, 57.375)
ATTENTION = ("query", "key", "value", "out")
FEED_FORWARD = ("feed_forward.hidden", "feed_forward.out")
# Without the offsets of deformable attention: a small change of these moves the places that a head reads.
DEFORMABLE = ("weights", "value", "out")
CROSS_ATTENTION = ("query_image", "key_text", "value_image", "value_text", "out_image", "out_text")
BERT_LAYER = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)


class ImageEncoder(nn.Module):
    """Backbone and a projection of each map to the same channels; the coarsest map is made of the last one."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        widths = self.backbone.output_widths
        coarsest = nn.Conv2d(widths[-1], config.width, kernel_size=3, stride=2, padding=1)
        convolutions = [*(nn.Conv2d(width, config.width, kernel_size=1) for width in widths), coarsest]
        self.projections = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, config.width)) for conv in convolutions)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN_RGB).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD_RGB).view(3, 1, 1), persistent=False)

    def forward(self, images: ImageBatch) -> Pyramid:
        """Return the projected maps."""
        maps = self.backbone(normalised(images, self.pixel_mean, self.pixel_std))
        levels = [project(x) for project, x in zip(self.projections, (*maps, maps[-1]), strict=True)]
        return Pyramid.from_levels(levels, images.image_sizes_hw)


class Dino(Network):
    """Grounding DINO, the detector."""

    reads_phrases = True
    evidence = "decoder.evidence"

    def __init__(
        self,
        config: DinoConfig,
        image_encoder: ImageEncoder,
        text_encoder: nn.Module,
        encoder: Encoder,
        decoder: Decoder,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.text_prompt = nn.Identity()
        self.encoder = encoder
        self.decoder = decoder
        self.config = config
        self.text_width = config.width
        self.objective = DinoObjective()
        self._image_layers = mixing_layers(image_encoder, "image_encoder")  # before any is wrapped
        self.denoising = 0

    @property
    def seams(self) -> Seams:
        """The places that adapters use.

        Prediction layers are the last layer of boxes, and the norm before the dot products with tokens, whose weights
        act on these as a linear layer on each channel would; where scores have a bias, that too.
        """
        bert = range(len(list(self.get_submodule("text_encoder.bert.encoder.layer").children())))
        encoder, decoder = range(len(self.encoder.layers)), range(len(self.decoder.layers))
        heads = [f"decoder.boxes.{i}" for i, _ in enumerate(self.decoder.boxes)]
        biases = [f"decoder.{name}" for name, _ in self.decoder.named_parameters() if name.startswith("scores.")]
        return Seams(
            prediction_layers=(
                *(f"{head}.4.{name}" for head in heads for name in ("weight", "bias")),
                *("decoder.norm.weight", "decoder.norm.bias", *biases),
            ),
            text_encoder="text_encoder",
            word_embeddings="text_encoder.bert.embeddings.word_embeddings",
            linear={
                "fusion": (
                    *_named("encoder.layers.{}.fusion.attention.", encoder, CROSS_ATTENTION),
                    *_named("encoder.layers.{}.text.attention.", encoder, ATTENTION),
                    *_named("encoder.layers.{}.image.attention.", encoder, DEFORMABLE),
                    *_named("encoder.layers.{}.text.", encoder, FEED_FORWARD),
                    *_named("encoder.layers.{}.image.", encoder, FEED_FORWARD),
                ),
                "text": tuple(_named("text_encoder.bert.encoder.layer.{}.", bert, BERT_LAYER)),
                "head": (
                    *_named("decoder.layers.{}.among.", decoder, ATTENTION),
                    *_named("decoder.layers.{}.text.", decoder, ATTENTION),
                    *_named("decoder.layers.{}.image.", decoder, DEFORMABLE),
                    *_named("decoder.layers.{}.", decoder, FEED_FORWARD),
                    *(f"{head}.{i}" for head in heads for i in (0, 2, 4)),
                ),
                "convolutions": (),
                "image": self._image_layers,
            },
            biases=frozenset({"bias"}),
        )

    def set_recompute(self, recompute: bool) -> None:
        """Choose whether layers are computed again in the backward pass: slower, much less memory."""
        for module in self.modules():
            if isinstance(module, SwinBackbone | Encoder | Decoder):
                module.recompute = recompute

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the backbone in place; the arguments are those of ``torch.compile``."""
        self.image_encoder.backbone.compile(*args, **options)

    def encode_image(self, images: ImageBatch) -> Pyramid:
        """Return the projected maps of the backbone, and a coarser one."""
        return self.image_encoder(images)

    def encode_text(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, C)."""
        return self.text_encoder(tokens)

    def fuse(self, pyramid: Pyramid, text: TextFeatures) -> Fused:
        """Return both modalities after the encoder; a learned prompt enters here."""
        cells, words = self.encoder(pyramid, self.text_prompt(text), self._places(pyramid))
        mask = text.mask.expand(len(words), -1)
        return Fused(replace(pyramid, cells=cells), TextFeatures(words, mask, text.token_map))

    def set_denoising(self, pairs: int) -> None:
        """Choose how many pairs of queries for each image start from the truth while training; 0 for none."""
        self.denoising = pairs

    def predict(self, fused: Fused, prepared: Sequence[Target] = ()) -> DinoOutput:
        """Return logits of tokens and boxes of the queries; targets are for queries that start from the truth."""
        pyramid, text, noisy = fused.pyramid, fused.text, None
        if self.denoising and prepared:
            like = full_precision(pyramid.cells)
            truths = truths_of(prepared, pyramid.image_sizes_hw, text.token_map, like)
            noisy = noisy_queries(truths, text, self.denoising)
        places, shapes_hw = self._places(pyramid), pyramid.level_shapes_hw
        proposals, *layers = self.decoder(pyramid.cells, text, places, shapes_hw, noisy)
        output = DinoOutput(proposals, tuple(layers), text.mask, text.token_map, pyramid.image_sizes_hw)
        return output if noisy is None else output.apart(noisy)

    def decode(self, output: DinoOutput, sizes_hw: Sequence[SizeHW], limit: int | None = None) -> list[Detections]:
        """Return the detections of each image, best first; boxes are edges in pixels of the image before resizing."""
        return decode(output, sizes_hw, limit or DETECTIONS)

    def examples(self, output: DinoOutput, prepared: Sequence[Target]) -> Examples:
        """Return the queries with the classes of the boxes that they are matched with."""
        assert output.layers[-1].features is not None
        return Examples(output.layers[-1].features, class_scores(output), *answers(output, prepared))

    def without_text(self) -> Dino:
        """Return a network that shares all modules but text encoder and prompt."""
        return Dino(self.config, self.image_encoder, nn.Identity(), self.encoder, self.decoder)

    def _places(self, pyramid: Pyramid) -> Geometry:
        cells = full_precision(pyramid.cells)
        shapes, sizes, stride = pyramid.level_shapes_hw, pyramid.image_sizes_hw, self.config.strides[0]
        return geometry(shapes, sizes, stride, cells.shape[-1], cells.device, cells.dtype)


def build_dino(config: DinoConfig, text_encoder: nn.Module) -> Dino:
    """Return a detector with random weights, in eval mode."""
    return Dino(config, ImageEncoder(config), text_encoder, Encoder(config), Decoder(config)).eval()


def _named(pattern: str, numbers: Sequence[int], layers: Sequence[str]) -> list[str]:
    return [pattern.format(i) + layer for i in numbers for layer in layers]
