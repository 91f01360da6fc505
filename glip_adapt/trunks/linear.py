"""Linear layers: a faster kernel on CPUs, the weight of a wrapped layer, and the removal of wrappers."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN_NUMBERS = 20_480  # up to so many, torch keeps a convolution to itself (use_mkldnn in its Convolution.cpp)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear(x, weight, bias)``, (…, C') for (…, C), (C', C) and (C',).

    On a CPU with several threads, large products are written as a 1 × 1 convolution. torch hands it to oneDNN, which
    was a sixth faster than the BLAS behind ``F.linear`` on the CPUs measured.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    if x.numel() <= ONEDNN_NUMBERS or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C, 1, rows), channels last
    return F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C') for (…, C)."""
        return linear(x, self.weight, self.bias)


def matrix(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the weight (C', C) and the bias (C',) by which ``layer`` maps channels, for products in another order.

    The ``weight`` of a layer that an adapter wraps is only the frozen part. The rest is computed from unit vectors, in
    float32 without autocast. This works for every kind of adapter, and a fresh one adds zero.

    Args:
        layer: linear or a 1 × 1 convolution, with a bias; or a wrapper of one that leaves the bias as it is.
    """
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return weight.flatten(1), bias
    with torch.autocast(weight.device.type, enabled=False):
        units = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        images = layer(units.view(-1, *weight.shape[1:])).flatten(1)  # (C, C'): the columns of the matrix, and the bias
        added = images - F.linear(units, weight.flatten(1), bias)
    return weight.flatten(1) + added.T, bias


def kernel(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the weight (C', C, k, k) and the bias (C',) of a convolution of any size, for products of another kind.

    Args:
        layer: a convolution with a bias; or one with low-rank factors, which tells the change of its weight.
    """
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    if isinstance(layer, nn.Conv2d):
        return weight, bias
    with torch.autocast(weight.device.type, enabled=False):
        return weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters), bias


def _of_any_size(layer: nn.Module) -> Tensor:
    """Return the weight of a wrapped layer, in the shape of its frozen part."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    is_large = weight.ndim == 4 and weight.shape[2:].numel() > 1
    return (kernel if is_large else matrix)(layer)[0].view_as(weight)  # type: ignore[arg-type]


def mixing_layers(module: nn.Module, name: str) -> tuple[str, ...]:
    """Return the names of the layers in a module that mix channels, linear or convolutions, but not the first one.

    The first reads the three colours of pixels; convolutions of single channels have no low rank.
    """
    layers = {f"{name}.{path}": layer for path, layer in module.named_modules()}
    kinds = (nn.Linear, nn.Conv2d)
    return tuple(path for path, layer in layers.items() if isinstance(layer, kinds) and min(layer.weight.shape[:2]) > 3)


@torch.no_grad()
def fold(network: nn.Module, plain: nn.Module) -> None:
    """Replace each wrapped layer by a plain, frozen one with the same weight; outputs change by rounding only.

    Args:
        network: a copy of ``plain``, or of a part of it, with some layers wrapped; changed in place.
        plain: the network before; it stays as it is, and shares its biases.
    """
    modules = dict(network.named_modules())
    for name, layer in plain.named_modules():
        wrapper = modules.get(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or isinstance(wrapper, nn.Linear | nn.Conv2d | None):
            continue
        folded = copy.deepcopy(layer, {id(tensor): tensor for tensor in layer.parameters()})
        folded.weight = nn.Parameter(_of_any_size(wrapper), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, folded)
