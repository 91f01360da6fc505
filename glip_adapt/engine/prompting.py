"""Search for the best wording of the classes on validation images, and show learned prompts in words.

Shape letters: T tokens, K classes, D text channels, V words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt.core.captions import ClassPrompt
from glip_adapt.core.knowledge import Knowledge
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.structures import TextFeatures, Tokens
from glip_adapt.data.dataset import Dataset
from glip_adapt.data.split import Split
from glip_adapt.engine.adapted import AdaptedModel, attach
from glip_adapt.engine.cache import FeatureCache
from glip_adapt.engine.describing import describe_classes
from glip_adapt.engine.evaluate import Evaluation, evaluate, score, score_ap
from glip_adapt.engine.held_out import split_up
from glip_adapt.engine.selection import FOLDS
from glip_adapt.trunks.catalogue import Trunk

Prompts = tuple[ClassPrompt, ...]
NAME = "{}"  # where the class name stands in a candidate
BEST_OF_EACH = "the best for each class"
ENCODED_AT_ONCE = 1024  # words
SEED = 3  # of the folds; that of the first official few-shot subset


@dataclass(frozen=True)
class Wording:
    """One wording of all classes, with its AP on the images that choose: those of val, or without it of train.

    Attributes:
        candidate: the candidate, the source of the descriptions, or ``BEST_OF_EACH``.
        prompts: of each class, in label order.
        val_ap: AP on these images, as a fraction; None if they have no box.
        val_ap_per_class: class name → AP on these images.
    """

    candidate: str
    prompts: Prompts
    val_ap: float | None
    val_ap_per_class: dict[str, float | None]


@dataclass(frozen=True)
class PromptSearch:
    """Result of a search.

    Attributes:
        wordings: all that were tried, in order.
        chosen: the best of them.
        test_ap: AP of the chosen one on the test split, scored once; None without such a split.
        expected: AP to expect by cross-validation, where train chose; None with a single image, or where val chose.
    """

    wordings: tuple[Wording, ...]
    chosen: Wording
    test_ap: float | None
    expected: float | None = None


def search_prompts(
    trunk: Trunk,
    data: Dataset,
    candidates: Sequence[str | Knowledge],
    config: ViewConfig | None = None,
    *,
    cache: FeatureCache | None = None,
    on_wording: Callable[[Wording], None] | None = None,
) -> PromptSearch:
    """Return the wording of the classes with the highest zero-shot AP on ``val``, and its AP on ``test``.

    The plain names are tried, then each candidate for all classes, then the best of these for each class together. The
    first of equals is chosen. Without ``val``, the images of ``train`` choose. What to expect is then found by
    cross-validation: each fold is detected in by the wording that the other folds choose.

    Args:
        trunk: from ``load_trunk``.
        data: with the split val or train; test is used if it is there.
        candidates: such as ``"a photo of a {}"``, where the name takes the place of ``{}``; and descriptions from
            ``load_knowledge``, which follow the names, see ``describe_classes``.
        config: resizing and precision; by default those of the trunk.
        cache: keeps the image features; by default one of 2 GiB for this search.
        on_wording: called after each wording.

    Raises:
        FileNotFoundError: if both val and train are missing.
        ValueError: if there is no candidate, one does not hold ``{}`` once, a description is too long, or the trunk
            reads no text.
    """
    if trunk.spec.closed_set:
        raise ValueError(f"{trunk.name} reads no text, so that no wording is better than another. Take another trunk.")
    if not candidates:
        raise ValueError('No candidate wording came. Give at least one, such as "a photo of a {}".')
    split, cache = data.val if "val" in data.splits else data.train, cache or FeatureCache()
    tried: dict[Prompts, str] = {}
    for candidate in (NAME, *candidates):
        if isinstance(candidate, Knowledge):
            tried.setdefault(describe_classes(data.classes, candidate, trunk.tokenizer), candidate.source)
        else:
            tried.setdefault(word_classes(data.classes, candidate), candidate)

    def look(prompts: Prompts) -> Evaluation:
        return evaluate(attach(trunk, "zero_shot", classes=prompts), split, config, cache=cache)

    expected = None
    if "val" in data.splits:
        wordings = _score_all(look, tried, data.classes, on_wording)
    else:
        look_once = functools.cache(look)  # the folds look at the same predictions
        wordings = _score_all(look_once, tried, data.classes, on_wording)
        expected = _cross_validate(look_once, tried, split)
    chosen, test_ap = _best(wordings), None
    if test := data.splits.get("test"):
        test_ap = evaluate(attach(trunk, "zero_shot", classes=chosen.prompts), test, config, cache=cache).ap
    return PromptSearch(tuple(wordings), chosen, test_ap, expected)


def _score_all(
    look: Callable[[Prompts], Evaluation],
    tried: Mapping[Prompts, str],
    classes: Sequence[str],
    on_wording: Callable[[Wording], None] | None = None,
) -> list[Wording]:
    """Return each wording with its AP, and the best of these for each class together if that is another one."""

    def score_one(candidate: str, prompts: Prompts) -> Wording:
        found = look(prompts)
        wording = Wording(candidate, prompts, found.ap, dict(found.per_class))
        if on_wording:
            on_wording(wording)
        return wording

    wordings = [score_one(candidate, prompts) for prompts, candidate in tried.items()]
    mixed = tuple(
        max(wordings, key=lambda w: w.val_ap_per_class[name] or 0.0).prompts[label]
        for label, name in enumerate(classes)
    )
    if mixed not in tried:
        wordings.append(score_one(BEST_OF_EACH, mixed))
    return wordings


def _best(wordings: Sequence[Wording]) -> Wording:
    return max(wordings, key=lambda w: w.val_ap or 0.0)


def _cross_validate(look: Callable[[Prompts], Evaluation], tried: Mapping[Prompts, str], split: Split) -> float | None:
    """Return the AP over all folds, each detected in by the wording that the others choose; None with one image."""
    if len(split) == 1:
        return None
    found: list[Mapping[str, Any]] = []
    for fold in split_up(split, FOLDS, SEED):

        def look_at_rest(prompts: Prompts, rest: Split = fold.rest) -> Evaluation:
            return score(_on(look(prompts), rest), rest)

        chosen = _best(_score_all(look_at_rest, tried, split.classes))
        found += _on(look(chosen.prompts), fold.held)
    return score_ap(found, split)


def _on(found: Evaluation, part: Split) -> list[Mapping[str, Any]]:
    """Return the predictions on a part of the images."""
    ids = {record.image_id for record in part.records}
    return [entry for entry in found.predictions if entry["image_id"] in ids]


def word_classes(classes: Sequence[str], candidate: str) -> tuple[ClassPrompt, ...]:
    """Return the classes worded by a candidate.

    Raises:
        ValueError: if the candidate does not hold ``{}`` once.
    """
    if candidate.count(NAME) != 1:
        raise ValueError(
            f'The wording {candidate!r} must hold {{}} once, for the name; for example "a photo of a {{}}".'
        )
    prefix, suffix = candidate.split(NAME)
    return tuple(ClassPrompt(name=name, prefix=prefix, suffix=suffix) for name in classes)


@dataclass(frozen=True)
class TokenChange:
    """Change of the text features of one token by training.

    Attributes:
        token: WordPiece.
        class_name: the class that the token names; empty for a separator or context.
        change: norm of the difference, relative to the norm of the trunk's features.
        nearest: words whose features are most like the moved ones, each with its cosine in [-1, 1], nearest first.
    """

    token: str
    class_name: str
    change: float
    nearest: tuple[tuple[str, float], ...]


def token_changes(model: AdaptedModel, words: int = 3) -> list[TokenChange]:
    """Compare the text features of each token of the caption between ``model`` and its trunk.

    The nearest words come from the vocabulary, each encoded alone by the trunk. The mean of all words is subtracted
    before the cosines are taken, as all features have a large common part.

    Args:
        model: a model with one caption.
        words: number of nearest words per token.

    Raises:
        ValueError: if the method leaves the text as it is.
    """
    before, after, tokens = *text_features(model), model.captions[0]
    if torch.equal(before, after):
        raise ValueError(
            f"{model.adapter.name} leaves the text features as they are, or was not trained. Show a trained model "
            "whose text is learned, such as one by prompt or context."
        )
    spelling, known = word_features(model, tokens)
    centre = known.mean(0)
    cosines, indices = (F.normalize(after - centre) @ F.normalize(known - centre).T).topk(min(words, len(known)))
    token_map, sizes, changes = tokens.token_map[0], _relative(before, after).tolist(), []
    for t, token in enumerate(model.trunk.tokenizer.words(tokens)):
        names = [name for name, owns in zip(model.class_names, token_map[:, t], strict=True) if owns]
        nearest = zip([spelling[i] for i in indices[t].tolist()], cosines[t].tolist(), strict=True)
        changes.append(TokenChange(token, names[0] if names else "", sizes[t], tuple(nearest)))
    return changes


def class_changes(model: AdaptedModel) -> dict[str, float]:
    """Return class name → mean of ``TokenChange.change`` over the tokens of the name."""
    before, after = text_features(model)
    changes = _relative(before, after)
    rows = model.captions[0].token_map[0]
    return {name: float(changes[row].mean()) for name, row in zip(model.class_names, rows, strict=True)}


@torch.no_grad()
def text_features(model: AdaptedModel) -> tuple[Tensor, Tensor]:
    """Return the (T, D) text features of the first caption: of the trunk, and of ``model`` before the fusion."""
    before: TextFeatures = model.trunk.network.encode_text(model.captions[0])
    after: TextFeatures = model.network.text_prompt(model.texts()[0])
    return before.features[0], after.features[0]


@torch.no_grad()
def word_features(model: AdaptedModel, caption: Tokens) -> tuple[list[str], Tensor]:
    """Return the V whole words of the vocabulary, and their (V, D) features, each encoded alone by the trunk."""
    tokenizer, (first, last) = model.trunk.tokenizer, (caption.ids[0, 0], caption.ids[0, -1])
    everything = torch.arange(tokenizer.size, device=caption.ids.device)[None]
    spelling = tokenizer.words(replace(caption, ids=everything))
    ids = torch.tensor([i for i, word in enumerate(spelling) if word.isalnum()], device=caption.ids.device)
    features = []
    for part in ids.split(ENCODED_AT_ONCE):
        alone = torch.stack((first.expand_as(part), part, last.expand_as(part)), dim=1)
        mask = torch.ones_like(alone, dtype=torch.bool)
        features.append(model.trunk.network.encode_text(Tokens(alone, mask, mask[:, None])).features[:, 1])
    return [spelling[i] for i in ids.tolist()], torch.cat(features)


def _relative(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).norm(dim=-1) / before.norm(dim=-1)
