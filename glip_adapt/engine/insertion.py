"""Put a method into a copy of a network that shares what stays frozen, if the two go together."""

from __future__ import annotations

import copy

import torch
from torch import nn

from glip_adapt.adapters import check_taken
from glip_adapt.adapters.protocol import Adapter, Stage
from glip_adapt.core.structures import Tokens
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.protocol import Network


def insert(trunk: Trunk, adapter: Adapter, tokens: Tokens) -> tuple[Network, tuple[str, ...]]:
    """Copy the network, sharing what stays frozen; verify the owned set before anything is made trainable."""
    shared = {id(tensor): tensor for tensor in (*trunk.network.parameters(), *trunk.network.buffers())}
    network = copy.deepcopy(trunk.network, dict(shared))
    adapter.insert(network, tokens)
    state = network.state_dict(keep_vars=True)
    owned = tuple(adapter.owned(network))
    if missing := [name for name in owned if name not in state]:
        raise ValueError(
            f"{adapter.name} asks for {len(missing)} tensors that {type(network).__name__} does not have: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}."
        )
    for name in owned:
        if id(state[name]) in shared:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, copy.deepcopy(state[name]))
        if isinstance(state[name], nn.Parameter):
            network.get_parameter(name).requires_grad_(True)
    if trunk.compiled:
        network.compile()
    return network, owned


def check_text(trunk: Trunk, adapter: Adapter) -> str | None:
    """Return what to warn of where a method is put into a trunk of a closed set, if anything.

    Raises:
        ValueError: if the method works by text, and the trunk reads none.
    """
    check_taken(trunk.name, type(adapter))
    if trunk.spec.closed_set and adapter.stage is Stage.NONE:
        return f"{trunk.name} knows no class before it is trained: zero_shot finds nothing."
    return None


def no_tokens() -> Tokens:
    """Return an empty caption, for methods that do not look at it."""
    nothing = torch.empty(1, 0)
    return Tokens(nothing.long(), nothing.bool(), nothing[None].bool())


def set_mode(module: nn.Module, owned: set[int]) -> None:
    """Set train mode where all tensors below a module are among ``owned``, by ``id``; eval mode elsewhere."""
    tensors = list(module.parameters())
    if tensors and all(id(tensor) in owned for tensor in tensors):
        module.train()
        return
    module.training = False
    for child in module.children():
        set_mode(child, owned)
