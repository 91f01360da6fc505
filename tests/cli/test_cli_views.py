"""The options of ``detect`` and ``eval`` for several views of an image."""

import json

import pytest

SMALL = ["--short-side", "64"]
CLASSES = ("--classes", "red box, blue box")


def test_detect_looks_at_each_image_in_the_views_that_are_asked_for(glip, coco_folder, tmp_path):
    found = {}
    for name, views in (("one", ()), ("more", ("--sizes", "64, 96", "--flip")), ("tiles", ("--tile", "40"))):
        out = tmp_path / name
        code, said, err = glip(
            "detect", coco_folder / "test" / "0.png", *CLASSES, *views, "--out", out, "--json", *SMALL
        )
        assert code == 0, err
        found[name] = json.loads(said)[0]["detections"]
    assert len({json.dumps(boxes) for boxes in found.values()}) == 3
    assert max(box["score"] for box in found["more"]) != max(box["score"] for box in found["one"])


def test_eval_scores_what_the_views_find(glip, coco_folder, tmp_path):
    ap = []
    for views in ((), ("--flip", "--tile", "40", "--overlap", "0.5")):
        code, said, err = glip("eval", coco_folder, *views, "--trunk", "glip-nano", "--json", *SMALL)
        assert code == 0, err
        ap.append(json.loads(said)[0]["value"])
    assert ap[0] != ap[1]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (("--sizes", "64, x"), "expected whole numbers from 32"),
        (("--sizes", "16"), "expected whole numbers from 32"),
        (("--tile", "8"), "32"),
        (("--overlap", "1"), "0.9"),
    ],
)
@pytest.mark.parametrize("verb", ["detect", "eval"])
def test_views_that_make_no_sense_are_wrong_usage(glip, coco_folder, wrong, expected, verb):
    code, _, err = glip(verb, coco_folder, *wrong)
    assert (code, expected in " ".join(err.split())) == (2, True)
