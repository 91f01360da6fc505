"""The verbs below ``prompt``; their tables are shown in test_cli.py."""

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
