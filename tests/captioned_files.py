"""Files of captioned datasets, entry by entry."""

import json

from PIL import Image

SENTENCE = "A man with a dog ."


def write_pictures(folder):
    """Write 1.jpg, 2.jpg and sub/3.jpg of 40 × 30 pixels into the folder images of a folder; return that folder."""
    for name in ("1.jpg", "2.jpg", "sub/3.jpg"):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    return folder


def write_flickr(folder, sentences, objects="", size="<size><width>40</width><height>30</height></size>", ids="1\n"):
    for name in ("Annotations", "Sentences"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "Annotations" / "1.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "Sentences" / "1.txt").write_text(sentences)
    (folder / "train.txt").write_text(ids)
    return folder / "train.txt"


def xml(chain, *corners):
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{chain}</name><bndbox>{sides}</bndbox></object>"


def mdetr(images, annotations):
    return json.dumps({"images": images, "annotations": annotations, "categories": []})


def entry(**changes):
    return {"id": 7, "file_name": "1.jpg", "height": 30, "width": 40, "caption": SENTENCE} | changes


def positive(spans=((0, 5),), bbox=(1, 2, 10, 20), **changes):
    return {"id": 1, "image_id": 7, "bbox": list(bbox), "tokens_positive": [list(s) for s in spans]} | changes


def line(name="1.jpg", **content):
    return json.dumps({"filename": name, "height": 30, "width": 40, **content}) + "\n"


def grounded(*regions, caption=SENTENCE, name="1.jpg"):
    return line(name, grounding={"caption": caption, "regions": list(regions)})


def detected(*named, name="1.jpg"):
    instances = [{"bbox": box, "label": label, "category": category} for label, category, box in named]
    return line(name, detection={"instances": instances})


DETECTED = (
    detected((3, "traffic_light", [1, 2, 11, 22]), (0, "owl", [0, 0, 9, 9]), (3, "Traffic light", [5, 5, 9, 9]))
    + detected(name="2.jpg")
    + grounded({"phrase": "man", "bbox": [0, 0, 5, 5]})
    + detected((1, "ant", [0, 0, 9, 9]), name="sub/3.jpg")
)
