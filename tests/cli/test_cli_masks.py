"""Masks from the command line: ``detect --masks``, ``eval --masks`` and ``score --metric masks``."""

import json

import numpy as np
import pytest
from PIL import Image
from small_segmenters import save

from glip_adapt import Mask, attach, evaluate, load_dataset, load_segmenter, load_trunk
from glip_adapt.core.masks import read_rle
from glip_adapt.engine.metrics.masks import MASK_NAMES

SMALL = ("--short-side", "64")
CLASSES = ("--classes", "red box, blue box")


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return save("sam", tmp_path_factory.mktemp("segmenter") / "sam")


@pytest.fixture
def with_masks(coco_folder):
    """The dataset of ``coco_folder`` with the outline of each rectangle; return its folder."""
    for file in coco_folder.rglob("*.json"):
        document = json.loads(file.read_text())
        for entry in document["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        file.write_text(json.dumps(document))
    return coco_folder


def test_detect_cuts_out_what_it_shows(glip, sam, coco_folder, tmp_path):
    image = coco_folder / "test" / "0.png"
    detect = ("detect", image, *CLASSES, *SMALL, "--json")
    scores = [box["score"] for box in json.loads(glip(*detect, "--out", tmp_path / "first")[1])[0]["detections"]]
    detect += ("--threshold", sum(scores) / len(scores))
    assert glip(*detect, "--out", tmp_path / "boxes")[0] == 0
    labels = tmp_path / "labels.json"
    code, out, err = glip(*detect, "--out", tmp_path / "masks", "--masks", sam, "--as-coco", labels)
    assert code == 0, err
    boxes = json.loads(out)[0]["detections"]
    assert {box["shown"] for box in boxes} == {True, False}
    assert all(("segmentation" in box) == box["shown"] for box in boxes)
    assert json.loads((tmp_path / "masks" / "0.json").read_text())["detections"] == boxes
    rles = [read_rle(box["segmentation"], (64, 80)) for box in boxes if box["shown"]]
    written = json.loads(labels.read_text())["annotations"]
    assert [entry["segmentation"] for entry in written] == rles
    assert [entry["area"] for entry in written] == [Mask((64, 80), rle["counts"]).area for rle in rles]
    plain, drawn = (np.asarray(Image.open(tmp_path / name / "0.png")).astype(int) for name in ("boxes", "masks"))
    covered = np.any([Mask((64, 80), rle["counts"]).to_array() for rle in rles], axis=0)
    assert (plain != drawn).any(axis=2)[covered].mean() > 0.2  # the rest lies under lines and tags
    assert not (plain != drawn).any(axis=2)[~covered].any()


def test_eval_and_score_agree_on_masks(glip, sam, with_masks, tmp_path):
    found = tmp_path / "found.json"
    code, out, err = glip(
        "eval", with_masks, *SMALL, "--trunk", "glip-nano", "--masks", sam, "--predictions", found, "--json"
    )
    assert code == 0, err
    values = {row["metric"]: row["value"] for row in json.loads(out)}
    model = attach(load_trunk("glip-nano"), "zero_shot", classes=load_dataset(with_masks).classes)
    plain = {row["metric"]: row["value"] for row in json.loads(glip("eval", with_masks, *SMALL, "--json")[1])}
    assert {name: value for name, value in values.items() if name in plain} == plain
    truth = with_masks / "test" / "annotations_without_background.json"
    # the true masks as predictions: perfect
    document = json.loads(truth.read_text())
    entries = [
        entry | {"segmentation": read_rle(entry["segmentation"], (64, 80)), "score": 1}
        for entry in document["annotations"]
    ]
    (tmp_path / "true.json").write_text(json.dumps([{k: v for k, v in e.items() if k != "bbox"} for e in entries]))
    for file, expected in ((found, [values[name] for name in MASK_NAMES]), (tmp_path / "true.json", [1.0] * 3)):
        code, out, err = glip("score", file, truth, "--metric", "masks", "--json")
        assert code == 0, err
        assert [row["value"] for row in json.loads(out)][: len(expected)] == expected
    scored = evaluate(model, load_dataset(with_masks).test, segmenter=load_segmenter(sam))
    assert set(MASK_NAMES) < set(scored.values)
    assert all("segmentation" in entry for entry in scored.predictions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detect", "{data}/test/0.png", *CLASSES, "--masks", "absent"), "No folder at absent"),
        (("detect", "{data}/test/0.png", *CLASSES, "--masks", "{data}"), "No config.json in"),
        (("eval", "{data}", "--masks", "{sam}"), "Expected a `segmentation` of each annotation"),
        (("eval", "{yolo}", "--masks", "{sam}", "--split", "train"), "are read from a COCO file"),
        (("score", "{found}", "{truth}", "--metric", "masks"), "segmentation: run lengths"),
    ],
)  # fmt: skip
def test_bad_input_is_one_error(glip, sam, coco_folder, tmp_path, arguments, message):
    assert glip("data", "convert", coco_folder, "--to", "yolo", "--out", tmp_path / "yolo")[0] == 0
    (tmp_path / "found.json").write_text('[{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}]')
    places = {"data": coco_folder, "sam": sam, "yolo": tmp_path / "yolo", "found": tmp_path / "found.json"}
    places["truth"] = coco_folder / "test" / "annotations_without_background.json"
    code, out, err = glip(*(argument.format(**places) for argument in arguments))
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


def test_on_sentences_there_are_no_masks(glip):
    code, _, err = glip("eval", "flickr30k/test", "--masks", "owner/sam")
    assert (code, "is scored by recall of phrases" in err) == (2, True)
