"""LoRA: low-rank factors beside frozen linear layers. The only home of peft.

LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353. The layers and their arithmetic are peft's; ours is at which modules of
Glip they stand, by exact name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from glip_adapt.adapters.base import AdaptedGlip, Stage
from glip_adapt.core.config import unknown_name
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.catalogue import Trunk, save_tensors, weights_checksum
from glip_adapt.trunks.glip.linear import fold
from glip_adapt.trunks.glip.network import Glip

if TYPE_CHECKING:
    from peft import LoraConfig

Target = Literal["fusion", "text", "head", "all"]

CROSS_ATTENTION = ("query_image", "key_text", "value_image", "value_text", "out_image", "out_text")
TEXT_LAYER = ("query", "key", "value", "out", "hidden", "hidden_out")
BERT_LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
HEAD = ("head.text_projection", "head.box_deltas", "head.centerness")
PEFT_PREFIX = "base_model.model."  # of every name in a file of peft


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Owns two factors of low rank beside each linear layer of a part of the network; their product starts at zero."""

    name: ClassVar[str] = "lora"

    target: Target = "all"
    """which layers: of the tower's cross attention and text layers, of the text encoder, of the head, or of all three;
    the image encoder is in none, so that its features are computed once (validation AP on four sets of glyphs13, 10
    shots, each at its best rate: 29.7 for the fusion, 35.9 for all)"""
    rank: int = 8
    "of the factors"
    alpha: int = 16
    "the product counts alpha / rank times"
    use_dora: bool = False
    "whether the length of each row of a weight is learned apart from its direction"
    init_lora_weights: Literal[True, "gaussian"] = True
    "peft's start of the first factor: Kaiming uniform, or Gaussian of deviation 1 / rank; the second starts at zero"
    seed: int = 0
    "of that start"

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise unknown_name("target", self.target, get_args(Target))
        if self.rank < 1 or not 1 <= self.alpha < 2**31:
            raise ValueError(f"rank and alpha must be whole numbers above 0; got {self.rank} and {self.alpha!s:.20}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2**63 - 1; got {self.seed!s:.20}.")

    @property
    def stage(self) -> Stage:
        """The earliest that holds a target."""
        return {
            "text": Stage.ENCODE_TEXT,
            "all": Stage.ENCODE_TEXT,
            "fusion": Stage.FUSE,
            "head": Stage.PREDICT,
        }[self.target]

    def insert(self, glip: Glip, tokens: Tokens) -> None:
        """Wrap the target layers.

        Raises:
            ValueError: if the network has none of them, or the rank is more than any of them can use.
        """
        from peft import inject_adapter_in_model  # takes seconds, so that only those wait who use it

        targets = target_names(glip, self.target)
        most = max(min(glip.get_submodule(name).get_parameter("weight").flatten(1).shape) for name in targets)
        if self.rank > most:  # before the factors take their memory: a saved adapter may ask for any rank
            raise ValueError(
                f"rank is {self.rank}, but no layer of the target '{self.target}' has a rank above {most}. Use less."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            inject_adapter_in_model(self.peft_config(targets), glip)
        wrapped = {name.rpartition(".")[0] for name, _ in glip.named_modules() if name.endswith(".base_layer")}
        assert wrapped == set(targets)

    def owned(self, glip: Glip) -> tuple[str, ...]:
        """Return the factors, and with DoRA the lengths, of every target."""
        parts = ("lora_A", "lora_B", "lora_magnitude_vector") if self.use_dora else ("lora_A", "lora_B")
        return tuple(f"{name}.{part}.default.weight" for name in target_names(glip, self.target) for part in parts)

    def peft_config(self, targets: list[str]) -> LoraConfig:
        """Return the same settings in peft's terms."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            use_dora=self.use_dora,
            init_lora_weights=self.init_lora_weights,
            target_modules=targets,
        )


def target_names(glip: Glip, target: Target) -> list[str]:
    """Return the exact names of the layers that ``target`` stands for.

    Raises:
        ValueError: if ``glip`` has none of them.
    """
    fused = [f"tower.blocks.{i}" for i, block in enumerate(glip.tower.blocks) if block.fusion is not None]
    names = {
        "fusion": [f"{block}.fusion.attention.{name}" for block in fused for name in CROSS_ATTENTION]
        + [f"{block}.text_layer.{name}" for block in fused for name in TEXT_LAYER],
        "text": [
            f"text_encoder.bert.encoder.layer.{i}.{name}"
            for i, _ in glip.get_submodule("text_encoder.bert.encoder.layer").named_children()
            for name in BERT_LAYER
        ],
        "head": list(HEAD),
    }
    found = [*names["fusion"], *names["text"], *names["head"]] if target == "all" else names[target]
    if not found:
        have = ", ".join(f"'{name}'" for name, layers in names.items() if layers)
        raise ValueError(
            f"The target '{target}' matches no layer of this trunk, which has no deep fusion; it has {have}."
        )
    return found


def merge(model: AdaptedGlip) -> Trunk:
    """Return the trunk with the factors folded into its weights: no slower, and ready for another adapter.

    ``model`` and its trunk stay as they are, so that there is nothing to unmerge; other tensors are shared with them.

    Raises:
        ValueError: if the model is not by LoRA.
    """
    _lora_of(model)
    plain = model.trunk.glip
    glip = copy.deepcopy(model.glip, {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())})
    fold(glip, plain)
    return replace(model.trunk, glip=glip.eval(), checksum=weights_checksum(glip))


def save_for_peft(model: AdaptedGlip, folder: str | Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which plain peft loads onto the trunk's network.

    ``peft.PeftModel.from_pretrained(copy.deepcopy(trunk.glip), folder)`` reads them; peft changes the network that it
    is given. They may lie beside the files of ``model.save``, which alone know the trunk and the classes.

    Raises:
        ValueError: if the model is not by LoRA.
    """
    adapter, folder = _lora_of(model), Path(folder)
    adapter.peft_config(target_names(model.glip, adapter.target)).save_pretrained(str(folder))
    tensors = {
        PEFT_PREFIX + name.replace(".default.weight", ".weight"): tensor
        for name, tensor in model.owned_tensors().items()
    }
    save_tensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _lora_of(model: AdaptedGlip) -> Lora:
    if not isinstance(model.adapter, Lora):
        raise ValueError(f"Expected a model adapted by lora, got {model.adapter.name}.")
    return model.adapter
