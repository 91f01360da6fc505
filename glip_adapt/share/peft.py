"""Merge LoRA factors into a trunk, or save them for plain peft."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

from glip_adapt.adapters.lora import Lora, layer_names
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.linear import fold
from glip_adapt.trunks.weights import save_tensors, weights_checksum

PREFIX = "base_model.model."  # of every name in a file of peft


def merge(model: AdaptedModel) -> Trunk:
    """Merge LoRA factors into the weights; return a trunk of the usual speed, ready for another adapter.

    ``model`` and its trunk stay as they are; the result shares their other tensors.

    Raises:
        ValueError: if the model is not by LoRA.
    """
    _lora_of(model)
    plain = model.trunk.network
    network = copy.deepcopy(model.network, {id(tensor): tensor for tensor in (*plain.parameters(), *plain.buffers())})
    fold(network, plain)
    return replace(model.trunk, network=network.eval(), checksum=weights_checksum(network))


def save_for_peft(model: AdaptedModel, folder: str | Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which plain peft loads onto the network.

    ``peft.PeftModel.from_pretrained(copy.deepcopy(trunk.network), folder)`` reads them, and changes that network.
    They may lie beside the files of ``model.save``, which also hold the trunk and the classes.

    Raises:
        ValueError: if the model is not by LoRA.
    """
    adapter, folder = _lora_of(model), Path(folder)
    adapter.peft_config(layer_names(model.network, adapter.part)).save_pretrained(str(folder))
    tensors = {
        PREFIX + name.replace(".default.weight", ".weight"): tensor for name, tensor in model.owned_tensors().items()
    }
    save_tensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _lora_of(model: AdaptedModel) -> Lora:
    if model.adapter.name != Lora.name:
        raise ValueError(f"Expected a model adapted by lora, got {model.adapter.name}.")
    return cast(Lora, model.adapter)
