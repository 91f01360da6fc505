"""Baked models: after adaptation the text is a constant, so the text encoder and the tokenizer can go.

GLIP, arXiv 2112.03857, section 4.3, says that a tuned prompt needs no language model any more. A baked folder holds the
rest of the network as well, so that it is loaded without its trunk.

Shape letters: T tokens, K classes, D text channels.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from glip_adapt.adapters.storage import (
    BAKED_DESCRIPTION_FILE,
    BAKED_TENSORS_FILE,
    DESCRIPTION_FILE,
    AdapterMismatchError,
    TrunkIdentity,
    read_file_description,
    read_tensors,
    replaced_pair,
    settled,
    write_description,
    write_tensors,
)
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.structures import Fused, HeadOutput, ImageBatch, Pyramid, TextFeatures
from glip_adapt.trunks.catalogue import check_device, trunk_spec
from glip_adapt.trunks.glip.build import build_glip
from glip_adapt.trunks.glip.network import Glip
from glip_adapt.trunks.glip.text import MAX_TOKENS

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CaptionSize:
    """How many classes and tokens one caption has."""

    classes: int
    tokens: int

    def __post_init__(self) -> None:
        if not (1 <= self.classes <= self.tokens <= MAX_TOKENS):
            raise ValueError(
                f"A caption has 1 to {MAX_TOKENS} tokens and no more classes than that, got {self.tokens} and "
                f"{self.classes}."
            )


@dataclass(frozen=True, kw_only=True)
class BakedDescription:
    """The content of ``baked.json``."""

    format_version: int = FORMAT_VERSION
    method: str
    "that it was adapted by"
    trunk: TrunkIdentity
    image_frozen: bool
    "whether the image encoder is the trunk's"
    classes: tuple[ClassPrompt, ...]
    "in label order"
    captions: tuple[CaptionSize, ...]
    sha256: str
    "of baked.safetensors"


class BakedGlip:
    """A detector for one list of classes, without text encoder and tokenizer.

    It does what ``predict`` and ``evaluate`` ask of an adapted trunk, with the same numbers to the last bit; of LoRA,
    whose factors are in the weights now, up to rounding.

    Attributes:
        trunk: name and checksum of the trunk that it was made from.
        glip: the network; nothing is in the place of the text encoder.
        method: that it was adapted by.
        image_frozen: whether the image encoder is the trunk's, so that its features may be shared.
        frozen_checksum: of the weights that these features come from: the trunk's, or once loaded, of the file, since
            its description may claim any trunk.
        classes: what is detected, in label order.
    """

    def __init__(
        self,
        *,
        trunk: TrunkIdentity,
        glip: Glip,
        method: str,
        image_frozen: bool,
        frozen_checksum: str,
        classes: Sequence[ClassPrompt],
        texts: Sequence[TextFeatures],
    ) -> None:
        """Put the parts together; see ``AdaptedGlip.bake`` and ``load_baked``."""
        self.trunk = trunk
        self.glip = glip
        self.method = method
        self.image_frozen = image_frozen
        self.frozen_checksum = frozen_checksum
        self.classes = tuple(classes)
        self._texts = list(texts)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.glip.head.bias0.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in label order."""
        return tuple(c.name for c in self.classes)

    def train(self, training: bool = True) -> None:
        """Stay in eval mode.

        Raises:
            ValueError: if train mode is asked for.
        """
        if training:
            raise ValueError(
                "A baked model cannot be trained. Train the adapter that it was made from, and bake again."
            )

    @property
    def frozen_result(self) -> type[ImageBatch | Pyramid]:
        """What may be shared with other models of the trunk: the pyramid, or pictures only."""
        return Pyramid if self.image_frozen else ImageBatch

    def frozen_prefix(self, images: ImageBatch) -> ImageBatch | Pyramid:
        """Return the result of the stages that are the trunk's; constant, so it may be kept and reused."""
        if not self.image_frozen:
            return images
        with torch.no_grad():
            return self.glip.encode_image(images)

    def finish(self, prefix: ImageBatch | Pyramid | Fused) -> list[HeadOutput]:
        """Return the raw predictions that follow from a prefix, one per caption."""
        assert not isinstance(prefix, Fused)  # which is nothing that this one freezes
        with torch.no_grad():
            pyramid = self.glip.encode_image(prefix) if isinstance(prefix, ImageBatch) else prefix
            return [self.glip.predict(self.glip.fuse(pyramid, text)) for text in self._texts]

    def outputs(self, images: ImageBatch) -> list[HeadOutput]:
        """Return raw predictions, one per caption; the pictures are encoded once."""
        return self.finish(self.frozen_prefix(images))

    def texts(self) -> list[TextFeatures]:
        """Return the text features of each caption, learned prompt included."""
        return self._texts

    def save(self, folder: str | Path) -> None:
        """Write ``baked.safetensors`` (the network and the text) and ``baked.json`` (what it is) into ``folder``.

        Raises:
            FileExistsError: if ``folder`` holds an adapter, which would look baked from then on, whatever it becomes.
        """
        folder = Path(folder)
        if (folder / DESCRIPTION_FILE).exists():
            raise FileExistsError(f"{folder} holds an adapter. Name another folder for the baked model.")
        tensors = _network(self.glip) | _text_tensors(self._texts)
        captions = tuple(
            CaptionSize(classes=text.token_map.shape[1], tokens=text.token_map.shape[2]) for text in self._texts
        )
        with replaced_pair(folder, BAKED_DESCRIPTION_FILE) as staging:
            sha256 = write_tensors(tensors, staging / BAKED_TENSORS_FILE, self.method)
            description = BakedDescription(
                method=self.method,
                trunk=self.trunk,
                image_frozen=self.image_frozen,
                classes=self.classes,
                captions=captions,
                sha256=sha256,
            )
            write_description(description, staging / BAKED_DESCRIPTION_FILE)


