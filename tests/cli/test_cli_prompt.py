"""The verbs below ``prompt``; their tables are shown in test_cli.py."""

import json
import shutil

import pytest

from glip_adapt.engine import prompting


def test_wordings_may_be_longer_than_the_name_of_a_file(glip, coco_folder, monkeypatch):
    wordings, seen = [f"a {{}} in scene number {i}" for i in range(200)], []

    def search_prompts(trunk, data, candidates, **_):
        seen.extend(candidates)
        raise ValueError("seen enough")

    monkeypatch.setattr(prompting, "search_prompts", search_prompts)
    _, _, err = glip("prompt", "search", coco_folder, "--candidates", ";".join(wordings))
    assert "seen enough" in err
    assert seen == wordings


def test_a_file_of_wordings_that_is_no_text_is_named(glip, coco_folder, tmp_path):
    (tmp_path / "wordings.txt").write_bytes(b"a {}\n\xff{}\n")
    code, _, err = glip("prompt", "search", coco_folder, "--candidates", tmp_path / "wordings.txt")
    assert code == 1
    assert "wordings.txt: byte 5 is not UTF-8" in err


def test_descriptions_of_a_file_are_tried_like_wordings(glip, coco_folder, tmp_path):
    file = tmp_path / "knowledge.yaml"
    file.write_text("red box: {wiki: a box of fire, wordnet: A box.}\nblue box: {wiki: null, wordnet: A box.}\n")
    code, out, err = glip("prompt", "search", coco_folder, "--knowledge", file, "--candidates", "a {}", "--json")
    assert code == 0, err
    captions = {row["wording"]: row["caption"] for row in json.loads(out)}
    assert captions["wiki"] == "red box: a box of fire. blue box"
    assert captions["wordnet"] == "red box: A box. blue box: A box"
    assert captions["a {}"] == "a red box. a blue box"


def test_without_val_and_test_the_images_of_train_choose(glip, coco_folder):
    for split in ("valid", "test"):
        shutil.rmtree(coco_folder / split)
    code, out, err = glip("prompt", "search", coco_folder, "--candidates", "a {}", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["split"] for row in rows] == ["train"] * (len(rows) - 1) + ["train, held out"]
    assert 0 <= rows[-1]["ap"] <= 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "Invalid value for --candidates: name wordings, or"),
        (("--knowledge", "absent.yaml"), 1, "No file of descriptions at absent.yaml"),
    ],
)
def test_nothing_to_try_is_one_error(glip, coco_folder, options, code, message):
    got, _, err = glip("prompt", "search", coco_folder, *options)
    assert (got, message in " ".join(err.split())) == (code, True)
