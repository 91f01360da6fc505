"""Adapt a trunk to a dataset in one call: draw the shots, score, train, save, score again."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glip_adapt.adapters.storage import BAKED_DESCRIPTION_FILE, DESCRIPTION_FILE
from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.files import check_room
from glip_adapt.core.settings import FitConfig, Shots
from glip_adapt.data.dataset import Dataset
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.evaluate import Evaluation, evaluate
from glip_adapt.engine.optimise import Step
from glip_adapt.engine.selection import fit
from glip_adapt.engine.train import History, Validation
from glip_adapt.share.card import TrainingFacts, write_facts
from glip_adapt.trunks.catalogue import Trunk, default_recipe

DESCRIPTION_BYTES = 2**16  # room for adapter.json and training.json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """A trained and saved model with its scores.

    Attributes:
        model: in the state that was best on the selection split.
        history: of its training.
        before: zero-shot scores on the test split.
        after: scores of the model on the test split.
        folder: where the adapter was saved; not ``out`` if another process took that meanwhile.
    """

    model: AdaptedModel
    history: History
    before: Evaluation
    after: Evaluation
    folder: Path

    @property
    def kept_start(self) -> bool:
        """Whether training only lowered validation AP, so that the model is the untrained one."""
        best = [validation.step for validation in self.history.validations if validation.is_best]
        return bool(best) and best[-1] == 0


def adapt_dataset(
    trunk: Trunk,
    data: Dataset,
    method: str,
    *,
    shots: Shots,
    out: Path,
    seed: int = 3,
    classes: Sequence[str | ClassPrompt] | None = None,
    recipe: FitConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    cache: FeatureCache | None = None,
    on_step: Callable[[Step, int], None] | None = None,
    on_validation: Callable[[Validation], None] | None = None,
) -> AdaptResult:
    """Train an adapter, save it with the facts of its training, and score it on test before and after.

    Args:
        trunk: from ``load_trunk``.
        data: with the splits train, val and test.
        method: one of ``ADAPTERS``.
        shots: images per class.
        out: folder for the adapter.
        seed: of the few-shot draw, and of the default recipe.
        classes: wording of the classes; by default their names.
        recipe: of training; by default that of trunk, method and shots.
        settings: fields of the method that differ from its defaults.
        overwrite: whether an adapter in ``out`` is replaced.
        cache: keeps features of the frozen stages.
        on_step: as for ``fit``.
        on_validation: as for ``fit``.

    Raises:
        FileExistsError: before training, if ``out`` holds a model that may not be replaced.
        OSError: before training, if ``out`` cannot be written. After training the adapter is saved in a temporary
            folder, and the message names it.
        ValueError, FileNotFoundError: as ``attach``, ``fit`` and ``Dataset``.
    """
    check_free(out, overwrite)
    recipe = recipe or replace(default_recipe(trunk.name, method, shots), seed=seed)
    train = data.train.with_boxes() if shots == "all" else data.train.few_shot(shots, seed)
    classes, selection, test, cache = classes or data.classes, data.selection, data.test, cache or FeatureCache()
    model = attach(trunk, method, classes=classes, settings=settings)
    check_room(out, sum(tensor.nbytes for tensor in model.owned_tensors().values()) + DESCRIPTION_BYTES)
    before = evaluate(attach(trunk, "zero_shot", classes=classes), test, recipe.view, cache=cache)
    history = fit(model, train, selection, recipe, cache=cache, on_step=on_step, on_validation=on_validation)
    folder = _save(model, out, overwrite)
    after = evaluate(model, test, recipe.view, cache=cache)
    scores = {"test AP, zero-shot": before.ap, "test AP": after.ap}
    metrics = {name: ap for name, ap in scores.items() if ap is not None}
    write_facts(TrainingFacts(data=train.name, shots=shots, seed=seed, metrics=metrics), folder)
    return AdaptResult(model=model, history=history, before=before, after=after, folder=folder)


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


def _save(model: AdaptedModel, out: Path, overwrite: bool) -> Path:
    """Save the adapter in ``out``, or where that fails in another folder, so that no training is lost."""
    try:
        model.save(out, overwrite=overwrite)
        return out
    except FileExistsError:  # made by another process meanwhile
        number = next(n for n in itertools.count(2) if not out.with_name(f"{out.name}-{n}").exists())
        other = out.with_name(f"{out.name}-{number}")
        logger.warning(f"Another adapter was saved in {out} during this training, so this one goes into {other}.")
        model.save(other, overwrite=False)
        return other
    except OSError as error:
        rescued = Path(tempfile.mkdtemp(prefix="glip-adapt-"))
        model.save(rescued)
        raise OSError(f"{error} The trained adapter is in {rescued} instead: move it to a safe place.") from error
