"""Bake adapted models: text becomes a constant, without text encoder and tokenizer.

GLIP, arXiv 2112.03857, section 4.3: a tuned prompt needs no language model. A baked folder holds the rest of the
network, and is loaded without its trunk.

Shape letters: T tokens, K classes, D text channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glip_adapt.adapters import storage
from glip_adapt.adapters.modules import ClassEvidence, add_evidence
from glip_adapt.adapters.protocol import Stage
from glip_adapt.adapters.storage import AdapterMismatchError, TrunkIdentity
from glip_adapt.core.captions import MAX_TOKENS, ClassPrompt
from glip_adapt.core.structures import FrozenState, ImageBatch, Pyramid, TextFeatures
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.detector import Detector
from glip_adapt.trunks.catalogue import choose_device
from glip_adapt.trunks.linear import fold
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.released import trunk_spec

FORMAT_VERSIONS = (1, 2, 3)  # that are read; 1 had no thresholds, 2 no evidence; the last one is written


@dataclass(frozen=True, kw_only=True)
class CaptionSize:
    """Numbers of classes and tokens of one caption."""

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

    format_version: int = FORMAT_VERSIONS[-1]
    method: str
    "of the adapter"
    trunk: TrunkIdentity
    image_frozen: bool
    "whether the image encoder is the trunk's"
    classes: tuple[ClassPrompt, ...]
    "in label order"
    captions: tuple[CaptionSize, ...]
    sha256: str
    "of baked.safetensors"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    "as in adapter.json"
    evidence: bool = False
    "whether the network has evidence of classes beside the text, see ``Exemplars``"

    def __post_init__(self) -> None:
        storage.check_thresholds(self.thresholds, self.classes)


class BakedModel(Detector):
    """A detector for one list of classes, without text encoder and tokenizer.

    Its outputs are those of the adapted model, bit for bit. Only LoRA, whose factors are folded, rounds them.

    Attributes:
        trunk: name and checksum of its trunk.
        method: of the adapter.
        frozen_checksum: of the image encoder: that of the trunk. A loaded model has the checksum of its file, as its
            description may name any trunk.
    """

    text_digest = ""  # the text enters after the frozen state

    def __init__(
        self,
        *,
        trunk: TrunkIdentity,
        network: Network,
        method: str,
        frozen_state: type[FrozenState],
        frozen_checksum: str,
        prompts: Sequence[ClassPrompt],
        texts: Sequence[TextFeatures],
        thresholds: Mapping[str, float],
    ) -> None:
        """Put the parts together; see ``bake`` and ``load_baked``."""
        self.trunk, self.network, self.method = trunk, network, method
        self.trunk_name, self.view = trunk.name, trunk_spec(trunk.name).view
        self.frozen_state, self.frozen_checksum = frozen_state, frozen_checksum
        self.prompts, self._texts, self.thresholds = tuple(prompts), list(texts), thresholds
        self.class_counts = tuple(text.token_map.shape[1] for text in texts)

    def train(self, training: bool = True) -> None:
        """Stay in eval mode.

        Raises:
            ValueError: if train mode is asked for.
        """
        if training:
            raise ValueError(
                "A baked model cannot be trained. Train the adapter that it was made from, and bake again."
            )

    @torch.no_grad()
    def finish(
        self, prefix: FrozenState, prepared: Sequence[Any] = (), texts: Sequence[TextFeatures] = ()
    ) -> list[Any]:
        """Return the raw predictions that follow from a frozen state, one per caption; never with gradients."""
        return super().finish(prefix, prepared, texts)

    def texts(self) -> list[TextFeatures]:
        """Return the text features of each caption, learned prompt included."""
        return self._texts

    def save(self, folder: str | Path) -> None:
        """Write ``baked.safetensors`` (network and text) and ``baked.json`` (description) into ``folder``.

        Raises:
            FileExistsError: if ``folder`` holds an adapter: one folder has one model.
        """
        folder = Path(folder)
        if (folder / storage.DESCRIPTION_FILE).exists():
            raise FileExistsError(f"{folder} holds an adapter. Name another folder for the baked model.")
        tensors = _all_tensors(self.network) | _text_tensors(self._texts)
        sizes = [text.token_map.shape[1:] for text in self._texts]
        with storage.replaced_pair(folder, storage.BAKED_DESCRIPTION_FILE) as staging:
            sha256 = storage.write_tensors(tensors, staging / storage.BAKED_TENSORS_FILE, self.method)
            description = BakedDescription(
                method=self.method,
                trunk=self.trunk,
                image_frozen=self.frozen_state is Pyramid,
                classes=self.prompts,
                captions=tuple(CaptionSize(classes=classes, tokens=tokens) for classes, tokens in sizes),
                sha256=sha256,
                thresholds=dict(self.thresholds),
                evidence=_has_evidence(self.network),
            )
            storage.write_description(description, staging / storage.BAKED_DESCRIPTION_FILE)


def bake(model: AdaptedModel) -> BakedModel:
    """Return a model with its text as a constant, without text encoder and tokenizer: ``bake(model).save("baked")``.

    Raises:
        ValueError: if the adapter adds tensors to the network that are neither text, evidence of classes, nor around a
            linear layer.
    """
    rest, plain = model.network.without_text(), model.trunk.network
    shared = {id(tensor): tensor for name, tensor in _all_tensors(rest).items() if name not in model.owned}
    network = copy.deepcopy(rest, shared).eval().requires_grad_(False)  # copies the owned tensors alone
    fold(network, plain)
    new = sorted(network.state_dict().keys() - plain.state_dict().keys())
    added = [name for name in new if not name.startswith(f"{network.evidence}.")]
    if added:
        raise ValueError(
            f"A baked model has the layers of its trunk, but {model.adapter.name} adds {len(added)} tensors, such "
            f"as {added[0]}, which are not around a linear layer. Such a model cannot be baked."
        )
    with torch.autocast(model.device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
        texts = [model.network.text_prompt(text) for text in model.texts()]
    return BakedModel(
        trunk=model.identity,
        network=network,
        method=model.adapter.name,
        # Never Fused, also for a trained head: the pyramid is what all models of the trunk share.
        frozen_state=ImageBatch if model.adapter.stage is Stage.ENCODE_IMAGE else Pyramid,
        frozen_checksum=model.trunk.checksum,
        prompts=model.prompts,
        texts=texts,
        thresholds=model.thresholds,
    )


def load_baked(folder: str | Path, device: torch.device | str | None = None) -> BakedModel:
    """Return the model that ``BakedModel.save`` wrote; it needs no trunk, no tokenizer and no text encoder.

    Args:
        folder: holds ``baked.safetensors`` and ``baked.json``.
        device: where the network goes; by default the GPU if there is one.

    Raises:
        FileNotFoundError: if there is no baked model in ``folder``.
        AdapterMismatchError: if a file is damaged, too large, or does not fit the other one.
        ValueError: if it was made from a trunk that is not known here, or there is no such device.
    """
    folder = Path(folder)
    device = choose_device(device)
    file = folder / storage.BAKED_DESCRIPTION_FILE
    if not file.is_file() and (folder / storage.DESCRIPTION_FILE).is_file():
        raise FileNotFoundError(
            f"Expected a folder saved by `bake`, but {folder} holds an adapter. Bake it first: "
            f"glip-adapt bake {folder} --out baked"
        )
    with storage.settled(folder):
        return _load(folder, device)


def _load(folder: Path, device: torch.device) -> BakedModel:
    """Return the model in a locked folder."""
    file = folder / storage.BAKED_DESCRIPTION_FILE
    description = storage.read_file_description(BakedDescription, file, FORMAT_VERSIONS, "baked model")
    if sum(caption.classes for caption in description.captions) != len(description.classes):
        raise AdapterMismatchError(
            f"{file} names {len(description.classes)} classes, but its captions hold "
            f"{[caption.classes for caption in description.captions]}. Bake the model again."
        )
    spec = trunk_spec(description.trunk.name)
    with torch.device("meta"):  # neither memory nor time for weights that are replaced at once
        network = spec.family.build(spec.config, with_text=False)
        if description.evidence:
            add_evidence(network, len(description.classes))
        blank = [_blank_text(caption, network) for caption in description.captions]
    expected = _all_tensors(network) | _text_tensors(blank)
    tensors = storage.read_tensors(folder / storage.BAKED_TENSORS_FILE, expected, description.sha256, device)
    _fill(network, tensors)
    return BakedModel(
        trunk=description.trunk,
        network=network.requires_grad_(False),
        method=description.method,
        frozen_state=Pyramid if description.image_frozen else ImageBatch,
        frozen_checksum=description.sha256,
        prompts=description.classes,
        texts=[
            replace(text, **{name: tensors[f"text.{i}.{name}"] for name in _present(text)})
            for i, text in enumerate(blank)
        ],
        thresholds=description.thresholds,
    )


def _has_evidence(network: Network) -> bool:
    return network.evidence is not None and isinstance(network.get_submodule(network.evidence), ClassEvidence)


def _all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return all tensors, with the constants that a state dict leaves out."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _text_tensors(texts: Sequence[TextFeatures]) -> dict[str, Tensor]:
    return {f"text.{i}.{name}": tensor for i, text in enumerate(texts) for name, tensor in _present(text).items()}


def _present(text: TextFeatures) -> dict[str, Tensor]:
    """Return the tensors of text features by name; families differ in which there are."""
    return {name: tensor for name, tensor in vars(text).items() if tensor is not None}


def _blank_text(caption: CaptionSize, network: Network) -> TextFeatures:
    return TextFeatures(
        torch.empty(1, caption.tokens, network.text_width),
        torch.empty(1, caption.tokens, dtype=torch.bool),
        torch.empty(1, caption.classes, caption.tokens, dtype=torch.bool),
        torch.empty(1, caption.tokens, dtype=torch.int64) if network.reads_phrases else None,
    )


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the tensors in the place of those without storage."""
    for name, blank in _all_tensors(network).items():
        parent, _, leaf = name.rpartition(".")
        tensor = tensors[name]
        filled = nn.Parameter(tensor, requires_grad=False) if isinstance(blank, nn.Parameter) else tensor
        setattr(network.get_submodule(parent), leaf, filled)
