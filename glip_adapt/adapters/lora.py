"""LoRA: low-rank factors beside frozen linear layers. The only home of peft.

LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353. The layers and their arithmetic are peft's; this file says which layers
of a network are wrapped, by exact name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.config import unknown_name

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

    from glip_adapt.core.structures import Tokens
    from glip_adapt.trunks.protocol import Network

LoraPart = Literal["fusion", "text", "head", "all", "convolutions", "image", "all+image"]

_SUMS = {
    "all": ("fusion", "text", "head"),
    "all+image": ("fusion", "text", "head", "convolutions", "image"),
}


@dataclass(frozen=True, kw_only=True)
class Lora(Adapter):
    """Owns two low-rank factors beside each linear layer of a part of the network; their product starts at zero."""

    name: ClassVar[str] = "lora"
    needs_text: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {"target": "part"}
    purpose: ClassVar[str] = (
        "Small updates in text encoder, fusion and head. Take it if full costs too much, above all with 10 shots or "
        "more."
    )
    cost: ClassVar[str] = "medium: image features are computed once; about 1 % of the weights are trained and saved"
    counted: ClassVar[int] = 2_740_264

    part: LoraPart = "all"
    """layers with factors: cross attention and text layers of the fusion, the text encoder, the head, or all three, so
    that image features are computed once (validation AP on four sets of glyphs13, 10 shots, each at its best rate: 29.7
    for the fusion, 35.9 for all); besides, the convolutions of the fusion, the image encoder, and all of these"""
    rank: int = 8
    "of the factors"
    alpha: int = 16
    "the product counts alpha / rank times"
    use_dora: bool = False
    "whether to learn the length of each row of a weight apart from its direction"
    init_lora_weights: Literal[True, "gaussian"] = True
    "peft's start of the first factor: Kaiming uniform, or Gaussian of deviation 1 / rank; the second starts at zero"
    seed: int = 0
    "of that start"

    def __post_init__(self) -> None:
        if self.part not in get_args(LoraPart):
            raise unknown_name("part", self.part, get_args(LoraPart))
        if self.rank < 1 or not 1 <= self.alpha < 2**31:
            raise ValueError(f"rank and alpha must be whole numbers above 0; got {self.rank} and {self.alpha!s:.20}.")
        if self.use_dora and self.part in ("convolutions", "image", "all+image"):
            raise ValueError(
                f"use_dora is for linear layers, and the part {self.part!r} has convolutions. Leave it out."
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2**63 - 1; got {self.seed!s:.20}.")

    @property
    def stage(self) -> Stage:
        """The first stage with a wrapped layer."""
        first = {
            **dict.fromkeys(("fusion", "convolutions"), Stage.FUSE),
            **dict.fromkeys(("image", "all+image"), Stage.ENCODE_IMAGE),
            "head": Stage.PREDICT,
        }
        return first.get(self.part, Stage.ENCODE_TEXT)

    def insert(self, network: Network, tokens: Tokens) -> None:
        """Wrap the layers of the part.

        Raises:
            ValueError: if the network has none of them, or the rank is more than any of them can use.
        """
        import torch
        from peft import inject_adapter_in_model

        layers = layer_names(network, self.part)
        most = max(min(network.get_submodule(name).get_parameter("weight").flatten(1).shape) for name in layers)
        if self.rank > most:  # before the factors take their memory: a saved adapter may ask for any rank
            raise ValueError(
                f"rank is {self.rank}, but no layer of the part '{self.part}' has a rank above {most}. Use less."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # those of GPUs are the user's
            inject_adapter_in_model(self.peft_config(layers), network)
        wrapped = {name.rpartition(".")[0] for name, _ in network.named_modules() if name.endswith(".base_layer")}
        assert wrapped == set(layers)

    def owned(self, network: Network) -> tuple[str, ...]:
        """Return the factors, and with DoRA the lengths, of every layer."""
        parts = ("lora_A", "lora_B", "lora_magnitude_vector") if self.use_dora else ("lora_A", "lora_B")
        return tuple(f"{name}.{part}.default.weight" for name in layer_names(network, self.part) for part in parts)

    def between(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Return the trained factors with the second one scaled, so that their product is scaled exactly.

        Factors that do not start at a product of zero, as in a training that goes on, are blended like other tensors.
        """
        blended = super().between(start, trained, factor)
        second = [name for name in trained if ".lora_B." in name]
        if all(not start[name].any() for name in second):
            blended |= {name: trained[name] for name in trained if ".lora_A." in name}
        return blended

    def peft_config(self, layers: list[str]) -> LoraConfig:
        """Return the same settings in peft's terms."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            use_dora=self.use_dora,
            init_lora_weights=self.init_lora_weights,
            target_modules=layers,
        )


def layer_names(network: Network, part: LoraPart) -> list[str]:
    """Return the exact names of the linear layers of a part.

    Raises:
        ValueError: if ``network`` has none of them.
    """
    names = {name: network.seams.linear.get(name, ()) for name in _SUMS["all+image"]}
    found = [layer for name in _SUMS.get(part, (part,)) for layer in names[name]]
    if not found:
        have = ", ".join(f"'{name}'" for name, layers in names.items() if layers)
        raise ValueError(f"The part '{part}' has no layer in this trunk; it has {have}.")
    return found
