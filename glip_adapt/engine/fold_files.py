"""Finished folds of a cross-validation on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from glip_adapt.core.config import to_mapping
from glip_adapt.core.files import written_whole
from glip_adapt.core.settings import FitConfig
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.cache import image_digest
from glip_adapt.engine.ranks import current

logger = logging.getLogger(__name__)

Looks = list[tuple[int, float, list[dict[str, Any]]]]
"""Steps and factor of each candidate, and its predictions on the held-out images in COCO result form."""


class FoldFiles:
    """A folder with one JSON file per finished fold, named after all that its content depends on."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made when the first fold is finished."""
        self.folder = folder

    def get(self, key: str, compute: Callable[[], Looks]) -> Looks:
        """Return the fold of a key: from its file if that is whole, else computed and kept."""
        path, ranks = self.folder / f"{key}.json", current()
        looks = ranks.first(lambda: _read(path))
        if looks is None:
            looks = compute()
            ranks.first(lambda: _write(looks, path))
        return looks


def _read(path: Path) -> Looks | None:
    try:
        return [(steps, factor, entries) for steps, factor, entries in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return None


def _write(looks: Looks, path: Path) -> None:
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(looks), encoding="utf-8")
    except OSError as error:  # what it saves is time
        logger.warning("A finished fold is not kept: %s", error)


def fold_key(
    model: AdaptedModel, start: Mapping[str, Tensor], config: FitConfig, rest: Split, held: Split, grid: Any
) -> str:
    """Return a digest of all that the predictions of a fold depend on: model, recipe, images, boxes, candidates."""
    digest = hashlib.sha256()
    for name, tensor in start.items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    facts = [
        model.trunk.checksum,
        model.adapter.name,
        to_mapping(model.adapter),
        repr(model.prompts),
        to_mapping(config),
        grid,
    ]
    for split in (rest, held):
        facts += [(r.image_id, image_digest(r.path), repr(split.annotations_of(r))) for r in split.records]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
