"""The verbs on public evaluation suites."""

import json

import pytest
from suites_on_disk import write_coco, write_flickr30k, write_lvis

from glip_adapt.engine.scored_files import score_phrases

NANO = ["--trunk", "glip-nano", "--short-side", "64", "--device", "cpu"]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLIP_ADAPT_DATA", raising=False)
    return tmp_path


def values_of(out):
    return {row["metric"]: row["value"] for row in json.loads(out)}


def test_eval_scores_lvis_by_fixed_ap_unless_another_is_asked_for(glip, root):
    write_lvis(root)
    code, out, err = glip("eval", "lvis/minival", *NANO, "--json", "--names-per-caption", "1")
    assert code == 0, err
    assert {"ap_rare", "ap_common", "ap_frequent"} < values_of(out).keys()
    code, out, err = glip("eval", "lvis/minival", *NANO, "--json", "--metric", "coco")
    assert code == 0, err
    assert "ap_rare" not in values_of(out)


def test_eval_refuses_what_does_not_fit(glip, root, coco_folder):
    write_flickr30k(root)
    code, _, err = glip("eval", coco_folder, *NANO, "--metric", "fixed_ap")
    assert (code, "Expected a `frequency` of each class" in err) == (1, True)
    code, _, err = glip("eval", coco_folder, "--adapter", "somewhere", "--names-per-caption", "2")
    assert (code, "an adapter brings its captions" in err) == (2, True)
    code, _, err = glip("eval", "flickr30k/val", *NANO, "--metric", "coco")
    assert (code, "scored by recall of phrases" in err) == (2, True)


def test_eval_scores_phrases_of_flickr30k_and_score_reads_what_it_wrote(glip, root):
    write_flickr30k(root)
    code, out, err = glip("eval", "flickr30k/val", *NANO, "--json", "--predictions", root / "grounded.json")
    assert code == 0, err
    rows = {(row["boxes"], row["phrases"]): row for row in json.loads(out)}
    assert set(rows) == {(boxes, kind) for boxes in ("any", "merged") for kind in ("all", "people", "animals")}
    again = score_phrases(root / "grounded.json", root / "flickr30k" / "flickr30k" / "val.txt")
    assert again["any"]["animals"].items() <= rows["any", "animals"].items()


def test_check_and_ls_know_the_suites(glip, root):
    write_coco(root)
    code, out, _ = glip("data", "check", "coco", "--json")
    assert code == 0
    assert json.loads(out)["known"] == "coco/val2017"
    code, out, _ = glip("ls", "datasets", "--json")
    rows = {row["dataset"]: row for row in json.loads(out)}
    assert len(rows) == 35 + 5 + 13
    assert (rows["lvis/val"]["classes"], rows["lvis/val"]["test"], rows["coco/val2017"]["classes"]) == (1203, 19809, 80)
    assert (rows["flickr30k/test"]["classes"], rows["flickr30k/test"]["val"]) == (None, None)


def test_published_values_stand_below_those_of_zero_shot(glip, root, monkeypatch):
    write_lvis(root)
    monkeypatch.setattr("glip_adapt.bench.report.published.published_sentence", lambda *of: f"PUBLISHED {of}")
    code, out, err = glip("eval", "lvis/minival", *NANO)
    assert code == 0, err
    assert out.rstrip().endswith("PUBLISHED ('glip-nano', 'lvis_minival')")
