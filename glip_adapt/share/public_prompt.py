"""Import a prompt that the public code tuned as an adapter.

GLIP, arXiv 2112.03857, section 4.3; public mode ``language_prompt_v2`` adds row t of ``rpn.tunable_linear.weight`` to
the features of token t. Rows that no caption reaches get no gradient and stay zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from glip_adapt.core.captions import MAX_TOKENS, ClassPrompt, build_caption
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.trunks.catalogue import load_trunk_and_prompt
from glip_adapt.trunks.checkpoint_files import CheckpointError
from glip_adapt.trunks.glip.names import PROMPT_TABLE

logger = logging.getLogger(__name__)


def import_prompt(
    checkpoint: str | Path, name: str, classes: Sequence[str | ClassPrompt], *, vocabulary: str | Path | None = None
) -> AdaptedModel:
    """Return the tuned prompt of a public file as a ``prompt`` adapter on the weights of the same file.

    Args:
        checkpoint: written by the public code after prompt tuning.
        name: of the trunk that was tuned.
        classes: of the training, worded and ordered as there: the rows belong to the tokens of that caption.
        vocabulary: as for ``load_trunk``.

    Raises:
        FileNotFoundError, CheckpointError: as ``load_trunk``; also if the file holds no tuned prompt, or one that
            does not fit the trunk or the caption.
        ValueError: if the classes make no caption, or need several.
    """
    trunk, table = load_trunk_and_prompt(name, checkpoint=checkpoint, vocabulary=vocabulary)
    if table is None:
        raise CheckpointError(
            f"{checkpoint} holds no tuned prompt: {PROMPT_TABLE} is missing or zero. Without classes, `convert` writes "
            "its weights."
        )
    model = attach(trunk, "prompt", classes=classes)
    ((owned, offset),) = model.owned_tensors().items()
    tokens, width = offset.shape
    if table.dim() != 2 or table.shape[1] != width or len(table) < tokens:
        raise CheckpointError(
            f"The prompt in {checkpoint} has shape {tuple(table.shape)}; the caption of these {len(model.prompts)} "
            f"classes needs at least {tokens} rows of {width}. Name the classes and the trunk of its training."
        )
    if not table.isfinite().all():
        raise CheckpointError(
            f"The prompt in {checkpoint} holds NaN or infinity. Use an earlier file of that training."
        )
    moved = int(table.any(dim=1).nonzero().max()) + 1  # rows that training reached
    if moved != tokens and moved <= MAX_TOKENS:
        logger.warning(
            "The prompt in %s was trained on a caption of %d tokens, but %r has %d. Check the classes, their order and "
            "their wording.",
            *(checkpoint, moved, build_caption(model.prompts).text, tokens),
        )
    model.load_owned({owned: table[:tokens]})
    return model
