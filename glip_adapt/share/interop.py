"""Detections for other tools: ``supervision``, and COCO files that another detector can learn from.

Both measure a box by its edges, so that a corner that includes its pixel becomes the edge one pixel further.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glip_adapt.core import boxes
from glip_adapt.core.files import written_whole
from glip_adapt.core.structures import Detections
from glip_adapt.data.images import read_header

if TYPE_CHECKING:
    import supervision


def to_supervision(detections: Detections, class_names: Sequence[str]) -> supervision.Detections:
    """Return detections as ``supervision.Detections``: edges in pixels, scores, labels, and ``data["class_name"]``.

    Args:
        detections: of one picture.
        class_names: in label order, ``model.class_names``.

    Raises:
        ModuleNotFoundError: if supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to_supervision needs supervision: pip install 'glip-adapt[supervision]'.") from error
    edges = detections.boxes_xyxy.numpy().copy()
    edges[:, 2:] += 1
    labels = detections.labels.numpy()
    return supervision.Detections(
        xyxy=edges,
        confidence=detections.scores.numpy(),
        class_id=labels,
        data={"class_name": np.array([class_names[label] for label in labels], dtype=str)},
    )


def write_pseudo_labels(
    file: str | Path, pictures: Sequence[Path], found: Sequence[Detections], class_names: Sequence[str]
) -> None:
    """Write detections as the annotations of a COCO dataset, each with its score as an extra field.

    Pictures without a detection stay in as background. File names are relative to the folder of ``file``.

    Args:
        file: COCO JSON to write.
        pictures: paths.
        found: for each picture, the detections to take as truth: ``predict(…).above(score)``.
        class_names: in label order; category ids count from 1.
    """
    file = Path(file)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (path, detections) in enumerate(zip(pictures, found, strict=True), start=1):
        height, width = read_header(path).size_hw
        name = Path(os.path.relpath(path, file.parent)).as_posix()
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        boxes_xywh = boxes.xyxy_to_xywh(boxes.clip(detections.boxes_xyxy, (height, width))).tolist()
        for (x, y, w, h), score, label in zip(
            boxes_xywh, detections.scores.tolist(), detections.labels.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