def load_baked(folder: str | Path, device: torch.device | str = "cpu") -> BakedGlip:
    """Return the model that ``BakedGlip.save`` wrote; it needs no trunk, no tokenizer and no text encoder.

    Args:
        folder: holds ``baked.safetensors`` and ``baked.json``.
        device: where the network goes.

    Raises:
        FileNotFoundError: if there is no baked model in ``folder``.
        AdapterMismatchError: if a file is damaged, too large, or not what the other one says.
        ValueError: if it was made from a trunk that is not known here, or there is no such device.
    """
    folder = Path(folder)
    check_device(device)
    file = folder / BAKED_DESCRIPTION_FILE
    if not file.is_file() and (folder / DESCRIPTION_FILE).is_file():
        raise FileNotFoundError(
            f"Expected a folder saved by `bake`, but {folder} holds an adapter. Bake it first: "
            f"glip-adapt bake {folder} --out baked"
        )
    with settled(folder):
        return _load(folder, device)


def _load(folder: Path, device: torch.device | str) -> BakedGlip:
    """Return the model in a folder that nobody changes meanwhile."""
    file = folder / BAKED_DESCRIPTION_FILE
    description = read_file_description(BakedDescription, file, FORMAT_VERSION, "baked model")
    if sum(caption.classes for caption in description.captions) != len(description.classes):
        raise AdapterMismatchError(
            f"{file} names {len(description.classes)} classes, but its captions hold "
            f"{[caption.classes for caption in description.captions]}. Bake the model again."
        )
    config = trunk_spec(description.trunk.name).config
    with torch.device("meta"):  # neither memory nor time for weights that are replaced at once
        glip = build_glip(config, text_encoder=nn.Identity())
        blank = [_blank_text(caption, config.text.width) for caption in description.captions]
    expected = _network(glip) | _text_tensors(blank)
    tensors = read_tensors(folder / BAKED_TENSORS_FILE, expected, description.sha256, device)
    _fill(glip, tensors)
    return BakedGlip(
        trunk=description.trunk,
        glip=glip.requires_grad_(False),
        method=description.method,
        image_frozen=description.image_frozen,
        frozen_checksum=description.sha256,
        classes=description.classes,
        texts=[
            replace(text, **{field.name: tensors[f"text.{i}.{field.name}"] for field in fields(text)})
            for i, text in enumerate(blank)
        ],
    )


def without_text_encoder(glip: Glip, owned: Collection[str]) -> Glip:
    """Return the network without its text encoder and prompt; it shares all tensors but the ``owned``, copied ones."""
    rest = Glip(image_encoder=glip.image_encoder, text_encoder=nn.Identity(), tower=glip.tower, head=glip.head)
    shared = {id(tensor): tensor for name, tensor in _network(rest).items() if name not in owned}
    return copy.deepcopy(rest, shared).eval().requires_grad_(False)


def _network(glip: Glip) -> dict[str, Tensor]:
    """Return all tensors, the constants that a state dict leaves out included."""
    return {**dict(glip.named_parameters()), **dict(glip.named_buffers())}


def _text_tensors(texts: Sequence[TextFeatures]) -> dict[str, Tensor]:
    return {
        f"text.{i}.{field.name}": getattr(text, field.name) for i, text in enumerate(texts) for field in fields(text)
    }


def _blank_text(caption: CaptionSize, width: int) -> TextFeatures:
    mask = torch.empty(1, caption.tokens, dtype=torch.bool)
    token_map = torch.empty(1, caption.classes, caption.tokens, dtype=torch.bool)
    return TextFeatures(torch.empty(1, caption.tokens, width), mask, token_map)


def _fill(glip: Glip, tensors: dict[str, Tensor]) -> None:
    """Put the tensors in the place of those without storage."""
    for name, blank in _network(glip).items():
        parent, _, leaf = name.rpartition(".")
        tensor = tensors[name]
        filled = nn.Parameter(tensor, requires_grad=False) if isinstance(blank, nn.Parameter) else tensor
        setattr(glip.get_submodule(parent), leaf, filled)
