"""What a training step learns from: images in drawn views, their prepared targets, and their captions."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glip_adapt.core.precision import autocast
from glip_adapt.core.settings import FitConfig
from glip_adapt.core.structures import SizeHW, Tokens
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.data.transforms import View, training_views, view_target
from glip_adapt.engine.adapted import AdaptedModel
from glip_adapt.engine.batches import in_batches, stack
from glip_adapt.engine.features import Fetched, FrozenFeatures
from glip_adapt.engine.feeding import ahead
from glip_adapt.engine.ranks import Ranks
from glip_adapt.trunks.protocol import Examples
from glip_adapt.trunks.tokenizer import CaptionTooLongError, Tokenizer

KEPT_SAMPLES = 500  # prepared targets, up to 200 kB each


@dataclass(frozen=True)
class Sample:
    """An image in one view, and its prepared target; only the rank that takes it has fetched the image.

    Attributes:
        record: the image.
        fetched: its features or pixels.
        padded_hw: (height, width) at which the network sees it.
        prepared: target in this view, from ``network.objective.prepare``.
        tokens: of the caption of this image; None where all images share that of the model.
    """

    record: ImageRecord
    fetched: Fetched | None
    padded_hw: SizeHW
    prepared: Any
    tokens: Tokens | None


def draw_batches(
    model: AdaptedModel, train: Split | CaptionedSplit, features: FrozenFeatures, config: FitConfig, ranks: Ranks
) -> Generator[list[Sample]]:
    """Yield batches for ever; beside a GPU, images and targets are prepared while it works on earlier ones."""
    records = train.records if isinstance(train, Split) else [image.record for image in train.images]

    @functools.lru_cache(maxsize=KEPT_SAMPLES)
    def prepare(position: int, view: View) -> tuple[SizeHW, Any]:
        record = records[position]
        target = view_target(record.target, record.header.size_hw, view, features.max_long_side)
        if config.weights == "equal":
            target = replace(target, weights=None)
        padded_hw = features.padded_shape(record, view)
        return padded_hw, model.network.objective.prepare(target, padded_hw)

    def load(draw: _Draw, is_mine: bool) -> Sample:
        record, view, tokens = records[draw.position], draw.view, None
        if isinstance(train, CaptionedSplit):
            image, dice = train.images[draw.position], np.random.default_rng((config.seed, draw.number))
            tokens = draw_caption(image, train.negatives, model.trunk.tokenizer, dice)
            view = replace(view, flip=view.flip and not image.has_sides)
        fetched = features.fetch([record], view) if is_mine else None
        return Sample(record, fetched, *prepare(draw.position, view), tokens)

    def load_batch(draws: Sequence[_Draw]) -> list[Sample]:
        mine = set(ranks.share(range(config.batch_size)))
        return [load(draw, place in mine) for place, draw in enumerate(draws)]

    return ahead(load_batch, _draws(len(train), config), model.device)


def losses_of(
    model: AdaptedModel, features: FrozenFeatures, batch: Sequence[Sample], ranks: Ranks
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name of each part that goes through the network together, and its share of the batch's losses.

    The parts are of the images of this rank, which may be none; their scale is that of the whole batch.
    """
    objective = model.network.objective
    scale = objective.scale([sample.prepared for sample in batch])
    for name, output, prepared in _outputs_of(model, features, batch, ranks):
        yield name, objective.losses(output, prepared, scale)


def examples_of(
    model: AdaptedModel, features: FrozenFeatures, batch: Sequence[Sample], ranks: Ranks
) -> Iterator[tuple[str, Examples]]:
    """Yield the name of each part that goes through the network together, and its candidates; see ``losses_of``."""
    for name, output, prepared in _outputs_of(model, features, batch, ranks):
        yield name, model.network.examples(output, prepared)


def _outputs_of(
    model: AdaptedModel, features: FrozenFeatures, batch: Sequence[Sample], ranks: Ranks
) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield name, raw predictions and prepared targets of each part."""
    for together in in_batches((sample, sample.padded_hw) for sample in ranks.share(batch)):
        prefix = stack([features.finish(sample.fetched) for sample in together if sample.fetched])
        prepared = [sample.prepared for sample in together]
        captions = [sample.tokens for sample in together if sample.tokens]
        with autocast(model.device, features.precision):
            texts = model.encode([Tokens.stack(captions).to(model.device)]) if captions else ()
            (output,) = model.finish(prefix, prepared, texts)
        names = ", ".join(f"{sample.record.image_id} ({sample.record.path.name})" for sample in together)
        yield f"image {names}", output, prepared


def draw_caption(image: CaptionedImage, negatives: int, tokenizer: Tokenizer, dice: np.random.Generator) -> Tokens:
    """Return the tokens of a drawn caption, with half as many absent names until it is short enough.

    Raises:
        CaptionTooLongError: if the sentences of the image alone are too long.
    """
    try:
        return tokenizer.encode(image.drawn(negatives, dice))
    except CaptionTooLongError:
        if not negatives:
            raise
        return draw_caption(image, negatives // 2, tokenizer, dice)


@dataclass(frozen=True)
class _Draw:
    """The visit of an image: how many were before it, its position in the split, and its view."""

    number: int
    position: int
    view: View


def _draws(images: int, config: FitConfig) -> Iterator[list[_Draw]]:
    """Yield the draws of batches for ever: shuffled epochs of ``copies`` × the images, a view for each.

    A batch holds views of one short side, so that images of one size can go through the network together; an image
    waits until there are enough of its side.
    """
    generator, number = torch.Generator().manual_seed(config.seed), 0
    views = training_views(config.short_sides, config.flip)
    waiting: dict[int, list[_Draw]] = {side: [] for side in config.short_sides}
    while True:
        for position in torch.randperm(config.copies * images, generator=generator).tolist():
            view = views[int(torch.randint(len(views), (1,), generator=generator))]
            drawn = waiting[view.short_side]
            drawn.append(_Draw(number, position % images, view))
            number += 1
            if len(drawn) == config.batch_size:
                yield drawn
                waiting[view.short_side] = []
