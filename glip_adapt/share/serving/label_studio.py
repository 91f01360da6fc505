"""The ML backend that Label Studio asks for pre-annotations: its labelling configuration and predictions.

Requests and answers are those of label-studio-ml (github.com/HumanSignal/label-studio-ml-backend): ``/setup`` with the
configuration as ``schema``; ``/predict`` with ``tasks`` and ``label_config``, answered by ``results``, one for each.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as Defused

from glip_adapt.core.boxes import edges_to_xywh
from glip_adapt.data.formats.label_studio import percent_of
from glip_adapt.share.serving.service import Seen
from glip_adapt.share.serving.uploads import RefusedError


@dataclass(frozen=True, kw_only=True)
class Control:
    """The tag of a labelling configuration that takes boxes.

    Attributes:
        from_name: of the tag.
        to_name: of the image that it labels.
        field: of the data of a task, with the reference to the image.
        labels: class name in lower case → label; empty if any is taken.
    """

    from_name: str
    to_name: str
    field: str
    labels: Mapping[str, str]

    def label_of(self, class_name: str) -> str | None:
        """Return the label of a class; None if the configuration has none for it."""
        return self.labels.get(class_name.lower()) if self.labels else class_name

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise RefusedError, 422, unless the configuration has a label for one of the classes."""
        if not any(map(self.label_of, class_names)):
            raise RefusedError(
                422,
                f"The task finds {', '.join(class_names)}, but the labelling configuration has the labels "
                f"{', '.join(self.labels.values())}. Give a label the name of a class.",
            )


def read_config(text: Any) -> Control:
    """Return the tag for boxes of a labelling configuration.

    Raises:
        RefusedError: 422 if it is not valid XML, or has no such tag with its image.
    """
    try:
        root = Defused.fromstring(text)
    except (ParseError, DefusedXmlException, TypeError, ValueError, RecursionError) as error:
        raise RefusedError(422, f"The labelling configuration is not valid XML ({error}).") from None
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for tag in root.iter("RectangleLabels"):
        if (image := images.get(tag.get("toName"), "")).startswith("$") and tag.get("name"):
            values = [value for label in tag.iter("Label") if (value := label.get("value"))]
            labels = {value.lower(): value for value in values}
            return Control(from_name=tag.get("name"), to_name=tag.get("toName"), field=image[1:], labels=labels)
    raise RefusedError(
        422, 'Expected a labelling configuration with <Image name="image" value="$image"/> and RectangleLabels for it.'
    )


def reference_of(task: Any, control: Control) -> str:
    """Return what a task of Label Studio says of its image.

    Raises:
        RefusedError: 422 if it says nothing.
    """
    data = task.get("data") if isinstance(task, dict) else None
    reference = data.get(control.field) if isinstance(data, dict) else None
    if not isinstance(reference, str) or not reference:
        raise RefusedError(422, f"Expected the text {control.field!r} in the data of a task, got {reprlib.repr(data)}.")
    return reference


def prediction(seen: Seen, control: Control, threshold: float | None = None) -> dict[str, Any]:
    """Return the boxes that the configuration has labels for as a prediction of Label Studio."""
    found, (height, width) = seen.above(threshold), seen.size_hw
    limit = found.boxes_xyxy.new_tensor((width, height, width, height))
    boxes_xywh = edges_to_xywh(found.boxes_xyxy.clamp(min=0).minimum(limit)).tolist()
    common: dict[str, Any] = {"from_name": control.from_name, "to_name": control.to_name, "type": "rectanglelabels"}
    common |= {"original_width": width, "original_height": height, "image_rotation": 0}
    results = [
        common
        | {"id": str(number), "score": score, "value": percent_of(box, width, height) | {"rectanglelabels": [label]}}
        for number, (box, score, place) in enumerate(
            zip(boxes_xywh, found.scores.tolist(), found.labels.tolist(), strict=True), start=1
        )
        if (label := control.label_of(found.class_names[place])) is not None
    ]
    scores = [result["score"] for result in results]
    return {
        "result": results,
        "score": sum(scores) / len(scores) if scores else 0.0,
        "model_version": seen.task.version,
    }


def nothing(version: str) -> dict[str, Any]:
    """Return the prediction of an image that cannot be read."""
    return {"result": [], "score": 0.0, "model_version": version}
