"""Label a folder of images by a detector: a dataset to learn from, and a page to look at a sample of it.

What is found is written image by image beside the result, so that a killed call goes on where it was. The rules by
which a detection becomes a label are those of ``engine/pseudo_labels.py``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from glip_adapt.core.captions import Caption
from glip_adapt.core.config import unknown_name
from glip_adapt.core.files import scratch_folder
from glip_adapt.core.sentences import Tagger
from glip_adapt.core.settings import ViewConfig
from glip_adapt.core.tagger import nltk_tags
from glip_adapt.data.captioned import CaptionedSplit
from glip_adapt.data.captions import odvg
from glip_adapt.data.dataset import FORMATS
from glip_adapt.data.documents import Format, copy_images
from glip_adapt.data.formats import coco
from glip_adapt.data.split import ImageRecord, Split
from glip_adapt.engine.adapted import AdaptedTrunk
from glip_adapt.engine.detector import Detector
from glip_adapt.engine.pseudo_labels import (
    RULES,
    SHARED_RULES,
    THRESHOLD,
    Result,
    captioned_image,
    labels_among,
    together,
    unlabelled,
    with_labels,
)
from glip_adapt.share.gallery import count
from glip_adapt.share.looking import Finder, OnPicture, detector_of, pictures_of
from glip_adapt.share.pseudo_page import PAGE_FILE, format_page

CAPTIONS_FILE = "captions.jsonl"

_ARTICLE = re.compile(r"^(?:an?|the|some|his|her|its|their)\s+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What was written.

    Attributes:
        folder: with the dataset and its page.
        format: of the dataset.
        pictures: that were looked at.
        labelled: images in the dataset, those labelled by hand included.
        boxes: number of pseudo-labels by class or phrase, most first.
        left_out: what is not in the dataset, in sentences.
    """

    folder: Path
    format: str
    pictures: int
    labelled: int
    boxes: Mapping[str, int]
    left_out: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The page with a sample."""
        return self.folder / PAGE_FILE

    @property
    def captions(self) -> Path | None:
        """The file for ``load_captions``, if the dataset has sentences."""
        return self.folder / CAPTIONS_FILE if self.format == odvg.NAME else None


def pseudo_label(
    model: Detector | AdaptedTrunk,
    images: Sequence[str | Path | tuple[str | Path, str]],
    out: str | Path,
    *,
    tagger: Tagger = nltk_tags,
    threshold: float | None = None,
    format: str | None = None,
    labelled: Split | None = None,
    view: ViewConfig | None = None,
    on_picture: OnPicture | None = None,
) -> PseudoLabels:
    """Label images, and write them as a dataset with a page: ``pseudo_label(model, ["a.jpg", "b.jpg"], "labelled")``.

    Args:
        model: a detector for classes; for sentences an adapted trunk, or a model whose method reads them.
        images: files; or pairs of a file and a sentence about it, ``("a.jpg", "[a man] with [a hat]")``, of which a
            file may have several. Sentences without a phrase are left out.
        out: new or empty folder; it appears when it is complete. What was found so far lies beside it.
        tagger: finds the phrases of sentences without brackets; see ``sentence_caption``.
        threshold: lowest score in [0, 1] of a label; by default that of its class in ``model.thresholds``, or 0.5.
        format: of the dataset; by default ``odvg`` for sentences, else COCO. Formats of classes take the phrases of
            sentences, without articles, as names of classes.
        labelled: images labelled by hand, for the classes of the model, which come into the dataset as well.
        view: resizing and precision; by default those of the trunk.
        on_picture: called after each picture.

    Raises:
        FileExistsError: if ``out`` is not empty, or what was found beside it is of another call.
        UnknownNameError: if there is no such format.
        ValueError: if there are no images, nothing in them becomes a label, or classes or format do not fit.
        RuntimeError, FileNotFoundError: if nltk or its data are needed and missing.
        OSError: if the dataset cannot be written; what was found is kept.
    """
    pictures, left_out = pictures_of(images, tagger)
    out, sentences = Path(os.path.abspath(out)), pictures[0].sentence is not None
    format = format or (odvg.NAME if sentences else coco.NAME)
    writer = _writer_of(format, sentences)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder. Name a new one (--out).")
    kept, detector = out.with_name(f"{out.name}.found.jsonl"), detector_of(model, pictures[0])
    found = Finder(model, view or detector.view).find(pictures, kept, on_picture)
    seen = [(unlabelled(p.path), p.sentence, found[p]) for p in pictures if isinstance(found[p], list)]
    captions = _with_phrases(out.name, seen, THRESHOLD if threshold is None else threshold) if sentences else None
    split = (
        _with_classes(detector, seen, threshold, labelled)
        if captions is None
        else _phrases_as_classes(captions, shared=writer is None)
    )
    name_of = dict(zip(split.category_ids, split.classes, strict=True))
    pseudo = [record for record in split.records if any(one.score < 1 for one in split.annotations_of(record))]
    boxes = Counter(name_of[one.category_id] for r in pseudo for one in split.annotations_of(r) if one.score < 1)
    if not pseudo:
        raise ValueError(
            f"Nothing in {count(len(pictures), 'picture')} reaches the threshold. Name a lower one (--threshold); what "
            f"was found is kept in {kept}, so that it takes no time."
        )
    left_out += [str(found[p]) for p in pictures if isinstance(found[p], str)]
    if empty := len({record.path for record, *_ in seen} - {record.path for record in pseudo}):
        left_out.append(f"{count(empty, 'image')} without a label {'are' if empty > 1 else 'is'} left out.")
    by_class = threshold is None and detector.thresholds and not sentences
    lowest = "the threshold of its class" if by_class else f"{THRESHOLD if threshold is None else threshold:g}"
    page = format_page(out.name, split, pseudo, boxes, left_out, lowest, SHARED_RULES if writer is None else RULES)
    with scratch_folder(out) as scratch:
        complete = scratch / out.name
        complete.mkdir()
        if writer is not None:
            writer.write({"train": split}, complete)
        elif captions is not None:
            _write_captions(captions, complete)
        (complete / PAGE_FILE).write_text(page, encoding="utf-8")
        os.replace(complete, out)  # also of an empty folder
    kept.unlink()
    return PseudoLabels(
        folder=out,
        format=format,
        pictures=len(pictures),
        labelled=len(split),
        boxes=dict(boxes.most_common()),
        left_out=tuple(left_out),
    )


def _writer_of(format: str, sentences: bool) -> Format | None:
    """Return the writer of a format of classes; None for sentences as they are."""
    if format == odvg.NAME and sentences:
        return None
    writers = {known.NAME: known for known in FORMATS}
    if format == odvg.NAME:
        raise ValueError(f"odvg holds sentences. For names of classes, take one of {', '.join(writers)}.")
    if format not in writers:
        raise unknown_name("format", format, [*writers, odvg.NAME])
    return writers[format]


Seen = tuple[ImageRecord, Caption | None, list[Result]]
"""An image, its sentence, and what was found in it."""


def _with_classes(model: Detector, seen: Sequence[Seen], threshold: float | None, labelled: Split | None) -> Split:
    """Return images with labels of classes; with those that are labelled by hand, if there are any."""
    names = model.class_names
    if labelled is not None and labelled.classes != names:
        raise ValueError(
            f"The detector finds {', '.join(names)}, but the labelled images show {', '.join(labelled.classes)}. Take "
            "an adapter for the same classes, or a folder without labels."
        )
    like = labelled or Split("pseudo-labels", (), names, tuple(range(1, len(names) + 1)))
    lowest = {label: model.thresholds.get(name, THRESHOLD) for label, name in enumerate(names)}
    lowest = lowest if threshold is None else dict.fromkeys(lowest, threshold)
    records = []
    for record, _, found in seen:
        labels = [
            replace(one, category_id=like.category_ids[one.category_id])
            for one in labels_among(found, lowest, record.size_hw)
        ]
        if labels:
            records.append(with_labels(record, labels, _labels_of(like)))
    return together(like, replace(like, records=tuple(records)))


def _with_phrases(name: str, seen: Sequence[Seen], threshold: float) -> CaptionedSplit:
    """Return images with sentences and the labels of their phrases; those without a label are left out."""
    images = [captioned_image(record, sentence, found, threshold) for record, sentence, found in seen if sentence]
    return CaptionedSplit(name, tuple(image for image in images if image.record.annotations))


def _phrases_as_classes(captions: CaptionedSplit, *, shared: bool) -> Split:
    """Return captioned images with a class for each phrase, in any case and without its article.

    Several sentences may speak of one object; unless classes may share a place, the best phrase of a place stays.
    """
    names = sorted({_class_name(name) for image in captions.images for name in image.caption.names})
    like = Split(captions.name, (), tuple(names), tuple(range(1, len(names) + 1)))
    number_of = dict(zip(names, like.category_ids, strict=True))
    found: dict[Path, list[Result]] = {}
    for image in captions.images:
        own = [number_of[_class_name(name)] for name in image.caption.names]
        found.setdefault(image.record.path, []).extend(
            {"category_id": own[one.category_id], "bbox": one.bbox_xywh, "score": one.score}
            for one in image.record.annotations
        )
    records, any_score = (
        {image.record.path: image.record for image in captions.images},
        dict.fromkeys(like.category_ids, 0),
    )
    labelled = (
        with_labels(records[path], labels_among(own, any_score, records[path].size_hw, shared=shared), _labels_of(like))
        for path, own in found.items()
    )
    return together(like, replace(like, records=tuple(labelled)))


def _labels_of(split: Split) -> dict[int, int]:
    return {key: label for label, key in enumerate(split.category_ids)}


def _class_name(phrase: str) -> str:
    return _ARTICLE.sub("", phrase.strip()).casefold()


def _write_captions(captions: CaptionedSplit, folder: Path) -> None:
    """Write sentences with copies of their images, each once."""
    records = {image.record.path: image.record for image in captions.images}
    unique = Split(captions.name, tuple(records.values()), (), ())
    copies = {record.path: copy for record, copy in copy_images(unique, folder / "images", states_sizes=True)}
    images = (replace(image, record=replace(image.record, path=copies[image.record.path])) for image in captions.images)
    odvg.write(replace(captions, images=tuple(images)), folder / CAPTIONS_FILE)
