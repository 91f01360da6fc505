"""How much memory a step will need, found by running small ones: nothing here knows a method or a layer.

The peak of a step grows linearly with the pixels of the picture, so two small pictures tell it for a large one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glip_adapt.adapters.protocol import Stage
from glip_adapt.core.structures import ImageBatch, SizeHW, Target
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.trunks.catalogue import Trunk

PROBES_HW = ((256, 384), (384, 512))  # pixels; more cells than the deformable convolution takes at a time
COPIES = 4  # of a trained number: its gradient, the two moments of AdamW, and the best state so far


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one training step, or one inference of a method without training, needs at its peak.

    Attributes:
        weights: of the network, in float32.
        trained: gradients, optimiser state and best state of what the method owns.
        activations: what one picture leaves for the backward pass, or needs at once without one; the pictures of a
            batch go through one by one, so that their number does not matter.
    """

    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; the libraries themselves take another half a gigabyte."""
        return self.weights + self.trained + self.activations


def estimate_memory(
    trunk: Trunk,
    method: str,
    size_hw: SizeHW,
    recompute: bool = False,
    settings: Mapping[str, Any] | None = None,
    classes: int = 10,
) -> MemoryEstimate:
    """Return what one step of ``method`` will need for a picture of ``size_hw``, measured on two small ones.

    Args:
        trunk: may have random weights.
        method: one of ``ADAPTERS``.
        size_hw: of the picture as the network sees it, pixels.
        recompute: whether blocks are computed again in the backward pass, ``FitConfig.recompute``.
        settings: fields of the adapter that differ from its defaults.
        classes: how many are named in the caption.
    """
    model = attach(trunk, method, classes=[f"w{2 * i} w{2 * i + 1}" for i in range(classes)], settings=settings)
    model.network.set_recompute(recompute)
    small, large = (_activations(model, probe) for probe in PROBES_HW)
    slope = (large - small) / (math.prod(PROBES_HW[1]) - math.prod(PROBES_HW[0]))
    activations = small + slope * (math.prod(size_hw) - math.prod(PROBES_HW[0]))
    parameters = {id(p): p.nbytes for p in (*trunk.network.parameters(), *model.network.parameters())}
    trained = sum(t.nbytes for t in model.owned_tensors().values() if t.requires_grad)
    return MemoryEstimate(weights=sum(parameters.values()), trained=COPIES * trained, activations=round(activations))


def _activations(model: AdaptedModel, size_hw: SizeHW) -> int:
    """Return the most bytes alive at once up to the losses; from there on, activations make room for gradients."""
    pixels = torch.randint(0, 256, (1, 3, *size_hw), dtype=torch.uint8, device=model.device)
    target = Target(torch.tensor([[16.0, 16.0, 120.0, 120.0]]), torch.tensor([0])).to(model.device)
    trains = model.adapter.stage is not Stage.NONE
    model.train(trains)
    with LiveBytes() as live, torch.set_grad_enabled(trains):
        output, *_ = model.finish(model.prefix(ImageBatch(pixels, (size_hw,))))
        prepared = [model.network.objective.prepare(target, size_hw)]
        model.network.objective.losses(output, prepared, model.network.objective.scale(prepared))
    model.train(False)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """While open, follows the memory of every tensor that an operator makes; ``peak`` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what it made."""
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in given:
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result
