"""Labelling a folder: what is written, what is left out, and going on after a kill."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from glip_adapt import load_captions, load_dataset
from glip_adapt.core.errors import UnknownNameError
from glip_adapt.core.sentences import sentence_caption
from glip_adapt.core.settings import ViewConfig
from glip_adapt.engine.adapted import adapt, attach
from glip_adapt.share import looking
from glip_adapt.share.looking import pictures_of
from glip_adapt.share.pseudo_labelling import pseudo_label

VIEW = ViewConfig(short_side=64)
SENTENCE = "[a red box] next to [the blue box]"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (80, 60), (60 * number, 90, 20)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def zero_shot(tiny_trunk):
    return attach(tiny_trunk, "zero_shot", classes=["red box", "blue box"])


def label(model, pictures, out, **options):
    return pseudo_label(model, pictures, out, **{"threshold": 0.0, "view": VIEW, **options})


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_classes_become_a_dataset_with_a_page(zero_shot, pictures, tmp_path, format):
    done = label(zero_shot, pictures, tmp_path / "out", format=format)
    data = load_dataset(tmp_path / "out")
    assert data.format == format
    assert set(data.classes) == set(done.boxes) <= {"red box", "blue box"}
    assert len(data.train) == done.labelled == 3
    assert sum(len(data.train.annotations_of(r)) for r in data.train.records) == sum(done.boxes.values())
    page = done.page.read_text()
    assert f"{sum(done.boxes.values())} pseudo-labels" in page
    assert page.count("<img") == 3
    assert not (tmp_path / "out.found.jsonl").exists()


def test_coco_keeps_scores_which_are_read_again(zero_shot, pictures, tmp_path):
    label(zero_shot, pictures, tmp_path / "out")
    record = load_dataset(tmp_path / "out").train.records[0]
    scores = [a.score for a in record.annotations]
    assert all(0 < score < 1 for score in scores)
    assert record.target.weights.tolist() == pytest.approx(scores)


def test_sentences_become_captions_that_train(tiny_trunk, pictures, tmp_path):
    sentence = sentence_caption(SENTENCE)
    done = pseudo_label(
        adapt(tiny_trunk, "zero_shot"), [(p, SENTENCE) for p in pictures], tmp_path / "out",
        threshold=0.0, view=VIEW,
    )  # fmt: skip
    captions = load_captions(done.captions)
    assert {image.record.path.parent for image in captions.images} == {tmp_path / "out" / "images"}
    assert {image.caption.text for image in captions.images} == {sentence.text}
    assert {*captions.images[0].caption.names} <= {"a red box", "the blue box"}
    assert captions.images[0].record.target.weights is not None
    as_classes = pseudo_label(
        adapt(tiny_trunk, "zero_shot"), [(p, SENTENCE) for p in pictures], tmp_path / "boxes",
        threshold=0.0, view=VIEW, format="coco",
    )  # fmt: skip
    assert {*as_classes.boxes} <= {"red box", "blue box"}
    twice = [(p, text) for p in pictures for text in (SENTENCE, "[Red box] and [blue box]")]
    again = pseudo_label(
        adapt(tiny_trunk, "zero_shot"), twice, tmp_path / "twice", threshold=0.0, view=VIEW, format="coco"
    )
    train = load_dataset(again.folder).train
    for record in train.records:  # of several sentences about one object, the best phrase stays
        edges = torch.tensor([a.bbox_xywh for a in train.annotations_of(record)]).reshape(-1, 4)
        edges[:, 2:] += edges[:, :2]
        assert (box_iou(edges, edges).fill_diagonal_(0) <= 0.7 + 1e-4).all()


def test_images_labelled_by_hand_stay_and_tell_the_classes(zero_shot, pictures, tmp_path, coco_folder):
    hand = load_dataset(coco_folder).train
    done = label(zero_shot, pictures, tmp_path / "out", labelled=hand)
    train = load_dataset(tmp_path / "out").train
    assert len(train) == done.labelled == len(hand) + 3
    by_hand = [r for r in train.records if all(a.score == 1 for a in train.annotations_of(r))]
    assert len(by_hand) == len(hand)
    with pytest.raises(ValueError, match="the labelled images show owl"):
        label(zero_shot, pictures, tmp_path / "other", labelled=replace(hand, classes=("owl", "ant")))


def test_a_killed_call_goes_on_and_one_of_another_detector_is_refused(tiny_trunk, zero_shot, pictures, tmp_path):
    seen, whole = [], label(zero_shot, pictures, tmp_path / "whole")

    def killed(done, total):
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(zero_shot, pictures, tmp_path / "out", on_picture=killed)
    kept = tmp_path / "out.found.jsonl"
    assert len(kept.read_text().splitlines()) == 3  # what it belongs to, and two pictures
    with kept.open("a") as file:
        file.write('["half a li')
    other = attach(tiny_trunk, "zero_shot", classes=["tree"])
    with pytest.raises(FileExistsError, match=r"another detector.*remove the file"):
        label(other, pictures, tmp_path / "out")

    def count(*arguments, **options):
        seen.append("looked")
        return looked(*arguments, **options)

    looked, seen[:] = looking.found_in, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looking, "found_in", count)
        assert label(zero_shot, pictures, tmp_path / "out").boxes == whole.boxes
    assert seen == ["looked"]


def test_what_cannot_be_read_or_has_no_label_is_told(zero_shot, pictures, tmp_path):
    bad = pictures[0].with_name("bad.png")
    bad.write_text("no image")
    done = label(zero_shot, [bad, *pictures], tmp_path / "out")
    assert [text[:19] for text in done.left_out] == ["bad.png is left out"]
    with pytest.raises(ValueError, match=r"Nothing in 3 pictures reaches the threshold.*what was found is kept in"):
        label(zero_shot, pictures, tmp_path / "none", threshold=1.0)
    assert not (tmp_path / "none").exists()
    assert label(zero_shot, pictures, tmp_path / "none").labelled == 3


def test_an_image_that_was_replaced_is_looked_at_again(zero_shot, pictures, tmp_path):
    whole = pictures[0].read_bytes()
    pictures[0].write_text("no image")
    with pytest.raises(ValueError, match="reaches the threshold"):
        label(zero_shot, pictures, tmp_path / "out", threshold=1.0)
    pictures[0].write_bytes(whole)
    done = label(zero_shot, [*pictures, pictures[0]], tmp_path / "out")
    assert (done.labelled, done.left_out) == (3, ())


def test_bad_calls_are_one_error(tiny_trunk, zero_shot, pictures, tmp_path):
    with pytest.raises(ValueError, match="no image to label"):
        label(zero_shot, [], tmp_path / "out")
    with pytest.raises(ValueError, match="odvg holds sentences"):
        label(zero_shot, pictures, tmp_path / "out", format="odvg")
    with pytest.raises(UnknownNameError, match="yolo"):
        label(zero_shot, pictures, tmp_path / "out", format="yoolo")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        label(zero_shot, pictures, pictures[0].parent)
    with pytest.raises(ValueError, match="need a detector for classes"):
        label(adapt(tiny_trunk, "zero_shot"), pictures, tmp_path / "out")
    with pytest.raises(ValueError, match="in two calls"):
        label(zero_shot, [pictures[0], (pictures[1], SENTENCE)], tmp_path / "out")
    assert not (tmp_path / "out.found.jsonl").exists()


def test_sentences_without_phrases_are_left_out_unless_none_has_one(pictures):
    nothing = lambda sentence: [(word, "VB") for word in sentence.split()]  # noqa: E731
    found, reasons = pictures_of([(pictures[0], SENTENCE), (pictures[1], "runs fast")], nothing)
    assert [picture.path for picture in found] == pictures[:1]
    assert "no noun phrase" in reasons[0]
    with pytest.raises(ValueError, match=r"None of 1 sentence can be read.*no noun phrase"):
        pictures_of([(pictures[1], "runs fast")], nothing)


def test_the_verb_reads_text_beside_images_and_says_what_is_missing(glip, pictures, tmp_path):
    folder, out = pictures[0].parent, tmp_path / "out"
    code, _, err = glip("pseudo-label", folder, "--trunk", "glip-nano")
    assert code == 1
    assert "Nothing tells what to look for" in err
    for path in pictures[:2]:
        path.with_suffix(".txt").write_text(SENTENCE + "\n")
    options = ("--threshold", "0", "--trunk", "glip-nano", "--short-side", "64", "--out", out, "--json")
    code, text, err = glip("pseudo-label", folder, *options)
    assert code == 0, err
    found = json.loads(text)
    assert found["format"] == "odvg"
    assert found["pictures"] == 2
    assert load_captions(out / "captions.jsonl")
    code, _, err = glip("pseudo-label", tmp_path / "nowhere", "--classes", "dog")
    assert "There is no folder" in err
    (tmp_path / "empty").mkdir()
    code, _, err = glip("pseudo-label", tmp_path / "empty", "--classes", "dog", "--trunk", "glip-nano")
    assert code == 1
    assert "no image to label" in err
    code, _, err = glip("pseudo-label", folder, "--captions", tmp_path / "no.jsonl")
    assert code == 1
    assert "There is no file" in err
    code, _, err = glip("pseudo-label", folder, "--captions", "a.csv", "--classes", "dog")
    assert code == 2
