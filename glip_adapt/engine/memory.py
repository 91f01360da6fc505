"""Memory estimates for training steps of any method, measured on two small images.

The peak of a step grows linearly with the pixels of the image, so two small images give the peak for a large one:
``engine/step_memory.py`` computes it, and holds figures that are measured already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glip_adapt.adapters.protocol import Stage
from glip_adapt.core.structures import ImageBatch, SizeHW, Target
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.cache_files import size_bytes
from glip_adapt.engine.step_memory import CLASSES, MemoryEstimate, Probe, StepMemory
from glip_adapt.trunks.catalogue import Trunk

PROBES_HW = ((256, 384), (384, 512))  # pixels; more cells than the deformable convolution takes at a time


def estimate_memory(
    trunk: Trunk,
    method: str,
    size_hw: SizeHW,
    recompute: bool = False,
    settings: Mapping[str, Any] | None = None,
    classes: int = CLASSES,
) -> MemoryEstimate:
    """Return the memory of one step of ``method`` on an image of ``size_hw``, measured on two small images.

    Args:
        trunk: may have random weights.
        method: one of ``ADAPTERS``.
        size_hw: (height, width) in pixels, as the network sees the image.
        recompute: whether blocks are computed again in the backward pass, ``FitConfig.recompute``.
        settings: fields of the adapter that differ from its defaults.
        classes: number of classes in the caption.
    """
    return measure_step(trunk, method, recompute, settings, classes).at(size_hw)


def measure_step(
    trunk: Trunk,
    method: str,
    recompute: bool = False,
    settings: Mapping[str, Any] | None = None,
    classes: int = CLASSES,
) -> StepMemory:
    """Return the memory of one step of ``method`` on each of two small images; arguments as for ``estimate_memory``.

    The first step of all on a trunk also counts tables, such as anchors, that the network keeps for later images.
    """
    model = attach(trunk, method, classes=[f"w{2 * i} w{2 * i + 1}" for i in range(classes)], settings=settings)
    model.network.set_recompute(recompute)
    small, large = (_measure(model, size_hw) for size_hw in PROBES_HW)
    parameters = {id(p): p.nbytes for p in (*trunk.network.parameters(), *model.network.parameters())}
    trained = sum(t.nbytes for t in model.owned_tensors().values() if t.requires_grad)
    return StepMemory(weights=sum(parameters.values()), trained=trained, small=small, large=large)


def _measure(model: AdaptedModel, size_hw: SizeHW) -> Probe:
    """Return the most bytes alive at once up to the losses, and those of the frozen features.

    From the losses on, activations make room for gradients.
    """
    pixels = torch.randint(0, 256, (1, 3, *size_hw), dtype=torch.uint8, device=model.device)
    target = Target(torch.tensor([[16.0, 16.0, 120.0, 120.0]]), torch.tensor([0]))
    trains = model.adapter.stage is not Stage.NONE
    model.train(trains)
    with LiveBytes() as live, torch.set_grad_enabled(trains):
        prefix = model.prefix(ImageBatch(pixels, (size_hw,)))
        prepared = [model.network.objective.prepare(target, size_hw)]
        output, *_ = model.finish(prefix, prepared)
        model.network.objective.losses(output, prepared, model.network.objective.scale(prepared))
    model.train(False)
    return Probe(size_hw=size_hw, activations=live.peak, features=size_bytes(prefix))


class LiveBytes(TorchDispatchMode):
    """Follows the memory of every tensor that an operator makes while it is open; ``peak`` is the maximum in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count the memory of its results."""
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_dense(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_dense(leaf) and (storage := leaf.untyped_storage())._cdata not in given:
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result


def _is_dense(leaf: Any) -> bool:
    """Return whether a value has memory of its own; the parts of a sparse tensor are tensors that have."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided
