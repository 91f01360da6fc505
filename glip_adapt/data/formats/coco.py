"""COCO format: read splits, ground truth for scoring and the official few-shot files.

Labels count from 0 without gaps; category ids are those of the file. Kept from the public code
(maskrcnn_benchmark/data/datasets/coco.py and modulated_coco.py):

- Images come in the order of their ids.
- Targets leave out crowd boxes, are clipped to the image, and then leave out boxes without width or height. A box of
  at most one pixel has none.
- Training uses an image if one of its boxes, crowd or not, has both sides above one pixel (``Split.with_boxes``).
- The ground truth for scoring keeps every box of the file.

The public code ignores EXIF orientation. Here, images are turned upright, unless the file states the size of the stored
pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import SplitDocument, copy_images
from glip_adapt.data.entries import area_of, box_of, declared_size, entries_of, image_path, root_category, score_of
from glip_adapt.data.federated import IMAGE_KEYS, federated_of
from glip_adapt.data.images import read_header
from glip_adapt.data.layouts import LAYOUT as LAYOUT
from glip_adapt.data.layouts import coco_layout, has_coco_layout, image_dir_of
from glip_adapt.data.scan import require_sound
from glip_adapt.data.split import Annotation, AnnotationIds, ImageRecord, Split, warn_once

if TYPE_CHECKING:
    from glip_adapt.core.structures import Target

logger = logging.getLogger(__name__)

NAME = "coco"

_APPLIED = "are turned by their EXIF orientation, as the annotation file states no size"
# Last part of the name of a split → its part in the names of the official few-shot files.
_ROLES = {"train": "train", "val": "val", "valid": "val", "minival": "minival"}


def recognises(folder: Path) -> bool:
    """Tell whether a folder holds COCO files, also if it is ambiguous which file belongs to which split."""
    return has_coco_layout(folder)


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of the one COCO dataset in a folder, by name.

    Raises:
        ValueError: if the folder has no recognisable layout or more than one dataset.
    """
    return {name: read_file(file, *image_dirs) for name, (file, image_dirs) in coco_layout(folder).items()}


def read_file(annotation_file: Path, *image_dirs: Path) -> SplitDocument:
    """Return the content of a COCO file; if it cannot be read, a finding says why.

    Args:
        annotation_file: COCO JSON.
        image_dirs: folders that may hold its images; the first that exists and holds the first image is taken.
    """
    document: Any = {}
    findings = []
    if not annotation_file.exists():
        findings.append(("missing annotation file", f"no file at {annotation_file}"))
    else:
        try:
            document = json.loads(annotation_file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            findings.append(("malformed JSON", f"cannot be read ({error})"))
    if not isinstance(document, dict):
        findings.append(("malformed JSON", f"holds a {type(document).__name__} instead of an object"))
        document = {}
    for entry in entries_of(document, "images"):
        if isinstance(entry, dict) and "file_name" not in entry and isinstance(entry.get("coco_url"), str):
            entry["file_name"] = "/".join(entry["coco_url"].split("/")[-2:])  # LVIS: as val2017/000000397133.jpg
    image_dir = image_dir_of(document, image_dirs)
    return SplitDocument(document=document, image_dir=image_dir, source=annotation_file, findings=tuple(findings))


def write(splits: Mapping[str, Split], folder: Path) -> None:
    """Write a folder for each split, with the images and ``_annotations.coco.json``; crowd regions and ids stay."""
    documents = {name: coco_ground_truth(replace(split, annotation_ids="renumbered")) for name, split in splits.items()}
    # A class called background would be no class again if it had the id 0 and no boxes.
    first_id = int(any(root_category(document) is not None for document in documents.values()))
    for name, document in documents.items():
        copies = copy_images(splits[name], folder / name, states_sizes=True)
        for entry, (_, copy) in zip(document["images"], copies, strict=True):
            entry["file_name"] = copy.name
            for key in set(IMAGE_KEYS) & entry.keys():
                entry[key] = [category_id + first_id for category_id in entry[key]]
        for entry in document["annotations"]:
            entry["category_id"] += first_id
        for entry in document["categories"]:
            entry["id"] += first_id
        text = json.dumps(document, ensure_ascii=False)
        (folder / name / "_annotations.coco.json").write_text(text, encoding="utf-8")


def load_split(
    annotation_file: Path,
    image_dir: Path,
    name: str,
    *,
    categories: Mapping[int, str] | None = None,
    require_images: bool = True,
    keep_root: bool = False,
) -> Split:
    """Return the split of one COCO file, with labels 0..K-1 by rising category id.

    Args:
        annotation_file: COCO JSON.
        image_dir: file names in it are relative to this folder.
        name: of the split, such as ``"Raccoon/train"``; official few-shot files are found by its last part.
        categories: id → name instead of the categories of the file.
        require_images: whether every image must exist; drawing a subset does not need them.
        keep_root: whether a root category without boxes is a class; see ``entries.root_category``.

    Raises:
        FileNotFoundError: if the annotation file or an image is missing.
        ValueError: at the first other defect that leaves the meaning of the file open; see ``scan.require_sound``.
    """
    document = read_file(Path(annotation_file), Path(image_dir))
    split = build_split(document, name, categories=categories, require_images=require_images, keep_root=keep_root)
    return replace(split, prepared=official_subset)


def build_split(
    source: SplitDocument,
    name: str,
    *,
    categories: Mapping[int, str] | None = None,
    require_images: bool = True,
    keep_root: bool = False,
) -> Split:
    """Return the split of a document that a reader of any format made; arguments and errors as ``load_split``."""
    if categories is not None and source.document:
        listed = [{"id": key, "name": value} for key, value in categories.items()]
        source = replace(source, document={**source.document, "categories": listed})
    require_sound(source, images=require_images)
    document = source.document
    root = None if keep_root else root_category(document)
    named = sorted((e["id"], e["name"]) for e in document["categories"] if root is None or e["id"] != root[0])
    label_of = {category_id: label for label, (category_id, _) in enumerate(named)}
    annotations: dict[int | str, list[Annotation]] = {entry["id"]: [] for entry in document["images"]}
    for entry in document["annotations"]:
        if (box := box_of(entry)) is not None:
            annotations[entry["image_id"]].append(_build_annotation(entry, box))
    records = []
    for entry in sorted(document["images"], key=lambda entry: entry["id"]):
        stated, path = tuple(annotations[entry["id"]]), image_path(source.image_dir, entry["file_name"])
        size_hw = declared_size(entry) or _upright_size(path)
        learned = partial(build_target, stated, label_of, size_hw)
        records.append(ImageRecord(entry["id"], path, size_hw, learned, stated))
    classes = tuple(category_name for _, category_name in named)
    federated = federated_of(document)
    return Split(
        name, tuple(records), classes, tuple(label_of), source.source, image_dir=source.image_dir, federated=federated
    )


def official_subset(split: Split, shots: int, seed: int) -> Split | None:
    """Return the official few-shot subset of a split, or None if there is no file for it.

    The files ``fewshot_{train,val,minival}_shot{K}_seed{S}.json`` lie beside the annotation file.

    Raises:
        FileNotFoundError, ValueError: as ``load_split``.
    """
    role = _ROLES.get(split.name.rpartition("/")[2])
    if role is None or split.annotation_file is None:
        return None
    official = split.annotation_file.with_name(f"fewshot_{role}_shot{shots}_seed{seed}.json")
    if not official.is_file():
        return None
    logger.info("%s: %d-shot seed %d is the official file %s", split.name, shots, seed, official)
    categories = dict(zip(split.category_ids, split.classes, strict=True))
    subset = load_split(official, split.image_dir or official.parent, split.name, categories=categories)
    return replace(subset.with_boxes(), source=f"official {official.name}")


def coco_ground_truth(split: Split) -> dict[str, Any]:
    """Return exactly this split as a COCO document, for scoring by pycocotools or for writing to a file.

    Crowd regions stay in. Annotations are numbered from 1, since pycocotools reads a match with id 0 as no match; or as
    in the file, if ``split.annotation_ids`` says so.

    Raises:
        ValueError: if annotations are numbered as in the file, and one has no whole number there.
    """
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int | str, Annotation]] = []
    for record in split.records:
        height, width = record.size_hw
        path = record.path
        if split.image_dir is not None and path.is_relative_to(split.image_dir):
            path = path.relative_to(split.image_dir)
        images.append({"id": record.image_id, "file_name": path.as_posix(), "height": height, "width": width})
        annotations += [(record.image_id, annotation) for annotation in split.annotations_of(record)]
    named = zip(split.category_ids, split.classes, strict=True)
    categories: list[dict[str, Any]] = [{"id": key, "name": name} for key, name in named]
    if split.federated is not None:
        images = [{**entry, **split.federated.of_image(entry["id"])} for entry in images]
        categories = [entry | split.federated.of_category(entry["id"]) for entry in categories]
    numbered = _numbered(annotations, split.annotation_ids, split.annotation_file or split.name)
    return {"images": images, "annotations": numbered, "categories": categories}


