"""Phrase grounding and test-time views, compared with golden numbers of the public code; rows of ``parity.py``."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from benchmarks.goldens import EQUAL, HUNDREDTH, Golden, Measured, detections_of, measure_detections, pictures
from glip_adapt.core.captions import Caption
from glip_adapt.core.sentences import noun_phrases
from glip_adapt.core.settings import Merging, ViewConfig, Views
from glip_adapt.core.structures import ImageBatch
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.trunks.catalogue import Trunk
from glip_adapt.trunks.glip.decode import decode

DROPPED = re.compile(r"[|:;@()\[\]{}^'\"’`?$%#!&*+,.]")  # by the public code, from noun phrases

VOTED = replace(HUNDREDTH, float32=None)  # rounding decides whether a box at the limit of overlap takes part in a mean
MERGING: Mapping[str, Merging] = {"none": "best", "vote": "vote", "soft-vote": "soft_vote"}


def sentences_of(golden: Golden) -> Mapping[str, Any] | None:
    """Return the JSON file beside a golden file of phrases that has its sentences and its picture, or None."""
    tags = {key.removesuffix("/boxes") for key in golden.arrays if key.endswith("/boxes")}
    picture = (int(golden.arrays["seed"]), golden.arrays["size"].tolist())
    for file in sorted(golden.path.parent.glob("phrases*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        same = (document["seed"], document["size"]) == picture
        if same and {case["tag"] for case in document["cases"]} == tags:
            return document
    return None


def measure_phrases(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of noun phrases, spans, tokens and detections of each sentence."""
    sentences, grounder = golden.partner or {}, adapt(trunk, "zero_shot")
    network = trunk.network.to(dtype)
    with torch.no_grad():
        pyramid = network.encode_image(pictures(golden.arrays, weights))
    for case in sentences["cases"]:
        tag, text, spans = case["tag"], case["caption"], tuple(map(tuple, case["spans"]))
        if "noun_phrases" in case:
            places = noun_phrases(text, functools.partial(tags_of, sentences["tags"]))
            phrases = [text[start:end].lower() for start, end in places]
            expected = ["".join(phrase.split()) for phrase in case["noun_phrases"]]
            yield f"{tag}: noun phrases", float(["".join(phrase.split()) for phrase in phrases] != expected), EQUAL
            yield f"{tag}: spans", float(public_spans(text, phrases) != list(spans)), EQUAL
        model = grounder.for_sentence(Caption(text, spans, tuple(text[start:end] for start, end in spans)))
        (tokens,), (features,) = model.captions, model.texts()
        owned = {str(label + 1): row.nonzero().flatten().tolist() for label, row in enumerate(tokens.token_map[0])}
        yield f"{tag}: input_ids", float(tokens.ids[0].tolist() != case["input_ids"]), EQUAL
        yield f"{tag}: tokens of the phrases", float(owned != case["label_to_tokens"]), EQUAL
        with torch.no_grad():
            (found,) = decode(network.predict(network.fuse(pyramid, features)))
        for quantity, error, limits in measure_detections(found, detections_of(golden.arrays, tag + "/{}"), HUNDREDTH):
            yield f"{tag}: {quantity}", error, limits


def tags_of(tags: Mapping[str, str], sentence: str) -> list[tuple[str, str]]:
    """Return the recorded words of a sentence, each with its tag."""
    pairs = (pair.rpartition("/") for pair in tags[sentence].split())
    return [(word, tag) for word, _, tag in pairs]


def public_spans(text: str, phrases: Sequence[str]) -> list[tuple[int, int]]:
    """Return every place of each phrase, as the public code looks them up: as letters, again for one that repeats."""
    spelled = [DROPPED.sub("", phrase).strip() for phrase in phrases]
    return [place.span() for phrase in spelled if phrase for place in re.finditer(re.escape(phrase), text.lower())]


def measure_tta(golden: Golden, trunk: Trunk, weights: ModuleType, dtype: torch.dtype) -> Iterator[Measured]:
    """Yield the errors of the detections of each way to merge views, as ``predict`` returns them."""
    arrays = golden.arrays
    model = attach(trunk, "linear_probe", classes=golden.labels)  # what it freezes reaches up to the head
    model.network.to(dtype)
    prefix = remembered(model.prefix)
    picture = weights.image(int(arrays["seed"]), *map(int, arrays["size"]))
    for name in [key.removesuffix("/settings") for key in arrays if key.endswith("/settings")]:
        settings = json.loads(str(arrays[f"{name}/settings"]))
        views = Views(
            sizes=tuple(settings["TEST.SCALES"]),
            flip=settings["TEST.FLIP"],
            areas=tuple(map(tuple, settings["TEST.RANGES"])),
            merging=MERGING[settings["TEST.SPECIAL_NMS"]],
        )
        view = ViewConfig(short_side=views.sizes[0], max_long_side=settings["TEST.MAX_SIZE"])
        with mock.patch.object(model, "prefix", prefix):
            found = model.predict(picture, view=view, views=views)
        corners = replace(found, boxes_xyxy=found.boxes_xyxy - found.boxes_xyxy.new_tensor((0, 0, 1, 1)))
        limits_of_boxes = HUNDREDTH if views.merging == "best" else VOTED
        expected = detections_of(arrays, name + "/{}")
        for quantity, error, limits in measure_detections(corners, expected, limits_of_boxes):
            yield f"{name}: {quantity}", error, limits


def remembered(function: Callable[[ImageBatch], Any]) -> Callable[[ImageBatch], Any]:
    """Return a function that gives what it gave for the same pixels before: ways to merge share their views."""
    results: dict[bytes, Any] = {}

    def remember(images: ImageBatch) -> Any:
        pixels = images.pixels.numpy().tobytes()
        return results[pixels] if pixels in results else results.setdefault(pixels, function(images))

    return remember
