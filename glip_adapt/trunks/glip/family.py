"""The GLIP family: builds its networks, and reads public and own checkpoint files; see ``trunks/family.py``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.core.plain_text import excerpt
from glip_adapt.trunks.family import Family, Weights
from glip_adapt.trunks.glip.config import GlipConfig

if TYPE_CHECKING:
    from glip_adapt.trunks.glip.network import Glip
    from glip_adapt.trunks.protocol import Network
    from glip_adapt.trunks.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class GlipFamily(Family):
    """GLIP, arXiv 2112.03857, and the nano trunks of this package."""

    def build(self, config: GlipConfig, *, with_text: bool = True) -> Glip:
        """Return a network with random weights, in eval mode."""
        from torch import nn

        from glip_adapt.trunks.glip.build import build_glip

        return build_glip(config, text_encoder=None if with_text else nn.Identity())

    def tokenizer(self, config: GlipConfig, vocabulary: Path | None) -> Tokenizer:
        """Return the tokenizer of a ``vocab.txt``, by default that of bert-base-uncased on the Hub."""
        from glip_adapt.trunks.tokenizer import read_vocabulary

        return read_vocabulary(vocabulary, config.text.vocabulary_size)

    def made_up_tokenizer(self, config: GlipConfig) -> Tokenizer:
        """Return a tokenizer of the words ``w0 w1 …``."""
        from glip_adapt.trunks.tokenizer import made_up_tokenizer

        return made_up_tokenizer(config.text.vocabulary_size)

    def read(self, path: Path, network: Network, name: str, configs: Mapping[str, Any], how_to_get: str) -> Weights:
        """Return the weights of a file; one warning names the entries that the network does not have."""
        from glip_adapt.trunks.checkpoint_files import read_entries
        from glip_adapt.trunks.glip.checkpoint_entries import match_entries, resembled
        from glip_adapt.trunks.matching import listed, refusal

        entries = read_entries(path)
        match = match_entries(entries, network, configs[name], configs.values())
        if match.problems:
            raise refusal(path, name, match.problems, resembled(entries, configs), how_to_get)
        if match.unknown:
            names = listed([excerpt(key) for key in match.unknown], ", ")
            logger.warning("%s: left out %d entries that %s does not have: %s.", path, len(match.unknown), name, names)
        return Weights(match.weights, match.table)
