"""The contract of a trunk family: it makes networks and tokenizers, and reads their files.

The table of released trunks holds families, and is read where nothing is computed: their methods import torch and the
networks, not their modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from glip_adapt.trunks.protocol import Network
    from glip_adapt.trunks.tokenizer import Tokenizer


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint file.

    Attributes:
        state: complete state dict of the network.
        prompt: (positions, D) table of a tuned prompt that lies beside the weights, or None.
    """

    state: Mapping[str, Tensor]
    prompt: Tensor | None = None


class Family(ABC):
    """Makes the networks of one family, and reads their files. ``config`` is the family's own class of sizes."""

    @abstractmethod
    def build(self, config: Any, *, with_text: bool = True) -> Network:
        """Return a network with random weights, in eval mode; without text as ``Network.without_text``."""

    def drawn(self, config: Any, seed: int = 0) -> Network:
        """Return a network as ``build``, with the random weights of a seed; other random numbers stay as they are."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(config)

    @abstractmethod
    def tokenizer(self, config: Any, vocabulary: Path | None) -> Tokenizer:
        """Return the tokenizer of a network: from a file, or from the Hub.

        Raises:
            FileNotFoundError: if the file is missing, or the Hub cannot be reached.
            ValueError: if the vocabulary has another size than the text encoder.
        """

    @abstractmethod
    def made_up_tokenizer(self, config: Any) -> Tokenizer:
        """Return a tokenizer of made-up words ``w0 w1 …`` of the right size, for measurements without files."""

    @abstractmethod
    def read(self, path: Path, network: Network, name: str, configs: Mapping[str, Any], how_to_get: str) -> Weights:
        """Return the weights in a checkpoint file.

        Args:
            path: file, public or our own.
            network: that the weights are for.
            name: of its trunk.
            configs: of every trunk of the family, by name; tells whose file it is where it does not fit.
            how_to_get: sentence for the error.

        Raises:
            CheckpointError: if the file is unreadable, holds more than data, or lacks a tensor that is needed.
        """
