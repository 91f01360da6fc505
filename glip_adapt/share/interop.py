"""Convert detections for other tools: ``supervision``, and COCO files with pseudo-labels."""

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


def to_supervision(detections: Detections) -> supervision.Detections:
    """Return detections as ``supervision.Detections``: boxes, scores, labels, and ``data["class_name"]``.

    Args:
        detections: of one image, from ``model.predict``.

    Raises:
        ModuleNotFoundError: if supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to_supervision needs supervision: pip install 'glip-adapt[supervision]'.") from error
    labels = detections.labels.numpy()
    return supervision.Detections(
        xyxy=detections.boxes_xyxy.numpy().copy(),
        confidence=detections.scores.numpy(),
        class_id=labels,
        data={"class_name": np.array([detections.class_names[label] for label in labels], dtype=str)},
    )


def write_pseudo_labels(
    file: str | Path, images: Sequence[Path], found: Sequence[Detections], class_names: Sequence[str]
) -> None:
    """Write detections as the annotations of a COCO dataset, each with its score as an extra field.

    Images without a detection stay in as background. File names are relative to the folder of ``file``.

    Args:
        file: COCO JSON to write.
        images: paths.
        found: for each image, the detections to take as truth: ``model.predict(…, threshold=score)``.
        class_names: in label order; category ids count from 1.
    """
    file = Path(file)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (path, detections) in enumerate(zip(images, found, strict=True), start=1):
        height, width = read_header(path).size_hw
        name = Path(os.path.relpath(path, file.parent)).as_posix()
        entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
        limit = detections.boxes_xyxy.new_tensor((width, height, width, height))
        boxes_xywh = boxes.edges_to_xywh(detections.boxes_xyxy.clamp(min=0).minimum(limit)).tolist()
        scores, labels = detections.scores.tolist(), detections.labels.tolist()
        for (x, y, w, h), score, label in zip(boxes_xywh, scores, labels, strict=True):
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "score": score}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, **box})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    document = {"images": entries, "annotations": annotations, "categories": categories}
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
