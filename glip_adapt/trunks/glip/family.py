"""The GLIP family: builds its networks, and reads public and own checkpoint files; see ``trunks/family.py``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.core.plain_text import excerpt
from glip_adapt.trunks.family import Family, Weights
from glip_adapt.trunks.glip.config import GlipConfig

if TYPE_CHECKING:
    from glip_adapt.trunks.glip.network import Glip
    from glip_adapt.trunks.protocol import Network
    from glip_adapt.trunks.tokenizer import Tokenizer

HUB_VOCABULARY = ("google-bert/bert-base-uncased", "vocab.txt")
MOST_LISTED = 20  # entries that one message names
LINE = "\n  "

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
        from glip_adapt.trunks.tokenizer import Tokenizer
        from glip_adapt.trunks.weights import fetch

        tokenizer = Tokenizer.from_file(vocabulary or fetch(*HUB_VOCABULARY, option="--vocabulary"))
        if tokenizer.size != config.text.vocabulary_size:
            raise ValueError(
                f"The vocabulary has {tokenizer.size} entries, the text encoder {config.text.vocabulary_size}. "
                "Name the vocab.txt that the trunk was trained with."
            )
        return tokenizer

    def made_up_tokenizer(self, config: GlipConfig) -> Tokenizer:
        """Return a tokenizer of the words ``w0 w1 …``."""
        from glip_adapt.trunks.tokenizer import SPECIAL_TOKENS, Tokenizer

        count = config.text.vocabulary_size - len(SPECIAL_TOKENS) - 1
        return Tokenizer([*SPECIAL_TOKENS, ".", *(f"w{i}" for i in range(count))])

    def read(self, path: Path, network: Network, name: str, configs: Mapping[str, Any], how_to_get: str) -> Weights:
        """Return the weights of a file; one warning names the entries that the network does not have."""
        from glip_adapt.trunks.checkpoint_files import CheckpointError, read_entries
        from glip_adapt.trunks.glip.checkpoint_entries import match_entries, resembled

        entries = read_entries(path)
        match = match_entries(entries, network, configs[name], configs.values())
        if match.problems:
            alike = resembled(entries, configs)
            other = f"Its entries are those of {' or '.join(alike)}: ask for that.\n" if alike else ""
            hint = "" if name in alike else other
            raise CheckpointError(
                f"{path} is not a checkpoint of {name}: {len(match.problems)} entries do not fit."
                f"{LINE}{_listed(match.problems, LINE)}\n{hint}{how_to_get}"
            )
        if match.unknown:
            names = _listed([excerpt(key) for key in match.unknown], ", ")
            logger.warning("%s: left out %d entries that %s does not have: %s.", path, len(match.unknown), name, names)
        return Weights(match.weights, match.table)


def _listed(parts: Sequence[str], separator: str) -> str:
    """Return the first parts in a row, and how many more there are."""
    more = len(parts) - MOST_LISTED
    return separator.join([*parts[:MOST_LISTED], *([f"… and {more} more"] if more > 0 else [])])
