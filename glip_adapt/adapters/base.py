"""The adapter contract, and everything that follows from it: attach, freeze, count, save, load.

An adapter is a frozen dataclass whose fields are its settings. It answers two questions: at which stage it enters the
pipeline, and exactly which tensors it owns. The trunk is never touched: attaching makes a copy that shares every
tensor but the owned ones.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from glip_adapt.adapters.baked import BakedGlip, without_text_encoder
from glip_adapt.adapters.storage import (
    BAKED_DESCRIPTION_FILE,
    DESCRIPTION_FILE,
    TENSORS_FILE,
    AdapterMismatchError,
    TrunkIdentity,
    check_tensors,
    read_file_description,
    read_tensors,
    replaced_pair,
    settled,
    write_description,
    write_tensors,
)
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.config import to_mapping
from glip_adapt.core.structures import Fused, HeadOutput, ImageBatch, Pyramid, TextFeatures, Tokens
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.glip.linear import fold
from glip_adapt.trunks.glip.network import Glip

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2  # 1 had no sha256

Precision = Literal["float32", "bfloat16", "float16"]
Prefix = ImageBatch | Pyramid | Fused  # what the frozen stages may yield


class Stage(IntEnum):
    """The first stage whose result depends on owned tensors; all before it is computed without gradients, once."""

    ENCODE_IMAGE = 0
    ENCODE_TEXT = 1
    FUSE = 2
    PREDICT = 3
    NONE = 4


class Adapter(Protocol):
    """What a method must state."""

    name: ClassVar[str]

    @property
    def stage(self) -> Stage:
        """Where the method enters the pipeline."""

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Place new modules at the seams of ``glip``, if the method has any; they change nothing while fresh."""

    def owned(self, glip: Glip) -> Sequence[str]:
        """Return the full state dict names of the tensors that are trained and saved."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of ``adapter.json``."""

    format_version: int = FORMAT_VERSION
    method: str
    config: Mapping[str, Any]
    "the adapter's own settings"
    trunk: TrunkIdentity
    classes: tuple[ClassPrompt, ...]
    "in label order"
    trained_parameters: int
    sha256: str
    "of adapter.safetensors"


class AdaptedGlip:
    """A trunk with one adapter, ready for one list of classes.

    Attributes:
        trunk: what it was made from, untouched.
        glip: the network; frozen tensors are the trunk's own, owned ones are copies.
        adapter: the method and its settings.
        classes: what is detected, in label order.
        captions: tokens of the caption; several where zero-shot classes do not fit into one.
        owned: state dict names of the trained tensors.
    """

    def __init__(self, trunk: Trunk, adapter: Adapter, classes: Sequence[str | ClassPrompt]) -> None:
        """Attach; see ``glip_adapt.attach``."""
        self.trunk = trunk
        self.adapter = adapter
        self.classes = tuple(ClassPrompt(name=c) if isinstance(c, str) else c for c in classes)
        captions = trunk.tokenizer.encode_in_chunks(self.classes)
        for doubt in trunk.tokenizer.doubts(self.classes, captions):
            _warn_once(doubt)
        self.captions = [tokens.to(self.device) for tokens in captions]
        if len(self.captions) > 1 and adapter.stage is not Stage.NONE:
            raise ValueError(
                f"{len(self.classes)} classes need {len(self.captions)} captions, and {adapter.name} trains on one. "
                "Use fewer or shorter class names, or zero_shot."
            )
        self.glip, self.owned = _attach(trunk.glip, adapter, self.captions[0])
        self._text_weights = [t for name, t in self.owned_tensors().items() if name.startswith("text_encoder.")]
        self._texts: list[TextFeatures] = []
        self._texts_version: tuple[int, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.trunk.glip.head.bias0.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in label order."""
        return tuple(c.name for c in self.classes)

    @property
    def trained_parameters(self) -> int:
        """How many numbers the adapter owns."""
        return sum(tensor.numel() for tensor in self.owned_tensors().values())

    def owned_tensors(self) -> dict[str, Tensor]:
        """Return the owned tensors by their state dict names; they are the live ones, not copies."""
        state = self.glip.state_dict(keep_vars=True)
        return {name: state[name] for name in self.owned}

    def load_owned(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into the owned tensors.

        Raises:
            AdapterMismatchError: if names, shapes or types differ from the owned set.
        """
        mine = self.owned_tensors()
        check_tensors(tensors, mine, f"The tensors of {self.adapter.name}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    def train(self, training: bool = True) -> None:
        """Set train mode where everything below a module is owned; frozen parts stay in eval mode."""
        owned = {id(tensor) for tensor in self.owned_tensors().values()}
        _set_mode(self.glip, owned if training else set())
        if training:  # fused optimisers change weights without counting it
            self._texts_version = None

    @property
    def frozen_result(self) -> type[Prefix]:
        """What the frozen stages yield: the last result that no owned tensor and, for several captions, no text enters.

        Methods that agree in it share their features, such as zero-shot and prompt tuning.
        """
        if self.adapter.stage is Stage.ENCODE_IMAGE:
            return ImageBatch
        return Fused if self.adapter.stage is Stage.PREDICT else Pyramid

    @property
    def frozen_checksum(self) -> str:
        """Of the weights that the frozen stages run with: models that agree in it may share their features."""
        return self.trunk.checksum

    def frozen_prefix(self, images: ImageBatch) -> Prefix:
        """Return the result of the frozen stages; constant, so it may be kept and reused."""
        if self.frozen_result is ImageBatch:
            return images
        with torch.no_grad():
            pyramid = self.glip.encode_image(images)
            return pyramid if self.frozen_result is Pyramid else self.glip.fuse(pyramid, self.texts()[0])

    def finish(self, prefix: Prefix) -> list[HeadOutput]:
        """Return the raw predictions that follow from a frozen prefix, one per caption."""
        if isinstance(prefix, Fused):
            return [self.glip.predict(prefix)]
        pyramid = self.glip.encode_image(prefix) if isinstance(prefix, ImageBatch) else prefix
        return [self.glip.predict(self.glip.fuse(pyramid, text)) for text in self.texts()]

    def outputs(self, images: ImageBatch) -> list[HeadOutput]:
        """Return raw predictions, one per caption; the pictures are encoded once."""
        return self.finish(self.frozen_prefix(images))

    def texts(self) -> list[TextFeatures]:
        """Return the text features of each caption; outside of training, computed again only when weights moved."""
        if self._text_weights and torch.is_grad_enabled():
            return [self.glip.encode_text(tokens) for tokens in self.captions]
        version = tuple(weight._version for weight in self._text_weights)  # counts changes in place
        if self._texts_version != version:
            # In full precision whatever the caller runs in, since they stay; and fit for training later.
            with (
                torch.autocast(self.device.type, enabled=False),
                torch.inference_mode(False),
                torch.no_grad(),
            ):
                self._texts = [self.glip.encode_text(tokens) for tokens in self.captions]
            self._texts_version = version
        return self._texts

    def bake(self) -> BakedGlip:
        """Return what this model is now, with its text as a constant, and without text encoder and tokenizer.

        Outputs stay the same to the last bit, unless factors of LoRA are folded into the weights, which rounds.

        Raises:
            ValueError: if the adapter adds tensors to the network that are neither text nor around a linear layer.
        """
        glip = without_text_encoder(self.glip, self.owned)
        fold(glip, self.trunk.glip)
        added = sorted(glip.state_dict().keys() - self.trunk.glip.state_dict().keys())
        if added:
            raise ValueError(
                f"A baked model has the layers of its trunk, but {self.adapter.name} adds {len(added)} tensors, such "
                f"as {added[0]}, which are not around a linear layer. Such a model cannot be baked."
            )
        with torch.autocast(self.device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
            texts = [self.glip.text_prompt(text) for text in self.texts()]
        return BakedGlip(
            trunk=self._trunk_identity,
            glip=glip,
            method=self.adapter.name,
            image_frozen=self.adapter.stage is not Stage.ENCODE_IMAGE,
            frozen_checksum=self.frozen_checksum,
            classes=self.classes,
            texts=texts,
        )

    def save(self, folder: str | Path, *, overwrite: bool = True) -> None:
        """Write ``adapter.safetensors`` (owned tensors) and ``adapter.json`` (what they belong to) into ``folder``.

        Both replace an earlier adapter in one step: whatever happens, the old one or the new one can be loaded.

        Args:
            folder: made if need be.
            overwrite: whether an adapter that is there may be replaced.

        Raises:
            FileExistsError: if ``folder`` holds a baked model, which commands would go on using; or an adapter, and
                ``overwrite`` is false.
            OSError: if the files cannot be written.
        """
        folder = Path(folder)
        if (folder / BAKED_DESCRIPTION_FILE).exists():
            raise FileExistsError(f"{folder} holds a baked model. Name another folder for the adapter.")
        with replaced_pair(folder, DESCRIPTION_FILE, overwrite=overwrite) as staging:
            sha256 = write_tensors(self.owned_tensors(), staging / TENSORS_FILE, self.adapter.name)
            description = Description(
                method=self.adapter.name,
                config=to_mapping(self.adapter),
                trunk=self._trunk_identity,
                classes=self.classes,
                trained_parameters=self.trained_parameters,
                sha256=sha256,
            )
            write_description(description, staging / DESCRIPTION_FILE)

    @property
    def _trunk_identity(self) -> TrunkIdentity:
        return TrunkIdentity(name=self.trunk.name, checksum=self.trunk.checksum)


Detector = AdaptedGlip | BakedGlip  # what predict and evaluate work with


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which large products run in ``precision``; weights and losses stay in float32."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def read_description(folder: str | Path) -> Description:
    """Return the content of ``adapter.json``.

    Raises:
        FileNotFoundError: if the folder holds no adapter.
        AdapterMismatchError: if the file is too large, or not one that this version reads.
    """
    return read_file_description(Description, Path(folder) / DESCRIPTION_FILE, FORMAT_VERSION, "adapter")


def restore(
    trunk: Trunk, adapter: Adapter, folder: str | Path, classes: Sequence[str | ClassPrompt] | None = None
) -> AdaptedGlip:
    """Return ``adapter`` with the tensors saved in ``folder``, after checking that it belongs to this trunk.

    Raises:
        AdapterMismatchError: if it was trained on another trunk, other weights or another class list, or its file is
            damaged, too large, or not what ``adapter.json`` says.
    """
    with settled(Path(folder)):
        return _restore(trunk, adapter, Path(folder), classes)


def _restore(trunk: Trunk, adapter: Adapter, folder: Path, classes: Sequence[str | ClassPrompt] | None) -> AdaptedGlip:
    saved = read_description(folder)
    if saved.trunk != TrunkIdentity(name=trunk.name, checksum=trunk.checksum):
        raise AdapterMismatchError(
            f"The adapter in {folder} was trained on {saved.trunk.name} with weights {saved.trunk.checksum[:12]}…, "
            f"but this trunk is {trunk.name} with weights {trunk.checksum[:12]}…. "
            "Load the trunk that it was trained on."
        )
    model = AdaptedGlip(trunk, adapter, saved.classes if classes is None else classes)
    if model.classes != saved.classes:
        raise AdapterMismatchError(
            f"The adapter in {folder} was trained for the classes {_wording(saved.classes)}, but "
            f"{_wording(model.classes)} was asked for. Use the classes, order and prompts that it was trained with."
        )
    path = folder / TENSORS_FILE
    model.load_owned(read_tensors(path, model.owned_tensors(), saved.sha256))
    return model


def _attach(trunk_glip: Glip, adapter: Adapter, tokens: Tokens) -> tuple[Glip, tuple[str, ...]]:
    """Copy the network, sharing what stays frozen; verify the owned set before anything is made trainable."""
    shared = {id(tensor): tensor for tensor in (*trunk_glip.parameters(), *trunk_glip.buffers())}
    glip = copy.deepcopy(trunk_glip, dict(shared))
    adapter.insert(glip, tokens)
    state = glip.state_dict(keep_vars=True)
    owned = tuple(adapter.owned(glip))
    missing = [name for name in owned if name not in state]
    if missing:
        raise ValueError(
            f"{adapter.name} asks for {len(missing)} tensors that {type(glip).__name__} does not have: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}."
        )
    for name in owned:
        if id(state[name]) in shared:
            _replace(glip, name, copy.deepcopy(state[name]))
    for parameter in (glip.get_parameter(name) for name in owned if isinstance(state[name], nn.Parameter)):
        parameter.requires_grad_(True)
    return glip, owned


@functools.cache
def _warn_once(sentence: str) -> None:
    """Log a warning that later models for the same classes need not repeat."""
    logger.warning(sentence)


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, tensor)


def _set_mode(module: nn.Module, owned: set[int]) -> None:
    tensors = list(module.parameters())
    if tensors and all(id(tensor) in owned for tensor in tensors):
        module.train()
        return
    module.training = False
    for child in module.children():
        _set_mode(child, owned)


def _wording(prompts: Sequence[ClassPrompt]) -> str:
    return repr([f"{p.prefix}{p.name}{p.suffix}" for p in prompts])
