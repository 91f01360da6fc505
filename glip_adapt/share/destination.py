"""Find a folder for an adapter: a free one, or another one if saving fails, so that no training is lost."""

from __future__ import annotations

import itertools
import logging
import tempfile
from pathlib import Path

from glip_adapt.adapters.storage import BAKED_DESCRIPTION_FILE, DESCRIPTION_FILE
from glip_adapt.engine.adapted import AdaptedModel

logger = logging.getLogger(__name__)


def check_free(out: Path, overwrite: bool) -> None:
    """Check that an adapter may be saved in a folder.

    Raises:
        FileExistsError: if it holds a baked model, which commands would go on using; or an adapter, and ``overwrite``
            is false.
    """
    if (out / BAKED_DESCRIPTION_FILE).exists():
        raise FileExistsError(f"{out} holds a baked model. Name another folder for the adapter.")
    if (out / DESCRIPTION_FILE).exists() and not overwrite:
        raise FileExistsError(f"{out} holds an adapter already. Overwrite it (--overwrite), or name another folder.")


def free_folder(out: Path) -> Path:
    """Return ``out``, or the first of ``out-2``, ``out-3``, … that holds no model."""
    taken = (DESCRIPTION_FILE, BAKED_DESCRIPTION_FILE)
    candidates = itertools.chain([out], (out.with_name(f"{out.name}-{n}") for n in itertools.count(2)))
    return next(folder for folder in candidates if not any((folder / name).exists() for name in taken))


def save_somewhere(model: AdaptedModel, out: Path, overwrite: bool) -> Path:
    """Save the adapter in ``out``, or where that fails in another folder, so that no training is lost."""
    try:
        try:
            model.save(out, overwrite=overwrite)
            return out
        except FileExistsError:  # made by another process meanwhile
            other = free_folder(out)
            logger.warning(f"Another adapter was saved in {out} during this training, so this one goes into {other}.")
            model.save(other, overwrite=False)
            return other
    except OSError as error:
        rescued = Path(tempfile.mkdtemp(prefix="glip-adapt-"))
        model.save(rescued)
        raise OSError(f"{error} The trained adapter is in {rescued} instead: move it to a safe place.") from error
