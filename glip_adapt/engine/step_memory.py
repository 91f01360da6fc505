"""Memory of a step of any size from its figures on two small images; those of released trunks are stored.

Read without torch. ``engine/memory.py`` measures the figures, and ``benchmarks/memory.py`` stores them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glip_adapt.core.config import from_mapping
from glip_adapt.core.sizes import SizeHW
from glip_adapt.trunks.released import ASSETS

STORED = ASSETS / "step_memory.json"
CLASSES = 10  # in the caption, of two words each; a prompt owns one vector per token
COPIES = 4  # of a trained number: its gradient, the two moments of AdamW, and the best state so far


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Peak memory in bytes of one training step, or of one inference if the method does not train.

    Attributes:
        weights: of the network, in float32.
        trained: gradients, optimiser state and best state of the owned tensors.
        activations: of one image; the images of a batch go through one by one, so their number does not matter.
        features: of the frozen stages for one image in one view, as the cache keeps them; not part of ``total``.
    """

    weights: int
    trained: int
    activations: int
    features: int

    @property
    def total(self) -> int:
        """The sum; the libraries themselves take another half a gigabyte."""
        return self.weights + self.trained + self.activations


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one image of ``size_hw`` pixels takes: activations and features in bytes, as in ``MemoryEstimate``."""

    size_hw: SizeHW
    activations: int
    features: int


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of one step in bytes, measured on two images.

    Attributes:
        weights: of the network, in float32.
        trained: owned tensors that are trained.
        small: image of one size.
        large: image of another size.
    """

    weights: int
    trained: int
    small: Probe
    large: Probe

    def __post_init__(self) -> None:
        if math.prod(self.small.size_hw) == math.prod(self.large.size_hw):
            raise ValueError(f"Expected two images of different size; got {self.small.size_hw} twice.")

    def at(self, size_hw: SizeHW) -> MemoryEstimate:
        """Return the memory of a step on an image of ``size_hw`` pixels; it grows linearly with them."""
        pixels, least, most = (math.prod(size) for size in (size_hw, self.small.size_hw, self.large.size_hw))
        share = (pixels - least) / (most - least)

        def grown(small: int, large: int) -> int:
            return round(small + share * (large - small))

        return MemoryEstimate(
            weights=self.weights,
            trained=COPIES * self.trained,
            activations=grown(self.small.activations, self.large.activations),
            features=grown(self.small.features, self.large.features),
        )


@dataclass(frozen=True, kw_only=True)
class StoredStep:
    """The step of one method on one released trunk.

    Attributes:
        trunk: one of ``TRUNKS``.
        method: one of ``ADAPTERS``.
        settings: all fields of its adapter, JSON-ready.
        recompute: ``FitConfig.recompute``; None where it makes no difference.
        step: as measured with random weights and ``CLASSES`` classes.
    """

    trunk: str
    method: str
    settings: Mapping[str, Any]
    recompute: bool | None
    step: StepMemory


@dataclass(frozen=True, kw_only=True)
class StoredSteps:
    """The content of ``STORED``: rows, and the number of classes that they were measured with."""

    classes: int
    rows: tuple[StoredStep, ...]

    def __post_init__(self) -> None:
        if self.classes != CLASSES:
            raise ValueError(f"Expected figures for {CLASSES} classes, got {self.classes}. Measure them again.")


def stored_step(trunk: str, method: str, settings: Mapping[str, Any], recompute: bool) -> StepMemory | None:
    """Return the figures of a step where they are stored for these settings; of a damaged file nothing is believed.

    Args:
        trunk: by name.
        method: by name.
        settings: all fields of its adapter, JSON-ready.
        recompute: ``FitConfig.recompute``.
    """
    wanted = (trunk, method, settings)
    for row in _sound_rows(STORED):
        if (row.trunk, row.method, row.settings) == wanted and row.recompute in (None, recompute):
            return row.step
    return None


def read_steps(file: Path) -> tuple[StoredStep, ...]:
    """Return the rows of a file that ``benchmarks/memory.py`` wrote.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, or was measured with another number of classes.
    """
    return from_mapping(StoredSteps, json.loads(file.read_text(encoding="utf-8")), str(file)).rows


@functools.cache
def _sound_rows(file: Path) -> tuple[StoredStep, ...]:
    with suppress(OSError, ValueError):
        return read_steps(file)
    return ()
