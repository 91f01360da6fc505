"""The adapter contract, and everything that follows from it: attach, freeze, count, save, load.

An adapter is a frozen dataclass whose fields are its settings. It answers two questions: at which stage it enters the
pipeline, and exactly which tensors it owns. The trunk is never touched: attaching makes a copy that shares every
tensor but the owned ones.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glip_adapt.captions import ClassPrompt
from glip_adapt.config import from_mapping, to_mapping
from glip_adapt.model.glip import Glip
from glip_adapt.model.weights import Trunk, save_tensors
from glip_adapt.structures import Fused, HeadOutput, ImageBatch, Pyramid, TextFeatures, Tokens

FORMAT_VERSION = 1

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
    stage: ClassVar[Stage]

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Place new modules at the seams of ``glip``, if the method has any; they change nothing while fresh."""

    def owned(self, glip: Glip) -> Sequence[str]:
        """Return the full state dict names of the tensors that are trained and saved."""


class AdapterMismatchError(ValueError):
    """A saved adapter belongs to another trunk, caption or class list."""


@dataclass(frozen=True, kw_only=True)
class TrunkIdentity:
    """Which weights an adapter was trained on."""

    name: str
    checksum: str


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
        self.captions = [tokens.to(self.device) for tokens in trunk.tokenizer.encode_in_chunks(self.classes)]
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
            AdapterMismatchError: if names or shapes differ from the owned set.
        """
        mine = self.owned_tensors()
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in tensors.items()}:
            raise AdapterMismatchError(
                f"The adapter owns {len(mine)} tensors {_shapes(mine)}, but {len(tensors)} came: {_shapes(tensors)}."
            )
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    def train(self, training: bool = True) -> None:
        """Set train mode where everything below a module is owned; frozen parts stay in eval mode."""
        owned = {id(tensor) for tensor in self.owned_tensors().values()}
        _set_mode(self.glip, owned if training else set())

    @property
    def frozen_result(self) -> type[Prefix]:
        """What the frozen stages yield: the last result that no owned tensor and, for several captions, no text enters.

        Methods that agree in it share their features, such as zero-shot and prompt tuning.
        """
        if self.adapter.stage is Stage.ENCODE_IMAGE:
            return ImageBatch
        return Fused if self.adapter.stage is Stage.PREDICT else Pyramid

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

    def save(self, folder: str | Path) -> None:
        """Write ``adapter.safetensors`` (owned tensors) and ``adapter.json`` (what they belong to) into ``folder``."""
        folder = Path(folder)
        description = Description(
            method=self.adapter.name,
            config=to_mapping(self.adapter),
            trunk=TrunkIdentity(name=self.trunk.name, checksum=self.trunk.checksum),
            classes=self.classes,
            trained_parameters=self.trained_parameters,
        )
        save_tensors(self.owned_tensors(), folder / "adapter.safetensors", {"method": self.adapter.name})
        temporary = folder / f".adapter.json-{os.getpid()}"
        temporary.write_text(json.dumps(to_mapping(description), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "adapter.json")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which large products run in ``precision``; weights and losses stay in float32."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def read_description(folder: str | Path) -> Description:
    """Return the content of ``adapter.json``.

    Raises:
        FileNotFoundError: if the folder holds no adapter.
        AdapterMismatchError: if the file is not one that this version reads.
    """
    path = Path(folder) / "adapter.json"
    if not path.is_file():
        raise FileNotFoundError(f"No adapter in {folder}: {path.name} is missing. Save one with model.save(folder).")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise AdapterMismatchError(f"{path} is not an adapter description: {error}.") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise AdapterMismatchError(f"{path} is not an adapter description: it has no format_version.")
    if content["format_version"] != FORMAT_VERSION:
        raise AdapterMismatchError(
            f"{path} has format version {content['format_version']}; this version reads {FORMAT_VERSION}."
        )
    try:
        return from_mapping(Description, content, str(path))
    except ValueError as error:
        raise AdapterMismatchError(f"{error} Train and save the adapter again.") from error


def restore(
    trunk: Trunk, adapter: Adapter, folder: str | Path, classes: Sequence[str | ClassPrompt] | None = None
) -> AdaptedGlip:
    """Return ``adapter`` with the tensors saved in ``folder``, after checking that it belongs to this trunk.

    Raises:
        AdapterMismatchError: if it was trained on another trunk, other weights or another class list.
    """
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
    path = Path(folder) / "adapter.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"No adapter in {folder}: {path.name} is missing.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterMismatchError(f"{path} is damaged ({error}). Train and save the adapter again.") from error
    model.load_owned(tensors)
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


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    first = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:3])
    return f"({first}{', …' if len(tensors) > 3 else ''})"


def _wording(prompts: Sequence[ClassPrompt]) -> str:
    return repr([f"{p.prefix}{p.name}{p.suffix}" for p in prompts])
