"""The contract of a trunk: a network of four stages, its seams for adapters, its objective.

Nothing outside the folder of a family knows a module path of its network. Adapters, feature cache, training,
evaluation, baking and the benchmark use only the names declared here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glip_adapt.core.structures import Detections, Fused, ImageBatch, Pyramid, SizeHW, Target, TextFeatures, Tokens


@dataclass(frozen=True, kw_only=True)
class Seams:
    """The places of a network that adapters use, by exact state dict or module name.

    Attributes:
        prediction_layers: tensors of the last layers, which a linear probe trains.
        text_encoder: module that reads tokens.
        word_embeddings: module inside it, ids → (…, D).
        linear: part of the network → its linear layers and convolutions, for low-rank factors. A part may be empty.
        biases: last parts of the names of tensors that train as biases: twice the rate, no weight decay.
    """

    prediction_layers: tuple[str, ...]
    text_encoder: str
    word_embeddings: str
    linear: Mapping[str, tuple[str, ...]]
    biases: frozenset[str]


@dataclass(frozen=True)
class Examples:
    """The candidates of B images, anchors or queries, and what they should have been found as.

    Attributes:
        features: (B, N, C) float, what the scores of each were computed from.
        scores: (B, N, K) float in [0, 1], of each class.
        answers: (B, N, K) bool, True for the class of the box that a candidate stands for.
        weights: (B, N) float, what each counts.
    """

    features: Tensor
    scores: Tensor
    answers: Tensor
    weights: Tensor


class Objective(Protocol):
    """The losses of a family; images of a batch may go through the network one by one."""

    def prepare(self, target: Target, padded_hw: SizeHW) -> Any:
        """Return everything about a target that can be known before the forward pass.

        Args:
            target: of one image, on the CPU, where numbers can be looked at without waiting for a GPU.
            padded_hw: (height, width) at which the network sees the image, pixels.
        """

    def scale(self, prepared: Sequence[Any]) -> Any:
        """Return the divisors of the losses of a batch, from the results of ``prepare`` for its images."""

    def losses(self, output: Any, prepared: Sequence[Any], scale: Any) -> dict[str, Tensor]:
        """Return scalar losses by name; their sum is minimised.

        Args:
            output: of ``Network.predict`` for some images of a batch.
            prepared: of ``prepare``, one for each of these images; what the losses need moves to the device here.
            scale: of ``scale``, for the whole batch.
        """


class Network(nn.Module, ABC):
    """A grounded detector: images and captions in, raw predictions out, in four stages.

    Attributes:
        text_prompt: seam for a learned prompt, text features → text features; the identity in a trunk.
        text_width: channels D of the text features.
        reads_phrases: whether text features say which phrase each token is of.
        evidence: name of the module that may add evidence of classes to the scores of candidates, see ``NoEvidence``; a
            family may have none.
        last_pixel: pixels from the right corner of a candidate to its edge: 1 where corners include the last pixel.
        objective: the losses of training.
    """

    text_prompt: nn.Module
    text_width: int
    reads_phrases: bool = False
    evidence: str | None = None
    last_pixel: float = 0.0
    objective: Objective

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def seams(self) -> Seams:
        """The places that adapters use."""

    @abstractmethod
    def encode_image(self, images: ImageBatch) -> Pyramid:
        """Return the feature maps of B images."""

    @abstractmethod
    def encode_text(self, tokens: Tokens) -> TextFeatures:
        """Return the features of each token, (B or 1, T, D)."""

    @abstractmethod
    def fuse(self, pyramid: Pyramid, text: TextFeatures) -> Fused:
        """Return both modalities after fusion; ``text_prompt`` is applied to the text first."""

    @abstractmethod
    def predict(self, fused: Fused, prepared: Sequence[Any] = ()) -> Any:
        """Return raw predictions for B images, in the form that ``objective`` and ``decode`` of the family read.

        Args:
            fused: of B images.
            prepared: while training, the results of ``objective.prepare``, for families that learn from noisy truth.
        """

    @abstractmethod
    def decode(self, output: Any, sizes_hw: Sequence[SizeHW], limit: int | None = None) -> list[Detections]:
        """Return the detections of each image, best first, in pixels of that image.

        Args:
            output: of ``predict`` for B images.
            sizes_hw: (height, width) of each image before it was resized, pixels.
            limit: boxes that are kept of an image, and those that tie with the last; by default as many as the family
                is published with.
        """

    def candidates(self, output: Any) -> list[Detections]:
        """Return the boxes of each image before any suppresses another, to be merged with those of other views.

        Corners are those of the family, see ``last_pixel``, in pixels of the image as the network saw it. By default
        they are those of ``decode``, for families that suppress none.
        """
        return self.decode(output, output.image_sizes_hw)

    @abstractmethod
    def without_text(self) -> Network:
        """Return a network for text features that are known: it shares all modules but text encoder and prompt."""

    def graph(self, texts: Sequence[TextFeatures]) -> tuple[nn.Module, int]:
        """Return a module that ``torch.export`` can trace, and the smallest side of an image that it takes, pixels.

        It maps one resized image, (1, 3, H, W) uint8 RGB, to boxes (N, 4), scores (N,) best first, and labels (N,).

        Raises:
            NotImplementedError: if this family cannot be traced.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be exported. Use its baked model in PyTorch.")

    def examples(self, output: Any, prepared: Sequence[Any]) -> Examples:
        """Return the candidates of B images with what they should have been found as.

        Args:
            output: of ``predict`` for these images.
            prepared: of ``objective.prepare``, one for each of them.

        Raises:
            NotImplementedError: if this family does not tell.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell its candidates. Take another method.")

    def set_denoising(self, pairs: int) -> None:
        """Choose how many pairs of queries for each image start from the truth while training.

        Raises:
            ValueError: if this family has no queries.
        """
        raise ValueError(f"{type(self).__name__} has no queries that could start from the truth. Leave out denoising.")

    def set_recompute(self, recompute: bool) -> None:
        """Choose whether blocks are computed again in the backward pass: slower, much less memory. A hint only."""

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the stages in place; the arguments are those of ``torch.compile``. By default none is compiled."""

    def forward(self, images: ImageBatch, tokens: Tokens) -> Any:
        """Return raw predictions for B images and one caption, or one caption per image."""
        return self.predict(self.fuse(self.encode_image(images), self.encode_text(tokens)))
