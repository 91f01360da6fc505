"""The verb ``score`` on files: LVIS AP and recall of phrases, and one error for each bad input."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import load_benchmark
from typer.testing import CliRunner

from glip_adapt.cli.app import app
from glip_adapt.engine.scored_files import score_detections, score_phrases

EXTRA = Path(__file__).resolve().parents[1] / "parity" / "extra"
LVIS, FLICKR = (json.loads((EXTRA / f"{name}.json").read_text()) for name in ("lvis_ap", "flickr_recall"))


@pytest.fixture(scope="module")
def parity():
    yield from load_benchmark("parity_scores")


@pytest.fixture
def lvis(tmp_path):
    """Write the golden predictions and truth, changed by a function; return both files."""

    def write(change=lambda predictions, truth: None):
        predictions = [
            {"image_id": p["image_id"], "category_id": label, "bbox": [x, y, right - x, bottom - y], "score": score}
            for p in LVIS["predictions"]
            for (x, y, right, bottom), score, label in zip(p["boxes"], p["scores"], p["labels"], strict=True)
        ]
        truth = json.loads(json.dumps(LVIS["ground_truth"]))
        change(predictions, truth)
        (tmp_path / "found.json").write_text(json.dumps(predictions))
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        return tmp_path / "found.json", tmp_path / "truth.json"

    return write


def score(*arguments):
    done = CliRunner().invoke(app, ["score", *map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("metric", "golden"), [("fixed_ap", "fixed_ap"), ("lvis_ap", "standard_ap")])
def test_lvis_ap_of_files(lvis, metric, golden):
    rows = {row["metric"]: row["value"] for row in score(*lvis(), "--metric", metric)}
    expected = LVIS["results"][golden]
    assert rows["ap"] == pytest.approx(expected["results"]["AP"], abs=1e-9)
    assert rows["ap_rare"] == pytest.approx(expected["results"]["APr"], abs=1e-9)
    assert rows["ap of class_1"] == pytest.approx(expected["per_class_ap"][0], abs=1e-9)


def test_recall_of_files(tmp_path, parity):
    split_file = parity.write_entities(FLICKR, tmp_path)
    (tmp_path / "found.json").write_text(json.dumps(FLICKR["predictions"]))
    rows = {
        (row["boxes"], row["phrases"]): row for row in score(tmp_path / "found.json", split_file, "--metric=recall")
    }
    expected = FLICKR["results"]["merged_boxes"]["report"]
    assert rows["merged", "people"]["r5"] == pytest.approx(expected["5"]["people"])
    assert rows["any", "all"]["upper_bound"] == pytest.approx(FLICKR["results"]["any_box"]["report"]["-1"]["all"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, truth: truth["categories"][2].pop("frequency"), r"truth\.json: Expected a `frequency` of each"),
        (lambda found, truth: found[4].update(image_id=999), r"found\.json: entry 4 has image_id 999, which .*truth"),
        (lambda found, truth: found[4].update(category_id=999), r"found\.json: entry 4 has category_id 999, which"),
        (lambda found, truth: truth.pop("annotations"), r"truth\.json"),
    ],
)
def test_a_bad_lvis_input_is_one_error(lvis, change, message):
    with pytest.raises(ValueError, match=message):
        score_detections(*lvis(change), "fixed_ap")


def test_truncated_or_missing_files_are_named(lvis):
    found, truth = lvis()
    found.write_bytes(found.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"found\.json: malformed JSON"):
        score_detections(found, truth, "fixed_ap")
    found.unlink()
    with pytest.raises(FileNotFoundError, match=r"No predictions at .*found\.json"):
        score_detections(found, truth, "lvis_ap")


@pytest.mark.parametrize(
    "entry", [3, {"image_id": 1, "sentence_id": 0}, {"image_id": 1, "sentence_id": 0, "boxes": [[3]]}]
)
def test_an_entry_that_is_no_grounded_sentence_is_named(tmp_path, parity, entry):
    split_file = parity.write_entities(FLICKR, tmp_path)
    (tmp_path / "found.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match=r"found\.json: entry 0 is .*Expected a JSON list of {image_id, sentence_id"):
        score_phrases(tmp_path / "found.json", split_file)


def test_eval_of_a_split_that_a_folder_lacks_names_those_that_it_has(glip, coco_folder):
    shutil.rmtree(coco_folder / "test")
    code, _, err = glip("eval", coco_folder)
    assert code == 1
    assert "has no split test, only train, val. Score one of these with --split." in err
