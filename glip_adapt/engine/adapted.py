"""Adapted models: a trunk with one method, for one list of classes.

The trunk is never touched: attaching makes a copy of the network that shares every tensor but the owned ones.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glip_adapt.adapters import build_adapter, storage
from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.captions import Caption, ClassPrompt, as_prompts
from glip_adapt.core.config import to_mapping
from glip_adapt.core.sentences import Span, Tagger, sentence_caption
from glip_adapt.core.settings import ViewConfig, Views
from glip_adapt.core.structures import Detections, Fused, ImageBatch, Pyramid, TextFeatures, Tokens
from glip_adapt.core.tagger import nltk_tags
from glip_adapt.data.captioned import CaptionedSplit
from glip_adapt.engine.cache import text_digest
from glip_adapt.engine.detector import AnyImage, Detector
from glip_adapt.engine.insertion import check_text, insert, no_tokens, set_mode
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.protocol import Network

_warn_once = functools.cache(logging.getLogger(__name__).warning)  # later models for these classes need not repeat it


def attach(
    trunk: Trunk,
    method: str | Adapter,
    *,
    classes: Sequence[str | ClassPrompt],
    settings: Mapping[str, Any] | None = None,
) -> AdaptedModel:
    """Return a model that adapts ``trunk`` by a method: ``attach(trunk, Lora(rank=4), classes=data.classes)``.

    The trunk stays untouched, and until the model is trained its outputs are those of the trunk for ``model.prompts``,
    bit for bit.

    Args:
        trunk: from ``load_trunk``.
        method: an adapter with its settings, or the name of one of ``ADAPTERS``.
        classes: names, or prompts around names, in label order. ``context`` puts its free tokens before each.
        settings: for a name: fields of the adapter that differ from its defaults and from ``TrunkSpec.settings``.

    Raises:
        ValueError: if the method or a setting is unknown, a class name is empty or maps to no token, the caption is too
            long, or the trunk lacks a tensor that the method asks for.
    """
    return adapt(trunk, method, settings=settings).for_classes(classes)


def adapt(trunk: Trunk, method: str | Adapter, *, settings: Mapping[str, Any] | None = None) -> AdaptedTrunk:
    """Return a trunk with a method, for any classes: ``adapt(trunk, Lora()).for_classes(["cat", "dog"])``.

    The arguments are those of ``attach``.

    Raises:
        ValueError: if the method or a setting is unknown, settings come beside an adapter that has its own, the trunk
            reads no text and the method works by it, or the trunk lacks a tensor that the method asks for.
    """
    if isinstance(method, str):
        return AdaptedTrunk(trunk, build_adapter(method, {**trunk.spec.settings.get(method, {}), **(settings or {})}))
    if settings:
        raise ValueError(f"Write the settings into the adapter, {type(method).__name__}(…), or name it by a string.")
    return AdaptedTrunk(trunk, method)


class AdaptedTrunk:
    """A trunk with one method attached, without classes.

    Attributes:
        trunk: the trunk, untouched.
        adapter: the method and its settings.
        class_bound: whether the owned tensors belong to one list of classes.
        moves: counter, raised when owned weights may have changed unnoticed; a new value makes kept text stale.
    """

    def __init__(self, trunk: Trunk, adapter: Adapter) -> None:
        """Attach; see ``adapt``."""
        if doubt := check_text(trunk, adapter):
            _warn_once(doubt)
        self.trunk, self.adapter, self.moves = trunk, adapter, 0
        self.class_bound = adapter.caption_bound or trunk.spec.closed_set
        self._shared = None if self.class_bound else insert(trunk, adapter, no_tokens())

    def for_classes(self, classes: Sequence[str | ClassPrompt]) -> AdaptedModel:
        """Return a model for some classes.

        Models of one adapted trunk share the owned tensors, unless these belong to the classes: then each model starts
        with its own.

        Raises:
            ValueError: as for ``attach``.
        """
        return self.for_prompts(self.adapter.word(as_prompts(classes)))

    def for_prompts(self, prompts: tuple[ClassPrompt, ...]) -> AdaptedModel:
        """Return a model for classes that are worded already."""
        tokenizer = self.trunk.tokenizer
        captions = tokenizer.encode_in_chunks(prompts, self.adapter.names_per_caption)
        for doubt in tokenizer.doubts(prompts, captions):
            _warn_once(doubt)
        if len(captions) > 1 and self.adapter.stage is not Stage.NONE:
            raise ValueError(
                f"{len(prompts)} classes need {len(captions)} captions, and {self.adapter.name} trains on one. "
                "Use fewer or shorter class names, or zero_shot."
            )
        first = captions[0].to(self.trunk.network.device)
        network, owned = self._shared or insert(self.trunk, self.adapter, first)
        return AdaptedModel(self, network, owned, prompts, captions)

    def for_sentence(self, sentence: Caption) -> AdaptedModel:
        """Return a model that detects the phrases of a sentence, from ``sentence_caption``.

        Raises:
            ValueError: if the tensors of the method belong to another caption, the sentence is too long, or a phrase
                maps to no token.
        """
        if self.trunk.spec.closed_set:
            raise ValueError(f"{self.trunk.name} reads no text, so that it cannot read sentences. Take another trunk.")
        if self._shared is None:
            raise ValueError(
                f"The tensors of {self.adapter.name} belong to a caption of classes, so that it cannot read sentences. "
                "Take zero_shot, linear_probe, lora, text_encoder or full."
            )
        text, tokens = sentence.text, self.trunk.tokenizer.encode(sentence)
        named = zip(sentence.spans, sentence.names, strict=True)
        prompts = tuple(ClassPrompt(name=name, prefix=text[:start], suffix=text[end:]) for (start, end), name in named)
        for doubt in self.trunk.tokenizer.doubts(prompts, [tokens]):
            _warn_once(doubt)
        model = AdaptedModel(self, *self._shared, prompts, [tokens])
        model.sentence = sentence
        return model

    def for_captions(self, captions: CaptionedSplit) -> AdaptedModel:
        """Return a model that learns from images with captions of their own; see ``fit``.

        Raises:
            ValueError: if there are no images, or as for ``for_sentence``.
        """
        if not len(captions):
            raise ValueError(f"{captions.name} has no images to learn from.")
        model = self.for_sentence(captions.images[0].caption)
        if model.frozen_state is Fused:  # by one caption; here each image has another
            model.frozen_state, model.text_digest = Pyramid, ""
        return model

    def ground(
        self,
        image: AnyImage,
        sentence: str,
        phrases: Sequence[str | Span] | None = None,
        *,
        tagger: Tagger = nltk_tags,
        threshold: float = 0.0,
        view: ViewConfig | None = None,
        views: Views | None = None,
    ) -> Detections:
        """Find the phrases of a sentence: ``ground("a.jpg", "[a man] with [a red umbrella]").phrases``.

        Args:
            image: as for ``Detector.predict``.
            sentence: with its phrases in brackets; without brackets its noun phrases are found.
            phrases: words of the sentence, or their spans, instead of brackets.
            tagger: finds the noun phrases; by default that of nltk, an extra. See ``sentence_caption``.
            threshold: lowest score in [0, 1] of a box that is returned.
            view: resizing and precision; by default those of the trunk.
            views: as for ``Detector.predict``.

        Returns:
            The boxes, best first; ``phrases`` sorts them by phrase, each with its span in the sentence without
            brackets.

        Raises:
            ValueError: as ``sentence_caption``, ``for_sentence`` and ``Detector.predict``.
            RuntimeError, FileNotFoundError: if nltk or its data are needed and missing, or the image is.
        """
        model = self.for_sentence(sentence_caption(sentence, phrases, tagger))
        return model.predict(image, threshold=threshold, view=view, views=views)


class AdaptedModel(Detector):
    """A trunk with one adapter, ready for one list of classes.

    Attributes:
        trunk: the trunk, untouched.
        network: frozen tensors are the trunk's own, owned ones are copies.
        adapter: the method and its settings.
        class_bound: whether the owned tensors belong to these classes.
        prompts: wording of each class, in label order.
        captions: tokens of the caption; several where zero-shot classes do not fit into one.
        owned: state dict names of the trained tensors.
    """

    def __init__(
        self,
        adapted: AdaptedTrunk,
        network: Network,
        owned: tuple[str, ...],
        prompts: tuple[ClassPrompt, ...],
        captions: list[Tokens],
    ) -> None:
        """Put the parts together; see ``attach``."""
        self.trunk, self.adapter, self._adapted = adapted.trunk, adapted.adapter, adapted
        self.class_bound = adapted.class_bound
        self.network, self.owned, self.prompts = network, owned, prompts
        self.captions = [tokens.to(network.device) for tokens in captions]
        self.trunk_name, self.view = self.trunk.name, self.trunk.spec.view
        self.class_counts = tuple(tokens.token_map.shape[1] for tokens in captions)
        # The latest stage output that depends on no owned tensor. Zero-shot, with several captions, stops before text.
        self.frozen_state = {Stage.ENCODE_IMAGE: ImageBatch, Stage.PREDICT: Fused}.get(self.adapter.stage, Pyramid)
        self.frozen_checksum = self.trunk.checksum + "-compiled" * self.trunk.compiled  # the last bits differ
        self.text_digest = text_digest(captions) if self.frozen_state is Fused else ""
        text_encoder = f"{network.seams.text_encoder}."
        self._text_weights = [t for name, t in self.owned_tensors().items() if name.startswith(text_encoder)]
        self._texts: list[TextFeatures] = []
        self._texts_version: tuple[int, ...] | None = None

    @property
    def frozen_network(self) -> Network:
        """The network of the trunk."""
        return self.trunk.network

    @property
    def trained_parameters(self) -> int:
        """How many numbers the adapter owns."""
        return sum(tensor.numel() for tensor in self.owned_tensors().values())

    def for_classes(self, classes: Sequence[str | ClassPrompt]) -> AdaptedModel:
        """Return a model for other classes by the same tensors.

        Raises:
            ValueError: if the tensors belong to the classes, or as for ``attach``.
        """
        if self.class_bound:
            bound = "the caption of these classes" if self.adapter.caption_bound else "these classes"
            raise ValueError(
                f"The tensors of {self.adapter.name} belong to {bound}. Attach and train it for the other classes."
            )
        return self._adapted.for_classes(classes)

    def for_sentence(self, sentence: Caption) -> AdaptedModel:
        """Return a model for the phrases of a sentence by the same tensors; see ``AdaptedTrunk.for_sentence``."""
        return self._adapted.for_sentence(sentence)

    def ground(
        self, image: AnyImage, sentence: str, phrases: Sequence[str | Span] | None = None, **options: Any
    ) -> Detections:
        """Find the phrases of a sentence by the same tensors; see ``AdaptedTrunk.ground``, also for the options."""
        return self._adapted.ground(image, sentence, phrases, **options)

    def owned_tensors(self) -> dict[str, Tensor]:
        """Return the owned tensors by their state dict names; they are the live ones, not copies."""
        state = self.network.state_dict(keep_vars=True)
        return {name: state[name] for name in self.owned}

    def copy_owned(self) -> dict[str, Tensor]:
        """Return copies of the owned tensors by their state dict names."""
        return {name: tensor.detach().clone() for name, tensor in self.owned_tensors().items()}

    def load_owned(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into the owned tensors.

        Raises:
            AdapterMismatchError: if names, shapes or types differ from the owned set.
        """
        mine = self.owned_tensors()
        storage.check_tensors(tensors, mine, f"The tensors of {self.adapter.name}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    def train(self, training: bool = True) -> None:
        """Set train mode where everything below a module is owned; frozen parts stay in eval mode."""
        owned = {id(tensor) for tensor in self.owned_tensors().values()}
        set_mode(self.network, owned if training else set())
        self._adapted.moves += training

    def texts(self) -> list[TextFeatures]:
        """Return the text features of each caption; outside of training, computed again only when weights moved."""
        if self._text_weights and torch.is_grad_enabled():
            return self.encode(self.captions)
        version = (self._adapted.moves, *(weight._version for weight in self._text_weights))  # changes in place
        if self._texts_version != version:
            self._texts = self.encode(self.captions)
            self._texts_version = version
        return self._texts

    def encode(self, captions: Sequence[Tokens]) -> list[TextFeatures]:
        """Return the text features of captions, with their graph while the text encoder learns."""
        if self._text_weights and torch.is_grad_enabled():
            self._adapted.moves += 1  # an optimiser step follows, and fused optimisers do not count their changes
            return [self.network.encode_text(tokens) for tokens in captions]
        # In full precision whatever the caller runs in, since they may stay; and fit for training later.
        with torch.autocast(self.device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
            return [self.network.encode_text(tokens) for tokens in captions]

    @property
    def identity(self) -> storage.TrunkIdentity:
        """Name and checksum of the trunk, as files hold them."""
        return storage.TrunkIdentity(name=self.trunk.name, checksum=self.trunk.checksum)

    def save(self, folder: str | Path, *, overwrite: bool = True) -> None:
        """Write ``adapter.safetensors`` (owned tensors) and ``adapter.json`` (what they belong to) into ``folder``.

        Both replace an earlier adapter in one step: whatever happens, the old one or the new one can be loaded.

        Args:
            folder: made if need be.
            overwrite: whether an adapter that is there may be replaced.

        Raises:
            FileExistsError: as ``storage.write_adapter``.
            ValueError: if the model is for a sentence.
            OSError: if the files cannot be written.
        """
        if self.sentence is not None:
            raise ValueError("A model for a sentence is not saved. Save the model for classes that it was made from.")
        storage.write_adapter(
            Path(folder),
            self.owned_tensors(),
            overwrite=overwrite,
            method=self.adapter.name,
            config=to_mapping(self.adapter),
            trunk=self.identity,
            classes=self.prompts,
            trained_parameters=self.trained_parameters,
            thresholds=dict(self.thresholds),
        )
