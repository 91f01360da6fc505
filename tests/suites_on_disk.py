"""Small evaluation suites in the official layout."""

import json

from PIL import Image

LVIS_CLASSES = ({"id": 3, "name": "red_box", "frequency": "f"}, {"id": 7, "name": "blue_box", "frequency": "r"})
PEOPLE = "[/EN#1/people A man] with [/EN#2/animals a dog] on [/EN#3/scene a hill] .\n"


def write_coco(root, size=(60, 40)):
    """Two images of COCO val2017: a person (id 1) on one, a toothbrush (id 90) on the other."""
    boxes = [(1, 1, [5, 5, 20, 20]), (2, 90, [10, 10, 30, 20])]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": size[1], "width": size[0]} for n in (1, 2)]
    for entry in images:
        picture(root / "coco" / "val2017" / entry["file_name"], size)
    write(root, "instances_val2017", images, boxes, [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}])


def write_lvis(root, name="lvis_v1_minival", categories=LVIS_CLASSES, size=(60, 40)):
    """Two images of LVIS with addresses instead of file names: one of each part of COCO."""
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/1.jpg", "neg_category_ids": [7]},
        {"id": 2, "coco_url": "http://images.cocodataset.org/train2017/2.jpg", "neg_category_ids": []},
    ]
    for entry in images:
        entry |= {"height": size[1], "width": size[0], "not_exhaustive_category_ids": [3] * (entry["id"] - 1)}
        picture(root / "coco" / "/".join(entry["coco_url"].split("/")[-2:]), size)
    write(root, name, images, [(1, 3, [5, 5, 20, 20]), (2, 7, [10, 10, 30, 20])], list(categories))


def write_flickr30k(root, split="val", sentences=PEOPLE + "[/EN#2/animals A dog] sleeps .\n"):
    """One image with two sentences; the hill has no box."""
    folder = root / "flickr30k" / "flickr30k"
    objects = "".join(
        f"<object><name>{chain}</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>{x + 20}</xmax><ymax>30</ymax>"
        "</bndbox></object>"
        for chain, x in ((1, 5), (2, 30), (2, 35))
    )
    size = "<size><width>60</width><height>40</height></size>"
    for name, text in (
        (f"{split}.txt", "7\n"),
        ("Annotations/7.xml", f"<annotation>{size}{objects}</annotation>"),
        ("Sentences/7.txt", sentences),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    picture(root / "flickr30k" / "flickr30k_images" / split / "7.jpg", (60, 40))


def write(root, name, images, boxes, categories):
    annotations = [
        {"id": n, "image_id": image_id, "category_id": key, "bbox": box, "area": box[2] * box[3]}
        for n, (image_id, key, box) in enumerate(boxes, start=1)
    ]
    file = root / "coco" / "annotations" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def picture(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 90).convert("RGB").save(path)