def load_ground_truth(
    annotation_file: Path, annotation_ids: AnnotationIds = "renumbered", *, masks: bool = False
) -> dict[str, Any]:
    """Return a COCO file for scoring by pycocotools; neither images nor their sizes are needed.

    Args:
        annotation_file: COCO JSON.
        annotation_ids: how boxes are numbered, as in ``Split``.
        masks: whether to keep the ``segmentation`` of annotations.

    Raises:
        FileNotFoundError, ValueError: as ``load_split``; ValueError also as ``coco_ground_truth``.
    """
    source = read_file(Path(annotation_file), Path(annotation_file).parent)
    require_sound(source, images=False, need_sizes=False)
    document = dict(source.document)
    annotations = [
        (entry["image_id"], _build_annotation(entry, box))
        for entry in document["annotations"]
        if (box := box_of(entry)) is not None
    ]
    truth = document | {"annotations": _numbered(annotations, annotation_ids, annotation_file)}
    return add_masks(truth, document) if masks else truth


def add_masks(truth: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return ground truth with the ``segmentation`` of each annotation, from the document of the file it came from.

    Boxes are read without their masks, which take a hundred times the memory. Those of an image are in the order of
    the file in both.
    """
    listed: dict[int | str, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for entry in entries_of(document, "annotations"):
        if entry["image_id"] in listed and box_of(entry) is not None:
            listed[entry["image_id"]].append(entry.get("segmentation"))
    left = {image_id: iter(masks) for image_id, masks in listed.items()}
    annotations = [entry | {"segmentation": next(left[entry["image_id"]], None)} for entry in truth["annotations"]]
    return dict(truth) | {"annotations": annotations}


def ground_truth_with_masks(split: Split) -> dict[str, Any]:
    """Return ``coco_ground_truth`` of a split, with the ``segmentation`` of each annotation of its file.

    Raises:
        ValueError: if the split was not read from one COCO file.
    """
    file = split.annotation_file
    if file is None or not file.is_file() or file.suffix.lower() != ".json":
        raise ValueError(
            f"{split.name} was read from {file or 'no file'}, but the true masks of AP of masks are read from a COCO "
            "file. Score boxes alone, or convert the labels with their masks to COCO."
        )
    return add_masks(coco_ground_truth(split), read_file(file, file.parent).document)


def _upright_size(path: Path) -> SizeHW:
    """Return the size of an image whose annotation file states none."""
    header = read_header(path)
    if header.orientation != 1:
        warn_once(path.parent, _APPLIED)
    return header.size_hw


def _build_annotation(entry: dict[str, Any], box: list[float]) -> Annotation:
    x, y, w, h = box
    is_crowd = entry.get("iscrowd") in (1, True)
    return Annotation(
        entry["category_id"], (x, y, w, h), area_of(entry, box), is_crowd, entry.get("id"), score_of(entry)
    )


def _numbered(
    annotations: Sequence[tuple[int | str, Annotation]], annotation_ids: AnnotationIds, file: Path | str
) -> list[dict[str, Any]]:
    """Return annotations, each with the id of its image, as COCO entries."""
    entries = []
    for position, (image_id, annotation) in enumerate(annotations, start=1):
        number = annotation.annotation_id if annotation_ids == "as_in_file" else position
        if not isinstance(number, int):
            raise ValueError(
                f"{file}: a box has the id {number!r}, but scoring by the ids of the file needs whole numbers. Give "
                "each box one, or score with renumbered ids."
            )
        entry: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": annotation.category_id}
        entry |= {"bbox": list(annotation.bbox_xywh), "area": annotation.area, "iscrowd": int(annotation.iscrowd)}
        entries.append(entry | ({"score": annotation.score} if annotation.score < 1 else {}))
    return entries


def build_target(
    annotations: Sequence[Annotation], label_of: Mapping[int, int] | Sequence[int], size_hw: SizeHW
) -> Target:
    """Return the boxes of public training: no crowd, clipped to the image, nothing without width or height.

    Args:
        annotations: of one image.
        label_of: category id → label.
        size_hw: (height, width) of the image in pixels.
    """
    import torch

    from glip_adapt.core import boxes
    from glip_adapt.core.structures import Target

    single = [annotation for annotation in annotations if not annotation.iscrowd]
    with torch.inference_mode(False):  # made when first asked for; one of that mode could not take part in training
        boxes_xywh = torch.tensor([annotation.bbox_xywh for annotation in single], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label_of[annotation.category_id] for annotation in single], dtype=torch.int64)
        boxes_xyxy = boxes.clip(boxes.xywh_to_xyxy(boxes_xywh), size_hw)
        solid = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
        if all(annotation.score == 1 for annotation in single):
            return Target(boxes_xyxy[solid], labels[solid])
        return Target(boxes_xyxy[solid], labels[solid], torch.tensor([one.score for one in single])[solid])
