"""The contract of an adaptation method: where it enters the network, and exactly which tensors it owns.

A method is a frozen dataclass whose fields are its settings. Freezing, caching, training, counting, saving and loading
follow from its answers. Methods are listed, and their settings checked, without torch: ``insert`` imports what it
inserts, from ``modules.py`` or a library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from glip_adapt.core.captions import ClassPrompt

if TYPE_CHECKING:
    from torch import Tensor

    from glip_adapt.core.structures import Tokens
    from glip_adapt.trunks.protocol import Network


class Stage(IntEnum):
    """The first stage whose result depends on owned tensors; all stages before it run once, without gradients."""

    ENCODE_IMAGE = 0
    ENCODE_TEXT = 1
    FUSE = 2
    PREDICT = 3
    NONE = 4


class Adapter(ABC):
    """An adaptation method.

    Attributes:
        name: in plans, files and on the command line.
        caption_bound: whether the owned tensors belong to the tokens of one caption; other methods serve any classes.
        needs_text: whether it works by the text of class names, so that trunks of a closed set refuse it.
        renamed: old names of settings → present ones, for saved adapters and plans.
        purpose: use of the method, and when to take it; one sentence.
        cost: time, memory and file size compared with other methods; one sentence.
        counted: how many values it owns on glip-t; a formula if that depends on the caption.
    """

    name: ClassVar[str]
    caption_bound: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    renamed: ClassVar[Mapping[str, str]] = {}
    purpose: ClassVar[str]
    cost: ClassVar[str]
    counted: ClassVar[int | str]

    @property
    @abstractmethod
    def stage(self) -> Stage:
        """Where the method enters the network."""

    @property
    def names_per_caption(self) -> int | None:
        """Most class names in a caption, where a method reads several; by default as many as fit."""
        return None

    @property
    def newton_ridge(self) -> float | None:
        """Precision of the prior, for a method that solves instead of following gradients (``engine/newton.py``)."""
        return None

    def word(self, prompts: Sequence[ClassPrompt]) -> tuple[ClassPrompt, ...]:
        """Return the classes as this method words them in the caption; by default as they are."""
        return tuple(prompts)

    def insert(self, network: Network, tokens: Tokens) -> None:  # noqa: B027  # most methods insert nothing
        """Place new modules at the seams of ``network``, a copy of the trunk's; they change no output while fresh.

        By default none. ``tokens`` are of the caption; methods that are not ``caption_bound`` ignore them.
        """

    @abstractmethod
    def owned(self, network: Network) -> Sequence[str]:
        """Return the full state dict names of the tensors that are trained and saved."""

    def between(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Return owned tensors at ``factor`` of the way from the start to the trained ones (WiSE-FT, arXiv 2109.01903).

        Args:
            start: owned tensors before training.
            trained: owned tensors after training.
            factor: 0 gives the start, 1 the trained tensors.
        """
        return {
            name: start[name].lerp(tensor, factor) if tensor.is_floating_point() else tensor
            for name, tensor in trained.items()
        }
