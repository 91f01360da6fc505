"""The family of Grounding DINO: builds its networks, and reads checkpoints of the Hub and our own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.trunks.dino.config import DinoConfig
from glip_adapt.trunks.family import Family, Weights

if TYPE_CHECKING:
    from glip_adapt.trunks.dino.network import Dino
    from glip_adapt.trunks.matching import Shape
    from glip_adapt.trunks.protocol import Network
    from glip_adapt.trunks.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class DinoFamily(Family):
    """Grounding DINO, arXiv 2303.05499, MM-Grounding-DINO, arXiv 2401.02361, and LLMDet, arXiv 2501.18954."""

    def build(self, config: DinoConfig, *, with_text: bool = True) -> Dino:
        """Return a network with random weights, in eval mode."""
        from torch import nn

        from glip_adapt.trunks.dino.network import build_dino
        from glip_adapt.trunks.dino.text import PhraseEncoder

        return build_dino(config, PhraseEncoder(config.text, config.width) if with_text else nn.Identity())

    def tokenizer(self, config: DinoConfig, vocabulary: Path | None) -> Tokenizer:
        """Return the tokenizer of a ``vocab.txt``, by default that of bert-base-uncased on the Hub."""
        from glip_adapt.trunks.tokenizer import read_vocabulary

        return read_vocabulary(vocabulary, config.text.vocabulary_size, closed=True)

    def made_up_tokenizer(self, config: DinoConfig) -> Tokenizer:
        """Return a tokenizer of the words ``w0 w1 …``, whose full stop is a separator of the text encoder."""
        from glip_adapt.trunks.tokenizer import made_up_tokenizer

        return made_up_tokenizer(config.text.vocabulary_size, config.text.separators, closed=True)

    def read(self, path: Path, network: Network, name: str, configs: Mapping[str, Any], how_to_get: str) -> Weights:
        """Return the weights of a file; one warning names the entries that the network does not have.

        Such entries are refused where another trunk needs one of them, or another entry does not fit.
        """
        from glip_adapt.core.plain_text import excerpt
        from glip_adapt.trunks.checkpoint_files import read_entries
        from glip_adapt.trunks.dino.names import in_our_names, is_ignored
        from glip_adapt.trunks.matching import fits, kind, listed, misfit, refusal, shapes_of

        def translated(config: DinoConfig) -> dict[str, Any]:
            return in_our_names(entries, len(config.strides) - 1)

        entries = read_entries(path)
        stored, expected = translated(configs[name]), shapes_of(network)
        problems = [line for key, shape in expected.items() if (line := misfit(key, stored.get(key), shape))]
        unknown = [key for key in stored if key not in expected and not is_ignored(key)]
        if problems or unknown:
            shapes = {config: self._shapes(config) for config in set(configs.values())}
            if problems or not set().union(*shapes.values()).isdisjoint(unknown):
                problems += [f"unexpected: {excerpt(key)} {kind(stored[key])}" for key in unknown]
                sizes = {n: len(shapes[c]) for n, c in configs.items() if fits(translated(c), shapes[c])}
                alike = [other for other, size in sizes.items() if size == max(sizes.values())]
                raise refusal(path, name, problems, alike, how_to_get)
            names = listed([excerpt(key) for key in unknown], ", ")
            logger.warning("%s: left out %d entries that %s does not have: %s.", path, len(unknown), name, names)
        return Weights({key: stored[key].detach().float() for key in expected})

    def _shapes(self, config: DinoConfig) -> dict[str, Shape]:
        """Return name → shape of the weights of a network, without memory for them."""
        import torch

        from glip_adapt.trunks.matching import shapes_of

        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return shapes_of(self.build(config))
