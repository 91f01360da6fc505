"""Tasks as Label Studio exports them."""

import json

from PIL import Image

from glip_adapt.data.formats import label_studio


def region(labels=("dog",), kind="rectanglelabels", number=0, **value):
    """Return a region on an image of 200 × 100 pixels; by default of 20 × 30 pixels at (10, 20)."""
    value = value or {"x": 5, "y": 20, "width": 10, "height": 30, "rotation": 0}
    result = {"id": f"r{number}", "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0}
    return result | {"original_width": 200, "original_height": 100, "value": value | {kind: list(labels)}}


def task(*regions, image="a.png", **changes):
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(regions)}], "predictions": []} | changes


def put_image(folder, name="a.png", size=(200, 100)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / name)


def read(folder, *tasks, name="export.json"):
    """Return the only split of an export with these tasks."""
    (folder / name).write_text(json.dumps(tasks), encoding="utf-8")
    (split,) = label_studio.read(folder).values()
    return split
