"""The family of DyHead: builds its networks, and reads backbones trained on ImageNet; see ``trunks/family.py``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.trunks.dyhead.config import DyHeadConfig
from glip_adapt.trunks.family import Family, Weights

if TYPE_CHECKING:
    from glip_adapt.trunks.dyhead.network import DyHead
    from glip_adapt.trunks.protocol import Network
    from glip_adapt.trunks.tokenizer import Tokenizer

_BACKBONE = "image_encoder.backbone."
_NORMS = f"{_BACKBONE}output_norms."  # of detectors only
_FIRST_LAYER = f"{_BACKBONE}patch_embed.proj.weight"


class DyHeadFamily(Family):
    """DyHead, arXiv 2106.08322: a detector that knows the classes that it is trained on, and reads no text."""

    def build(self, config: DyHeadConfig, *, with_text: bool = True) -> DyHead:
        """Return a network with random weights, in eval mode."""
        from glip_adapt.trunks.dyhead.network import build_dyhead

        return build_dyhead(config, with_text=with_text)

    def tokenizer(self, config: DyHeadConfig, vocabulary: Path | None) -> Tokenizer:
        """Return the list of classes; no vocabulary is read."""
        from glip_adapt.trunks.dyhead.classes import ClassList

        return ClassList(config.classes)

    def made_up_tokenizer(self, config: DyHeadConfig) -> Tokenizer:
        """Return the list of classes, which takes any words."""
        return self.tokenizer(config, None)

    def read(self, path: Path, network: Network, name: str, configs: Mapping[str, Any], how_to_get: str) -> Weights:
        """Return the weights of our own file, or those of a Swin classifier with all behind it random, always alike.

        A classifier is read in the names of timm, or of microsoft/Swin-Transformer.
        """
        from glip_adapt.trunks.checkpoint_files import read_entries
        from glip_adapt.trunks.matching import misfit, refusal, shapes_of

        entries, shapes = read_entries(path), shapes_of(network)
        start: dict[str, Any] = {}
        if "head.classes.weight" not in entries:
            entries = _as_backbone(entries)
            start = {
                key: tensor
                for key, tensor in self.drawn(configs[name]).state_dict().items()
                if not key.startswith(_BACKBONE) or key.startswith(_NORMS)
            }
        needed = {key: shape for key, shape in shapes.items() if key not in start}
        if problems := [line for key, shape in needed.items() if (line := misfit(key, entries.get(key), shape))]:
            raise refusal(path, name, problems, (), how_to_get)
        return Weights({**start, **{key: entries[key].float() for key in needed}})


def _as_backbone(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a Swin classifier by our names.

    Those of Microsoft count the merging of patches to the stage before it. Classifiers see RGB, this detector BGR.
    """
    early = "layers.0.downsample.reduction.weight" in entries
    ours = {}
    for key, value in entries.items():
        first, *rest = key.split(".")
        if first == "layers" and len(rest) > 1 and rest[0].isdigit():
            stage = int(rest[0]) + (early and rest[1] == "downsample")
            key = ".".join(("stages", str(stage), *rest[1:]))
        ours[_BACKBONE + key] = value
    if getattr(ours.get(_FIRST_LAYER), "ndim", 0) == 4:
        ours[_FIRST_LAYER] = ours[_FIRST_LAYER].flip(1)
    return ours
