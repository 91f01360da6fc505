"""The verb ``detect`` on files, patterns and adapters with thresholds."""

import json
import sys

import pytest

from glip_adapt import attach, cli, load_dataset, load_trunk
from glip_adapt.cli import terminal

SMALL = ["--short-side", "64"]
CLASSES = ("--classes", "red box, blue box")


@pytest.fixture
def adapter(tmp_path):
    """An adapter that shows every red box and no blue one."""
    model = attach(load_trunk("glip-nano"), "prompt", classes=["red box", "blue box"])
    model.thresholds = {"red box": 0.0, "blue box": 1.0}
    model.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_thresholds_of_an_adapter_hold_unless_one_is_named(glip, adapter, coco_folder, tmp_path):
    detect = ("detect", coco_folder / "test" / "0.png", "--adapter", adapter, "--out", tmp_path / "found", "--json")
    for extra, expected in (((), {"red box": True, "blue box": False}), (("--threshold", "0"), {"red box": True})):
        code, out, err = glip(*detect, *extra, *SMALL)
        assert code == 0, err
        boxes = json.loads(out)[0]["detections"]
        assert {box["class"] for box in boxes} == {"red box", "blue box"}
        assert all(box["shown"] == expected.get(box["class"], True) for box in boxes)


def test_detect_writes_labels_in_every_form_and_says_where(glip, coco_folder, tmp_path):
    files = {"--as-coco": "boxes.json", "--as-csv": "boxes.csv", "--as-cvat": "boxes.xml", "--as-yolo": "yolo"}
    where = {option: tmp_path / name for option, name in files.items()}
    options = [part for pair in where.items() for part in pair]
    detect = ("detect", f"{coco_folder}/t*/*.png", *CLASSES, "--threshold", "0", "--out", tmp_path / "found")
    code, out, err = glip(*detect, *options, *SMALL)
    assert code == 0, err
    assert all(f"labels → {place}" in out for place in where.values())
    boxes = sum(len(json.loads(file.read_text())["detections"]) for file in (tmp_path / "found").rglob("*.json"))
    split = load_dataset(tmp_path / "yolo").train
    assert (len(split), sum(len(record.target) for record in split.records)) == (9, boxes)
    assert len((tmp_path / "boxes.csv").read_text().splitlines()) == boxes + 1
    assert len(json.loads((tmp_path / "boxes.json").read_text())["annotations"]) == boxes
    assert (tmp_path / "boxes.xml").read_text().count("<box ") == boxes
    code, _, err = glip(*detect, *options, *SMALL)
    assert (code, "Name a new folder" in err) == (1, True)


@pytest.mark.parametrize(
    ("named", "expected"), [("https://x.org/a.jpg", "is an address"), ("photos/*.jpg", "No image matches photos/*.jpg")]
)
def test_what_cannot_be_read_is_said_before_a_detector_is_loaded(glip, named, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = glip("detect", named, *CLASSES)
    assert (code, expected in err, "glip-nano" in err) == (1, True, False)


def test_results_alone_are_printed_on_standard_output(glip, coco_folder, tmp_path):
    (coco_folder / "photos" / "deeper").mkdir(parents=True)
    for name in ("a.png", "deeper/b.png"):
        (coco_folder / "photos" / name).write_bytes((coco_folder / "test" / "0.png").read_bytes())
    (coco_folder / "photos" / "broken.png").write_bytes(b"no image")
    detect = ("detect", coco_folder / "photos", *CLASSES, "--out", tmp_path / "found", *SMALL)
    code, out, err = glip(*detect, "--json")
    assert code == 1
    assert [set(result) >= {"schema", "image"} for result in json.loads(out)] == [True, True]
    assert all(said in err for said in ("1 lie in subfolders", "broken.png is not an image"))
    code, out, err = glip(*detect)
    assert "\n\n" not in err
    assert [line.partition(":")[0] for line in out.splitlines()[:-1]] == ["a.png"]
    assert out.splitlines()[-1].startswith("Peak memory")


def test_a_bar_is_shown_on_a_terminal_and_never_beside_json(coco_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", terminal.Console(width=300))
    monkeypatch.setattr(terminal, "stderr", terminal.Console(stderr=True, width=300, force_terminal=True))
    detect = ["glip-adapt", "detect", str(coco_folder / "test"), *CLASSES, "--out", str(tmp_path / "found"), *SMALL]
    for extra, is_shown in (([], True), (["--json"], False)):
        monkeypatch.setattr(sys, "argv", [*detect, *extra])
        with pytest.raises(SystemExit):
            cli.main()
        out, err = capsys.readouterr()
        assert ("3/3" in err) == is_shown
        assert "3/3" not in out


def test_detect_in_bfloat16_moves_boxes_a_little_and_refuses_what_it_does_not_know(glip, coco_folder, tmp_path):
    detect = ("detect", coco_folder / "test" / "0.png", *CLASSES, "--out", tmp_path / "found", "--json", *SMALL)
    found = {}
    for precision in ("float32", "bfloat16"):
        code, out, err = glip(*detect, "--precision", precision)
        assert code == 0, err
        found[precision] = json.loads(out)[0]["detections"][0]
    exact, half = found["float32"], found["bfloat16"]
    assert half["score"] != exact["score"]
    assert half["score"] == pytest.approx(exact["score"], abs=0.02)
    assert half["box_xyxy"] == pytest.approx(exact["box_xyxy"], abs=1)
    code, _, err = glip(*detect, "--precision", "half")
    assert (code, "bfloat16" in err) == (2, True)
